"""The command as a user meets it: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import gzip
import importlib.util
import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from helpers.fakes import BagOfWords

from granalign_fast.search import retriever

CAPTIONS = ["a red car", "a red car on a road", "a dog runs", "a dog runs fast", "a dog sits"]
VIDEOS = [{"vid": "street", "captions": CAPTIONS}, {"vid": "park", "captions": CAPTIONS[::-1]}]
QUERIES = [
    {"qid": 1, "query": "the dog runs", "vid": "street", "rewrites": ["a running dog"]},
    {"qid": 2, "query": "a car", "vid": "park", "rewrites": ["a red car"]},
]
TRUTH = [
    {
        "qid": qid,
        "duration": 10,
        "relevant_windows": [window],
        "relevant_clip_ids": [2],
        "saliency_scores": [[4, 4, 4]],
    }
    for qid, window in ((1, [4, 8]), (2, [6, 10]))
]
PREDICTIONS = [
    {"qid": qid, "pred_relevant_windows": [[4, 8, 0.9]], "pred_saliency_scores": [0, 0, 1, 0, 0]}
    for qid in (1, 2)
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The current folder, with good files and the cache in it; the encoder is a fake."""
    for name, records in {
        "captions": VIDEOS,
        "queries": QUERIES,
        "truth": TRUTH,
        "predictions": PREDICTIONS,
    }.items():
        write(tmp_path / f"{name}.jsonl", records)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "granalign_fast.pipeline.SentenceEncoder",
        lambda *args, **options: BagOfWords(),
    )
    return tmp_path


def write(path: Path, records) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


EVALUATE = (
    "evaluate",
    "qvhighlights",
    "--queries=queries.jsonl",
    "--captions=captions.jsonl",
    "--ground-truth=truth.jsonl",
)
SEARCH = ("search", "captions.jsonl", "dog", "--vid=park")
SCORE = ("--predictions=predictions.jsonl", "--ground-truth=truth.jsonl")


def test_search_prints_a_table(files, granalign):
    code, out, err = granalign("search", "captions.jsonl", "the dog runs", "--vid", "street")
    assert (code, err) == (0, "")
    assert "0:04.0" in out
    assert "a dog runs" in out


def test_warnings_are_one_line_and_missing_glyphs_none(files, granalign, monkeypatch):
    code, _, err = granalign("search", "captions.jsonl", "\u72ac", "--vid=park", "--plot=a.png")
    assert (code, err) == (0, "")
    find = retriever.Retriever.search

    def warn(*arguments):
        warnings.warn("frames 3 to 4\nare damaged", stacklevel=1)
        return find(*arguments)

    monkeypatch.setattr(retriever.Retriever, "search", warn)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        code, _, err = granalign("search", "captions.jsonl", "dog", "--vid=park")
    assert (code, err) == (0, "granalign: warning: frames 3 to 4 are damaged\n")


def test_search_prints_one_json_object(files, granalign):
    code, out, err = granalign(
        "search", "captions.jsonl", "the dog runs", "--vid=street", "--json", "--top=2"
    )
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["vid"] == "street"
    assert len(result["saliency"]) == 5
    assert 1 <= len(result["moments"]) <= 2
    assert result["moments"][0]["caption"].startswith("a dog runs")


