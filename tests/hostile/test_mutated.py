"""Changed files of every reader: read or refused, within limits; and those that were not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from helpers.fakes import BagOfWords
from helpers.mutated.__main__ import main
from helpers.mutated.case import make
from helpers.mutated.cases import CASES
from helpers.mutated.indexes import repair_library, write_library
from helpers.mutated.texts import write_reports
from helpers.tiny_bert import edit_json
from helpers.tiny_clip import write_tiny_export
from helpers.tiny_llm import write_tiny_llm
from pyarrow import parquet

from granalign_fast import FrameEncoder, GranAlignError, Library, MomentRetriever
from granalign_fast.bench.harness.records import Report
from granalign_fast.jsonl import read_jsonl
from granalign_fast.models.chat import ChatTokenizer
from granalign_fast.models.tokenizer_file import load_tokenizer


def test_three_hundred_changed_files(capsys: pytest.CaptureFixture[str]) -> None:
    """A few of those that ``python -m helpers.mutated 20000`` reads."""
    code = main(["300", "0"])
    said = capsys.readouterr().out
    assert code == 0 and "300 files" in said, said
    assert "refused" in said and "read" in said


def test_a_number_makes_the_same_file_again(tmp_path: Path) -> None:
    case, outside = CASES["annotations"], tmp_path / "outside"
    (tmp_path / "seeds").mkdir()
    case.write(tmp_path / "seeds")
    contents = []
    for copy, number in (("a", 5), ("b", 5), ("c", 6)):
        make(case, tmp_path / "seeds", tmp_path / copy, number, outside)
        files = case.targets(tmp_path / copy)
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    "change",
    [
        {"resample": "x"},
        {"resample": 99},
        {"resample": []},
        {"crop": [4000, 4000]},
        {"crop": [1]},
        {"resize": [1]},
        {"more": 1},
    ],
)
def test_impossible_preprocessing_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = write_tiny_export(tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    manifest["preprocessing"] |= change
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(GranAlignError, match="unusable preprocessing"):
        FrameEncoder(folder)


@pytest.mark.parametrize("templates", [[None], [{"name": []}], [[]], [{"name": "default"}], [1]])
def test_lists_that_are_no_templates(tmp_path: Path, templates: Any) -> None:
    folder = write_tiny_llm(tmp_path / "a")
    edit_json(folder / "tokenizer_config.json", chat_template=templates)
    with pytest.raises(GranAlignError, match="no chat template"):
        ChatTokenizer(folder).chat([{"role": "user", "content": "a car"}])


@pytest.mark.parametrize("number", [2**31 - 1, -1, True, 2**40])
def test_token_ids_that_take_all_memory(tmp_path: Path, number: int) -> None:
    folder = write_tiny_llm(tmp_path / "a")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    tokenizer["model"]["vocab"]["<"] = number
    path.write_text(json.dumps(tokenizer))
    with pytest.raises(GranAlignError, match="got the token id"):
        load_tokenizer(folder)


def test_blank_lines_of_gzip_end(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * (1 << 23)))
    with pytest.raises(GranAlignError, match="got more content than"):
        read_jsonl(path)
    path.write_bytes(gzip.compress(b"\n" * 100_000 + b"{}\n"))
    assert read_jsonl(path) == [{}]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("suites", "a", "seconds"), "1"),
        (("suites", "a", "constants"), True),
        (("records", 0, "median"), None),
        (("machine", "load"), 1),
        (("absent",), []),
    ],
)
def test_altered_reports_are_refused(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    write_reports(tmp_path)
    path = tmp_path / "bench.json"
    report = json.loads(path.read_bytes())
    inner = report
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(report))
    with pytest.raises(GranAlignError, match="not a report"):
        Report.read(path)


def test_a_message_is_one_line() -> None:
    assert str(GranAlignError("a\nb\r\nc\u2028d\x85e")) == "a b c d e"
    assert str(GranAlignError("  two  spaces  ")) == "  two  spaces  "


@pytest.mark.parametrize(
    "name", ["postings.i32", "lengths.i32", "counts.u16", "stretches", "empty", "word"]
)
def test_a_catalogue_that_names_other_stretches(tmp_path: Path, name: str) -> None:
    write_library(tmp_path)
    (segment,) = (tmp_path / ".catalogue").glob("segment-*")
    file = segment / (name if "." in name else "words.parquet")
    if "." not in name:
        table = parquet.read_table(file)
        value = 9 if name == "stretches" else None
        name = "stretches" if name == "empty" else name
        cells = pyarrow.array([value] * table.num_rows, table.schema.field(name).type)
        number = table.column_names.index(name)
        parquet.write_table(table.set_column(number, name, cells), file)
    else:
        file.write_bytes(b"\xfe" * file.stat().st_size if name != "counts.u16" else b"")
    repair_library(tmp_path)
    library = Library.open(tmp_path, MomentRetriever(BagOfWords()))
    with pytest.raises(GranAlignError, match="run granalign library rebuild"):
        library.search("a red car")
