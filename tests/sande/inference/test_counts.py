"""What is counted of decoding, and in which blocks."""

from sande.inference import counts
from sande.inference.counts import Decoded, counted


def test_blocks_within_blocks_count_alike() -> None:
    counts.add(9, 9.0, 1)  # outside of all
    with counted() as outer:
        counts.add(3, 0.5, 1)
        with counted() as inner:
            counts.add(4, 0.25, 2)
        counts.add(1, 0.0, 1)
    assert inner == Decoded(4, 0.25, 2)
    assert outer == Decoded(8, 0.75, 2)
    counts.add(9, 9.0, 1)
    assert outer.tokens == 8
