"""`obol pay` as a program that is started again: what an earlier run left open is presented, and pays once."""

import asyncio
import json
import os
import signal
import stat
from pathlib import Path

import pytest

from obol.cli.exit_codes import ExitCode
from obol.core.offer import SettlementPolicy
from obol.x402.models import SettleResponse
from tests.cli.conftest import Run, start
from tests.cli.program import Ended, obol, started
from tests.fakes.facilitator import Ok, SettleThenHang
from tests.fakes.model_server import Behaviour
from tests.fakes.seller import TRANSACTION, Answer, Challenge, Drop, FakeSeller, Hang
from tests.gateway.shop import PRICE_ATOMIC, Shop

CHAT = "/v1/chat/completions"
ASK = ("--model", "m", "--prompt", "hi")
OTHER = ("--model", "m", "--prompt", "bye")
OWED = Answer(502, SettleResponse(success=True, transaction=TRANSACTION, network="eip155:84532"))
UNKNOWN = Answer(
    503, SettleResponse(success=False, transaction="", network="eip155:84532", error_reason="settlement_pending")
)
PRESENTING = "presenting the payment of 0.001 USDC"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def key(key_file: Path, data_dir: Path) -> tuple[str, ...]:
    return ("--key-file", str(key_file), "--data-dir", str(data_dir))


def kept(data_dir: Path) -> list[Path]:
    folder = data_dir / "payments"
    return sorted(folder.iterdir()) if folder.exists() else []


def nonces(seller: FakeSeller) -> int:
    return len({seen.nonce for seen in seller.paid})


async def test_an_unknown_settlement_gets_its_answer_from_the_real_gateway_and_is_paid_once(tmp_path: Path) -> None:
    async with Shop(
        tmp_path,
        facilitator=True,
        retry_schedule_s=(0.01,),
        settlement=SettlementPolicy.BEFORE,
        verify_timeout_s=0.5,
        settle_timeout_s=0.5,
    ) as shop:
        shop.signer.write_key_file(tmp_path / "key")
        data_dir = tmp_path / "share" / "obol"

        async def pay() -> Ended:
            ask = ("--model", "tiny", "--prompt", "hi", "--key-file", str(tmp_path / "key"))
            return await obol("pay", shop.url + CHAT, *ask, environ={"XDG_DATA_HOME": str(tmp_path / "share")})

        shop.facilitator.behaviour = SettleThenHang()
        first = await pay()
        assert (first.code, first.json["reason"]) == (ExitCode.REFUSED, "settlement_unknown")
        (path,) = kept(data_dir)
        assert f"kept in {path}: the same command presents this payment again" in first.err

        meanwhile = await pay()
        assert (meanwhile.code, meanwhile.json["reason"]) == (ExitCode.REFUSED, "payment_in_use")
        assert "presenting the payment of 0.01 USDC" in meanwhile.err
        assert kept(data_dir) == [path]

        shop.facilitator.behaviour = Ok()
        shop.facilitator.release.set()
        await shop.until_states("owed")
        served = await pay()
        assert (served.code, served.json["object"]) == (ExitCode.OK, "chat.completion")
        assert "paid 0.01 USDC" in served.err
        assert kept(data_dir) == []
        assert [row["state"] for row in await shop.ledger_rows()] == ["settled"]
        assert (len(await shop.transfers()), await shop.earned_atomic()) == (1, PRICE_ATOMIC)

        assert (await pay()).code == ExitCode.OK
        assert await shop.earned_atomic() == 2 * PRICE_ATOMIC


async def test_a_killed_run_leaves_what_the_real_gateway_owes_to_the_next(tmp_path: Path) -> None:
    async with Shop(tmp_path, settlement=SettlementPolicy.BEFORE) as shop:
        shop.signer.write_key_file(tmp_path / "key")
        where = ("--key-file", str(tmp_path / "key"), "--data-dir", str(tmp_path / "buyer"))
        command = ("pay", shop.url + CHAT, "--model", "tiny", "--prompt", "hi", *where)
        head = asyncio.Event()
        shop.upstream.script = [Behaviour(hold_before_head=head)]

        async with started(*command) as program:
            await shop.until_states("redeeming")
            program.terminate(signal.SIGKILL)
            assert (await program.ended()).code == -signal.SIGKILL
        head.set()
        await shop.until_finished()
        assert len(kept(tmp_path / "buyer")) == 1

        served = await obol(*command)
        assert (served.code, served.json["object"]) == (ExitCode.OK, "chat.completion")
        assert "presenting" in served.err
        assert kept(tmp_path / "buyer") == []
        assert (len(await shop.transfers()), await shop.states()) == (1, ["settled"])