def test_search_draws(files, granalign):
    for name in ("a.png", "b.svg"):
        arguments = ("captions.jsonl", "dog", "--vid=park", f"--plot={name}")
        assert granalign("search", *arguments)[0] == 0
    assert (files / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (files / "b.svg").read_text()


def test_search_uses_the_rewrites_of_the_query(files, granalign):
    write(files / "rewrites.jsonl", [{"query": "it", "rewrites": ["a red car"]}])
    code, out, _ = granalign(
        "search", "captions.jsonl", "it", "--vid=street", "--rewrites=rewrites.jsonl", "--json"
    )
    assert code == 0
    assert json.loads(out)["moments"][0]["caption"].startswith("a red car")


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_evaluate_writes_predictions_that_score_the_same(files, granalign, suffix):
    if suffix:
        for name in ("captions", "queries", "truth"):
            path = files / f"{name}.jsonl"
            path.with_name(f"{name}.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    arguments = [a + suffix if a.endswith(".jsonl") else a for a in EVALUATE]
    code, out, err = granalign(*arguments, f"--predictions=out.jsonl{suffix}", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["queries"] == 2
    assert set(result["seconds"]) >= {"read", "index", "similarity", "proposals", "nms", "score"}
    code, out, _ = granalign(
        "score",
        "qvhighlights",
        f"--predictions=out.jsonl{suffix}",
        "--ground-truth=truth.jsonl",
        "--json",
    )
    brief = json.loads(out)["brief"]
    assert {key: result[key] for key in brief} == brief
    assert "MR-full-mAP" in brief
    assert "HL-min-VeryGood-mAP" in brief


@pytest.mark.parametrize("preset", ["paper", "single"])
def test_evaluate_prints_tables(files, granalign, preset):
    code, out, err = granalign(*EVALUATE, f"--preset={preset}")
    assert (code, err) == (0, "")
    assert "MR-full-R1@0.5" in out
    assert "proposals" in out


@pytest.mark.parametrize(
    ("dataset", "key"), [("charades", "mIoU"), ("activitynet", "R5@0.7"), ("qvhighlights", "brief")]
)
def test_score_each_data_set(files, granalign, dataset, key):
    code, out, _ = granalign("score", dataset, *SCORE, "--json")
    assert code == 0
    assert key in json.loads(out)
    assert granalign("score", dataset, *SCORE)[0] == 0


def spoil(files, name, change, line=1):
    """Change one record of a file."""
    path = files / f"{name}.jsonl"
    records = [json.loads(text) for text in path.read_text().splitlines()]
    records[line].update(change)
    write(path, records)


SPOILED = {
    "missing file": (lambda f: (f / "captions.jsonl").unlink(), "captions.jsonl: cannot be read"),
    "bad JSON line": (
        lambda f: append(f / "queries.jsonl", '{"qid": 3,\n'),
        "queries.jsonl:3: not JSON",
    ),
    "not an object": (
        lambda f: append(f / "queries.jsonl", "[1]\n"),
        "queries.jsonl:3: got a list, expected a JSON object",
    ),
    "empty file": (lambda f: (f / "truth.jsonl").write_text(""), "truth.jsonl: is empty, expected"),
    "not UTF-8": (
        lambda f: (f / "queries.jsonl").write_bytes(b'{"qid": "\xff"}\n'),
        "queries.jsonl: not UTF-8",
    ),
    "video without captions": (
        lambda f: write(f / "captions.jsonl", [VIDEOS[0] | {"vid": "sea"}]),
        "captions.jsonl: got no captions of 2 of the 2 videos of the queries: 'street', 'park'; ",
    ),
    "empty query": (
        lambda f: spoil(f, "queries", {"query": " "}),
        "queries.jsonl:2: query: got ' '",
    ),
    "empty rewrite": (
        lambda f: spoil(f, "queries", {"rewrites": [""]}),
        "queries.jsonl:2: simplified rewrite: got ''",
    ),
    "rewrites of another kind": (
        lambda f: spoil(f, "queries", {"rewrites": "a dog"}),
        "queries.jsonl:2: rewrites: got 'a dog', expected a list",
    ),
    "unknown qid": (lambda f: spoil(f, "queries", {"qid": 9}), "qid 2 has no query and no vid"),
    "repeated qid": (lambda f: spoil(f, "queries", {"qid": 1}), "queries.jsonl:2: qid 1 repeats"),
    "repeated video": (
        lambda f: spoil(f, "captions", {"vid": "street"}),
        "captions.jsonl:2: vid 'street' repeats",
    ),
    "no captions": (
        lambda f: spoil(f, "captions", {"captions": []}),
        "captions.jsonl:2: captions of 'park': got none",
    ),
    "query without an answer": (
        lambda f: write(f / "queries.jsonl", QUERIES[:1]),
        "truth.jsonl:2: qid 2 has no query and no vid in queries.jsonl, truth.jsonl",
    ),
    "truth after the video": (
        lambda f: spoil(f, "truth", {"relevant_windows": [[12, 14]]}),
        "the window [12, 14] starts after its video, which lasts 10 s",
    ),
}


def refused(result, message):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("granalign: ")
    assert err.count("\n") == 1, "expected one line"
    assert message in err


@pytest.mark.parametrize("case", SPOILED)
def test_evaluate_refuses(files, granalign, case):
    spoiler, message = SPOILED[case]
    spoiler(files)
    refused(granalign(*EVALUATE, "--predictions=out.jsonl"), message)
    assert not list(files.glob("*out.jsonl*"))


BAD_PREDICTIONS = {
    "start after end": ({"pred_relevant_windows": [[8, 4, 1]]}, "predictions.jsonl:2: pred_relev"),
    "unknown qid": ({"qid": 9}, "predictions.jsonl:2: qid 9 is not in the ground truth"),
    "outside the video": (
        {"pred_relevant_windows": [[12, 14, 1]]},
        "[12, 14, 1] and starts after its 10 s video",
    ),
    "NaN score": ({"pred_relevant_windows": [[4, 8, float("nan")]]}, "predictions.jsonl:2"),
}


@pytest.mark.parametrize("case", BAD_PREDICTIONS)
def test_score_refuses(files, granalign, case):
    change, message = BAD_PREDICTIONS[case]
    spoil(files, "predictions", change)
    refused(granalign("score", "qvhighlights", *SCORE), message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((*EVALUATE, "--preset=best"), "preset: got 'best', expected one of: paper, tuned"),
        (("evaluate", "tacos", *EVALUATE[2:]), "dataset: got 'tacos', expected one of: qvhi"),
        ((*EVALUATE, "--predictions=no/where.jsonl"), "no/where.jsonl: its folder is not there"),
        ((*EVALUATE, "--predictions=."), "--predictions .: got a folder, expected the name of"),
        ((*EVALUATE, "--models=.", "--prefix-gib=inf"), "prefix_gib: got inf, expected 0 to "),
        (("bench", "kernels", "--models=nope"), "nope: no such folder; expected a folder of"),
        (("score", "tacos", *SCORE), "dataset: got 'tacos', expected one of: qvhighlights"),
        (
            ("search", "captions.jsonl", "dog"),
            "captions.jsonl: holds 2 videos; name one with --vid",
        ),
        (("search", "captions.jsonl", "dog", "--vid=sea"), "has no video 'sea'"),
        (("search", "captions.jsonl", " ", "--vid=park"), "query: got ' '"),
        (("search", "captions.jsonl", "dog", "--vid=park", "--plot=a.gif"), "--plot a.gif"),
        (
            ("search", "captions.jsonl", "dog", "--vid=park", "--rewrites=queries.jsonl"),
            "queries.jsonl: has no rewrites of 'dog'",
        ),
        (
            ("search", "no.jsonl", "dog"),
            "no.jsonl: no such file or folder; expected an index, a video or captions",
        ),
        (("search", ".", "dog"), ".: got no manifest.json and no indexes, expected an index"),
        (("search", "https://a.b/c.mp4", "dog"), "a.b/c.mp4: got a URL, expected a file; download"),
        ((*SEARCH, "--plot=no/a.png"), "--plot no/a.png: its folder is not there; make it first"),
        ((*SEARCH, "--clip=no/a.mp4"), "--clip no/a.mp4: its folder is not there"),
        ((*SEARCH, "--clip=a.avi"), "--clip a.avi: expected a name that ends in .mp4, .mov, "),
        ((*SEARCH, "--clip=a.mp4"), "--clip: got captions alone, expected an index of a video"),
        ((*SEARCH, "--json", "--format=srt"), "--json and --format srt: got both, expected one"),
        ((*SEARCH, "--format=edl"), "--format edl: got captions alone, expected an index of a"),
        ((*SEARCH, "--format=otio"), "--format otio: got captions alone"),
        ((*SEARCH, "--format=fcpxml"), "--format fcpxml: got captions alone"),
    ],
)
def test_arguments_that_do_not_fit(files, granalign, monkeypatch, arguments, message):
    monkeypatch.setattr("granalign_fast.bench.harness.runner.run_suites", None)
    monkeypatch.setattr(retriever.Retriever, "search_many", None)
    refused(granalign(*arguments), message)


@pytest.mark.parametrize(
    ("arguments", "package", "message"),
    [
        ((*SEARCH, "--plot=a.png"), "matplotlib", "drawing needs the extra [plot]"),
        (("search", "a.mp4", "dog", "--format=otio"), "opentimelineio", "the extra [editors]"),
        (("demo",), "matplotlib", "drawing needs the extra [plot]"),
        (("bench", "--plots=p"), "matplotlib", "drawing needs the extra [plot]"),
    ],
)
def test_an_extra_that_is_missing(files, granalign, monkeypatch, arguments, package, message):
    before = sorted(files.iterdir())
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "granalign_fast.cli.options.find_spec",
        lambda name: None if name == package else found(name),
    )
    refused(granalign(*arguments), message)
    assert sorted(files.iterdir()) == before


def test_a_truncated_gzip_file_is_named(files, granalign):
    whole = gzip.compress((files / "captions.jsonl").read_bytes())
    (files / "captions.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    result = granalign("search", "captions.jsonl.gz", "dog")
    refused(result, "captions.jsonl.gz:1: not a whole gzip file")


def test_nan_in_a_cached_embedding_is_a_miss(files, granalign):
    import numpy as np
    from safetensors.numpy import load_file, save_file

    assert granalign(*EVALUATE, "--predictions=first.jsonl")[0] == 0
    for path in (files / "cache").rglob("embeddings-*"):
        embeddings = load_file(path)["embeddings"].copy()
        embeddings[1] = np.nan
        save_file({"embeddings": embeddings}, path)
    assert granalign(*EVALUATE, "--predictions=second.jsonl")[0] == 0
    assert (files / "first.jsonl").read_bytes() == (files / "second.jsonl").read_bytes()
    for path in (files / "cache").rglob("embeddings-*"):
        assert np.isfinite(load_file(path)["embeddings"]).all()


def test_a_torn_cache_file_is_made_again(files, granalign):
    first = granalign(*EVALUATE, "--json")[1]
    for path in (files / "cache").rglob("embeddings-*"):
        path.write_bytes(path.read_bytes()[:20])
    second = granalign(*EVALUATE, "--json")[1]
    assert json.loads(first)["tables"] == json.loads(second)["tables"]


@pytest.mark.parametrize("cache", ["captions.jsonl", "captions.jsonl/below"])
def test_without_a_cache_nothing_is_lost(files, granalign, monkeypatch, cache):
    monkeypatch.setattr("granalign_fast.runtime.cache_folder._warned", set())
    expected = json.loads(granalign(*EVALUATE, "--json")[1])["tables"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(files / cache))
    code, out, err = granalign(*EVALUATE, "--json")
    assert code == 0
    assert err.startswith(f"granalign: warning: cache folder {files / cache}/granalign-fast: ")
    assert err.endswith("; working without a cache\n") and err.count("\n") == 1
    assert json.loads(out)["tables"] == expected


@pytest.mark.parametrize("command", ["index", "search", "evaluate", "doctor", "bench"])
def test_the_help_names_the_miniatures(granalign, command):
    assert "or: miniatures" in " ".join(granalign(command, "--help")[1].split())


def test_help_does_not_import_the_heavy_ones():
    code = (
        "import sys; sys.argv = ['granalign', '--help']\n"
        "from granalign_fast.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'onnx', 'onnxruntime', 'tokenizers', 'torch', 'cupy', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
