"""Which authorization made a transfer, by the logs of one transaction."""

from collections.abc import Sequence

from obol.adapters.chain_evm import LOG_RANGE_BLOCKS, Log, address_topic
from obol.adapters.evm_authorizations import MOST_PAYERS, with_authorizations
from obol.adapters.witness_evm import AUTHORIZATION_USED
from obol.core.transfer import Transfer

TOKEN = "0x" + "70" * 20
SELLER = "0x" + "5e" * 20
ONE, TWO = "0x" + "01" * 20, "0x" + "02" * 20
TRANSACTION = "0x" + "aa" * 32


def nonce(number: int) -> str:
    return f"0x{number:064x}"


def moved(log_index: int, payer: str = ONE, *, block: int = 7, transaction: str = TRANSACTION) -> Transfer:
    return Transfer(transaction, log_index, block, payer, SELLER, 1000)


def used(log_index: int, number: int, payer: str = ONE, *, block: int = 7, transaction: str = TRANSACTION) -> Log:
    topics = (AUTHORIZATION_USED, address_topic(payer), nonce(number))
    return Log(TOKEN, topics, b"", block, transaction, log_index)


class Chain:
    """Gives the logs that are asked for, and counts the questions."""

    def __init__(self, *logs: Log) -> None:
        self._logs = logs
        self.asked: list[tuple[int, int, int]] = []

    async def logs(
        self, address: str, topics: Sequence[str | Sequence[str] | None], from_block: int, to_block: int
    ) -> list[Log]:
        assert (address, topics[0]) == (TOKEN, AUTHORIZATION_USED)
        payers = topics[1] or ()
        self.asked.append((from_block, to_block, len(payers)))
        return [log for log in self._logs if from_block <= log.block <= to_block and log.topics[1] in payers]


async def nonces(chain: Chain, *transfers: Transfer) -> list[str | None]:
    return [one.nonce for one in await with_authorizations(chain, TOKEN, transfers)]


async def test_a_transfer_has_the_nonce_that_was_used_right_before_it() -> None:
    chain = Chain(used(0, 11), used(2, 12), used(4, 13, TWO))

    assert await nonces(chain, moved(1), moved(3), moved(5, TWO)) == [nonce(11), nonce(12), nonce(13)]


async def test_what_was_sent_by_itself_has_none() -> None:
    assert await nonces(Chain(used(0, 11, transaction="0x" + "bb" * 32)), moved(1)) == [""]


async def test_the_authorization_of_another_payer_made_no_transfer_of_this_one() -> None:
    assert await nonces(Chain(used(0, 11, TWO)), moved(1, ONE), moved(3, TWO)) == ["", None]


async def test_whether_an_authorization_that_was_used_elsewhere_made_it_is_not_known() -> None:
    """It may have paid somebody else, and the transfer be another; or a token of another make logs more in between."""
    assert await nonces(Chain(used(0, 11), used(4, 12)), moved(3), moved(5)) == [None, nonce(12)]


async def test_what_is_far_apart_or_of_many_payers_is_asked_for_in_pieces() -> None:
    payers = [f"0x{number:040x}" for number in range(MOST_PAYERS + 1)]
    near = [moved(0, payer, block=1, transaction=f"0x{n:064x}") for n, payer in enumerate(payers)]
    far = [moved(0, block=LOG_RANGE_BLOCKS + 1), moved(0, block=10 * LOG_RANGE_BLOCKS)]
    chain = Chain()

    assert len(await nonces(chain, *far, *near)) == len(near) + 2
    assert chain.asked == [
        (1, 1, MOST_PAYERS),
        (1, 1, 1),
        (LOG_RANGE_BLOCKS + 1, LOG_RANGE_BLOCKS + 1, 1),
        (10 * LOG_RANGE_BLOCKS, 10 * LOG_RANGE_BLOCKS, 1),
    ]


async def test_what_one_transaction_moved_is_asked_for_at_once() -> None:
    payers = [f"0x{number:040x}" for number in range(MOST_PAYERS + 1)]
    chain = Chain()
    await nonces(chain, *(moved(number, payer) for number, payer in enumerate(payers)))

    assert chain.asked == [(7, 7, MOST_PAYERS + 1)]


async def test_without_transfers_nothing_is_asked() -> None:
    chain = Chain()

    assert await nonces(chain) == []
    assert chain.asked == []
