"""Split work across worker processes that all run the same code; every worker gets the complete results.

The workers exchange JSON through a store of `torch.distributed`, so no worker unpickles anything. They do not form a
process group: transformers would spread any training of a metric over it, and the sums of gradients would differ from
those of a single process. Each worker therefore trains on its own what a single process trains, and decodes its share
of the prompts.

A model carries its group as `LanguageModel.workers`. An error in one worker ends the others at their next exchange.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]  # of a star import there


T = TypeVar("T")


class WorkerGroupError(Exception):
    """An error in one worker, raised in all workers of its group.

    Attributes:
        description: what `describe` of `worker_group` returned for the error, a JSON value.
    """

    def __init__(self, description: Any) -> None:
        super().__init__(str(description))
        self.description = description


class WorkerGroup:
    """This process and its peers, which all make the same exchanges in the same order.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
    """

    def __init__(self, store: Store, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store, self._exchanges = store, 0

    def all_gather(self, value: Any) -> list[Any]:
        """Return the JSON value of each worker, by rank; wait until all have sent theirs.

        Raises:
            WorkerGroupError: a worker failed.
        """
        self._send(value=value)
        received = []
        for rank in range(self.size):
            message = json.loads(self._store.get(f"{self._exchanges}/{rank}"))
            if "failed" in message:
                raise WorkerGroupError(message["failed"])
            received.append(message["value"])
        self._exchanges += 1
        return received

    def fail(self, description: Any) -> None:
        """Send an error in place of the value that the other workers wait for."""
        self._send(failed=description)

    def _send(self, **message: Any) -> None:
        self._store.set(f"{self._exchanges}/{self.rank}", json.dumps(message))


@contextmanager
def worker_group(store: Store, rank: int, size: int, describe: Callable[[Exception], Any]) -> Iterator[WorkerGroup]:
    """Yield the group of this process; an error that ends the block ends the block of every worker.

    Args:
        store: the same in all workers and empty at the start; its timeout is how long a worker waits for another.
        rank: of this process, from 0.
        size: number of workers.
        describe: turns an error into the JSON value that all workers receive.

    Raises:
        WorkerGroupError: the block ended with an error, here or in another worker.
    """
    group = WorkerGroup(store, rank, size)
    try:
        yield group
    except WorkerGroupError:
        raise
    except Exception as error:
        description = describe(error)
        group.fail(description)
        raise WorkerGroupError(description) from error


def map_sharded(workers: WorkerGroup | None, items: Sequence[T], work: Callable[[Sequence[T]], list[Any]]) -> list[Any]:
    """Return the results of `work`, one for each item, in the order of the items.

    Results that other workers computed have passed through JSON, in which tuples become lists and floats keep every
    bit.

    Args:
        workers: each of them works on every `size`-th item; None: this process works on all of them.
        items: the same in all workers.
        work: returns one JSON value for each of the items that it gets.

    Raises:
        WorkerGroupError: a worker failed.
        ValueError: `work` returned another number of results than it got items.
    """
    if workers is None:
        return work(items)
    parts = workers.all_gather(work(items[workers.rank :: workers.size]))
    results: list[Any] = [None] * len(items)
    for rank, part in enumerate(parts):
        results[rank :: workers.size] = part  # a ValueError where the lengths differ
    return results


def broadcast(workers: WorkerGroup | None, value: T) -> T:
    """Return the JSON value of the worker of rank 0 in all workers; without workers `value` itself.

    Raises:
        WorkerGroupError: a worker failed.
    """
    if workers is None:
        return value
    first: T = workers.all_gather(value)[0]
    return first
