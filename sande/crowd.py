"""Work shared out among processes that all do the same: each computes a part of it, and all get the whole.

They meet in a store of `torch.distributed`, where each leaves JSON for the others, so nobody unpickles anything. They
are no process group: transformers would spread over one whatever a metric trains, with other sums of gradients than one
process has. So each trains by itself what it would train alone, and decodes its part of the prompts.

What fails in one of them ends the others, too, when they next meet. Outside of `together` nothing is shared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # of a star import there

T = TypeVar("T")


class CrowdError(Exception):
    """The end of `together`, in all of its processes, after an error in one of them.

    Attributes:
        told: what `describe` made there of the error.
    """

    def __init__(self, told: Any) -> None:
        super().__init__(str(told))
        self.told = told


class _Crowd:
    """This process among the others; the nth thing that it leaves belongs to the nth of theirs."""

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store, self._meetings = store, 0

    def leave(self, **said: Any) -> None:
        self._store.set(f"{self._meetings}/{self.rank}", json.dumps(said))

    def meet(self, said: Any) -> list[Any]:
        """What each process says, by rank; waits until all have said it, or one has failed."""
        self.leave(said=said)
        heard = []
        for rank in range(self.size):
            other = json.loads(self._store.get(f"{self._meetings}/{rank}"))
            if "failed" in other:
                raise CrowdError(other["failed"])
            heard.append(other["said"])
        self._meetings += 1
        return heard


_CROWD: ContextVar[_Crowd | None] = ContextVar("crowd", default=None)


@contextmanager
def together(store: Store, rank: int, size: int, describe: Callable[[Exception], Any]) -> Iterator[None]:
    """Within the block this process is one of several that all call `shared` and `agreed` in the same order.

    Args:
        store: the same in all of them and empty at the start; its timeout is how long one waits for another.
        rank: of this process, from 0.
        size: how many there are.
        describe: what all are told of an error that ends this block, a JSON value.

    Raises:
        CrowdError: the block ended with an error, here or in another process.
    """
    crowd = _Crowd(store, rank, size)
    outer = _CROWD.set(crowd)
    try:
        yield
    except CrowdError:
        raise
    except Exception as error:
        told = describe(error)
        crowd.leave(failed=told)  # in place of what they wait for
        raise CrowdError(told) from error
    finally:
        _CROWD.reset(outer)


def shared(items: Sequence[T], work: Callable[[Sequence[T]], list[Any]]) -> list[Any]:
    """What `work` makes of the items, one JSON value each, in their order; each process gives it every nth item.

    Results of others have been JSON meanwhile, in which tuples are lists and floats keep every bit.
    """
    crowd = _CROWD.get()
    if crowd is None:
        return work(items)
    parts = crowd.meet(work(items[crowd.rank :: crowd.size]))
    made: list[Any] = [None] * len(items)
    for rank, part in enumerate(parts):
        made[rank :: crowd.size] = part  # a ValueError where it is of another length
    return made


def agreed(value: T) -> T:
    """What the process of rank 0 gives as `value`, in all of them; a JSON value."""
    crowd = _CROWD.get()
    if crowd is None:
        return value
    first: T = crowd.meet(value)[0]
    return first
