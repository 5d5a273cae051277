import errno
import socket

import pytest

from obol.adapters.listening import why_not


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.EADDRINUSE, "error while attempting to bind on address ('::1', 1): in use"),
            "Address already in use",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (OSError("no number"), "OSError"),
    ],
)
def test_it_is_said_once_and_in_the_systems_words(error: OSError, said: str) -> None:
    assert why_not(error) == said
