"""The facilitator: verifies and settles x402 payments over HTTP."""
