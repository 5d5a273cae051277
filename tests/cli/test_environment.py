import pytest

from obol.cli.environment import secret
from obol.errors import SettingsError


def test_a_secret_is_what_the_variable_holds() -> None:
    assert secret({"KEY": "s3cret"}, "--upstream-auth-env", "KEY") == "s3cret"


@pytest.mark.parametrize("given", ["postgresql://obol:s3cret@db/obol", "s3cret", "", "UNSET", "EMPTY"])
def test_what_is_no_variable_is_refused_and_not_said_again(given: str) -> None:
    with pytest.raises(SettingsError) as caught:
        secret({"EMPTY": ""}, "--ledger-env", given)
    assert caught.value.field == "--ledger-env"
    assert not given or given not in str(caught.value)
