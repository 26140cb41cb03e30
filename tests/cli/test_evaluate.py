"""`granalign evaluate` as a user meets it: what it takes, prints, writes and refuses."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
from helpers.benchmarks import DATASETS, write_annotations
from helpers.command import Granalign, runner
from helpers.fakes import BagOfWords

from granalign_fast.jsonl import Record, read_jsonl, write_jsonl
from granalign_fast.search import retriever

CAPTIONS = ["a red car", "a red car", "a dog runs", "a dog runs", "a wet road"]
TRUTH: list[Record] = [
    {"qid": n, "query": text, "vid": vid, "duration": 10, "relevant_windows": [window]}
    for n, (text, vid, window) in enumerate(
        [
            ("the dog runs", "street", [4, 8]),
            ("a red car", "street", [0, 4]),
            ("the dog runs", "park", [2, 6]),
            ("a wet road", "park", [6, 10]),
        ]
    )
]


@pytest.fixture
def granalign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Granalign:
    """The command in a folder with captions; the encoder is a fake."""
    lines = [{"vid": "street", "captions": CAPTIONS}, {"vid": "park", "captions": CAPTIONS[::-1]}]
    write_jsonl(tmp_path / "captions.jsonl", lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("granalign_fast.pipeline.SentenceEncoder", lambda *_, **__: BagOfWords())
    return runner(capsys, monkeypatch)


def command(dataset: str, truth: list[Record] = TRUTH) -> tuple[object, ...]:
    files = write_annotations(Path(), dataset, truth)
    return ("evaluate", dataset, *files, "--captions", "captions.jsonl", "--rewriter", "none")


def record(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    parsed: dict[str, Any] = json.loads(out)
    return parsed


def refused(result: tuple[int, str, str], message: str) -> None:
    code, out, err = result
    assert (code, out) == (2, ""), err
    assert err.startswith("granalign: ") and err.count("\n") == 1 and len(err) < 500, err
    assert message in err


@pytest.mark.parametrize("dataset", DATASETS)
def test_prints_what_was_read_and_the_metrics_with_intervals(
    granalign: Granalign, dataset: str
) -> None:
    code, out, err = granalign(*command(dataset))
    assert (code, err) == (0, "")
    assert "4 queries about 2 videos" in out
    assert "Percent, 4 queries" in out
    assert "95% interval over videos" in out
    assert ("MR-full-mAP" if dataset == "qvhighlights" else "mIoU") in out


def test_missing_videos_are_beside_the_table_and_named(granalign: Granalign) -> None:
    lost = [TRUTH[0] | {"vid": f"sea{n}", "qid": f"sea{n}"} for n in range(7)]
    code, out, err = granalign(*command("qvhighlights", [*TRUTH, *lost]))
    assert code == 0
    assert "Percent, 4 queries (7 missing videos, 7 queries left out)" in " ".join(out.split())
    assert err == (
        "granalign: warning: no captions of sea0, sea1, sea2, sea3, sea4 and 2 more; 7 missing "
        "videos, 7 queries left out\n"
    )


def test_names_from_files_cannot_control_the_terminal(granalign: Granalign) -> None:
    name = "a\x1b[2Jb"
    lines = [*read_jsonl("captions.jsonl"), {"vid": name, "captions": ["too", "few"]}]
    write_jsonl("captions.jsonl", lines)
    saliency = {"relevant_clip_ids": [2], "saliency_scores": [[4, 4, 4]]}
    queries = [
        *TRUTH,
        TRUTH[0] | {"qid": "9", "vid": name},
        TRUTH[0] | {"qid": "8", "vid": "\x1bc"},
    ]
    words = command("qvhighlights", [query | saliency for query in queries])
    code, out, err = granalign(*words)
    assert code == 1
    assert "\x1b" not in out + err
    assert "granalign: 1 video could not be searched:\n  a\\u001b[2Jb: " in err
    assert "no captions of \\u001bc; 2 missing videos, 2 queries left out" in err


def test_both_files_may_be_named_by_options(granalign: Granalign) -> None:
    keys = ("qid", "query", "vid")
    write_jsonl("queries.jsonl", [{key: line[key] for key in keys} for line in TRUTH])
    write_jsonl("truth.jsonl", TRUTH)
    given = ("--captions", "captions.jsonl", "--rewriter", "rules", "--json")
    named = ("--queries", "queries.jsonl", "--ground-truth", "truth.jsonl")
    tables = [
        record(granalign("evaluate", "qvhighlights", *files, *given))["tables"]
        for files in (named, ("queries.jsonl", "truth.jsonl"))
    ]
    assert tables[0] == tables[1]


def test_rewriters(granalign: Granalign) -> None:
    files = write_annotations(Path(), "charades", TRUTH)
    given = ("evaluate", "charades", *files, "--captions", "captions.jsonl", "--json")
    code, out, err = granalign(*given)
    assert code == 0
    assert err.startswith("granalign: warning: the files have no rewrites, so the queries were ")
    assert json.loads(out)["setup"]["rewriter"] == "given"
    assert json.loads(out)["setup"]["encoder"]["fingerprint"] == "bag-of-words"
    for name in ("rules", "none"):
        assert record(granalign(*given, "--rewriter", name))["setup"]["rewriter"] == name


def test_results_are_kept_and_compared(granalign: Granalign) -> None:
    words = command("charades")
    first = record(granalign(*words, "--json", "--preset", "paper", "--results", "paper.json"))
    second = record(granalign(*words, "--json", "--compare", "paper.json"))
    assert second["compared_with"] == "paper.json"
    by_name = {one["metric"]: one for one in second["differences"]}
    assert set(by_name) == set(first["intervals"])
    for name, one in by_name.items():
        assert (one["this"], one["other"]) == (second[name], first[name])
        assert one["difference"] == pytest.approx(second[name] - first[name], abs=0.011)
        assert one["interval"][0] <= one["difference"] <= one["interval"][1]
    code, out, _ = granalign(*words, "--compare", "paper.json")
    assert code == 0
    assert "compared with paper.json" in " ".join(out.split())


def test_without_ground_truth_a_submission_is_written(granalign: Granalign) -> None:
    bare = [{key: line[key] for key in ("qid", "query", "vid", "duration")} for line in TRUTH]
    words = command("qvhighlights", bare)
    for options in ((), ("--predictions", "a.jsonl", "--results", "r.json")):
        refused(granalign(*words, *options), "got no ground truth, so that there is nothing to")
    answer = record(granalign(*words, "--json", "--predictions", "a.zip"))
    assert answer["ground_truth_sha256"] is None
    assert not {"MR-full-mAP", "R1@0.5"} & set(answer)
    with zipfile.ZipFile("a.zip") as archive:
        assert archive.namelist() == ["hl_test_submission.jsonl"]
        lines = archive.read("hl_test_submission.jsonl").decode().splitlines()
    assert [json.loads(line)["qid"] for line in lines] == [0, 1, 2, 3]
    code, out, _ = granalign(*words, "--predictions", "a.jsonl")
    assert code == 0 and "Percent" not in out
    assert read_jsonl("a.jsonl") == [json.loads(line) for line in lines]


def test_captions_from_a_folder_of_one_file_a_video(granalign: Granalign) -> None:
    expected = record(granalign(*command("charades"), "--json"))
    for line in read_jsonl("captions.jsonl"):
        Path("folder").mkdir(exist_ok=True)
        moments = enumerate(line["captions"])
        write_jsonl(
            Path("folder") / f"{line['vid']}.jsonl",
            [{"moment": moment, "description": text} for moment, text in moments],
        )
    words = [*command("charades"), "--json"]
    words[words.index("captions.jsonl")] = "folder"
    got = record(granalign(*words))
    assert {name: got[name] for name in got["intervals"]} == {
        name: expected[name] for name in expected["intervals"]
    }


def test_wrong_use_is_one_line(granalign: Granalign, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retriever.Retriever, "search_many", None)
    words = command("charades")
    files = words[2:4]
    captions = ("--captions", "captions.jsonl")
    shutil.copy("captions.jsonl", "other.txt")
    (Path() / "empty").mkdir()
    Path("torn.json").write_text('{"kind": "evaluation-results", "each": [{"qid": 1,')
    cases: list[tuple[tuple[object, ...], str]] = [
        (("qvhighlights", *files, *captions), "a form of Charades-STA; expected JSON Lines of QVH"),
        (("activitynet", *files, *captions), "a form of Charades-STA; expected a file of Activity"),
        (("charades", *captions), "FILES: got none, expected the annotation files of charades"),
        (("charades", *files), "got no captions and no videos, expected one of: --captions FILE"),
        (("charades", *files, *captions, "--indexes", "."), "got --captions and another source"),
        (("charades", *files, "--indexes", "none"), "none: no such folder; expected the indexes"),
        (("charades", *files, "--videos", "empty"), "--videos: got no models, expected --models"),
        (
            ("charades", *files, "--videos", "empty", "--models", "miniatures"),
            "empty: got no file with the suffix of a video that can be read",
        ),
        (
            ("charades", *files, "--videos", ".", "--models", "miniatures", "--precision", "int8"),
            "--videos: got another sentence encoder, int8, expected that of --models",
        ),
        (("charades", *files, *captions, "--rewriter", "all"), "--rewriter: got 'all', expected "),
        (("charades", *files, *captions, "--rewriter", "models"), "got no models, expected --mod"),
        (("charades", *files, *captions, "--missing", "no"), "missing: got 'no', expected one of"),
        (("charades", *files, *captions, "--compare", "torn.json"), "torn.json: not JSON"),
        (("charades", *files, *captions, "--compare", "other.txt"), "other.txt: not JSON"),
        (("charades", *files, *captions, "--predictions", "a.zip"), "a.zip: got a zip for char"),
        (
            ("charades", *files, *captions, "--predictions", "a.csv"),
            "a.csv: expected a name that",
        ),
        (
            ("charades", *files, *captions, "--predictions", "A.ZIP"),
            "A.ZIP: expected a name that",
        ),
        (("charades", *files, *captions, "--results", "no/a.json"), "its folder is not there"),
    ]
    for arguments, message in cases:
        refused(granalign("evaluate", *arguments), message)


def test_results_of_another_dataset_are_refused_before_the_search(
    granalign: Granalign, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(granalign(*command("charades"), "--json", "--results", "charades.json"))
    monkeypatch.setattr(retriever.Retriever, "search_many", None)
    words = command("activitynet")
    refused(
        granalign(*words, "--compare", "charades.json"), "got results on charades, expected act"
    )
    words = command("charades", TRUTH[:3])
    refused(granalign(*words, "--compare", "charades.json"), "got results on 4 queries, expected")
    moved = [line | {"relevant_windows": [[0, 6]]} for line in TRUTH]
    refused(granalign(*command("charades", moved), "--compare", "charades.json"), "other ground tr")
