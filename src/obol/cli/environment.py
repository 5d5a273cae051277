"""Values that commands take from environment variables, because arguments can be read by everybody on the machine."""

from collections.abc import Mapping

from obol.errors import SettingsError


def secret(environ: Mapping[str, str], flag: str, variable: str) -> str:
    """What the variable that `flag` names holds. Raises `SettingsError` naming the flag.

    What was given is never said again: it may be the secret itself, where its variable's name belongs.
    """
    value = environ.get(variable, "")
    if value:
        return value
    raise SettingsError(
        flag, "names an environment variable that is not set, or is empty: give its name, not its value"
    )
