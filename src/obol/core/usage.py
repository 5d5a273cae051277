"""Token usage of one answer as the upstream reported it; unknown is None, never zero."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Input and output tokens; None where the upstream did not say."""

    input_tokens: int | None = None
    output_tokens: int | None = None


UNKNOWN_USAGE = Usage()
