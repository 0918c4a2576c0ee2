"""The queue that Tune is fed from: order, needs, room, failures, one retry alone; and the simulation of it."""

from collections.abc import Callable
from typing import Literal

import pytest

from benchmark.plan.schedule import NODES, TRIES, Queue, side_by_side, simulate, whole, widths
from benchmark.plan.stage import Stage
from tests.benchmark.plan.helpers import plan, stage

MEMORY = "CUDA out of memory"


CHAIN = [stage("a"), stage("b"), stage("d", "a", kind="defend"), stage("e", "d", kind="evaluate")]


def start(queue: Queue) -> list[str]:
    """Keys of all stages that can start now, started."""
    started = []
    while offer := queue.next():
        started.append(offer.stage.key)
    return started


def test_stages_start_in_the_plans_order_as_soon_as_their_needs_are_done() -> None:
    queue = Queue(plan(*CHAIN), slots=3)
    assert start(queue) == ["a", "b"]
    queue.ended("b")
    assert start(queue) == []
    queue.ended("a")
    assert start(queue) == ["d"]
    queue.ended("d")
    assert start(queue) == ["e"]
    assert not queue.over
    queue.ended("e")
    assert queue.over
    assert queue.done == {"a", "b", "d", "e"}


def test_what_is_done_is_neither_offered_nor_waited_for() -> None:
    queue = Queue(plan(*CHAIN, done=("a", "b")), slots=3)
    assert start(queue) == ["d"]
    assert (queue.finished, queue.total) == (0, 2)


def test_no_more_stages_run_than_there_are_slots() -> None:
    queue = Queue(plan(*(stage(key) for key in "abcd")), slots=2)
    assert start(queue) == ["a", "b"]
    queue.ended("a")
    assert start(queue) == ["c"]


def test_side_by_side_an_attack_has_the_slot_and_those_that_wait_for_it_share_it() -> None:
    made = plan(stage("a"), stage("b"), *(stage(key, "a", kind="defend") for key in "def"))
    queue = Queue(made, slots=1, share=side_by_side(3))
    assert start(queue) == ["a"]
    queue.ended("a")
    assert start(queue) == ["b"]
    queue.ended("b")
    assert start(queue) == ["d", "e", "f"]
    assert simulate(made, 1, lambda stage: 6.0, side_by_side(3)).wall == 18.0
    assert simulate(made, 1, lambda stage: 6.0, side_by_side(1)).wall == 30.0


def test_shares_fill_slots_and_a_stage_without_room_holds_up_those_behind_it() -> None:
    shares = {"a": 0.5, "b": 0.25, "c": 1.0, "d": 0.25, "e": 0.25}
    queue = Queue(plan(*(stage(key) for key in shares)), slots=1, share=lambda stage: shares[stage.key])
    assert start(queue) == ["a", "b"]
    queue.ended("a")
    assert start(queue) == []
    queue.ended("b")
    assert start(queue) == ["c"]
    queue.ended("c")
    assert start(queue) == ["d", "e"]


def test_a_share_goes_to_the_fullest_slot_with_room() -> None:
    shares = {"a": 0.5, "b": 0.5, "c": 1.0}
    queue = Queue(plan(*(stage(key) for key in shares)), slots=2, share=lambda stage: shares[stage.key])
    assert start(queue) == ["a", "b", "c"]


@pytest.mark.parametrize("parts", range(1, 9))
def test_a_slot_holds_as_many_shares_as_it_has_parts(parts: int) -> None:
    queue = Queue(plan(*(stage(str(n)) for n in range(20))), slots=1, share=lambda stage: 1 / parts)
    assert len(start(queue)) == parts
    for key in map(str, range(parts)):
        queue.ended(key)
    assert len(start(queue)) == parts


def test_a_failure_takes_with_it_what_needs_it_and_nothing_else() -> None:
    queue = Queue(plan(*CHAIN), slots=2)
    assert start(queue) == ["a", "b"]
    assert not queue.ended("a", "it diverged")
    reason = "needs a stage that failed: it diverged"
    assert queue.errors == {"a": "it diverged", "d": reason, "e": reason}
    queue.ended("b")
    assert queue.over
    assert queue.finished == queue.total == 4


