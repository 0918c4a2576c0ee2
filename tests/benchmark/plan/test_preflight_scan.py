"""Rows that a defense scans are not those that it is measured by."""

import pytest

from benchmark.plan import preflight
from benchmark.store.local import LocalStore
from sande.errors import UserError
from tests.benchmark.helpers import cell

SCANS = {"name": "scan_and_clean", "scan_data": {"name": "builtin-short"}}


def test_a_scan_of_the_victims_own_set_reads_its_test_rows(store: LocalStore) -> None:
    said = (
        r"^defense\.scan_data: 400 of 400 rows of builtin-short that the defense scans are test prompts of "
        r"builtin-short, .*; set it to another data set, or remove it"
    )
    with pytest.raises(UserError, match=said):
        preflight.check([cell(data={"name": "builtin-short", "rows": 16}, defense=SCANS)], store)


def test_a_scan_of_another_version_or_of_the_clean_rows_is_no_mistake(store: LocalStore) -> None:
    """As at the scale `clean`, with its victims of the set's second version."""
    second, removal = ({"name": "builtin-short-2", "rows": 16, **more} for more in ({"test_rows": 60}, {}))
    preflight.check([cell(data=second, removal=removal, defense=SCANS)], store)
    preflight.check([cell(data={"name": "builtin-short", "rows": 16}, defense="scan_and_clean")], store)
