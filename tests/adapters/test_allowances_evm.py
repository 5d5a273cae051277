import pytest

from obol.adapters.allowances_evm import EvmAllowances
from obol.adapters.signer_local import LocalSigner
from obol.core.networks import BASE, DEFAULT_CATALOGUE
from obol.errors import ChainUnavailableError, SettingsError
from tests.evm.anvil import Anvil
from tests.evm.contracts import DEPLOYER, OBOL, allow_permit2, call, place_obol
from tests.fakes.rpc import Drops, Errors, Fails, FakeRpc, Says

PAYER = LocalSigner(bytes([1] * 32)).address


async def test_allowance_and_nonce_are_the_tokens(anvil: Anvil) -> None:
    await place_obol(anvil)
    allowances = EvmAllowances([anvil.url])
    assert await allowances.permit2_allowance(OBOL, PAYER) == 0
    assert await allowances.permit_nonce(OBOL, PAYER.lower()) == 0
    await allow_permit2(anvil, PAYER, 123)
    await anvil.send(OBOL.address, call("approve(address,uint256)", DEPLOYER, 456), sender=PAYER)
    assert await allowances.permit2_allowance(OBOL, PAYER.lower()) == 123


async def test_the_next_node_is_asked_while_one_does_not_answer(anvil: Anvil) -> None:
    await place_obol(anvil)
    async with FakeRpc(anvil.url) as rpc:
        rpc.behaviours["*"] = Drops()
        assert await EvmAllowances([rpc.url, anvil.url]).permit2_allowance(OBOL, PAYER) == 0


async def test_what_has_no_nonces_takes_no_permits(anvil: Anvil) -> None:
    allowances = EvmAllowances([anvil.url])
    assert await allowances.permit_nonce(OBOL, PAYER) is None  # there is nothing
    await anvil.place("X402ExactPermit2Proxy", OBOL.address)  # which has no such function
    assert await allowances.permit_nonce(OBOL, PAYER) is None


async def test_what_is_no_token_has_no_allowance_of_zero(anvil: Anvil) -> None:
    with pytest.raises(ChainUnavailableError, match="does not answer like one"):
        await EvmAllowances([anvil.url]).permit2_allowance(OBOL, PAYER)


@pytest.mark.parametrize(
    "failure",
    [
        Fails(),
        Drops(),
        Errors(-32601, "no such method"),
        Says(lambda _: None),
        Says(lambda _: "0xzz"),
        Says(lambda _: 7),
    ],
)
async def test_what_nobody_can_tell_is_not_known(anvil: Anvil, failure: Fails | Drops | Errors | Says) -> None:
    await place_obol(anvil)
    async with FakeRpc(anvil.url) as rpc:
        rpc.behaviours["eth_call"] = failure
        for asking in (EvmAllowances([rpc.url]).permit2_allowance, EvmAllowances([rpc.url]).permit_nonce):
            with pytest.raises(ChainUnavailableError):
                await asking(OBOL, PAYER)


async def test_a_node_of_another_chain_is_not_asked(anvil: Anvil) -> None:
    with pytest.raises(ChainUnavailableError, match="it is of chain 84532, not 8453"):
        await EvmAllowances([anvil.url]).permit2_allowance(DEFAULT_CATALOGUE.asset(BASE, "usdc"), PAYER)


@pytest.mark.parametrize("urls", [[], ["http://rpc.example"], ["ftp://127.0.0.1"]])
def test_a_url_that_may_not_be_used_is_refused_at_once(urls: list[str]) -> None:
    with pytest.raises(SettingsError, match="rpc"):
        EvmAllowances(urls, field="rpc")