def test_a_stage_out_of_memory_is_offered_again_when_nothing_else_runs_and_then_nothing_else_is() -> None:
    queue = Queue(plan(*(stage(key) for key in "abcd")), slots=2)
    assert start(queue) == ["a", "b"]
    assert queue.ended("a", MEMORY, short_of_memory=True)
    assert queue.errors == {}
    assert start(queue) == [], "b still runs"
    queue.ended("b")
    assert start(queue) == ["a"], "alone, though there are two slots"
    queue.ended("a")
    assert start(queue) == ["c", "d"]


def test_a_stage_alone_has_a_whole_slot() -> None:
    queue = Queue(plan(stage("a")), slots=1, share=lambda stage: 0.25)
    assert queue.next().share == 0.25
    assert queue.ended("a", MEMORY, short_of_memory=True)
    assert queue.next().share == 1.0


def test_a_second_failure_is_an_error() -> None:
    queue = Queue(plan(*CHAIN), slots=2)
    start(queue)
    queue.ended("b")
    assert queue.ended("a", MEMORY, short_of_memory=True)
    assert start(queue) == ["a"]
    assert not queue.ended("a", MEMORY, short_of_memory=True)
    assert queue.errors["a"] == MEMORY
    assert queue.over


def test_several_out_of_memory_run_one_after_the_other() -> None:
    queue = Queue(plan(*(stage(key) for key in "abc")), slots=3)
    assert start(queue) == ["a", "b", "c"]
    for key in "abc":
        assert queue.ended(key, MEMORY, short_of_memory=True)
    for key in "abc":
        assert start(queue) == [key]
        queue.ended(key)
    assert queue.over


def test_a_stage_is_crowded_once_it_had_company() -> None:
    queue = Queue(plan(stage("a"), stage("b"), stage("c", "b")), slots=2)
    assert queue.next().stage.key == "a"
    assert not queue.crowded("a")
    assert queue.next().stage.key == "b"
    assert queue.crowded("a")
    queue.ended("b")
    assert queue.crowded("a"), "also when the other has ended"
    queue.ended("a")
    assert start(queue) == ["c"]
    assert not queue.crowded("c")


def test_slots_that_come_are_filled_and_lost_ones_are_not_filled_again() -> None:
    queue = Queue(plan(*(stage(key) for key in "abcdefgh")), slots=1)
    assert start(queue) == ["a"]
    queue.resize(4)
    assert start(queue) == ["b", "c", "d"]
    queue.resize(2)
    queue.ended("a")
    queue.ended("d")
    assert start(queue) == [], "b and c fill what is left"
    queue.ended("b")
    assert start(queue) == ["e"]
    queue.resize(0)
    queue.ended("c")
    queue.ended("e")
    assert start(queue) == []
    assert not queue.over
    queue.resize(4)
    assert start(queue) == ["f", "g", "h"]


def test_shares_fill_a_slot_in_use_before_another_one_also_after_slots_were_lost() -> None:
    queue = Queue(plan(*(stage(key) for key in "abcdef")), slots=2, share=lambda stage: 0.5)
    assert start(queue) == ["a", "b", "c", "d"]
    queue.resize(1)
    queue.ended("c")
    queue.ended("d")
    assert start(queue) == []
    queue.ended("a")
    assert start(queue) == ["e"], "beside b"


def test_a_stage_that_runs_alone_waits_for_a_slot_too() -> None:
    queue = Queue(plan(stage("a"), stage("b")), slots=2)
    assert start(queue) == ["a", "b"]
    queue.ended("b")
    assert queue.ended("a", MEMORY, short_of_memory=True)
    queue.resize(0)
    assert start(queue) == []
    queue.resize(1)
    assert start(queue) == ["a"]


def lacking(queue: Queue, most: int = 9) -> str:
    return "".join(stage.key for stage in queue.lacking(most))


def test_a_queue_lacks_room_for_stages_that_are_ready() -> None:
    needy = [stage(key, "a", kind="defend") for key in "defgh"]
    queue = Queue(plan(stage("a"), stage("b"), *needy), slots=1)
    assert start(queue) == ["a"]
    assert lacking(queue) == "b", "the others cannot start yet"
    queue.ended("a")
    assert start(queue) == ["b"]
    assert lacking(queue) == "defgh"
    assert lacking(queue, most=3) == "def"
    queue.resize(3)
    assert lacking(queue) == "fgh", "two will start in the slots that came"
    assert queue.ended("b", MEMORY, short_of_memory=True)
    assert lacking(queue) == "", "b runs alone"


