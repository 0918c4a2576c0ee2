"""What fails in the harness is told in full."""

import pytest

pytest.register_assert_rewrite("tests.faults.harness")
