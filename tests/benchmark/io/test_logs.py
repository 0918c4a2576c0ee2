"""The log of a run: warnings of libraries are silenced, those of other code are not."""

import warnings

import pytest

from benchmark.io import logs


@pytest.mark.parametrize(
    ("module", "silent"),
    [
        ("torch.nn.modules", True),
        ("transformers", True),
        ("ray._private.worker", True),
        ("forget_it.defense", False),
        ("sande.registry", False),
        ("raycast", False),
    ],
)
def test_only_known_libraries_are_silenced(module: str, silent: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        logs.quiet()
        warnings.warn_explicit("careful", UserWarning, f"{module}.py", 1, module)
    assert bool(caught) is not silent
