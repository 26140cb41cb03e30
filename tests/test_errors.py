from __future__ import annotations

import pytest

from granalign_fast.errors import listed


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], ""),
        (["a"], "a"),
        ("abcde", "a, b, c, d, e"),
        ("abcdef", "a, b, c, d, e and 1 more"),
        (range(8), "0, 1, 2, 3, 4 and 3 more"),
        (dict.fromkeys("abcdefgh"), "a, b, c, d, e and 3 more"),
    ],
)
def test_a_list_in_a_message_stops_after_five(items, text):
    assert listed(items) == text


def test_the_number_of_items_shown_can_be_chosen():
    assert listed("abcd", most=2) == "a, b and 2 more"
