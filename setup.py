"""Copy grids/ into the wheel as benchmark/grids; everything else is in pyproject.toml.

A mapping of packages would do this without code, but then an editable installation works by an import hook, which
editors and type checkers do not follow, and its grids would still lie elsewhere than those of a wheel.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithGrids(build_py):
    """Build the modules and the grids; an editable installation uses those of the checkout."""

    def run(self) -> None:
        """Build into build_lib."""
        super().run()
        if self.editable_mode:
            return
        for grid in sorted(Path("grids").rglob("*.yaml")):
            target = Path(self.build_lib, "benchmark", grid)
            self.mkpath(str(target.parent))
            self.copy_file(str(grid), str(target))


setup(cmdclass={"build_py": BuildWithGrids})
