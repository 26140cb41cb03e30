from __future__ import annotations

import json
from pathlib import Path

import pytest

from granalign_fast.bench.commands import library


def test_every_query_is_searched_in_all_videos(
    tmp_path: Path, minilm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = {"street": "a red car on the road", "yard": "two dogs play with a ball"}
    captions = [
        {"vid": vid, "captions": ["an empty room"] * 3 + [shown] * 4 + ["nothing"] * 3}
        for vid, shown in scenes.items()
    ]
    queries = [
        {"qid": number, "query": shown, "vid": vid, "duration": 20, "relevant_windows": [[6, 14]]}
        for number, (vid, shown) in enumerate(scenes.items())
    ]
    for name, records in (("captions", captions), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    files = [str(tmp_path / "queries.jsonl"), "--captions", str(tmp_path / "captions.jsonl")]
    files += ["--dataset", "qvhighlights"]
    library.main(files)
    found = json.loads(capsys.readouterr().out)
    assert (found["video-R@1"], found["moment-R@1,IoU=0.5"]) == (100.0, 100.0)
    assert (found["queries"], found["videos"], found["clips"]) == (2, 2, 20)

    (tmp_path / "captions.jsonl").write_text(json.dumps(captions[0]) + "\n")
    with pytest.raises(SystemExit, match="got no captions of 1 videos, such as 'yard'"):
        library.main(files)
