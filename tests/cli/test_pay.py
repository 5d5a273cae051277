"""`obol pay` against a seller on a real port: in this process, and as a program where streams and signals matter."""

import json
import os
import stat
from pathlib import Path

import httpx2
import pytest

from obol.buyer import payment_auth
from obol.cli.exit_codes import ExitCode
from obol.cli.pay import DEFAULT_MAX_PRICE
from obol.cli.pay_quote import refused_words
from obol.core.networks import BASE_SEPOLIA, DEFAULT_CATALOGUE
from obol.x402.models import SettleResponse
from tests.cli.conftest import Run, start
from tests.fakes.seller import (
    PAY_TO,
    TRANSACTION,
    USDC,
    WORDS,
    Answer,
    Challenge,
    Drop,
    FakeSeller,
    Hang,
    Serve,
    requirements,
)

CHAT = "/v1/chat/completions"
ASK = ("--model", "m", "--prompt", "hi")


@pytest.fixture
def key(key_file: Path, tmp_path: Path) -> tuple[str, ...]:
    return ("--key-file", str(key_file), "--data-dir", str(tmp_path / "data"))


def test_a_request_is_paid_its_answer_printed_and_its_receipt_told(
    run: Run, seller: FakeSeller, key: tuple[str, ...]
) -> None:
    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert result.exit_code == ExitCode.OK
    assert json.loads(result.stdout)["choices"][0]["message"]["content"] == "".join(WORDS)
    assert f"paid 0.001 USDC on base-sepolia to {PAY_TO}" in result.stderr
    assert TRANSACTION in result.stderr
    assert f"{seller.url}/receipts/sale-1" in result.stderr
    assert json.loads(seller.bodies[0]) == {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_a_stream_is_shown_while_the_seller_still_holds_the_rest(seller: FakeSeller, key: tuple[str, ...]) -> None:
    with start("pay", seller.url + CHAT, *ASK, "--stream", *key) as process:
        assert process.stdout is not None
        first = os.read(process.stdout.fileno(), 65536)
        seller.release()
        rest, err = process.communicate()

    assert WORDS[0].encode() in first
    assert WORDS[1].encode() not in first
    assert rest.endswith(b"data: [DONE]\n\n")
    assert b"paid 0.001 USDC" in err
    assert process.returncode == ExitCode.OK


def test_text_is_only_the_words(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    seller.release()

    streamed = run("pay", seller.url + CHAT, *ASK, "--stream", "--text", *key)
    plain = run("pay", seller.url + CHAT, *ASK, "--text", *key)

    assert [streamed.stdout, plain.stdout] == ["".join(WORDS) + "\n"] * 2


def test_head_and_bytes_are_shown_on_demand(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    result = run("pay", seller.url + CHAT, *ASK, "-i", *key)

    head, _, body = result.stdout.replace("\r\n", "\n").partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK")
    assert "payment-response: " in head.lower()
    assert json.loads(body)["object"] == "chat.completion"


def test_the_receipt_is_had_as_json(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    result = run("pay", seller.url + CHAT, *ASK, "--json", *key)

    receipt = json.loads(result.stderr)
    assert (receipt["status"], receipt["amount_atomic"], receipt["transaction"]) == ("paid", "1000", TRANSACTION)


def test_a_transaction_that_comes_later_is_waited_for(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    seller.then(Serve(settled=False))
    seller.receipt_tries = 2

    result = run("pay", seller.url + CHAT, *ASK, "--json", *key)

    receipt = json.loads(result.stderr)
    assert (receipt["transaction"], receipt["state"]) == (TRANSACTION, "settled")


def test_a_transaction_that_does_not_come_soon_is_named_by_its_receipt(
    run: Run, seller: FakeSeller, key: tuple[str, ...]
) -> None:
    seller.then(Serve(settled=False))
    seller.receipt_tries = 1000

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert f"settles later: {seller.url}/receipts/sale-1" in result.stderr


def test_a_receipt_elsewhere_is_not_asked_for(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    with FakeSeller() as other:
        settled = SettleResponse(success=True, transaction="", network="eip155:84532")
        seller.then(Answer(200, settled, {"X-Obol-Receipt": other.url + "/receipts/x"}))
        before = other.receipt_tries

        run("pay", seller.url + CHAT, *ASK, *key)

        assert other.receipt_tries == before


@pytest.mark.parametrize("price", ["0.000999", "0.0001"])
def test_a_price_above_the_limit_is_refused_with_both_amounts(
    run: Run, seller: FakeSeller, key: tuple[str, ...], price: str
) -> None:
    result = run("pay", seller.url + CHAT, *ASK, "--max-price", price, *key)

    assert (result.exit_code, result.stdout, seller.paid) == (ExitCode.BUDGET, "", [])
    assert "0.001 USDC" in result.stderr
    assert price in result.stderr


def test_a_dry_run_quotes_and_pays_nothing_and_needs_no_key(run: Run, seller: FakeSeller) -> None:
    result = run("pay", seller.url + CHAT, *ASK, "--dry-run")

    quote = json.loads(result.stdout)
    assert (result.exit_code, seller.paid) == (ExitCode.OK, [])
    assert {name: quote[name] for name in ("amount", "asset", "network", "pay_to", "valid_s", "max_price")} == {
        "amount": "0.001",
        "asset": "USDC",
        "network": "base-sepolia",
        "pay_to": PAY_TO,
        "valid_s": 300,
        "max_price": "0.10",
    }


def test_a_dry_run_says_when_the_quote_is_above_the_limit(run: Run, seller: FakeSeller) -> None:
    result = run("pay", seller.url + CHAT, *ASK, "--dry-run", "--max-price", "0.0001")

    assert (result.exit_code, json.loads(result.stdout)["is_within_limit"]) == (ExitCode.OK, False)


def test_a_dry_run_of_what_is_free_says_so(run: Run, seller: FakeSeller) -> None:
    result = run("pay", seller.url + "/free", "--dry-run")

    assert result.exit_code == ExitCode.OK
    assert "asks for no payment" in result.stderr


def test_a_dry_run_of_a_refusal_gives_the_sellers_words() -> None:
    def answer(body: object) -> str:
        return refused_words(httpx2.Response(404, json=body))

    assert answer({"error": {"message": "no\nsuch model"}}) == "no quote: the seller answered 404: no such model"
    strange: list[object] = [{"error": "no"}, {"error": {"message": 3}}, [], None]
    for body in strange:
        assert answer(body) == "no quote: the seller answered 404"


def test_a_v1_seller_is_quoted_and_paid(run: Run, key: tuple[str, ...]) -> None:
    with FakeSeller(generation="v1") as seller:
        assert json.loads(run("pay", seller.url + CHAT, *ASK, "--dry-run").stdout)["x402_version"] == 1
        assert run("pay", seller.url + CHAT, *ASK, *key).exit_code == ExitCode.OK


def test_what_is_free_is_printed_and_nothing_paid(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    result = run("pay", seller.url + "/free", *key)

    assert (result.exit_code, json.loads(result.stdout), result.stderr) == (ExitCode.OK, {"free": True}, "")


def test_a_refused_payment_ends_in_7_with_the_reason(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    seller.then(Challenge("insufficient_funds"))

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert (result.exit_code, len(seller.paid)) == (ExitCode.PAYMENT, 1)
    assert "insufficient_funds" in result.stderr
    assert "not paid" in result.stderr


@pytest.mark.parametrize(
    ("error", "rpc", "is_hinted"),
    [
        ("permit2_allowance_required", "", True),
        ("permit2_allowance_required", "http://127.0.0.1:1", False),
        ("insufficient_funds", "", None),
    ],
)
def test_where_an_allowance_is_missing_it_is_said_what_an_rpc_would_do(
    run: Run, key: tuple[str, ...], error: str, rpc: str, is_hinted: bool | None
) -> None:
    with FakeSeller(asset=DEFAULT_CATALOGUE.asset(BASE_SEPOLIA, "obol"), price_atomic=10**16) as seller:
        seller.then(Challenge(error))
        result = run("pay", seller.url + CHAT, *ASK, *key, "--rpc", rpc)

    assert (result.exit_code, len(seller.paid)) == (ExitCode.PAYMENT, 1)
    assert ("give --rpc URL" in result.stderr) == bool(is_hinted)
    assert ("approve(" in result.stderr) == (is_hinted is not None)


@pytest.mark.parametrize("rpc", ["http://rpc.example", "http://127.0.0.1:1,nonsense"])
def test_an_rpc_that_may_not_be_used_is_refused_before_anything_is_sent(
    run: Run, seller: FakeSeller, key: tuple[str, ...], rpc: str
) -> None:
    result = run("pay", seller.url + CHAT, *ASK, *key, "--rpc", rpc)

    assert (result.exit_code, seller.unpaid) == (ExitCode.USAGE, [])
    assert "--rpc: must be" in result.stderr


def test_an_asset_that_cannot_be_signed_ends_in_7(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    seller.generation = "v2-body"
    seller.requirements = requirements(USDC, 1000, pay_to="nobody")

    assert run("pay", seller.url + CHAT, *ASK, *key).exit_code == ExitCode.PAYMENT


def test_the_default_limit_is_that_of_the_library() -> None:
    assert DEFAULT_MAX_PRICE == payment_auth.DEFAULT_MAX_PRICE


def test_a_402_that_is_not_x402_ends_in_4(run: Run, key: tuple[str, ...]) -> None:
    with FakeSeller(generation="none") as seller:
        assert run("pay", seller.url + CHAT, *ASK, *key).exit_code == ExitCode.REFUSED


@pytest.mark.parametrize("status", [400, 409, 429, 500, 503])
def test_another_error_of_the_seller_is_printed_and_ends_in_4(
    run: Run, seller: FakeSeller, key: tuple[str, ...], status: int
) -> None:
    seller.then(Answer(status))

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert (result.exit_code, json.loads(result.stdout)) == (ExitCode.REFUSED, {"error": {"message": "no"}})
    assert f"answered {status}" in result.stderr


def test_nothing_at_that_path_ends_in_5(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    assert run("pay", seller.url + "/missing", *key).exit_code == ExitCode.NOT_FOUND
    assert run("pay", seller.url + "/missing", "--dry-run").exit_code == ExitCode.NOT_FOUND


def test_nobody_there_ends_in_3(run: Run, key: tuple[str, ...]) -> None:
    with FakeSeller() as gone:
        url = gone.url

    result = run("pay", url, *key)

    assert (result.exit_code, result.stdout) == (ExitCode.CONNECTION, "")


def test_a_lost_answer_is_asked_for_again_with_the_same_payment(
    run: Run, seller: FakeSeller, key: tuple[str, ...]
) -> None:
    seller.then(Drop())

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert result.exit_code == ExitCode.OK
    assert (len(seller.paid), len({seen.nonce for seen in seller.paid})) == (2, 1)


def test_an_answer_that_stays_lost_ends_in_3_and_an_unknown_payment(
    run: Run, seller: FakeSeller, key: tuple[str, ...]
) -> None:
    seller.then(Drop(), Drop(), Drop())

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert (result.exit_code, len({seen.nonce for seen in seller.paid})) == (ExitCode.CONNECTION, 1)
    assert "not known" in result.stderr


def test_silence_ends_by_the_timeout(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    seller.then(Hang())

    result = run("pay", seller.url + CHAT, *ASK, "--timeout", "0.2", *key)

    assert result.exit_code == ExitCode.CONNECTION
    assert "--timeout" in result.stderr


def test_without_a_key_it_is_said_how_to_get_one(run: Run, seller: FakeSeller) -> None:
    result = run("pay", seller.url + CHAT, *ASK)

    assert (result.exit_code, seller.unpaid) == (ExitCode.USAGE, [])
    assert "wallet new" in result.stderr


def test_a_key_file_that_others_can_read_is_refused(run: Run, seller: FakeSeller, key_file: Path) -> None:
    key_file.chmod(stat.S_IRUSR | stat.S_IROTH)

    result = run("pay", seller.url + CHAT, *ASK, "--key-file", str(key_file), "--data-dir", str(key_file.parent))

    assert result.exit_code == ExitCode.USAGE
    assert "chmod" in result.stderr


def test_the_key_is_never_printed(run: Run, seller: FakeSeller, key_file: Path) -> None:
    where = ("--key-file", str(key_file), "--data-dir", str(key_file.parent))
    result = run("pay", seller.url + CHAT, *ASK, "-i", "--json", *where)

    assert key_file.read_text().strip() not in result.output


@pytest.mark.parametrize("source", ["text", "file", "stdin"])
def test_the_body_comes_from_text_a_file_or_stdin(
    run: Run, seller: FakeSeller, key: tuple[str, ...], tmp_path: Path, source: str
) -> None:
    body = '{"a": "ü"}'
    (tmp_path / "body").write_text(body, encoding="utf-8")
    data = {"text": body, "file": f"@{tmp_path / 'body'}", "stdin": "-"}[source]

    run("pay", seller.url + CHAT, "-d", data, *key, stdin=body)

    assert seller.bodies == [body.encode()]


def test_the_model_is_put_into_a_json_body(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    run("pay", seller.url + CHAT, "-d", '{"model": "other", "n": 1}', "--model", "m", *key)

    assert json.loads(seller.bodies[0]) == {"model": "m", "n": 1}


def test_method_and_headers_are_the_callers(run: Run, seller: FakeSeller, key: tuple[str, ...]) -> None:
    run("pay", seller.url + "/v1/x", "-X", "GET", "-H", "Authorization: Bearer sk", *key)

    assert [seen.authorization for seen in seller.paid] == ["Bearer sk"]


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--prompt", "hi"), "--prompt"),
        (("--prompt", "hi", "--model", "m", "-d", "{}"), "--prompt"),
        (("--model", "m"), "--model"),
        (("--model", "m", "-d", "[]"), "--model"),
        (("--model", "m", "-d", "not json"), "--model"),
        (("-d", "@/nowhere/at/all"), "-d"),
        (("-H", "no colon"), "-H"),
        (("-H", "X: a\nY: b"), "-H"),
        ((*ASK, "--max-price", "0,01"), "--max-price: '0,01'"),
        ((*ASK, "--timeout", "0"), "--timeout"),
    ],
    ids=str,
)
def test_contradictions_and_nonsense_are_refused_before_anything_is_sent(
    run: Run, seller: FakeSeller, key: tuple[str, ...], arguments: tuple[str, ...], flag: str
) -> None:
    result = run("pay", seller.url + CHAT, *arguments, *key)

    assert (result.exit_code, seller.unpaid) == (ExitCode.USAGE, [])
    assert flag in result.stderr


@pytest.mark.parametrize("url", ["localhost:8402", "ftp://x", "file:///etc/passwd", ""])
def test_an_address_that_is_not_http_is_refused(run: Run, key: tuple[str, ...], url: str) -> None:
    assert run("pay", url, *key).exit_code == ExitCode.USAGE
