"""Mask rules against small masks worked by hand."""

import torch

from mmfusion.models.attention.rules import Causal, CausalWindow, Document, Places, Rule, Sink, Window


def places(document: list[int], position: list[int]) -> Places:
    return Places(torch.tensor([document]), torch.tensor([position]))


def mask(rule: Rule, query: Places, key: Places | None = None) -> list[str]:
    """Rows of 1 and 0, a query a row."""
    allowed = rule(query, key or query)[0]
    return ["".join("1" if cell else "0" for cell in row) for row in allowed.tolist()]


FOUR = places([0, 0, 0, 0], [0, 1, 2, 3])
PACKED = places([5, 5, 5, 7, 7, -1], [0, 1, 2, 0, 1, 0])


def test_each_rule_alone():
    assert mask(Causal(), FOUR) == ["1000", "1100", "1110", "1111"]
    assert mask(Window(2), FOUR) == ["1111", "1111", "0111", "0011"]
    assert mask(Sink(1), FOUR) == ["1000", "1000", "1000", "1000"]
    assert mask(Sink(0), FOUR) == ["0000"] * 4
    assert mask(Document(), PACKED) == ["111000", "111000", "111000", "000110", "000110", "000001"]


def test_composition():
    assert mask(Causal() & Window(2), FOUR) == ["1000", "1100", "0110", "0011"]
    assert mask(Causal() & (Window(1) | Sink(1)), FOUR) == ["1000", "1100", "1010", "1001"]
    assert mask(Causal() & Window(1) | Sink(1), FOUR) == ["1000", "1100", "1010", "1001"]


def test_the_sink_is_the_querys_own_document():
    composed = Causal() & Document() & (Window(1) | Sink(1))
    worked = ["100000", "110000", "101000", "000100", "000110", "000001"]
    assert mask(composed, PACKED) == worked
    assert mask(CausalWindow(window=1, sink=1), PACKED) == worked


def test_keys_are_judged_by_place_wherever_they_lie():
    query, keys = places([5], [2]), places([7, 5, 5, -1, 5], [0, 1, 0, 0, 2])
    assert mask(CausalWindow(window=2, sink=0), query, keys) == ["01001"]
    assert mask(CausalWindow(window=1, sink=1), query, keys) == ["00101"]


def test_each_answer_sees_the_prompt_and_itself():
    """Two answers of two pieces each to a prompt of two, and a document of one answer."""
    tree = Places(*torch.tensor([[[3] * 6 + [4] * 2], [[0, 1, 2, 3, 2, 3, 0, 1]], [[-1, -1, 7, 7, 8, 8, 9, 9]]]))
    assert mask(Causal() & Document(), tree) == [
        "10000000", "11000000", "11100000", "11110000", "11001000", "11001100", "00000010", "00000011"
    ]  # fmt: skip
    assert mask(CausalWindow(window=1, sink=1), tree)[5] == "10000100"


def test_no_query_is_left_without_a_key():
    allowed = CausalWindow(window=1, sink=0)(PACKED, PACKED)
    assert allowed.any(dim=-1).all()
