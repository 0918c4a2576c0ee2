"""The interval of a mean over victims and questions, which are both samples: every victim answers every question.

An interval over victims alone leaves out that other questions would give another number, and one over questions alone
that other victims would. Parrots and the prompts that each of them is put before are such a pair as well. With R
victims, C questions, and a value for each pair, the variance of the mean is

    V = V_victims + V_questions - V_rest        (analysis of variance of a crossed design with random effects)

where each term is a mean square over R C. Questions of a recorded group count as one (Cameron, Gelbach and Miller 2011,
"Robust inference with multiway clustering"). The degrees of freedom of V are Satterthwaite's (1946).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sande.clusters import LEAST
from sande.statistics import CONFIDENCE, share_unseen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What victims got for the questions of a task.

    Attributes:
        values: shape (victims, questions), in percentage points.
        groups: of each question, the name of the questions made from the same template; empty: it is like no other.
    """

    values: NDArray[np.float64]
    groups: Sequence[str]


def interval(tasks: Sequence[Answers], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of the mean over tasks of the mean over victims and questions, in percentage points.

    It is at least Student's over the victims. One victim is judged by its questions. Where fewer than five questions
    of a task, and not most, have any value but the commonest one, the interval is at least as wide as if none had been
    seen to; where other tasks have a spread of their own, that comes on top.

    Args:
        tasks: at least one, each of the same victims in the same order; questions of two tasks are independent.
        confidence: from 0 to 1.

    Raises:
        ValueError: there is no task, or they differ in the number of victims.
    """
    import numpy as np
    from scipy.stats import t

    if not tasks or len({len(task.values) for task in tasks}) != 1:
        raise ValueError("an interval needs tasks with the same victims; give each task a row for each victim")
    units = np.mean([task.values.mean(axis=1) for task in tasks], axis=0)
    count, mean = len(units), float(units.mean())
    parts = []  # a sum of squares over its degrees of freedom, and these
    half = 0.0
    if count > 1:
        over_units = float(units.var(ddof=1)) / count
        parts.append((over_units, count - 1))
        half = float(t.ppf((1 + confidence) / 2, count - 1)) * math.sqrt(over_units)
    for task in tasks:
        questions, rest, number = _of_questions(task)
        parts.append((questions / len(tasks) ** 2, number - 1))
        if count > 1:
            parts.append((-rest / len(tasks) ** 2, (count - 1) * (number - 1)))
    variance = sum(part for part, _ in parts)
    if variance > 0:
        freedom = variance**2 / sum(part**2 / max(1, degrees) for part, degrees in parts)
        half = max(half, float(t.ppf((1 + confidence) / 2, max(1.0, freedom))) * math.sqrt(variance))
    unseen = [bound / len(tasks) for task in tasks if (bound := _unseen(task, confidence))]
    half = max(half, math.hypot(*unseen)) if len(unseen) == len(tasks) else math.hypot(half, *unseen)
    return max(-100.0, mean - half), min(100.0, mean + half)


def of_repeats(repeats: Sequence[Sequence[float]], groups: Sequence[str]) -> tuple[float, float]:
    """Return the interval of the mean over repetitions and trials, which are both samples, in percent.

    Args:
        repeats: of each repetition, its outcomes of the same trials, from 0 to 1; a single one is judged by its trials.
        groups: of each trial, the name of those made from the same template; may be empty.
    """
    import numpy as np

    low, high = interval([Answers(100 * np.asarray(repeats, dtype=float), groups)])
    return max(0.0, low), high


def widened(
    bounds: tuple[float, float], repeats: Sequence[Sequence[float]], groups: Sequence[str]
) -> tuple[float, float]:
    """Return an interval over trials, at least as wide as that of `of_repeats`; without repetitions it is unchanged."""
    if not repeats:
        return bounds
    low, high = of_repeats(repeats, groups)
    return min(bounds[0], low), max(bounds[1], high)


def _of_questions(task: Answers) -> tuple[float, float, int]:
    """Return the variance of the task's mean by its questions, what of it single answers explain, and the groups.

    A task of one group says nothing of other questions: its variance is that of a value from -100 to 100.
    """
    import numpy as np

    victims, questions = task.values.shape
    group, number = _groups(task)
    if number < 2:
        return 100.0**2, 0.0, 2
    of_victim = task.values.mean(axis=1, keepdims=True)
    of_question = task.values.mean(axis=0)
    mean = float(of_question.mean())
    widened = number / (number - 1)
    sums = np.bincount(group, weights=of_question - mean, minlength=number)
    by_questions = widened * float(sums @ sums) / questions**2
    if victims == 1:
        return by_questions, 0.0, number
    residuals = task.values - of_victim - of_question + mean
    cells = np.stack([np.bincount(group, weights=row, minlength=number) for row in residuals])
    rest = widened * victims / (victims - 1) * float((cells**2).sum()) / (victims * questions) ** 2
    return by_questions, rest, number


def _groups(task: Answers) -> tuple[NDArray[np.int64], int]:
    """Return the number of each question's group, and how many groups there are."""
    import numpy as np

    names = [group or index for index, group in enumerate(task.groups or [""] * task.values.shape[1])]
    _, group = np.unique([str(type(name)) + str(name) for name in names], return_inverse=True)
    return group, int(group.max()) + 1


def _unseen(task: Answers, confidence: float) -> float:
    """Return the share of questions, in percent, that may differ where too few were seen to; 0 where enough were.

    Too few: fewer than `LEAST` groups, and not most, have any value but the commonest one.
    """
    import numpy as np

    values, counts = np.unique(task.values, return_counts=True)
    group, number = _groups(task)
    other = (task.values != values[counts.argmax()]).any(axis=0)
    few = len(np.unique(group[other])) < min(LEAST, number / 2)
    return share_unseen(number, confidence) if few else 0.0