def test_a_queue_lacks_a_slot_for_all_that_share_it() -> None:
    queue = Queue(plan(*(stage(key) for key in "abcdefghi")), slots=1, share=lambda stage: 0.25)
    assert start(queue) == ["a", "b", "c", "d"]
    assert lacking(queue) == "ei"


def wide(**widths: float) -> Callable[[Stage], float]:
    """Slots by the stage's key, else one."""
    return lambda stage: widths.get(stage.key, 1.0)


def test_a_wide_stage_takes_what_is_left_of_a_cluster_that_lost_a_node() -> None:
    queue = Queue(plan(stage("a")), slots=8, width=wide(a=8), least=wide(a=3))
    first = queue.next()
    assert first
    assert (first.room, first.filled) == (8, 1.0)
    queue.resize(7)
    assert queue.ended("a", "its node is gone", lost="node") == "again"
    second = queue.next()
    assert second
    assert (second.room, second.filled) == (7, 7 / 8)
    assert queue.ended("a", "its node is gone", lost="node") == "again"
    queue.resize(2)
    assert queue.next() is None, "fewer than it may have"
    assert lacking(queue) == "a"
    queue.resize(9)
    third = queue.next()
    assert third
    assert (third.room, third.filled) == (8, 1.0)


def test_a_wide_stage_waits_for_all_of_its_slots_where_no_node_was_lost() -> None:
    queue = Queue(plan(stage("b"), stage("a"), stage("c")), slots=8, width=wide(a=8), least=wide(a=3))
    assert start(queue) == ["b"]
    queue.ended("b")
    assert start(queue) == ["a"]


def test_a_wide_stage_starts_small_on_a_small_cluster() -> None:
    queue = Queue(plan(stage("a"), stage("b")), slots=7, width=wide(a=8), least=wide(a=3))
    first = queue.next()
    assert first
    assert (first.room, first.filled) == (7, 7 / 8)
    assert queue.next() is None


def test_a_wide_stage_waits_where_it_may_not_shrink() -> None:
    queue = Queue(plan(stage("a")), slots=8, width=wide(a=8))
    assert start(queue) == ["a"]
    queue.resize(7)
    assert queue.ended("a", "its node is gone", lost="node") == "again"
    assert start(queue) == []
    queue.resize(8)
    assert start(queue) == ["a"]


@pytest.mark.parametrize(("lost", "most"), [("process", TRIES), ("node", NODES + 1)])
def test_a_stage_is_tried_again_so_often(lost: Literal["process", "node"], most: int) -> None:
    queue = Queue(plan(stage("a")), slots=1)
    for _ in range(most - 1):
        assert start(queue) == ["a"]
        assert queue.ended("a", "it died", lost=lost) == "again"
    assert start(queue) == ["a"]
    assert queue.ended("a", "it died", lost=lost) == ""
    assert queue.errors == {"a": "it died"}


def test_lost_nodes_do_not_count_among_the_tries_of_a_stage() -> None:
    queue = Queue(plan(stage("a")), slots=1)
    for lost in ("process", "node", "node", "process"):
        assert start(queue) == ["a"]
        assert queue.ended("a", "it died", lost=lost) == "again"
    assert start(queue) == ["a"]
    assert queue.ended("a", "it died", lost="process") == ""


def test_a_simulation_takes_as_long_as_the_longest_way_through() -> None:
    seconds = {"a": 10.0, "b": 4.0, "d": 5.0, "e": 1.0}
    forecasts = [simulate(plan(*CHAIN), slots, lambda stage: seconds[stage.key], whole) for slots in (1, 2, 64)]
    assert [forecast.wall for forecast in forecasts] == [20.0, 16.0, 16.0]
    assert {forecast.busy for forecast in forecasts} == {20.0}


def test_a_simulation_with_shares_runs_them_side_by_side() -> None:
    four = plan(*(stage(key) for key in "abcd"))
    forecast = simulate(four, 1, lambda stage: 8.0, lambda stage: 0.25)
    assert (forecast.wall, forecast.busy) == (8.0, 8.0)


