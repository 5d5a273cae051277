"""The inference APIs: which paths, what a request asks for, what an answer reports. No I/O."""
