"""Suggest how many workers stages of each kind and model should have, by forecasts: `plan --gpus N --suggest`.

The search is greedy. It begins with one worker for each stage. It doubles the workers of the kinds and models on the
longest chain of stages, one at a time or all together, or of all there are, since two chains may be equally long. It
keeps the best forecast, and ends when none saves `GAIN`. Then it halves each number again, as long as all of that costs
no more than `GAIN`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from benchmark.forecast.wall_time import Prediction, span
from benchmark.grid.resources import TENSOR, Kind, Resources, ResourcesByStage, StageLike
from benchmark.grid.stage_resources import KINDS
from benchmark.io.yaml import dump
from benchmark.plan.batches import divides
from benchmark.plan.plan import Plan
from benchmark.plan.stage import Stage

GAIN = 0.01  # share of the time that more workers have to save

Group = tuple[Kind, str]  # kind of stages, and model
Predict = Callable[[ResourcesByStage], Prediction]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """Result of the search.

    Attributes:
        before: forecast with the resources of the grid.
        after: forecast with the suggested workers.
        workers: suggested number for each kind and model of the missing stages; empty where the grid's own are as good.
        stuck: kinds and models on the longest chain whose batches cannot be split further.
    """

    before: Prediction
    after: Prediction
    workers: Mapping[Group, int]
    stuck: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class WithWorkers:
    """Resources with other numbers of workers for some kinds and models; a model in shards keeps those that hold it."""

    base: ResourcesByStage
    workers: Mapping[Group, int]

    def of(self, stage: StageLike) -> Resources:
        """Return the resources of a stage."""
        given = self.base.of(stage)
        if given.sharding == TENSOR:
            return given
        workers = self.workers.get((stage.kind, stage.settings["model"]), given.workers)
        return _with(given, workers).of_kind(stage.kind)


@functools.cache
def _with(given: Resources, workers: int) -> Resources:
    return given if given.workers == workers else dataclasses.replace(given, workers=workers)


def suggest(plan: Plan, predict: Predict, resources: ResourcesByStage, gpus: int) -> Suggestion:
    """Return the workers that the forecast finds best.

    Args:
        plan: plan of a grid.
        predict: returns the forecast of that plan, on as many GPUs, with other resources.
        resources: those of the grid; what they say besides the number of workers is kept.
        gpus: number of GPUs.

    Raises:
        UserError: a stage needs more GPUs than there are.
    """
    groups: dict[Group, list[Stage]] = defaultdict(list)
    for stage in plan.missing:
        groups[_group(stage)].append(stage)

    def fits(group: Group, workers: int) -> bool:
        room = all(workers * (resources.of(stage).gpus or 1.0) <= gpus for stage in groups[group])
        return room and all(divides(stage, workers) for stage in groups[group])

    def forecast(workers: Mapping[Group, int]) -> Prediction:
        return predict(WithWorkers(resources, workers))

    workers, after, longest = _greedy(dict.fromkeys(groups, 1), forecast, fits, plan)
    workers, after = _trimmed(workers, after, forecast)
    fixed = [stage for stage in plan.missing if resources.of(stage).sharding == TENSOR]
    workers |= {_group(stage): resources.of(stage).workers for stage in fixed}
    stuck = [group for group in longest if not all(divides(stage, 2 * workers[group]) for stage in groups[group])]
    before = predict(resources)
    works = all(divides(stage, resources.of(stage).workers) for stage in plan.missing)
    if works and before.wall <= after.wall:
        return Suggestion(before, before, {}, tuple(stuck))
    return Suggestion(before, after, workers, tuple(stuck))


def _greedy(
    workers: dict[Group, int],
    forecast: Callable[[Mapping[Group, int]], Prediction],
    fits: Callable[[Group, int], bool],
    plan: Plan,
) -> tuple[dict[Group, int], Prediction, list[Group]]:
    """Return the workers, their forecast, and the groups on its longest chain."""
    made = forecast(workers)
    while True:
        chain = list(dict.fromkeys(_group(plan.stages[key]) for key in made.longest))
        tried = [(each, forecast(each)) for each in _doubled(workers, chain, fits)]
        if not tried:
            return workers, made, chain
        better, found = min(tried, key=lambda one: one[1].wall)  # the first of equal ones
        if found.wall > (1 - GAIN) * made.wall:
            return workers, made, chain
        workers, made = better, found


def _doubled(
    workers: Mapping[Group, int], chain: Iterable[Group], fits: Callable[[Group, int], bool]
) -> Iterator[dict[Group, int]]:
    """Yield the workers with those of one group doubled, for each that can be, and with those of all of them."""
    able = {group: 2 * workers[group] for group in chain if fits(group, 2 * workers[group])}
    for group, number in able.items():
        yield {**workers, group: number}
    all_able = {group: 2 * number for group, number in workers.items() if fits(group, 2 * number)}
    for together in (able, all_able):
        if len(together) > 1:
            yield {**workers, **together}


def _trimmed(
    workers: dict[Group, int], made: Prediction, forecast: Callable[[Mapping[Group, int]], Prediction]
) -> tuple[dict[Group, int], Prediction]:
    """Return the workers, and their forecast, without those that save next to nothing."""
    most = (1 + GAIN) * made.wall
    for group in reversed(workers):  # of evaluations first, which gain least
        while workers[group] > 1:
            fewer = {**workers, group: workers[group] // 2}
            found = forecast(fewer)
            if found.wall > most:
                break
            workers, made = fewer, found
    return workers, made


def _group(stage: Stage) -> Group:
    return stage.kind, stage.settings["model"]


def snippet(workers: Mapping[Group, int], given: Mapping[Group, int]) -> tuple[str, list[str]]:
    """Return YAML to paste into the grid, and the same as assignments of `--set` where no model needs its own number.

    Args:
        workers: suggested numbers.
        given: the grid's numbers; kinds in which nothing differs are left out.
    """
    sections: dict[str, dict[str, int]] = {}
    of_models: dict[str, dict[str, int]] = defaultdict(dict)
    for kind in KINDS:
        models = {model: number for (each, model), number in workers.items() if each == kind}
        before = {model: given.get((kind, model), 1) for model in models}
        if before == models:
            continue
        if len(set(models.values())) == len(set(before.values())) == 1:
            sections[kind] = {"workers": next(iter(models.values()))}
        else:  # a rule also wins over those that the grid has
            for model in sorted(models):
                if before[model] != models[model]:
                    of_models[model][f"resources.{kind}.workers"] = models[model]
    rules = [{"where": {"model": model}, "set": values} for model, values in sorted(of_models.items())]
    text = dump({name: value for name, value in (("resources", sections), ("rules", rules)) if value})
    assignments = [f"resources.{kind}.workers={each['workers']}" for kind, each in sections.items()]
    return text, [] if rules else assignments


def report(plan: Plan, predict: Predict, resources: ResourcesByStage, gpus: int) -> Iterator[str]:
    """Yield the suggestion in words, and the YAML of it between empty lines; arguments and errors as for `suggest`."""
    if not plan.missing:
        yield "Suggestion: none, as nothing is left to run"
        return
    made = suggest(plan, predict, resources, gpus)
    if made.workers:
        given = {_group(stage): resources.of(stage).workers for stage in plan.missing}
        text, assignments = snippet(made.workers, given)
        use = f"add {' '.join(f'--set {each}' for each in assignments)}, or" if assignments else "to use them,"
        yield (
            f"Suggestion: {span(made.after.wall)} in place of {span(made.before.wall)} with these workers; {use} paste "
            "into the grid:"
        )
        yield f"\n{text}"
    else:
        yield f"Suggestion: none; no other workers have a shorter forecast than {span(made.before.wall)}"
    if made.after.scaling:
        yield f"Suggestion: {made.after.scaling}"
    for kind, model in made.stuck:
        yield f"Suggestion: {kind} {model} is on the longest chain, and its batches cannot be split further"
