from __future__ import annotations

import json

import pytest
from helpers.fakes import BagOfWords
from hypothesis import given
from hypothesis import strategies as st

from granalign_fast import (
    CaptionedVideo,
    GranAlignError,
    MomentRetriever,
    Rewrites,
    RuleRewriter,
    StoredRewriter,
)


def rules(query):
    (rewrites,) = RuleRewriter().rewrite([query])
    assert rewrites.query == query
    assert rewrites.detailed == ()
    return rewrites.simplified


def test_the_four_rules():
    assert rules("A woman in a red coat feeds the gulls while it rains.") == (
        "woman red coat feeds gulls rains",
        "A woman in a red coat feeds the gulls",
        "while it rains",
        "A person in a red coat feeds the gulls while it rains.",
    )


@pytest.mark.parametrize("query", ["a man runs fast in the park", "the"])
def test_space_around_a_query_changes_nothing(query):
    assert rules(f"   {query} \n") == rules(query)


def test_a_clause_is_not_cut_before_it_names_an_action():
    assert "Woman" not in rules("Woman in plaid shirt sits by a couch.")
    assert "Woman in plaid shirt sits" in rules("Woman in plaid shirt sits by a couch.")


@pytest.mark.parametrize("query", ["dogs run", "?!", "the", "\u72ac\u304c\u8d70\u308b"])
def test_a_query_that_no_rule_changes_stands_alone(query):
    assert rules(query) == ()


@given(st.text(min_size=1).filter(str.strip))
def test_any_text_gives_distinct_rewrites_that_are_not_empty(query):
    simplified = rules(query)
    assert len(set(simplified)) == len(simplified)
    assert query not in simplified


def test_an_empty_query_is_refused():
    with pytest.raises(GranAlignError, match="query: got ' '"):
        RuleRewriter().rewrite(["a dog", " "])


def test_stored_rewrites_are_replayed(tmp_path):
    path = tmp_path / "rewrites.jsonl"
    records = [
        {"query": "dog", "rewrites": ["a dog"]},
        {"query": "cat", "simplified": ["a cat"], "detailed": ["a small cat"]},
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    rewriter = StoredRewriter(path)
    assert rewriter.rewrite(["cat", "dog"]) == [
        Rewrites("cat", ("a cat",), ("a small cat",)),
        Rewrites("dog", ("a dog",)),
    ]
    with pytest.raises(GranAlignError, match=r"rewrites\.jsonl: has no rewrites of 'cow'"):
        rewriter.rewrite(["dog", "cow"])
    path.write_text(path.read_text() + json.dumps({"query": "dog", "rewrites": ["dogs"]}))
    with pytest.raises(GranAlignError, match=r"rewrites\.jsonl:3: query 'dog' repeats"):
        StoredRewriter(path)


def test_the_retriever_rewrites_plain_text_and_nothing_else():
    class Counting(RuleRewriter):
        seen: list[str] = []  # noqa: RUF012

        def rewrite(self, queries):
            self.seen.extend(queries)
            return super().rewrite(queries)

    retriever = MomentRetriever(BagOfWords(), rewriter=Counting())
    index = retriever.index(CaptionedVideo("v", ("a dog runs", "a red car", "a red car")))
    plain = retriever.search(index, "a woman in a red car")
    # Each variant is compared with both matrices of captions.
    assert len(plain.curves) == 2 * (1 + len(rules("a woman in a red car")))
    given_ones = retriever.search(index, Rewrites("a woman in a red car", ("a car",)))
    assert len(given_ones.curves) == 2 * 2
    assert Counting.seen == ["a woman in a red car"]
