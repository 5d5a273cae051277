"""The x402 payment protocol: bytes to types and back, matching, and verification. No I/O; no clock."""
