"""Likeness of wordings, against sacreBLEU and by hand."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sacrebleu import sentence_chrf

from mmfusion.evaluation.wording import chrf, exact, spelling_similarity

WORDS = st.text(alphabet="abc é", max_size=12)


@settings(max_examples=60, deadline=None)
@given(said=WORDS, right=st.lists(WORDS, min_size=1, max_size=3))
@example(said="ox", right=["ox"])
@example(said="", right=["cat"])
@example(said="cat face", right=["face", "cat face with tears of joy"])
def test_chrf_agrees_with_sacrebleu(said: str, right: list[str]) -> None:
    assert chrf([said], [right])[0] == pytest.approx(sentence_chrf(said, right).score / 100, abs=1e-6)


def test_chrf_by_hand() -> None:
    # "ab" for "abc": precisions 1, 1; recalls 2/3, 1/2 -> mean 7/12; F2 = 5 * 7/12 / (4 + 7/12) = 7/11.
    assert chrf(["ab"], [["abc"]]) == pytest.approx([7 / 11])


def test_exact_ignores_case_and_spaces_only() -> None:
    got = exact(["Red  heart", "red hearts", "ring"], [["red heart"], ["red heart"], ["wedding", "ring"]])
    assert got.tolist() == [1, 0, 1]


def test_spelling_finds_the_likeliest_word() -> None:
    got = spelling_similarity(["man running", "zzz"], ["woman running", "flag: Chile"])
    assert got[0, 0] > got[0, 1] >= 0
    assert got[1].tolist() == [0, 0]
