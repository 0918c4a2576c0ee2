"""How much faster several workers are: assumed, or by the timings of a store."""

import pytest

from benchmark.forecast.measured import OWN, PAPER, Costs
from benchmark.forecast.scaling import EFFICIENCY, NO_GAIN, Scaling, scaling
from benchmark.forecast.timings import Sample
from tests.benchmark.forecast.helpers import only_piece


def sample(seconds: float, workers: int, threads: int = 0, kind: str = "defend", **more: object) -> Sample:
    piece = only_piece("sft")
    values = {"method": "sft", "model": "tiny", "data": piece.data, "work": piece.work} | more
    return Sample(kind=kind, seconds=seconds, threads=threads, workers=workers, **values)  # type: ignore[arg-type]


def test_each_doubling_keeps_a_share_of_the_speed() -> None:
    made = Scaling(assumed=0.9)
    assert [made.speedup("attack", workers) for workers in (1, 2, 8)] == pytest.approx([1, 1.8, 8 * 0.9**3])
    assert made.seconds("evaluate", 0.5, 2) == pytest.approx(0.5 + 0.5 / 1.8)
    assert Scaling(assumed=NO_GAIN).speedup("attack", 64) == pytest.approx(1)
    assert str(made) == "each doubling of workers keeps 90% of a worker's speed (assumed)"


def test_timings_of_the_same_work_by_several_workers_measure_it() -> None:
    # Two workers: 100 / (2 * 62.5) = 0.8; four: (100 / (4 * 39.0625)) ** (1 / 2) = 0.8, from two to four 0.8.
    found = scaling([sample(100, 1), sample(62.5, 2), sample(39.0625, 4)])
    assert found.measured == {"trainings": pytest.approx(0.8)}
    assert found.speedup("part", 4) == pytest.approx(4 * 0.64)
    assert found.speedup("evaluate", 2) == pytest.approx(2 * EFFICIENCY)
    assert str(found) == (
        "each doubling of workers keeps of a worker's speed 80% in trainings (measured in this store), 90% in "
        "evaluations (assumed)"
    )
    both = scaling([sample(8, 1, kind="evaluate"), sample(5, 2, kind="evaluate"), sample(2, 1), sample(1, 2)])
    assert "assumed" not in str(both)


def test_other_work_and_processors_measure_nothing() -> None:
    assert scaling([sample(100, 1), sample(50, 2, data="other")]).measured == {}
    assert scaling([sample(100, 1), sample(50, 2, work=only_piece("sft").work * 2)]).measured == {}
    assert scaling([sample(100, 1, threads=2), sample(50, 2, threads=1)]).measured == {}
    assert scaling([sample(100, 1), sample(300, 2)]).measured == {"trainings": NO_GAIN}, "slower than one"


def test_own_timings_count_for_other_numbers_of_workers() -> None:
    piece = only_piece("sft")
    made = Costs([sample(90, 1)], scaling=Scaling(assumed=0.9))
    assert made.seconds(piece, "tiny", workers=1) == (pytest.approx(90), OWN)
    assert made.seconds(piece, "tiny", workers=2) == (pytest.approx(50), OWN)
    both = Costs([sample(90, 1), sample(70, 2)], scaling=Scaling(assumed=0.9))
    assert both.seconds(piece, "tiny", workers=2) == (pytest.approx(70), OWN), "as many workers"
    assert Costs([sample(90, 4)]).seconds(piece, "tiny", workers=2) == (pytest.approx(90), OWN), "on a CPU"
    paper = Costs([], paper=True, scaling=Scaling(assumed=1.0))
    (one, _), (four, found) = (paper.seconds(piece, "tiny", workers=number) or (0, "") for number in (1, 4))
    assert (found, one) == (PAPER, pytest.approx(4 * four))
