import pytest

from obol.cli.exit_codes import EXIT_CODES, ExitCode, exit_code
from obol.errors import BudgetExceededError, ObolError, SettingsError, UpstreamError


def leaves(kind: type[ObolError]) -> set[type[ObolError]]:
    below = [sub for sub in kind.__subclasses__() if sub.__module__ == ObolError.__module__]
    return {kind} if not below else set().union(*(leaves(sub) for sub in below))


def test_the_table_holds_every_leaf_of_the_error_tree_and_nothing_else() -> None:
    assert set(EXIT_CODES) == leaves(ObolError)


@pytest.mark.parametrize("code", [ExitCode.OK, ExitCode.INTERRUPTED, ExitCode.BROKEN_PIPE])
def test_no_error_ends_as_something_that_is_none(code: ExitCode) -> None:
    assert code not in EXIT_CODES.values()


def test_an_error_has_the_code_of_its_nearest_class() -> None:
    class SpecialError(BudgetExceededError):
        pass

    assert exit_code(SpecialError("x")) is ExitCode.BUDGET
    assert exit_code(SettingsError("--x", "y")) is ExitCode.USAGE
    assert exit_code(UpstreamError("x")) is ExitCode.BUG
