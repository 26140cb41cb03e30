"""Annotation files as published become our records; what is wrong with a file is one line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.annotations import (
    ACTIVITYNET,
    CHARADES,
    LENGTHS,
    PHRASES,
    QV_VID,
    QVHIGHLIGHTS,
    SALIENCY,
    TFVTG,
    VTG_GPT,
    write,
)

from granalign_fast.datasets import Annotations, Highlights, read_annotations
from granalign_fast.errors import GranAlignError
from granalign_fast.jsonl import write_jsonl
from granalign_fast.metrics import load_ground_truth
from granalign_fast.metrics.records import check_ground_truth


def read(folder: Path, *contents: object, dataset: str | None = None) -> Annotations:
    """Write contents as the files a, b, ... and read them together."""
    paths = [write(folder / name, content) for name, content in zip("abcd", contents, strict=False)]
    return read_annotations(paths, dataset)


def windows(annotations: Annotations) -> dict[int | str, tuple[tuple[float, float], ...]]:
    return {query.qid: query.windows for query in annotations.queries}


def rewrites(annotations: Annotations) -> list[tuple[str, ...]]:
    return [query.rewrites.simplified for query in annotations.queries]


def refusal(folder: Path, *contents: object, dataset: str | None = None) -> str:
    """The error of reading contents, which must be one short line."""
    with pytest.raises(GranAlignError) as error:
        read(folder, *contents, dataset=dataset)
    message = str(error.value).replace(str(folder), "")
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_qvhighlights(tmp_path: Path) -> None:
    found = read(tmp_path, QVHIGHLIGHTS)
    assert found.dataset == "qvhighlights"
    assert windows(found) == {11: ((2, 8), (20, 26)), 12: ((2, 8),)}
    first = found.queries[0]
    assert (first.vid, first.duration, first.rewrites.query) == (
        QV_VID,
        150,
        "A cook slices an onion",
    )
    assert first.saliency == Highlights((1, 2, 3), ((2, 3, 4), (1, 1, 2), (4, 4, 4)))
    assert found.notes == (
        "a: JSON records, 2 queries about 2 videos, all with windows, all with saliency, "
        "none with rewrites.",
    )
    assert not found.warnings
    assert check_ground_truth(("a", one) for one in found.ground_truth()) == QVHIGHLIGHTS


def test_a_test_split_has_no_windows(tmp_path: Path) -> None:
    hidden = ("relevant_windows", "relevant_clip_ids", "saliency_scores")
    lines = [{k: v for k, v in one.items() if k not in hidden} for one in QVHIGHLIGHTS]
    found = read(tmp_path, lines)
    assert windows(found) == {11: (), 12: ()}
    assert found.ground_truth() == []
    assert "none with windows" in found.notes[0]


@pytest.mark.parametrize("files", [(VTG_GPT,), (VTG_GPT, QVHIGHLIGHTS), (QVHIGHLIGHTS, VTG_GPT)])
def test_vtg_gpt(tmp_path: Path, files: tuple[object, ...]) -> None:
    found = read(tmp_path, *files)
    assert rewrites(found) == [tuple(PHRASES)] * 2
    assert any("all with 2 rewrites each from `rephrased_query`" in note for note in found.notes)
    assert not found.warnings
    assert found.ground_truth() == QVHIGHLIGHTS


def test_queries_and_ground_truth_of_ours(tmp_path: Path) -> None:
    texts = [
        {"qid": one["qid"], "vid": one["vid"], "query": one["query"], "rewrites": PHRASES}
        for one in QVHIGHLIGHTS
    ]
    truth = [{k: v for k, v in one.items() if k not in ("query", "vid")} for one in QVHIGHLIGHTS]
    found = read(tmp_path, truth, texts)
    assert rewrites(found) == [tuple(PHRASES)] * 2
    assert found.ground_truth() == QVHIGHLIGHTS
    assert "a.gz: qid 11 has no" not in refusal(tmp_path, truth)
    assert "/a:1: qid 11 has no query and no vid in a, like 2 of 2" in refusal(tmp_path, truth)


@pytest.mark.parametrize("sentences", [CHARADES, CHARADES.replace("##", " 0##")])
def test_charades(tmp_path: Path, sentences: str) -> None:
    found = read(tmp_path, sentences, LENGTHS)
    assert found.dataset == "charades"
    assert windows(found) == {
        "AB1CD_0": ((1.0, 5.5),),
        "AB1CD_1": ((20.0, 30.5),),
        "XY2ZW_0": ((0.0, 4.0),),
    }
    assert [query.duration for query in found.queries] == [30.5, 30.5, 12]
    assert found.queries[1].rewrites.query == "person puts a cup on the table."
    assert "Clipped to the video: 1 window." in found.notes
    assert not found.warnings
    alone = read(tmp_path, sentences)
    assert windows(alone)["AB1CD_1"] == ((20.0, 31.5),)
    assert "no duration: 2 videos of Charades-STA" in alone.warnings[0]


def test_sentences_whose_windows_are_empty_are_left_out_as_others_do(tmp_path: Path) -> None:
    lines = CHARADES + "XY2ZW 8.0 7.0##person holds a bag.\n\nXY2ZW 5 6##person sits#down."
    found = read(tmp_path, lines, LENGTHS)
    assert list(windows(found)) == ["AB1CD_0", "AB1CD_1", "XY2ZW_0", "XY2ZW_2"]
    assert found.queries[-1].rewrites.query == "person sits#down."
    left_out = next(note for note in found.notes if "Left out" in note)
    assert "1 window, and with it 1 query:" in left_out
    assert "XY2ZW 'person holds a bag.'" in left_out


def test_activitynet(tmp_path: Path) -> None:
    found = read(tmp_path, ACTIVITYNET)
    assert found.dataset == "activitynet"
    assert windows(found) == {
        "v_abcdefghijk_0": ((0, 10.5),),
        "v_abcdefghijk_1": ((30.2, 60.0),),
        "v_ABCDEFGHIJK_0": ((1, 4),),
    }
    assert found.queries[1].rewrites.query == "He lifts a weight."
    # The other annotators' file of the same videos: its sentences are further queries.
    other = {"v_abcdefghijk": {**ACTIVITYNET["v_abcdefghijk"], "timestamps": [[1, 9], [30, 50]]}}
    both = read(tmp_path, ACTIVITYNET, other)
    assert len(both.queries) == 5
    assert windows(both)["v_abcdefghijk_3"] == ((30, 50),)


def test_tfvtg(tmp_path: Path) -> None:
    expected = [
        ("Person opens a drawer", "Someone pulls a drawer out."),
        ("A cup is put on the table.",),
        (),
    ]
    for files in ((TFVTG,), (TFVTG, CHARADES), (CHARADES, LENGTHS, TFVTG)):
        found = read(tmp_path, *files)
        assert rewrites(found) == expected
        assert windows(found)["AB1CD_1"] == ((20.0, 30.5),)
        text = " ".join(found.notes)
        assert "2 with 1 to 2 rewrites each from `query_json`" in text
        assert "not used: sub-queries, which describe parts of a query, of 1 query" in text
        assert "repeat their query, and are used nonetheless: 1 of 3" in text
        assert found.warnings == ("no rewrites: 1 of 3 queries",)


@pytest.mark.parametrize(
    "response",
    [7, "x", {"query_json": 1}, {"query_json": [{}]}, {"query_json": [{"descriptions": [3]}]}],
)
def test_a_response_of_another_form_costs_one_query_its_rewrites(
    tmp_path: Path, response: object
) -> None:
    video = TFVTG["AB1CD"] | {"response": [response, TFVTG["AB1CD"]["response"][1]]}
    found = read(tmp_path, {"AB1CD": video})
    assert rewrites(found) == [(), ("A cup is put on the table.",)]
    assert found.warnings == (
        "a: responses without a list of `descriptions`, which give no rewrites: 1 query: AB1CD 0",
        "no rewrites: 1 of 2 queries",
    )


def test_releases_with_qids_take_the_texts_of_files_without(tmp_path: Path) -> None:
    """As lighthouse's releases, whose windows are clipped, with TFVTG's rewordings."""
    lines = [
        {"qid": 7, "vid": "AB1CD", "query": "person opens a drawer", "duration": 30.5},
        {"qid": 8, "vid": "AB1CD", "query": "person puts a cup on the table.", "duration": 30.5},
        {"qid": 9, "vid": "XY2ZW", "query": "a person is laughing.", "duration": 12.2},
    ]
    for line, window in zip(lines, ([1.0, 5.5], [20.0, 30.5], [0.0, 4.0]), strict=True):
        line["relevant_windows"] = [window]
    found = read(tmp_path, TFVTG, lines)
    assert windows(found) == {7: ((1.0, 5.5),), 8: ((20.0, 30.5),), 9: ((0.0, 4.0),)}
    assert rewrites(found)[1] == ("A cup is put on the table.",)


def test_our_own_form_comes_back(tmp_path: Path) -> None:
    for number, files in enumerate(((VTG_GPT,), (TFVTG,), (ACTIVITYNET,), (CHARADES, LENGTHS))):
        found = read(tmp_path, *files)
        path = tmp_path / f"{number}.jsonl.gz"
        write_jsonl(path, (query.to_record() for query in found.queries))
        again = read_annotations([path], found.dataset)
        assert again.queries == found.queries


def test_other_shapes_of_the_same_content(tmp_path: Path) -> None:
    expected = read(tmp_path, QVHIGHLIGHTS).queries
    for text in (
        json.dumps(QVHIGHLIGHTS, indent=1),
        "\ufeff" + "\r\n".join(map(json.dumps, QVHIGHLIGHTS)) + "\r\n\r\n",
    ):
        assert read(tmp_path, text).queries == expected
    (tmp_path / "b.gz").write_bytes(gzip.compress((tmp_path / "a").read_bytes()))
    assert read_annotations([tmp_path / "b.gz"]).queries == expected
    one = read(tmp_path, QVHIGHLIGHTS[:1])
    assert one.queries == expected[:1]
    assert read(tmp_path, json.dumps(ACTIVITYNET, indent=2)) == read(tmp_path, ACTIVITYNET)
    table = "id,length\nAB1CD, 30.5\nXY2ZW,12"
    assert read(tmp_path, CHARADES, table).queries == read(tmp_path, CHARADES, LENGTHS).queries


@pytest.mark.parametrize(
    ("key", "value", "look"),
    [
        ("paraphrases", ["an onion", "a cook"], "rewrites"),
        ("texts", ["a cook cuts", "an onion is cut"], "rewrites"),
        ("gt", [[2, 8]], "windows"),
        ("moment_times", "2-8", "windows"),
    ],
)
def test_what_looks_useful_and_is_not_used_is_a_warning(
    tmp_path: Path, key: str, value: object, look: str
) -> None:
    found = read(tmp_path, [QVHIGHLIGHTS[0] | {key: value, "source": "x"}, QVHIGHLIGHTS[1]])
    (warning,) = found.warnings
    assert f"key {key!r}, in 1 record, looks like {look} and is not used" in warning
    assert "a: not used: `source` (1)." in found.notes


def test_several_rewrites_of_a_query_are_not_mixed(tmp_path: Path) -> None:
    other = [record | {"rewrites": ["Onions."]} for record in QVHIGHLIGHTS]
    found = read(tmp_path, other, VTG_GPT)
    assert rewrites(found) == [("Onions.",)] * 2
    assert "rewrites in several files: 2 queries" in found.warnings[0]


SHIFTED = [QVHIGHLIGHTS[0] | {"relevant_windows": [[40, 50]]}]
CLIP = QVHIGHLIGHTS[0]


@pytest.mark.parametrize(
    ("contents", "dataset", "parts"),
    [
        ([ACTIVITYNET], "qvhighlights", ["a dictionary of videos", "JSON Lines of QVHighlights"]),
        ([ACTIVITYNET], "charades", ["ActivityNet-Captions, such as 'v_ABCDEFGHIJK'"]),
        ([CHARADES], "qvhighlights", ["Charades-STA's text", "expected JSON Lines"]),
        ([CHARADES, LENGTHS], "activitynet", ["Charades-STA's text"]),
        ([QVHIGHLIGHTS], "charades", ["names of QVHighlights", "name the dataset qvhighlights"]),
        ([VTG_GPT], "activitynet", ["names of QVHighlights"]),
        ([TFVTG], "activitynet", ["names of Charades-STA", "'AB1CD'"]),
        ([QVHIGHLIGHTS], "tacos", ["got 'tacos', expected one of: qvhighlights"]),
        ([LENGTHS], None, ["no queries"]),
        ([{str(i): {"events": [i]} for i in range(10_000)}], None, ["'4' and 9995 more"]),
        ([{str(i): {"sentences": 1} for i in range(10_000)}], None, ["sentences: got 1"]),
        ([json.dumps(ACTIVITYNET)[:-40]], None, ["a: not JSON", "download it again"]),
        ([json.dumps(QVHIGHLIGHTS[0]) + '\n{"qid": 12, "que'], None, ["a:2: not JSON"]),
        (['{"qid": 12, "que\n' + json.dumps(QVHIGHLIGHTS[0])], None, ["a:1: not JSON"]),
        ([" \n"], None, ["a: is empty"]),
        (["[]"], None, ["an empty list"]),
        (["{}"], None, ["holds no videos"]),
        (["[1, 2]"], None, ["record 0: got 1"]),
        ([b"\x89PNG\r\n\x1a\n\0\0"], None, ["not UTF-8 text", "byte 0x89 at 0", "unpack"]),
        (["hello"], None, ["begins with 'hello'"]),
        ([[{"vid": "a", "captions": ["b"]}]], None, ["a:1: got captions"]),
        ([[{"qid": 1, "pred_relevant_windows": []}]], None, ["a:1: got predictions"]),
        ([[{"qid": 1, "query": "a", "vid": "b"}]], None, ["cannot tell the dataset", "'b'"]),
        ([[CLIP, CLIP]], None, ["a:2: qid 11 repeats"]),
        ([[CLIP | {"qid": True}]], None, ["qid is True"]),
        ([[CLIP | {"vid": 7}]], None, ["vid is 7"]),
        ([[CLIP | {"query": " "}]], None, ["query: got ' '"]),
        ([[CLIP | {"duration": "150"}]], None, ["duration: got '150'"]),
        ([[CLIP | {"relevant_windows": [[1]]}]], None, ["relevant_windows: got [[1]]"]),
        ([[CLIP | {"relevant_windows": [[8, 2]]}]], None, ["[8, 2] starts at or after its end"]),
        ([[CLIP | {"relevant_windows": [[151, 152]]}]], None, ["starts after its video"]),
        ([[CLIP | {"relevant_windows": [[9, 161]]}]], None, ["ends 11 s after its video"]),
        ([[CLIP | {"relevant_windows": [[-1, 9]]}]], None, ["starts before the video"]),
        ([[CLIP | {"saliency_scores": [[1, 1, 1]]}]], None, ["for the clips [1, 2, 3]"]),
        ([[CLIP | {"rephrased_query": "x y"}]], None, ["rephrased_query: got 'x y'"]),
        ([QVHIGHLIGHTS, [CLIP | {"duration": 120}]], None, ["b:1", "lasts 120 s, but 150 s at"]),
        ([QVHIGHLIGHTS, [CLIP | {"query": "x"}]], None, ["has the query 'x', but"]),
        ([QVHIGHLIGHTS, [CLIP | {"vid": "x"}]], None, ["has video 'x', but"]),
        ([QVHIGHLIGHTS, SHIFTED], None, ["has the windows (40, 50), but (2, 8), (20, 26) at"]),
        ([CHARADES + "AB1CD 1.0 5.5 no marks"], None, ["a:4: got 'AB1CD 1.0 5.5 no marks'"]),
        ([CHARADES + "AB1CD one two##x"], None, ["a:4", "expected `VID start end##sentence`"]),
        ([CHARADES, LENGTHS.replace(",12\r", ",x\r")], None, ["b:3: length of 'XY2ZW'", "'x'"]),
        ([CHARADES, LENGTHS.replace("30.5", "3.05")], None, ["starts after its video, which"]),
        ([CHARADES.replace("31.5", "61"), LENGTHS], None, ["a:2", "ends 30.5 s after its video"]),
        ([TFVTG, LENGTHS.replace("30.5", "35")], None, ["'AB1CD' lasts 35 s, but 30.5 s at"]),
        ([{"v": {"sentences": ["a"], "timestamps": []}}], None, ["timestamps: got 0 items"]),
        ([{"v": {"sentences": ["a"], "timestamps": [3]}}], None, ["sentence 0: timestamps"]),
        ([{"v": {"sentences": ["a"], "response": []}}], None, ["response: got 0 items"]),
        ([{"v": {"sentences": [7]}}], None, ["video 'v', sentence 0: query: got 7"]),
        ([{"v": {"sentences": ["a"]}, "w": 1}], None, ["video 'w': got 1"]),
    ],
)
def test_wrong_files_give_one_line(
    tmp_path: Path, contents: list[Any], dataset: str | None, parts: list[str]
) -> None:
    message = refusal(tmp_path, *contents, dataset=dataset)
    for part in parts:
        assert part in message


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path, part in ((tmp_path, "got a folder"), (tmp_path / "x", "cannot be read")):
        with pytest.raises(GranAlignError, match=part):
            read_annotations([path])
    with pytest.raises(GranAlignError, match="expected a list of one file or more"):
        read_annotations("a.jsonl")
    (tmp_path / "a.gz").write_bytes(gzip.compress(CHARADES.encode())[:-9])
    with pytest.raises(GranAlignError, match="not a whole gzip file"):
        read_annotations([tmp_path / "a.gz"])


def test_ground_truth_is_read_in_every_form(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.txt", CHARADES), write(tmp_path / "b.csv", LENGTHS)]
    truth = load_ground_truth(files, "charades")
    assert [record["relevant_windows"] for record in truth] == [
        [[1.0, 5.5]],
        [[20.0, 30.5]],
        [[0.0, 4.0]],
    ]
    assert truth[0] == {
        "qid": "AB1CD_0",
        "query": "person opens a drawer.",
        "vid": "AB1CD",
        "duration": 30.5,
        "relevant_windows": [[1.0, 5.5]],
    }
    assert load_ground_truth(write(tmp_path / "c", QVHIGHLIGHTS), "qvhighlights") == QVHIGHLIGHTS
    assert len(load_ground_truth(write(tmp_path / "d", ACTIVITYNET))) == 3
    with pytest.raises(GranAlignError, match=r"3 queries have no duration .* Charades_v1_test"):
        load_ground_truth(files[0])
    with pytest.raises(GranAlignError, match="names of QVHighlights"):
        load_ground_truth(tmp_path / "c", "charades")


def test_saliency_is_that_of_the_file(tmp_path: Path) -> None:
    record = read(tmp_path, QVHIGHLIGHTS).queries[0].to_record()
    assert {key: record[key] for key in SALIENCY} == SALIENCY


def test_published_queries(shared_data: Path) -> None:
    """TFVTG's queries of Charades-STA test: 3,720 sentences in 1,334 videos (Gao et al., 2017)."""
    found = read_annotations([shared_data / "charades_sta" / "test_queries.json.gz"])
    assert found.dataset == "charades"
    assert len(found.queries) == 3720
    assert len({query.vid for query in found.queries}) == 1334
    assert any(note == "Clipped to the video: 562 windows." for note in found.notes)
