"""The area under the ROC curve, by hand and by counting pairs."""

from __future__ import annotations

import pytest

from granalign_fast.errors import GranAlignError
from granalign_fast.metrics import auroc


@pytest.mark.parametrize(
    ("shown", "absent", "expected"),
    [
        ([1.0], [0.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([0.5], [0.5], 0.5),
        ([0.9, 0.4, 0.4], [0.4, 0.1], 5 / 6),
    ],
)
def test_auroc(shown, absent, expected):
    assert auroc(shown, absent) == pytest.approx(expected)
    pairs = [(a > b) + (a == b) / 2 for a in shown for b in absent]
    assert auroc(shown, absent) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_needs_both_sides():
    with pytest.raises(GranAlignError, match="got 1 of shown and 0 of absent"):
        auroc([0.5], [])
