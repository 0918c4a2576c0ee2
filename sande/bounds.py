"""Bounds on what is read from files of others: only regular files, and no more bytes, rows or text than these.

A small file can stand for any amount of text: compressed, or with one value for many rows. So what comes out is
counted while it is read, and a file that exceeds a bound is refused in a sentence.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from sande.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

MIB = 2**20
MOST_BYTES = 256 * MIB  # of a file that is read as a whole
MOST_JSON = 1024 * MIB  # of a data set in one JSON file
MOST_LINE = 16 * MIB  # characters of a row of a data set
MOST_TEXT = 4096 * MIB  # bytes of all texts of a data set
MOST_ROWS = 5_000_000  # of a data set
BATCH = 256  # rows that are decoded at a time


def read(path: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Args:
        path: of the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be opened or read; as `open`.
        UserError: it is a pipe, a device or a socket, whose reading may never end, or it is larger.
    """
    # Without waiting, as the opening of a pipe waits for somebody to write.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise UserError(f"{path}: a pipe or device, not a file; choose a file")
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most // MIB or 1} MiB; choose a smaller file")
    return content


def read_json(path: Path, most: int = MOST_BYTES) -> Any:
    """Return the value in a JSON file.

    Raises:
        OSError, UserError: as `read`.
        ValueError: it is not JSON in UTF-8, is nested too deep, or holds half of a surrogate pair.
    """
    return parse_json(read(path, most).decode())


def parse_json(text: str) -> Any:
    """Return the value of a JSON text; every text in it can be written as UTF-8.

    Raises:
        ValueError: as `read_json`.
    """
    try:
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None
    return value


def lines(file: TextIO, path: Path) -> Iterator[str]:
    """Yield the lines of a data set.

    Raises:
        UserError: a line, their number or all of them together exceed the bounds.
    """
    number = total = 0
    while line := file.readline(MOST_LINE + 1):
        number, total = number + 1, total + len(line)
        if len(line) > MOST_LINE:
            raise UserError(f"{path}, line {number}: more than {MOST_LINE // MIB} MiB; put one row on each line")
        _check(path, number, total)
        yield line


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a data set in Parquet.

    Raises:
        UserError: their number or their texts exceed the bounds.
        OSError, ValueError, pyarrow.ArrowException: the file is not readable Parquet.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        leaves = [file.schema.column(index) for index in range(len(file.schema))]
    # Texts in lists and structs as well, so that a value of many rows is there once until it has been counted.
    names = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
    with pq.ParquetFile(path, read_dictionary=names) as file:
        _check(path, file.metadata.num_rows, 0)
        total = 0
        for batch in file.iter_batches(BATCH):
            total += sum(map(_size, batch.columns))
            _check(path, 0, total)
            yield from batch.to_pylist()


def _size(values: pa.Array) -> int:
    """Return the bytes of all values, each of which may be kept once for many rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = values.type
    if pa.types.is_dictionary(kind) and (pa.types.is_string(kind.value_type) or pa.types.is_binary(kind.value_type)):
        return int(pc.sum(pc.binary_length(values.dictionary).take(values.indices)).as_py() or 0)
    if pa.types.is_map(kind):
        return _size(values.keys) + _size(values.items)
    if pa.types.is_struct(kind):
        return sum(map(_size, values.flatten()))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _size(values.flatten())
    return int(values.nbytes)


def _check(path: Path, rows: int, total: int) -> None:
    if rows > MOST_ROWS:
        raise UserError(f"{path}: more than {MOST_ROWS} rows; use a part of the data set")
    if total > MOST_TEXT:
        raise UserError(f"{path}: its rows hold more than {MOST_TEXT // MIB} MiB; use a part of the data set")
