"""An error that only one worker of a training sees, while the others wait for it."""

import os
from pathlib import Path

import pytest

from tests.integration.helpers import ROOT, Workplace

pytestmark = pytest.mark.slow

# As sitecustomize.py: the worker of one rank refuses its training, which the others begin.
FAULTY = """
import importlib.abc, importlib.util, sys
class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "sande.training.fit":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module
        def exec_module(module):
            execute(module)
            prepare = module._arguments
            def faulty(*arguments, **more):
                import ray.train
                if ray.train.get_context().get_world_rank() == {rank}:
                    raise module.UserError("rows of this worker: torn; make them again")
                return prepare(*arguments, **more)
            module._arguments = faulty
        spec.loader.exec_module = exec_module
        return spec
sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_of_one_worker_alone_ends_a_training(tmp_path: Path, rank: int) -> None:
    place = Workplace(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(FAULTY.format(rank=rank))
    grid = place.grid("torn", resources={"workers": 2, "cpus": 1})
    done = place.run(grid, timeout=300, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1, done.stdout + done.stderr
    rows = place.rows(grid)
    assert {row["failure"] for row in rows} == {"user's mistake"}
    assert {row["error"] for row in rows} == {"rows of this worker: torn; make them again"}
    assert not place.artifacts("attack")