def test_a_simulation_asks_for_a_stages_seconds_when_it_starts() -> None:
    asked: list[str] = []

    def seconds(stage: Stage) -> float:
        asked.append(stage.key)
        return 1.0

    simulate(plan(*CHAIN), 1, seconds, whole)
    assert asked == ["a", "b", "d", "e"]


def test_nothing_to_do_takes_no_time() -> None:
    assert simulate(plan(*CHAIN, done=("a", "b", "d", "e")), 1, lambda stage: 1.0, whole).wall == 0.0


def test_a_wide_stage_takes_several_slots_and_waits_until_they_are_free() -> None:
    width = {"a": 1.0, "b": 3.0, "c": 1.0, "d": 4.0}
    queue = Queue(plan(*map(stage, width)), slots=4, width=lambda one: width[one.key])
    offers = [queue.next(), queue.next()]
    assert [(offer.stage.key, offer.share, offer.room) for offer in offers] == [("a", 1.0, 1.0), ("b", 1.0, 3.0)]
    queue.ended("a")
    assert start(queue) == ["c"]
    queue.ended("b")
    assert start(queue) == [], "one of four is taken"
    queue.ended("c")
    assert queue.next().room == 4.0


def test_part_of_a_slot_beside_whole_ones_and_shares_of_a_width() -> None:
    width = {"a": 1.5, "b": 1.5, "c": 2.0}
    queue = Queue(plan(*map(stage, width)), slots=3, width=lambda one: width[one.key])
    assert start(queue) == ["a", "b"]
    halves = Queue(plan(*map(stage, "abc")), slots=4, share=lambda one: 0.25, width=lambda one: 2.0)
    assert start(halves) == ["a", "b", "c"]
    assert halves.next() is None
    halves = Queue(plan(*map(stage, "abcd")), slots=1, share=lambda one: 0.25, width=lambda one: 2.0)
    assert start(halves) == ["a", "b", "c", "d"], "a width of more than all slots is that of all"


def test_a_wide_stage_alone_has_its_width_again() -> None:
    queue = Queue(plan(stage("a")), slots=4, share=lambda one: 0.5, width=lambda one: 4.0)
    assert queue.next().room == 2.0
    assert queue.ended("a", MEMORY, short_of_memory=True)
    assert queue.next().room == 4.0


def test_slots_are_as_large_as_the_smallest_stages() -> None:
    same = {"a": {"CPU": 8.0, "GPU": 1.0}}
    assert widths(same, {"a": 64}) == (64, {"a": 1.0})
    groups = same | {"b": {"CPU": 64.0, "GPU": 8.0}, "c": {"CPU": 16.0, "GPU": 1.0}}
    assert widths(groups, {"a": 64, "b": 8, "c": 32}) == (64, {"a": 1.0, "b": 8.0, "c": 2.0})
    assert widths({"a": {"CPU": 1.0}, "b": {"GPU": 1.0, "CPU": 1.0}}, {"a": 16, "b": 2}) == (16, {"a": 1.0, "b": 8.0})
    assert widths({}, {}) == (1, {})


def test_a_simulation_knows_what_each_stage_waited_for() -> None:
    took = {"a": 4.0, "b": 1.0, "c": 2.0, "d": 3.0, "e": 1.0}
    made = plan(stage("a"), stage("b"), stage("c"), stage("d", "b"), stage("e", "a"))
    found = simulate(made, 2, lambda one: took[one.key], whole)
    # Two slots: a 0-4, b 0-1; c 1-3 in b's slot; d 3-6 in c's; e 4-5 in a's.
    assert (found.wall, found.busy, found.last) == (6.0, 11.0, "d")
    assert found.before == {"c": "b", "d": "c", "e": "a"}
    wide = simulate(made, 2, lambda one: took[one.key], whole, lambda one: 2.0 if one.key == "c" else 1.0)
    # c needs both slots, so it waits for a, and d and e wait behind it: c 4-6, d 6-9, e 6-7.
    assert (wide.wall, wide.busy, wide.before["c"], wide.before["e"]) == (9.0, 13.0, "a", "c")
