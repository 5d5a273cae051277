"""An offer that is being sold: when it is closed, and what is computed once."""

from obol.core.capacity import Slot
from obol.gateway.live_offer import LiveOffer
from obol.gateway.replies import Reason, Refusal
from obol.x402.headers import decode_header
from obol.x402.models import PaymentRequired
from tests.fakes.clock import FakeClock
from tests.gateway.live import make_live

URL = "http://shop.example/v1/chat/completions"


def reason(live: LiveOffer) -> Reason | None:
    closed = live.closed()
    return None if closed is None else closed.reason


async def test_an_offer_is_open_unless_there_is_a_reason() -> None:
    live = make_live(max_inflight=1)
    assert live.closed() is None, "an upstream that was not asked yet is not known to be down"
    slot = await live.gate.enter("a")
    assert reason(live) is Reason.SATURATED
    live.is_upstream_up = False
    assert reason(live) is Reason.UPSTREAM_DOWN, "waiting for a slot would not help"
    live.is_draining = True
    assert reason(live) is Reason.DRAINING, "waiting would not help at all"
    live.is_draining, live.is_upstream_up = False, True
    assert isinstance(slot, Slot)
    live.gate.leave(slot, served=True)
    assert live.closed() is None


async def test_an_offer_with_room_in_its_queue_is_not_saturated() -> None:
    live = make_live(max_inflight=1, max_queue_depth=1)
    await live.gate.enter("a")
    assert live.closed() is None


async def test_every_way_of_being_closed_says_when_to_come_back() -> None:
    live = make_live(max_inflight=1)
    await live.gate.enter("a")
    found: list[Refusal | None] = [live.closed()]
    live.is_upstream_up = False
    found.append(live.closed())
    live.is_draining = True
    found.append(live.closed())
    for refusal in found:
        assert refusal is not None
        assert refusal.retry_after_s is not None
        assert 1 <= refusal.retry_after_s <= 60


def test_an_upstream_is_warm_for_a_while_after_output() -> None:
    clock = FakeClock()
    live = make_live(clock)
    found = [live.is_warm]
    live.saw_output()
    for seconds in (0, 299, 2):
        clock.advance(seconds)
        found.append(live.is_warm)
    assert found == [False, True, True, False]


def test_output_is_the_best_sign_of_life() -> None:
    live = make_live()
    live.is_upstream_up = False
    live.saw_output()
    assert live.closed() is None


def test_the_challenge_names_the_resource_and_is_computed_once_for_each() -> None:
    live = make_live()
    challenge = live.challenge(URL)
    assert decode_header(challenge.header, PaymentRequired).resource.url == URL
    assert live.challenge(URL) is challenge
    assert live.challenge(URL + "x") is not challenge


def test_a_challenge_with_another_text_says_it() -> None:
    challenge = make_live().challenge(URL, "the payment is not valid")
    assert decode_header(challenge.header, PaymentRequired).error == "the payment is not valid"


def test_callers_who_vary_the_host_do_not_grow_memory() -> None:
    live = make_live()
    kept = [live.challenge(f"http://{n}/") for n in range(2000)]
    assert sum(live.challenge(f"http://{n}/") is kept[n] for n in range(1744, 2000)) <= 256
    assert len(live._challenges) <= 256
