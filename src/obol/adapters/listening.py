"""Why an address cannot be listened on, in words."""

import os
import socket


def why_not(error: OSError) -> str:
    """What the system says. asyncio's own text says the address again, as a Python tuple."""
    if isinstance(error, socket.gaierror) or error.errno is None:  # its number is not one of the system's
        return error.strerror or type(error).__name__
    return os.strerror(error.errno)
