"""The JSON schemas of the documentation agree with what the commands print."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer
from helpers.documentation import ASSEMBLE, DOCS

from granalign_fast.cli.app import app

KEYWORDS = {
    *("$schema", "title", "description", "type", "properties", "required"),
    *("additionalProperties", "items", "minimum", "maximum"),
}
TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


def violations(value: Any, schema: Mapping[str, Any], path: str = "$") -> Iterator[str]:
    """Yield where a value breaks a schema, of which only `KEYWORDS` may be used."""
    assert schema.keys() <= KEYWORDS, schema.keys() - KEYWORDS
    if "type" in schema:
        kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        allowed = tuple(kind for name in kinds for kind in TYPES[name])
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            yield f"{path}: got {value!r}, expected {kinds}"
            return
    if isinstance(value, int | float) and not (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
    ):
        yield f"{path}: {value} is out of range"
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        for key in schema.get("required", ()):
            if key not in value:
                yield f"{path}.{key}: missing"
        extra = schema.get("additionalProperties", True)
        for key, inner in value.items():
            if key in properties or isinstance(extra, dict):
                yield from violations(inner, properties.get(key, extra), f"{path}.{key}")
            elif not extra:
                yield f"{path}.{key}: not in the schema"
    if isinstance(value, list) and "items" in schema:
        for number, inner in enumerate(value):
            yield from violations(inner, schema["items"], f"{path}[{number}]")


def schema(name: str) -> dict[str, Any]:
    """Return a schema of the documentation."""
    path = DOCS / "reference" / "schemas" / f"{name}.schema.json"
    return json.loads(path.read_text(encoding="utf-8"))


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    """Run a command and return the JSON that it prints."""
    command = typer.main.get_command(app)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        command([str(word) for word in words])
    assert end.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def check(value: Any, name: str) -> None:
    """Hold a value to a schema."""
    assert not list(violations(value, schema(name)))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One video of scenes, with queries and their truth."""
    from granalign_fast.miniatures.benchmark import write_benchmark

    folder = tmp_path_factory.mktemp("scenes")
    write_benchmark(folder, 1)
    return folder


def test_the_commands_keep_to_their_schemas(
    scenes: Path,
    capsys: pytest.CaptureFixture[str],
    warm_cache: Callable[[Path], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(warm_cache(tmp_path)))
    given = ["--models", "miniatures", "--json"]
    video = scenes / "videos" / "scenes-40000.mp4"
    indexed = run(capsys, "index", video, "--out", scenes / "index", *given)
    check(indexed, "index")
    (folder,) = indexed["indexes"]
    for preset in ("tuned", "recognition"):
        found = run(capsys, "search", folder, "an inky delta", "--preset", preset, *given)
        check(found, "search")
    alone = run(capsys, "search", folder, "an inky delta", "--captions-only", "--json")
    check(alone, "search")
    files = ["--queries", scenes / "queries.jsonl", "--ground-truth", scenes / "truth.jsonl"]
    written = tmp_path / "predictions.jsonl"
    evaluated = run(
        capsys,
        "evaluate",
        "qvhighlights",
        *files,
        "--indexes",
        scenes / "index",
        "--absent",
        scenes / "absent.jsonl",
        "--predictions",
        written,
        "--results",
        tmp_path / "results.json",
        *given,
    )
    check(evaluated, "evaluate")
    check(json.loads((tmp_path / "results.json").read_text()), "evaluate-results")
    scored = ["--predictions", written, *files[2:], "--json"]
    check(run(capsys, "score", "qvhighlights", *scored), "score-qvhighlights")
    check(run(capsys, "score", "charades", *scored), "score-moments")
    check(run(capsys, "doctor", "--json"), "doctor")
    check(run(capsys, "cache", "info", "--json"), "cache-info")
    check(run(capsys, "models", "list", "--json"), "models-list")


def test_a_schema_refuses_what_it_does_not_describe() -> None:
    """The test of the test."""
    index = schema("index")
    right: dict[str, Any] = {
        "indexes": ["a"],
        "without_captions": [],
        "failed": [{"path": "b", "error": "no video"}],
    }
    assert not list(violations(right, index))
    wrong_failures = ({"failed": [{"path": "b"}]}, {"failed": [1]}, {"indexes": [1]}, {"more": 1})
    for wrong in ({}, [], {"indexes": ["a"]}, *(right | change for change in wrong_failures)):
        assert list(violations(wrong, index))


@pytest.mark.parametrize(
    "path", sorted((DOCS / "reference" / "schemas").glob("*.json")), ids=lambda path: path.name
)
def test_every_schema_is_shown(path: Path) -> None:
    page = (DOCS / "reference" / "json.md").read_text(encoding="utf-8")
    assert f"(schemas/{path.name})" in page
    name = path.name.removesuffix(".schema.json")
    assert f"<!-- schema: {name} -->" in page
    table = ASSEMBLE.schema_table(name)
    assert all(row.count(" | ") == 2 for row in table.splitlines()[2:])
