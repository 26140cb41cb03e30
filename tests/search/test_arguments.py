"""Wrong arguments in Python: one line that names the argument, what it got and what it expects."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.fakes import BagOfWords

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    MomentRetriever,
    Request,
    RetrieverConfig,
    Rewrites,
    RuleRewriter,
    StoredRewriter,
    VideoIndex,
)
from granalign_fast.config import preset
from granalign_fast.jsonl import read_jsonl, write_jsonl

STREET = CaptionedVideo("street", ("a red car", "a dog runs"))
INDEX = VideoIndex(STREET, BagOfWords().encode(STREET.captions))
LONG = "a word " * 5000

Call = Callable[[MomentRetriever], Any]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: r.search("demo", "x"), "index: got 'demo', expected a VideoIndex; read one"),
        (lambda r: r.search(None, "x"), "index: got None, expected a VideoIndex"),
        (lambda r: r.search(STREET, "x"), r"index: got CaptionedVideo\(.*, expected a VideoIndex"),
        (lambda r: r.search(INDEX, 3), "query: got 3, expected a text or Rewrites"),
        (lambda r: r.search(INDEX, ["a", "b"]), r"query: got \['a', 'b'\], expected a text"),
        (lambda r: r.search(INDEX, b"dog"), "query: got b'dog', expected a text"),
        (lambda r: r.search(INDEX, "x", aware=["a"]), r"aware: got \['a'\], expected captions by"),
        (lambda r: r.search(INDEX, "x", aware="a"), "aware: got 'a', expected captions by clip"),
        (lambda r: r.search(INDEX, "x", aware={"0": "a"}), "aware: got clip '0', expected an int"),
        (lambda r: r.search(INDEX, "x", aware={True: "a"}), "aware: got clip True, expected an"),
        (lambda r: r.search(INDEX, "x", aware={0: 7}), "aware caption of clip 0: got 7, expected"),
        (lambda r: r.search_many([(INDEX, "x")]), r"requests\[0\]: got \(.*, expected a Request; "),
        (lambda r: r.search_many([Request(INDEX, "x"), None]), r"requests\[1\]: got None, expect"),
        (
            lambda r: r.search_many(Request(INDEX, "x")),
            "got a Request, expected a list .*; put the",
        ),
        (lambda r: r.search_many("x"), "requests: got a str, expected a list of Request$"),
        (lambda r: r.search_many(None), "requests: got a NoneType, expected a list of Request$"),
        (lambda r: r.index("x"), r"video: got 'x', expected a CaptionedVideo; write Captioned"),
        (lambda r: r.index([STREET]), r"video: got \[.*, expected a CaptionedVideo"),
        (lambda r: r.index_many(STREET), "got a CaptionedVideo, expected a list .*; put the video"),
        (lambda r: r.index_many([STREET, "x"]), r"videos\[1\]: got 'x', expected a Captioned"),
        (lambda r: r.index_many("x"), "videos: got a str, expected a list of CaptionedVideo$"),
        (lambda r: r.index_many(3), "videos: got a int, expected a list of CaptionedVideo$"),
    ],
)
def test_wrong_arguments_of_a_retriever(call: Call, message: str) -> None:
    retriever = MomentRetriever(BagOfWords())
    with pytest.raises(GranAlignError, match=message) as error:
        call(retriever)
    assert "\n" not in str(error.value) and len(str(error.value)) < 250


def test_clip_numbers_of_numpy_are_integers() -> None:
    retriever = MomentRetriever(BagOfWords())
    query = Rewrites("dog", (), ("a red dog",))
    aware = {np.int64(1): "a red dog"}
    assert retriever.search(INDEX, query, aware=aware).aware == {1: "a red dog"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"encoder": "models"}, "encoder: got 'models', expected an object with a method 'encode'"),
        ({"encoder": Path("models")}, r"encoder: got .*'models'\), expected an object with a met"),
        ({"rewriter": "rules"}, "rewriter: got 'rules', expected an object with a method 'rewri"),
        ({"captioner": 3}, "captioner: got 3, expected an object with a method 'aware'"),
        ({"frame_encoder": {}}, "frame_encoder: got {}, expected an object with a method 'encode_"),
        ({"config": 3}, "config: got 3, expected a RetrieverConfig or a preset's name, one of: "),
        ({"config": None}, "config: got None, expected a RetrieverConfig or a preset's name"),
        ({"config": ["tuned"]}, r"config: got \['tuned'\], expected a RetrieverConfig"),
        (
            {"config": "best"},
            "preset: got 'best', expected one of: paper, tuned, visual, recognition",
        ),
    ],
)
def test_wrong_parts_of_a_retriever(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        MomentRetriever(**({"encoder": BagOfWords()} | arguments))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [3, None, [], {}, "best", LONG])
def test_wrong_names_of_presets(name: Any) -> None:
    with pytest.raises(GranAlignError, match=r"preset: got .*, expected one of: paper") as error:
        preset(name)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("scorer", 3),
        ("scorer", ["captions"]),
        ("key_frames", "0.5"),
        ("key_frames", True),
        ("exists_frames", 2.5),
        ("use_query", "yes"),
        ("use_query", 1),
        ("context", 5),
        ("feedback", 12),
        ("power", None),
        ("power", float("nan")),
        ("proposals", None),
        ("nms_threshold", "0.5"),
        ("top", 2.0),
        ("top", True),
    ],
)
def test_wrong_types_in_a_configuration(field: str, value: Any) -> None:
    with pytest.raises(GranAlignError, match=rf"^{field}: got .*, expected "):
        RetrieverConfig(**{field: value})


def test_numbers_of_numpy_configure() -> None:
    config = RetrieverConfig(power=np.float32(1.5), top=np.int64(3))  # type: ignore[arg-type]
    retriever = MomentRetriever(BagOfWords(), config)
    assert 1 <= len(retriever.search(INDEX, "dog").moments) <= 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rewrites(3), "query: got 3, expected a text"),  # type: ignore[arg-type]
        (lambda: Rewrites("a", {"b"}), "simplified: got {'b'}, expected a list"),  # type: ignore[arg-type]
        (lambda: Rewrites("a", (LONG, 3)), "simplified rewrite: got 3"),  # type: ignore[arg-type]
        (lambda: Rewrites("a", LONG), "simplified: got 'a word .*, expected a list"),  # type: ignore[arg-type]
        (
            lambda: Rewrites("a \udcff"),
            r"query: got 'a \\udcff', expected valid Unicode; char.* 3 ",
        ),
        (lambda: Rewrites("a", ("\ud800",)), r"simplified rewrite: got '\\ud800', expected valid"),
        (lambda: Rewrites.from_record(3, "f:1"), "f:1: got 3, expected a JSON object"),  # type: ignore[arg-type]
        (lambda: Rewrites.from_record({}, "f:1"), "f:1: key 'query' is missing; got .* none"),
        (
            lambda: Rewrites.from_record(dict.fromkeys("abcdefgh"), "f:1"),
            "f:1: key 'query' is missing; got the keys 'a', 'b', 'c', 'd', 'e' and 3 more",
        ),
    ],
)
def test_wrong_rewrites(make: Callable[[], Rewrites], message: str) -> None:
    with pytest.raises(GranAlignError, match=message) as error:
        make()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("path", [3, None, b"rewrites.jsonl", ["a"]])
def test_wrong_paths(path: Any) -> None:
    for call in (StoredRewriter, read_jsonl, lambda value: write_jsonl(value, [])):
        with pytest.raises(GranAlignError, match=r"path: got .*, expected that of a file"):
            call(path)


@pytest.mark.parametrize("queries", ["a dog", 3, None])
def test_rewriters_take_a_list_of_queries(tmp_path: Path, queries: Any) -> None:
    write_jsonl(tmp_path / "r.jsonl", [{"query": "a"}])
    for rewriter in (RuleRewriter(), StoredRewriter(tmp_path / "r.jsonl")):
        with pytest.raises(GranAlignError, match=r"queries: got .*, expected a list of texts"):
            rewriter.rewrite(queries)


def test_a_query_that_is_not_valid_text_is_named_by_every_search() -> None:
    with pytest.raises(GranAlignError, match=r"^query: got 'a dog \\udcff', expected valid Unico"):
        MomentRetriever(BagOfWords()).search(INDEX, "a dog \udcff")


def test_a_line_with_many_keys_is_a_short_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{f"key {i}" * 50: i for i in range(1000)}])
    with pytest.raises(GranAlignError, match=r"key 'vid' is missing; got the .* 995 more") as error:
        read_jsonl(tmp_path / "a.jsonl", required=["vid"])
    assert len(str(error.value)) < 800