def test_a_killed_run_left_the_payment_for_the_next(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    seller.then(Hang())
    with start("pay", seller.url + CHAT, *ASK, *key) as process:
        seller.arrived.wait()
        (path,) = kept(data_dir)
        process.kill()
        process.wait()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    result = run("pay", seller.url + CHAT, *ASK, *key)

    assert result.exit_code == ExitCode.OK
    assert PRESENTING in result.stderr
    assert (nonces(seller), len(seller.paid), kept(data_dir)) == (1, 2, [])


def test_an_interrupted_answer_is_not_bought_again_unasked(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    with start("pay", seller.url + CHAT, *ASK, "--stream", *key) as process:
        assert process.stdout is not None
        os.read(process.stdout.fileno(), 65536)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
    assert process.returncode == ExitCode.INTERRUPTED
    assert b"kept in" in err
    assert len(kept(data_dir)) == 1

    again = run("pay", seller.url + CHAT, *ASK, "--stream", *key)
    assert (again.exit_code, nonces(seller), kept(data_dir)) == (ExitCode.PAYMENT, 1, [])
    assert "used before" in again.stderr
    assert "The same command pays anew" in again.stderr


@pytest.mark.parametrize("left", [OWED, UNKNOWN, Answer(500), Answer(409), Answer(429), Answer(503)], ids=str)
def test_what_was_left_open_is_presented_with_the_same_request_only(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path, left: Answer
) -> None:
    seller.then(left)
    first = run("pay", seller.url + CHAT, *ASK, *key)
    assert (first.exit_code, len(kept(data_dir))) == (ExitCode.REFUSED, 1)
    assert "the same command presents this payment again" in first.stderr

    other = run("pay", seller.url + CHAT, *OTHER, *key)
    assert (other.exit_code, nonces(seller), len(kept(data_dir))) == (ExitCode.OK, 2, 1)
    assert PRESENTING not in other.stderr

    same = run("pay", seller.url + CHAT, *ASK, *key)
    assert (same.exit_code, nonces(seller), kept(data_dir)) == (ExitCode.OK, 2, [])
    assert PRESENTING in same.stderr


def test_a_lost_answer_that_stays_lost_is_had_by_the_next_run(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    seller.then(Drop(), Drop(), Drop(), Drop())
    lost = run("pay", seller.url + CHAT, *ASK, *key, "--json")
    record = json.loads(next(line for line in lost.stderr.splitlines() if line.startswith("{")))
    assert (lost.exit_code, record["kept"]) == (ExitCode.CONNECTION, str(kept(data_dir)[0]))

    again = run("pay", seller.url + CHAT, *ASK, *key, "--json")
    assert again.exit_code == ExitCode.CONNECTION

    result = run("pay", seller.url + CHAT, *ASK, *key)
    assert (result.exit_code, nonces(seller), kept(data_dir)) == (ExitCode.OK, 1, [])


def test_a_refusal_ends_it_and_says_so(run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path) -> None:
    seller.then(UNKNOWN, Challenge("insufficient_funds"))
    run("pay", seller.url + CHAT, *ASK, *key)

    refused = run("pay", seller.url + CHAT, *ASK, *key)
    assert (refused.exit_code, nonces(seller), kept(data_dir)) == (ExitCode.PAYMENT, 1, [])
    assert "not known" in refused.stderr
    assert "The same command pays anew" in refused.stderr


def test_a_new_payment_is_signed_on_demand_with_a_warning(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    assert "WARNING" not in run("pay", seller.url + CHAT, *ASK, *key, "--new-payment").stderr
    seller.then(UNKNOWN)
    run("pay", seller.url + CHAT, *ASK, *key)

    result = run("pay", seller.url + CHAT, *ASK, *key, "--new-payment")
    assert (result.exit_code, nonces(seller), len(kept(data_dir))) == (ExitCode.OK, 3, 1)
    assert "WARNING: a payment of 0.001 USDC" in result.stderr
    assert "both may be paid" in result.stderr


def test_two_at_once_share_no_payment(run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path) -> None:
    seller.then(UNKNOWN, Hang())
    run("pay", seller.url + CHAT, *ASK, *key)
    seller.arrived.clear()

    with start("pay", seller.url + CHAT, *ASK, *key) as process:
        seller.arrived.wait()
        other = run("pay", seller.url + CHAT, *ASK, *key)
        seller.release()
        _, err = process.communicate()

    assert (other.exit_code, process.returncode) == (ExitCode.OK, ExitCode.OK)
    left, presented, signed = (seen.nonce for seen in seller.paid)
    assert left == presented != signed
    assert PRESENTING.encode() in err
    assert PRESENTING not in other.stderr
    assert kept(data_dir) == []


def test_a_kept_payment_above_the_limit_is_not_presented(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    seller.then(UNKNOWN)
    run("pay", seller.url + CHAT, *ASK, *key)

    result = run("pay", seller.url + CHAT, *ASK, *key, "--max-price", "0.0009")
    assert (result.exit_code, len(seller.paid), len(kept(data_dir))) == (ExitCode.BUDGET, 1, 1)


def test_where_nothing_can_be_kept_nothing_is_paid(
    run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path
) -> None:
    data_dir.mkdir()
    (data_dir / "payments").write_text("in the way")

    result = run("pay", seller.url + CHAT, *ASK, *key)
    assert (result.exit_code, seller.paid) == (ExitCode.USAGE, [])
    assert "--data-dir" in result.stderr


def test_the_payload_is_never_printed(run: Run, seller: FakeSeller, key: tuple[str, ...], data_dir: Path) -> None:
    seller.then(UNKNOWN)
    first = run("pay", seller.url + CHAT, *ASK, *key, "-i")
    (secret,) = json.loads(kept(data_dir)[0].read_bytes().splitlines()[0])["headers"].values()
    second = run("pay", seller.url + CHAT, *ASK, *key, "-i", "--json")

    assert secret not in first.output + second.output


def test_help_names_the_place(run: Run) -> None:
    text = " ".join(run("pay", "--help").stdout.split())
    assert "DIR/payments (0600" in text
    assert "--new-payment" in text
