"""Generation: the cache changes no piece, sampling is what it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny_multimodal import BEGIN, END, VOCAB, pack, texts, tiny_batch, tiny_model
from torch import Tensor

from mmfusion.models.generate import choose, generate, stream
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.rows import answered, one_document_a_row
from mmfusion.types import IGNORE, Batch


def prompts(length: int = 24) -> Batch:
    """Five prompts of unequal length, with four, one, three, four and two tokens before them, two or more a row."""
    batch = tiny_batch()
    pieces = [[BEGIN], [BEGIN, 7, 8, 9, 10], [BEGIN, 5], [BEGIN, 5, 6], [BEGIN]]
    slots = [[0, 1, 2, 3], [4, 5], [6, 7, 8], [9, 10, 11, 12], [13, 14]]
    rows = pack([(k, slots[k], pieces[k]) for k in range(5)], length=length)
    return dataclasses.replace(batch, rows=dataclasses.replace(rows, labels=torch.full_like(rows.labels, IGNORE)))


def uncached(model: MultimodalModel, batch: Batch, max_new: int, temperature: float = 0.0, seed: int = 0) -> list:
    """Each document alone, the whole row anew for each piece."""
    batch = dataclasses.replace(batch, rows=one_document_a_row(batch.rows))
    K = len(batch.rows.owner)
    dice = torch.rand(max_new, generator=torch.Generator().manual_seed(seed))
    said = []
    for k in range(K):
        rows = batch.rows
        length = int((rows.document[k] >= 0).sum())
        one = {name: getattr(rows, name)[k : k + 1, :length] for name in ("ids", "labels", "position", "slot")}
        whole = torch.full((1, length), k)
        row = dataclasses.replace(rows, document=whole, answer=whole, **one)
        new: list[int] = []
        for step in range(max_new):
            outputs = model(dataclasses.replace(batch, rows=row))
            logits = outputs.hidden[0, -1:] @ outputs.unembedding.T
            piece = int(choose(logits, temperature, 1.0, dice[step : step + 1]))
            if piece == END:
                break
            new.append(piece)
            more = {"ids": piece, "labels": IGNORE, "document": k, "answer": k, "position": length + step, "slot": -1}
            grown = {n: torch.cat([getattr(row, n), torch.tensor([[v]])], dim=1) for n, v in more.items()}
            row = dataclasses.replace(row, **grown)
        said.append(new)
    return said


@pytest.mark.parametrize("window", [64, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_cached_equals_uncached(window: int, temperature: float):
    model = tiny_model(window=window).double()
    batch = double(prompts())
    said = generate(model, batch, end=END, max_new=9, temperature=temperature, seed=4)
    assert said == uncached(model, batch, 9, temperature, seed=4)
    assert len({tuple(pieces) for pieces in said}) > 1


def double(batch: Batch) -> Batch:
    streams = {
        name: dataclasses.replace(parts, values=parts.values if name == "text" else parts.values.double())
        for name, parts in batch.streams.items()
    }
    return dataclasses.replace(batch, streams=streams)


def test_how_prompts_share_rows_means_nothing():
    model = tiny_model()
    packed, spread = prompts(length=24), prompts(length=9)
    assert packed.rows.ids.shape[0] < spread.rows.ids.shape[0]
    assert generate(model, packed, end=END, max_new=6) == generate(model, spread, end=END, max_new=6)


def test_a_stream_gives_each_piece_before_the_next_is_thought_of():
    model = tiny_model()
    said = generate(model, prompts(), end=END, max_new=5, banned=[END])
    runs: list[int] = []
    model.decoder.register_forward_hook(lambda *_: runs.append(1))
    for step, piece in enumerate(stream(model, prompts(), end=END, max_new=5, banned=[END])):
        assert piece.tolist() == [pieces[step] for pieces in said]
        assert len(runs) == step + 1
        assert not torch.is_inference_mode_enabled()


def test_it_stops_at_the_end_piece_and_at_the_limit():
    model = tiny_model()
    endless = generate(model, prompts(), end=END, max_new=5, temperature=1.0, banned=[END])
    assert [len(pieces) for pieces in endless] == [5] * 5
    for end in {piece for pieces in endless for piece in pieces}:
        said = generate(model, prompts(), end=end, max_new=5, temperature=1.0, banned=[END])
        assert said == [pieces[: pieces.index(end)] if end in pieces else pieces for pieces in endless]


def test_banned_pieces_are_never_said():
    model = tiny_model()
    banned = [piece for piece in range(VOCAB) if piece not in (7, 9)]
    said = generate(model, prompts(), end=END, max_new=8, temperature=2.0, banned=banned)
    assert {piece for pieces in said for piece in pieces} == {7, 9}
    assert [len(pieces) for pieces in said] == [8] * 5


def test_the_seed_decides():
    model = tiny_model()
    one, two, other = (
        generate(model, prompts(), end=END, max_new=8, temperature=1.5, top_p=0.9, seed=seed) for seed in (1, 1, 2)
    )
    assert one == two != other


def test_text_alone_and_no_prompt_at_all():
    model = tiny_model()
    batch = tiny_batch()
    rows = pack([(0, [], [BEGIN, 5, 6])], length=3)
    said = generate(model, dataclasses.replace(batch, streams={"text": texts([2], [0])}, rows=rows), end=END, max_new=3)
    assert len(said) == 1
    none = pack([], length=3)
    assert generate(model, dataclasses.replace(batch, streams={}, rows=none), end=END, max_new=3) == []


def test_an_empty_prompt_is_refused():
    rows = pack([(0, [], [5]), (1, [], [])], length=3)
    with pytest.raises(ValueError, match=r"documents \[1\] of 2 have no pieces"):
        one_document_a_row(rows)


# ------------------------------------------------------------------------------------------------------------- sampling


def logits(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


@pytest.mark.parametrize(
    ("top_p", "dice", "expected"),
    [
        (1.0, 0.0, 0),  # in the vocabulary's order
        (1.0, 0.29, 0),
        (1.0, 0.31, 1),
        (1.0, 0.49, 1),
        (1.0, 0.51, 2),
        (0.6, 0.62, 2),  # sorted: piece 2 (.5), 0 (.3), 1 (.2); .5 and .3 stay; 2 has .625 of them
        (0.6, 0.63, 0),
        (0.6, 0.99, 0),
        (0.4, 0.99, 2),
    ],
)
def test_sampling_by_hand(top_p: float, dice: float, expected: int):
    assert choose(logits(0.3, 0.2, 0.5), 1.0, top_p, torch.tensor([dice])).tolist() == [expected]


def test_temperature_by_hand():
    """At temperature 1/2 probabilities .2 and .4 become 1/5 and 4/5."""
    for dice, expected in ((0.19, 0), (0.21, 1)):
        assert choose(logits(0.2, 0.4), 0.5, 1.0, torch.tensor([dice])).tolist() == [expected]
    assert choose(logits(0.2, 0.4), 0.0, 1.0, torch.tensor([0.99])).tolist() == [1]


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-40, 1e-6])
def test_all_but_no_temperature_is_the_likeliest(temperature: float):
    values = torch.tensor([[900.0, 899.0, -torch.inf], [-3e38, -1e38, -2e38]])
    assert choose(values, temperature, 1.0, torch.tensor([0.99, 0.99])).tolist() == [0, 1]


def test_dice_never_fall_outside():
    many = torch.randn(200, 50)
    highest = torch.full((200,), 1 - 2**-24)
    for top_p in (0.1, 0.5, 0.9, 1.0):
        piece = choose(many, 1.0, top_p, highest)
        assert ((piece >= 0) & (piece < 50)).all()


def test_several_answers_to_one_prompt_are_those_to_as_many_prompts():
    """Three answers to each of five documents, drawn together, are those drawn to each alone with its seed."""
    model, batch = tiny_model().double(), double(prompts())
    rows = one_document_a_row(batch.rows)
    how: dict = {"end": END, "max_new": 6, "temperature": 1.5}
    runs: list[int] = []
    model.decoder.register_forward_hook(lambda module, given, made: runs.append(len(made)))
    several = generate(model, batch, samples=3, seeds=[7, 8, 9, 10, 11], **how)
    assert runs[0] == len(rows.owner) == 5
    assert len({tuple(pieces) for pieces in several}) > 5
    for k in range(5):
        one = {name: getattr(rows, name)[k : k + 1] for name in ("ids", "labels", "position", "slot")}
        document = torch.where(rows.document[k : k + 1] >= 0, 0, -1)
        alone = dataclasses.replace(rows, document=document, answer=document, owner=rows.owner[k : k + 1], **one)
        own = generate(model, dataclasses.replace(batch, rows=alone), samples=3, seed=7 + k, **how)
        assert own == several[3 * k : 3 * k + 3]


def test_what_a_view_says_of_answers_is_what_they_were_drawn_from():
    """The likeliest answer, each of whose pieces has the highest probability at its place behind the shared prompt."""
    model, batch = tiny_model().double(), double(prompts())
    said = generate(model, batch, end=END, max_new=6, samples=2, temperature=1.0, seeds=range(5))
    best = generate(model, batch, end=END, max_new=6)
    both = [[*(best[k] if way else said[2 * k]), END] for k in range(5) for way in range(2)]
    view = dataclasses.replace(batch, rows=answered(one_document_a_row(batch.rows), both))
    outputs = model(view)
    logits = outputs.hidden @ outputs.unembedding.T
    for k in range(5):
        here = (view.rows.answer == 2 * k + 1) & (view.rows.labels != IGNORE)
        likeliest = logits[here].argmax(dim=-1).tolist()
        assert likeliest[: len(best[k])] == best[k]
        apart = [[*answer] for answer in both[2 * k : 2 * k + 2]]
        for way, answer in enumerate(apart):
            alone = answered(one_document_a_row(batch.rows), [answer if d == k else [END] for d in range(5)])
            of_one = model(dataclasses.replace(batch, rows=alone))
            there = (alone.answer == k) & (alone.labels != IGNORE)
            here = (view.rows.answer == 2 * k + way) & (view.rows.labels != IGNORE)
            torch.testing.assert_close(outputs.hidden[here], of_one.hidden[there])
