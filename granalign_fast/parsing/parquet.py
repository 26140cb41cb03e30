"""Read Parquet within limits: the footer says what a file holds before any of it is decoded.

The footer lists rows and columns, and where the pages lie. The head of each page says how many
bytes it becomes; Arrow allocates so many, and no more are decompressed. Where many rows may refer
to one long text, texts are decoded as a dictionary and row numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .limits import MOST_COLUMNS, memory_for
from .page_heads import page_sizes

_CONTAINERS = 10_000
"""Entries of a list in the footer. A table of ours has a row group for each 65,536 rows."""
_ROW_BYTES = 64
"""Bytes that a row takes in each column: a Python number and its place in a list."""


class Table:
    """An open Parquet file, whose footer was checked. Threads may share one.

    Args:
        content: the file: a `bytes`, or a memory map of `pyarrow`.
        schema: the `pyarrow.Schema` that it must have, of texts and numbers.
        most_rows: the greatest number of rows.

    Raises:
        ValueError: it is no such file, has another schema, or passes a limit. The message is one
            line.
    """

    def __init__(self, content: Any, schema: Any, most_rows: int) -> None:
        import pyarrow

        self._reading = threading.Lock()  # a read moves the place in the file
        self._source = pyarrow.BufferReader(content) if isinstance(content, bytes) else content
        self._size = self._source.size()
        try:
            self._metadata = self._open().metadata
            self._check(schema, most_rows)
        except Exception as error:  # pyarrow raises many types on a damaged file
            raise ValueError(_line(error)) from None
        self._names = schema.names

    def _open(self, **options: Any) -> Any:
        from pyarrow import parquet

        return parquet.ParquetFile(
            self._source,
            pre_buffer=False,
            thrift_container_size_limit=_CONTAINERS,
            thrift_string_size_limit=memory_for(self._size),
            schema_depth_limit=8,
            **options,
        )

    def _check(self, schema: Any, most_rows: int) -> None:
        """Compare the footer with the schema and the limit."""
        metadata = self._metadata
        if metadata.num_columns > MOST_COLUMNS:
            raise ValueError(f"got {metadata.num_columns:,} columns, expected {schema.names}")
        got = metadata.schema.to_arrow_schema()
        if not got.equals(schema):
            raise ValueError(f"got columns {_described(got)}, expected {_described(schema)}")
        rows = metadata.num_rows
        if not 0 <= rows <= most_rows or sum(group.num_rows for group in self._groups()) != rows:
            raise ValueError(f"got {rows:,} rows, expected at most {most_rows:,}")

    def _groups(self) -> list[Any]:
        return [self._metadata.row_group(i) for i in range(self._metadata.num_row_groups)]

    def read(self, names: Sequence[str] | None = None) -> dict[str, Any]:
        """Return columns: texts as a list, and numbers as a NumPy array.

        A missing text is None, and a missing number NaN.

        Args:
            names: of the columns; None for all.

        Raises:
            ValueError: the file is damaged, or would take more memory than its size allows.
        """
        wanted = list(self._names if names is None else names)
        try:
            with self._reading:
                repeated = self._check_pages(wanted)
                self._source.seek(0)
                file = self._open(metadata=self._metadata, read_dictionary=repeated)
                # One thread: more gain nothing on a small table, and a process that exits right
                # after could abort in pyarrow's thread pool.
                table = file.read(wanted, use_threads=False)
            table.validate(full=True)
            return {name: _values(table.column(name)) for name in wanted}
        except Exception as error:  # pyarrow raises many types on a damaged file
            raise ValueError(_line(error)) from None

    def _check_pages(self, names: Sequence[str]) -> list[str]:
        """Sum up the bytes of all pages after decompression.

        Returns:
            The columns of texts in which many rows may refer to one long text.

        Raises:
            ValueError: there are more bytes than the limit, or a page lies outside of the file.
        """
        memory, repeated = memory_for(self._size), set()
        needed = self._metadata.num_rows * len(names) * _ROW_BYTES
        groups = self._groups()
        for group in groups:
            if not group.num_rows:
                continue
            for number in range(group.num_columns):
                chunk = group.column(number)
                if (name := chunk.path_in_schema) not in names:
                    continue
                pages = sum(page_sizes(self._source, self._size, chunk))
                needed += pages
                most = pages * group.num_rows * len(groups) * len(names)
                if most > memory and chunk.physical_type == "BYTE_ARRAY":
                    repeated.add(name)
        if needed > memory:
            raise ValueError(
                f"got {needed // 1_000_000:,} MB after decompression, expected at most "
                f"{memory // 1_000_000:,} MB in a file of {self._size:,} bytes"
            )
        return sorted(repeated)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _described(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in list(schema)[:MOST_COLUMNS])


def _values(column: Any) -> Any:
    """Return the values of a column, see `Table.read`."""
    import pyarrow

    if pyarrow.types.is_string(column.type):
        return column.to_pylist()
    if pyarrow.types.is_dictionary(column.type):
        return _texts(column)
    if column.null_count == len(column):
        return np.full(len(column), np.nan)
    return column.to_numpy()


def _texts(column: Any) -> list[str | None]:
    """Return the texts of a column that was read as a dictionary; equal ones are one object.

    Raises:
        ValueError: together they are too long.
    """
    from pyarrow import compute

    found: list[str | None] = []
    total, most = 0, memory_for(column.nbytes)
    for chunk in column.chunks:
        lengths = compute.binary_length(chunk.dictionary).take(chunk.indices)
        total += compute.sum(lengths).as_py() or 0
        if total > most:
            raise ValueError(f"got texts of more than {most:,} bytes together, expected fewer")
        if 2 * len(chunk.dictionary) > len(chunk):
            found += chunk.dictionary_decode().to_pylist()
            continue
        texts = np.array([*chunk.dictionary.to_pylist(), None], object)
        found += texts[chunk.indices.fill_null(len(texts) - 1).to_numpy()].tolist()
    return found
