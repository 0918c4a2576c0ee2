"""Check files of rows and outcomes, which anyone may have written, before anything reads them whole."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from sande.errors import UserError

MOST_BYTES = 8 * 2**30  # of a file, unpacked


def check_size(path: Path, most: int) -> None:
    """Refuse a Parquet file that would fill the memory: few bytes can stand for any number of rows.

    Args:
        path: of the file.
        most: rows that it may have.

    Raises:
        UserError: it has more rows or bytes.
        OSError, ValueError, pyarrow.ArrowException: it is not readable Parquet.
    """
    about = pq.read_metadata(path)
    if about.num_rows > most:
        raise UserError(f"{path}: {about.num_rows} rows, more than {most}; use the results of several smaller grids")
    size = sum(about.row_group(number).total_byte_size for number in range(about.num_row_groups))
    if size > MOST_BYTES:
        raise UserError(f"{path}: {size >> 30} GiB, more than {MOST_BYTES >> 30}; use the results of smaller grids")
