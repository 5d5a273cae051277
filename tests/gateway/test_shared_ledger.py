"""Several gateways on one PostgreSQL ledger: one payment buys one answer, whoever it is shown to."""

import asyncio
import secrets
from collections import Counter
from collections.abc import Mapping

import aiohttp
import pytest
import structlog

from obol import Gateway
from obol.adapters.clock import SystemClock
from obol.adapters.metrics import Metrics
from obol.adapters.postgres_connections import Waits
from obol.core.ledger import EVERY_SALE, Claimed, Redeeming
from obol.core.networks import DEFAULT_CATALOGUE
from obol.core.offer import SettlementPolicy
from obol.core.payment import State
from obol.errors import LedgerUnavailableError
from obol.gateway.ledgers import open_shared_ledger
from obol.gateway.ports import Ports
from obol.gateway.settling import Settler
from tests.adapters.postgres_ledgers import opened, standby_away
from tests.adapters.sales import a_key, a_new_sale, claimed_in
from tests.cli.program import obol
from tests.fakes.clock import FakeClock
from tests.fakes.facilitator import MakeBelieve
from tests.gateway.fixtures import MakeShop
from tests.gateway.shop import CHAT, PATIENCE_S, PRICE_ATOMIC, Shop, chat
from tests.postgres import Postgres


async def test_one_payment_shown_to_two_gateways_at_once_is_served_once(make_shop: MakeShop, database_url: str) -> None:
    shop = await make_shop(facilitator=True, ledger_url=database_url)
    async with Gateway(shop.config) as other:
        payment = shop.payment()
        asked = [post_to(shop, url, payment) for url in (shop.url, other.url) * 10]
        statuses = Counter(await asyncio.gather(*asked))
        assert statuses == {200: 1, 409: 19}
        assert len(shop.upstream.calls) == 1
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_what_one_gateway_owes_another_serves(make_shop: MakeShop, database_url: str) -> None:
    shop = await make_shop(facilitator=True, ledger_url=database_url, settlement=SettlementPolicy.BEFORE)
    async with Gateway(shop.config) as other:
        await shop.upstream.stop()
        answer = await shop.pay(chat())
        assert answer.status >= 500
        await shop.upstream.start()
        status = 0
        async with asyncio.timeout(20):
            while status != 200:
                status = await post_to(shop, other.url, answer.payment)
                await asyncio.sleep(0.05)
    assert await shop.earned_atomic() == PRICE_ATOMIC


async def test_the_tools_read_a_shared_ledger(make_shop: MakeShop, database_url: str) -> None:
    shop = await make_shop(facilitator=True, ledger_url=database_url)
    assert (await shop.pay(chat())).status == 200
    await shop.stop()
    ledger = await open_shared_ledger(database_url, SystemClock())
    (sale,) = (await ledger.page(EVERY_SALE)).sales
    await ledger.close()
    told = await obol("receipts", "show", sale.id, "--ledger-env", "LEDGER", "--json", environ={"LEDGER": database_url})
    assert (told.code, sale.id in told.out) == (0, True), told.err
    checked = await obol("ledger", "check", "--ledger-env", "LEDGER", environ={"LEDGER": database_url})
    assert checked.code == 0, checked.err


@pytest.mark.parametrize("is_owed", [False, True])
async def test_a_claim_that_is_committed_late_is_released_when_it_is(
    database_url: str, postgres: Postgres, is_owed: bool
) -> None:
    """Commits wait for a standby that is away; the buyer was told 503 long ago."""
    async with opened(database_url, Waits(work_s=0.3, lock_s=0.1)) as ledger:
        log = structlog.wrap_logger(None, processors=[drop])
        ports = Ports(ledger, MakeBelieve(), FakeClock(), secrets.token_bytes, Metrics(), log, DEFAULT_CATALOGUE)
        settler = Settler(ports, (0.01,))
        key = a_key()
        if is_owed:
            await claimed_in(ledger, State.OWED, key)
        new = a_new_sale(key)
        async with standby_away(postgres):
            with pytest.raises(LedgerUnavailableError):
                await ledger.claim(new)
            await settler.release(new, "ledger_unavailable")
        await settler.drain(PATIENCE_S)

        assert isinstance(await ledger.claim(a_new_sale(key)), Redeeming if is_owed else Claimed)


def drop(_logger: object, _method: str, _event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    raise structlog.DropEvent


async def post_to(shop: Shop, url: str, headers: Mapping[str, str]) -> int:
    """The status that a gateway answers a payment with."""
    async with aiohttp.ClientSession() as http, http.post(url + CHAT, json=chat(), headers=headers) as answer:
        await answer.read()
        return answer.status
