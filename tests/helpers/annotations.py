"""Small annotation files of our own, in the shapes in which others publish theirs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

QV_VID = "aB3_xY-z01Q_60.0_210.0"
QV_OTHER = "aB3_xY-z01Q_210.0_360.0"
SALIENCY = {"relevant_clip_ids": [1, 2, 3], "saliency_scores": [[2, 3, 4], [1, 1, 2], [4, 4, 4]]}

QVHIGHLIGHTS: list[dict[str, Any]] = [
    {
        "qid": 11,
        "query": "A cook slices an onion",
        "duration": 150,
        "vid": QV_VID,
        "relevant_windows": [[2, 8], [20, 26]],
        **SALIENCY,
    },
    {
        "qid": 12,
        "query": "A pan is on the stove.",
        "duration": 148,
        "vid": QV_OTHER,
        "relevant_windows": [[2, 8]],
        **SALIENCY,
    },
]
"""As `highlight_val_release.jsonl`."""

PHRASES = ["An onion is being sliced.", "The cook cuts an onion up."]
VTG_GPT = [record | {"rephrased_query": PHRASES} for record in QVHIGHLIGHTS]
"""As VTG-GPT's queries."""

CHARADES = (
    "AB1CD 1.0 5.5##person opens a drawer.\n"
    "AB1CD 20.0 31.5##person puts a cup on the table.\n"
    "XY2ZW 0.0 4.0##a person is laughing.\n"
)
"""As `charades_sta_test.txt`; the second window ends after its video."""

LENGTHS = (
    "id,subject,scene,quality,relevance,verified,script,objects,descriptions,actions,length\r\n"
    'AB1CD,S1,Kitchen,6,7,Yes,"A person opens a drawer, then rests.",cup;drawer,"Opens it; ",'
    "c001 0.0 5.0,30.5\r\n"
    "XY2ZW,S2,Hall,5,6,Yes,Laughs.,,Laughs,,12\r\n"
)
"""As `Charades_v1_test.csv`: quoted commas, and lines that end as on Windows."""

ACTIVITYNET: dict[str, Any] = {
    "v_abcdefghijk": {
        "duration": 60.0,
        "timestamps": [[0, 10.5], [30.2, 60.01]],
        "sentences": ["A man talks.", " He lifts a weight."],
    },
    "v_ABCDEFGHIJK": {"duration": 8.5, "timestamps": [[1, 4]], "sentences": ["A dog runs."]},
}
"""As `val_1.json`."""

TFVTG: dict[str, Any] = {
    "AB1CD": {
        "duration": 30.5,
        "timestamps": [[1.0, 5.5], [20.0, 31.5]],
        "sentences": ["person opens a drawer.", "person puts a cup on the table."],
        "response": [
            {
                "reasoning": "One action.",
                "sub-queries": "A person opens a drawer.",
                "relationship": "single-query",
                "query_json": [
                    {
                        "sub_query_id": 0,
                        "descriptions": ["Person opens a drawer", "Someone pulls a drawer out."],
                    }
                ],
            },
            {
                "relationship": "sequentially",
                "query_json": [
                    {"sub_query_id": 0, "descriptions": ["A cup is put on the table."]},
                    {"sub_query_id": 1, "descriptions": ["Someone holds a cup."]},
                ],
            },
        ],
    },
    "XY2ZW": {
        "duration": 12,
        "timestamps": [[0.0, 4.0]],
        "sentences": ["a person is laughing."],
        "response": [{}],
    },
}
"""As TFVTG's `llm_outputs.json`; an empty response is a failed one."""


def write(path: Path, content: object) -> Path:
    """Write a text as it is, a list as JSON Lines, and anything else as one JSON value."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return path
    if isinstance(content, list):
        text = "".join(json.dumps(record) + "\n" for record in content)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8", newline="")
    return path
