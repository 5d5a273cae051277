from obol.core.capacity import Capacity, Slot
from obol.gateway.gate import Gate
from obol.gateway.slots import HeldSlot
from tests.fakes.clock import FakeClock


async def test_a_slot_comes_back_once_however_often_it_is_freed() -> None:
    gate = Gate(Capacity(max_in_flight=2), FakeClock())
    first, second = await gate.enter("a"), await gate.enter("b")
    assert isinstance(first, Slot)
    assert isinstance(second, Slot)
    held = HeldSlot(gate, first)
    held.free(served=True)
    held.free(served=False)
    assert gate.admission.in_flight == 1
