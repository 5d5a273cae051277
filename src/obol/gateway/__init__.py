"""The seller's gateway: one x402-paid reverse proxy in front of an inference server."""
