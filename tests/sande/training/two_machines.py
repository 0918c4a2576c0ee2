"""Two workers of a process group, for tests in which each has a disk of its own."""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed


def _worker(rank: int, do: Callable[[int], Any], meeting: Path, said: Connection) -> None:
    os.environ.pop("LOCAL_RANK", None)
    torch.set_num_threads(1)
    try:
        distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
        said.send((do(rank), None))
    except BaseException:
        said.send((None, traceback.format_exc()))


def together(do: Callable[[int], Any], meeting: Path) -> list[Any]:
    """Call a function with the rank on two workers at once, and return what each made of it.

    Args:
        do: may use all that this process has, of which each worker has a copy.
        meeting: a path at which no file is.
    """
    forked = multiprocessing.get_context("fork")
    pipes = [forked.Pipe(duplex=False) for _ in range(2)]
    workers = [forked.Process(target=_worker, args=(rank, do, meeting, there)) for rank, (_, there) in enumerate(pipes)]
    for worker in workers:
        worker.start()
    try:
        made = [here.recv() if here.poll(60) else (None, "no answer") for here, _ in pipes]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    errors = [error for _, error in made if error]
    assert not errors, "\n".join(errors)
    return [result for result, _ in made]
