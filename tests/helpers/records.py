"""Ground truth and predictions for several test modules."""

from __future__ import annotations

from typing import Any

from granalign_fast.jsonl import Record


def truth(windows: list[list[float]], qid: int = 1, duration: float = 20) -> Record:
    """Return ground truth in which clips 0 and 3 have saliency scores."""
    return {
        "qid": qid,
        "duration": duration,
        "relevant_windows": windows,
        "relevant_clip_ids": [0, 3],
        "saliency_scores": [[4, 3, 2], [2, 1, 0]],
    }


def prediction(windows: list[list[float]], qid: int = 1, **more: Any) -> Record:
    return {"qid": qid, "pred_relevant_windows": windows, **more}
