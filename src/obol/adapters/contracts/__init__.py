"""Contracts of our own that are deployed by who runs a facilitator: compiled, with what is needed to call them."""
