"""Small files that expand: each is refused before it takes the memory, in a process with 2 GB."""

from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from helpers.limited import peak_growth
from pyarrow import parquet

from granalign_fast.errors import GranAlignError
from granalign_fast.index.columns import _clip_schema, read_clip_table, read_embeddings
from granalign_fast.jsonl import read_jsonl
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.parsing.limits import MOST_DEPTH, memory_for
from granalign_fast.parsing.parquet import Table

LINES = "from granalign_fast.jsonl import read_jsonl; read_jsonl(PATH)"
DOCUMENT = "from granalign_fast.datasets.documents import read_document; read_document(PATH)"
TABLE = (
    "from granalign_fast.index.columns import read_clip_table; "
    "read_clip_table(PATH, PATH.read_bytes(), captioned=True)"
)


def expand(path: Path, head: bytes, times: int, piece: bytes, tail: bytes) -> Path:
    """Write a gzip file of a head, a piece so many times, and a tail."""
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(head)
        for _ in range(times):
            file.write(piece)
        file.write(tail)
    return path


def clip_table(rows: int, caption: str | list[str], **options: object) -> bytes:
    """A clip table of one caption in all rows, or of a list of them."""
    captions = pyarrow.array([caption] * rows if isinstance(caption, str) else caption)
    columns = {
        "clip": np.arange(rows),
        "time": np.arange(rows, dtype=np.float64),
        "caption": captions,
        "frame_hash": pyarrow.array(["0" * 64] * rows),
    }
    sink = io.BytesIO()
    table = pyarrow.table(columns, schema=_clip_schema(captioned=True))
    parquet.write_table(table, sink, compression="zstd", **options)
    return sink.getvalue()


def a_long_line(folder: Path) -> Path:
    return expand(folder / "a.jsonl.gz", b'{"vid": "', 60, b" " * (1 << 20), b'"}\n')


def many_lines(folder: Path) -> Path:
    return expand(folder / "a.jsonl.gz", b"", 40, b'{"vid": {}}\n' * 10_000, b"")


def many_values(folder: Path) -> Path:
    path = folder / "a.json"
    path.write_bytes(b'{"a": [' + b"{}," * 8_000_000 + b"0]}")
    return path


def many_values_in_a_line(folder: Path) -> Path:
    path = folder / "a.jsonl"
    path.write_bytes(b'{"a": [' + b"[]," * 8_000_000 + b"0]}")
    return path


def a_large_document(folder: Path) -> Path:
    return expand(folder / "a.json.gz", b'{\n"vid": "', 200, b" " * (1 << 20), b'"}')


def many_rows(folder: Path) -> Path:
    path = folder / "clips.parquet"
    path.write_bytes(clip_table(500_001, "x"))
    return path


def a_text_of_many_rows(folder: Path) -> Path:
    path = folder / "clips.parquet"
    rows, schema = 100_000, _clip_schema(captioned=True)
    kind = pyarrow.dictionary(pyarrow.int32(), pyarrow.string())
    schema = schema.set(2, pyarrow.field("caption", kind, nullable=False))
    captions = pyarrow.DictionaryArray.from_arrays(np.zeros(rows, np.int32), ["x" * 100_000])
    columns = [np.arange(rows), np.arange(rows) * 1.0, captions, ["0" * 64] * rows]
    # Without the schema of Arrow, the type of the column is that of Parquet: a text.
    table = pyarrow.table(columns, schema=schema)
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    return path


def pages_that_expand(folder: Path) -> Path:
    path = folder / "clips.parquet"
    path.write_bytes(clip_table(20, "x" * 10_000_000, use_dictionary=False))
    return path


@pytest.mark.parametrize(
    ("write", "read", "message"),
    [
        (a_long_line, LINES, "got a line of more than"),
        (many_lines, LINES, "expected less in a file of .*; decompress it first"),
        (many_values_in_a_line, LINES, "got more content than .*; split it"),
        (many_values, DOCUMENT, "got values of some"),
        (a_large_document, DOCUMENT, "expected less in a file of .*; decompress it first"),
        (many_rows, TABLE, "got 500,001 rows, expected at most 500,000"),
        (a_text_of_many_rows, TABLE, "got texts of more than"),
        (pages_that_expand, TABLE, "MB after decompression, expected at most"),
    ],
)
def test_small_files_that_expand(tmp_path: Path, write, read: str, message: str) -> None:  # type: ignore[no-untyped-def]
    path = write(tmp_path)
    growth = peak_growth(read, path, message)
    assert growth < memory_for(path.stat().st_size) + 50_000_000 + path.stat().st_size


