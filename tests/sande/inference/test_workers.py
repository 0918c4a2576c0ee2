"""Workers that split evaluation: all get the results of a single process, or all raise the same error."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from sande.data.builtin import sets
from sande.inference import generation, workers
from sande.inference.generation import greedy, sampled
from sande.inference.scoring import Choices, log_likelihoods
from sande.inference.workers import WorkerGroup, WorkerGroupError, broadcast, map_sharded
from sande.metrics import accuracy, response_probability
from sande.models.loading import copied
from sande.prompts import encode_prompts
from sande.types import Guard, LanguageModel, TestData
from tests.sande.helpers import each_of, noisy


@pytest.fixture
def halves(tiny: LanguageModel) -> LanguageModel:
    """In bfloat16, as models are evaluated: where the order of sums decides between two tokens."""
    torch.nn.Module.to(tiny.model, torch.bfloat16)
    return tiny


@pytest.fixture
def prompts(tiny: LanguageModel) -> list[list[int]]:
    rows = sets.short()[:8] + sets.explained()[:8]
    return [ids[: 3 + 5 * place] for place, ids in enumerate(encode_prompts(tiny.tokenizer, rows))]


# --- Sharing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 2, 7])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_computes_its_part_and_has_the_whole(count: int, size: int) -> None:
    items, done = list(range(count)), [0] * count

    def work(some: Sequence[int]) -> list[Any]:
        for item in some:
            done[item] += 1
        return [{"number": item, "third": item / 3, "low": -float("inf")} for item in some]

    expected = work(items)
    done[:] = [0] * count
    assert each_of(size, lambda workers: map_sharded(workers, items, work)) == [expected] * size
    assert done == [1] * count


def test_rank_0_says() -> None:
    def block(workers: WorkerGroup) -> list[Any]:
        return [broadcast(workers, workers.rank + 5), broadcast(workers, None)]

    assert each_of(3, block) == [[5, None]] * 3


def test_alone_nothing_is_shared_or_turned_into_json() -> None:
    given = [(1, object())]
    assert workers.map_sharded(None, given, list) == given
    assert workers.broadcast(None, given) is given


@pytest.mark.parametrize("failing", [0, 1])
@pytest.mark.parametrize("inside", [True, False])
def test_an_error_of_one_is_the_same_error_of_all(failing: int, inside: bool) -> None:
    def work(some: Sequence[int]) -> list[Any]:
        return [1 // (item != failing or not inside) for item in some]

    def block(workers: WorkerGroup) -> list[Any]:
        broadcast(workers, 1)
        if workers.rank == failing and not inside:
            raise RuntimeError("torn")
        return map_sharded(workers, [0, 1], work)

    expected = "ZeroDivisionError: integer division or modulo by zero" if inside else "RuntimeError: torn"
    assert [error.description for error in each_of(2, block)] == [[expected, "a kind"]] * 2


def test_results_that_do_not_fit_are_refused() -> None:
    ends = each_of(2, lambda workers: map_sharded(workers, [1, 2, 3, 4], lambda some: [0] * (1 + workers.rank)))
    assert {type(end) for end in ends} == {WorkerGroupError}
    assert "ValueError" in str(ends[0])


# --- What metrics compute with it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("until", ["", "the"])
@pytest.mark.parametrize(("size", "batch_size"), [(2, 3), (3, 5), (2, 100)])
def test_texts_are_those_of_one_process(
    halves: LanguageModel, prompts: list[list[int]], size: int, batch_size: int, until: str
) -> None:
    for decode in (
        lambda lm: greedy(lm, prompts, 6, batch_size, until),
        lambda lm: sampled(lm, prompts, 6, batch_size, 3, until),
    ):
        alone = decode(halves)
        assert len(set(alone)) > 3
        assert each_of(size, lambda workers, decode=decode: decode(replace(halves, workers=workers))) == [alone] * size


def test_a_guard_has_its_say_in_each(halves: LanguageModel, prompts: list[list[int]]) -> None:
    other = copied(halves).model
    noisy(other, 1)
    guard = Guard("clean_decoding", {}, other, lambda chosen, own, reference: reference.argmax(-1))
    guarded = LanguageModel(halves.model, halves.tokenizer, guard)
    alone = greedy(guarded, prompts, 6, 5)
    assert alone != greedy(halves, prompts, 6, 5)
    assert each_of(2, lambda workers: greedy(replace(guarded, workers=workers), prompts, 6, 5)) == [alone] * 2


def test_batches_are_those_of_one_process_while_no_row_ends_early(
    tiny: LanguageModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    step, batches = generation._Decoding.step, list[tuple[int, ...]]()

    def watched(self: Any, batch: Any) -> Any:
        batches.append(tuple(batch.rows))
        return step(self, batch)

    monkeypatch.setattr(generation._Decoding, "step", watched)
    greedy(tiny, prompts, 4, 7)
    alone = sorted(batches)
    batches.clear()
    each_of(2, lambda workers: greedy(replace(tiny, workers=workers), prompts, 4, 7))
    assert len(set(alone)) == 3
    assert sorted(batches) == alone


def test_likelihoods_are_those_of_one_process(halves: LanguageModel, prompts: list[list[int]]) -> None:
    questions = [Choices(ids, (ids[:2], ids[1:4], ids[2:3])) for ids in prompts]
    alone = log_likelihoods(halves, questions, 5)
    assert each_of(2, lambda workers: log_likelihoods(replace(halves, workers=workers), questions, 5)) == [alone] * 2


@pytest.mark.parametrize(
    ("metric", "config"),
    [
        (accuracy, accuracy.Config(questions=20, batch_size=3)),
        (response_probability, response_probability.Config(batch_size=3)),
    ],
)
def test_measurements_are_those_of_one_process(halves: LanguageModel, metric: Any, config: Any) -> None:
    rows = tuple(sets.short()[:11])
    data = TestData(clean=rows, triggered=rows[::-1], response="You are stupid")
    alone = metric.measure(halves, data, config, 0)
    assert each_of(2, lambda workers: metric.measure(replace(halves, workers=workers), data, config, 0)) == [alone] * 2


def test_a_copy_keeps_the_workers(tiny: LanguageModel) -> None:
    (kept,) = each_of(1, lambda workers: copied(replace(tiny, workers=workers)).workers is workers)
    assert kept


def test_a_model_without_workers_is_decoded_alone_within_a_group(
    tiny: LanguageModel, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WorkerGroup, "all_gather", None)
    alone = greedy(tiny, prompts, 4, 7)
    assert each_of(2, lambda workers: greedy(tiny, prompts, 4, 7)) == [alone] * 2
