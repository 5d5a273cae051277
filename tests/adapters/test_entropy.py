from obol.adapters.entropy import Entropy


def test_bytes_are_as_many_as_asked_and_never_given_twice() -> None:
    entropy = Entropy()
    drawn = [entropy(16) for _ in range(2000)]
    assert {len(each) for each in drawn} == {16}
    assert len(set(drawn)) == len(drawn)


def test_more_than_a_block_can_be_asked_for() -> None:
    entropy = Entropy()
    entropy(5)
    assert len(entropy(10_000)) == 10_000


def test_two_sources_do_not_agree() -> None:
    assert Entropy()(16) != Entropy()(16)