def test_depth_and_digits_of_json() -> None:
    for depth in (MOST_DEPTH + 1, 900, 100_000):
        with pytest.raises(ValueError, match=f"nested more than {MOST_DEPTH} deep"):
            parse_json(b"[" * depth + b"]" * depth)
    parse_json(b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)
    parse_json(b'["]",' * 30 + b"1" + b"]" * 30)
    # Python reads such an integer, and fails where it becomes a float.
    with pytest.raises(ValueError, match="got an integer of 400 digits"):
        parse_json(b'{"duration": ' + b"9" * 400 + b"}")
    assert parse_json(b'["' + b"9" * 400 + b'"]') == ["9" * 400]
    assert parse_json(b"\xef\xbb\xbf[1]") == [1]


def test_a_deep_line_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 5000 + "]" * 5000 + "}\n")
    with pytest.raises(GranAlignError, match=r"a.jsonl:1: not JSON \(got a value nested"):
        read_jsonl(path)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clip": [[[1]]]}, "got columns clip list"),
        ({f"c{number}": [1] for number in range(500)}, "got 500 columns"),
        ({"clip": pyarrow.array(["a"]).dictionary_encode()}, "got columns clip dictionary"),
    ],
)
def test_other_schemas(tmp_path: Path, columns: dict[str, object], message: str) -> None:
    sink = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), sink)
    with pytest.raises(GranAlignError, match=message):
        read_clip_table(tmp_path, sink.getvalue(), captioned=True)


def test_texts_and_numbers_of_parquet() -> None:
    """A column read as a dictionary, because texts repeat, equals the one written."""
    rows = 200_000
    captions = [f"caption {number % 7} " + "x" * 900 * (number % 2) for number in range(rows)]
    schema = pyarrow.schema({"text": pyarrow.string(), "number": pyarrow.float64()})
    numbers = [None if number == 3 else float(number) for number in range(rows)]
    texts = [None if number == 5 else text for number, text in enumerate(captions)]
    sink = io.BytesIO()
    parquet.write_table(
        pyarrow.table({"text": texts, "number": numbers}, schema=schema), sink, row_group_size=9999
    )
    table = Table(sink.getvalue(), schema, rows)
    assert table._check_pages(["text", "number"]) == ["text"]
    found = table.read()
    assert found["text"] == texts
    assert np.isnan(found["number"][3]) and np.array_equal(found["number"][4:], numbers[4:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (struct.pack("<Q", 1 << 60) + b"{}", "expected a header of"),
        (struct.pack("<Q", 2_000_000) + b" " * 2_000_000, "got a header of 2,000,000 bytes"),
        (b"abc", "expected a header"),
    ],
)
def test_headers_of_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(GranAlignError, match=message):
        read_embeddings(tmp_path, content, captioned=True)


def test_only_the_limited_parsers_are_used() -> None:
    """Each call of another parser in the package is named here, with what it reads."""
    root = Path(__file__).resolve().parents[2]
    own = {
        "granalign_fast/parsing/json_values.py",
        "granalign_fast/errors.py",  # of an installed distribution
        "granalign_fast/models/plain_text.py",  # states of a tokenizer that is open
        "granalign_fast/models/special_tokens.py",
        "export/sources/tokenizer.py",
        "export/sources/vocabulary.py",
        "granalign_fast/server/triton/encoder_model.py",  # of Triton's server itself
        "granalign_fast/server/triton/search_model.py",
    }
    found = {
        str(path.relative_to(root))
        for folder in ("granalign_fast", "export")
        for path in (root / folder).rglob("*.py")
        if not any(
            (root / folder / part).is_symlink() for part in path.relative_to(root).parts[1:2]
        )
        and "json.load" in path.read_text(encoding="utf-8")
    }
    assert found == own
