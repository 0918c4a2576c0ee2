"""A workplace for each module, so that tests of one run share it."""

import pytest

from tests.integration.helpers import Workplace


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    return Workplace(tmp_path_factory.mktemp("place"))
