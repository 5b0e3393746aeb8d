"""Batches worked by hand: what stands where, what is learnt from, whose tokens fill which places."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment
from sentencepiece import SentencePieceProcessor
from tiny_media import small_patchify

from mmfusion.data.batching import (
    CHAT_TEMPLATE,
    TOO_LONG,
    Collate,
    Document,
    Prepared,
    Turn,
    document_length,
    lay_out,
    longest_document,
    pack,
    row_length_for,
    single,
)
from mmfusion.data.patchify import PartPatches, Patchify, PatchifyText
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.types import IGNORE, Batch, Modality, Part, Sample, SkipSample


def part(count: int, width: int, padding: int = 0) -> PartPatches:
    """`count` valid patches of ones and some that are not."""
    valid = np.arange(count + padding) < count
    coords = np.zeros((count + padding, 4), np.float32)
    coords[:, 2] = np.arange(count + padding)
    return PartPatches(valid[:, None].astype(np.float32) * np.ones(width, np.float32), coords, valid)


def picture(count: int, padding: int = 0) -> tuple[Modality, PartPatches]:
    return "image", part(count, 192, padding)


def clip(count: int) -> tuple[Modality, PartPatches]:
    return "audio", part(count, 256)


def prepared(
    key: str, parts: Sequence[tuple[Modality, PartPatches]], *documents: Document, concept: int = 5, seed: int = 9
) -> Prepared:
    return Prepared(key, concept, seed, tuple(parts), documents)


def tokens_of(parts: Sequence[tuple[Modality, PartPatches]]) -> dict[int, int]:
    """The number of tokens of each, as `collate` merges them."""
    return {i: part.tokens({"image": 4, "audio": 2}[name]) for i, (name, part) in enumerate(parts)}


@pytest.fixture(scope="module")
def collate(tokenizer: SentencePieceTokenizer) -> Collate:
    """image with merge 4, audio with merge 2, rows of 12."""
    patchify: dict[Modality, Patchify] = {**small_patchify(), "text": PatchifyText(tokenizer)}
    return Collate({name: patchify[name] for name in ("text", "audio", "image")}, tokenizer, row_length=12)


def test_a_document_from_left_to_right(tokenizer: SentencePieceTokenizer) -> None:
    t = tokenizer
    shown: dict[int, tuple[Modality, Sequence[int]]] = {1: ("image", [5, 6]), 0: ("audio", [9])}
    laid = lay_out(t, single([1, 0], [70, 71], [80, 81, 82]), shown)
    image, audio = t.placeholder("image"), t.placeholder("audio")
    assert laid.ids == [t.begin, image, image, audio, 70, 71, t.assistant, 80, 81, 82, t.end]
    #                   0        1      2      3      4   5   6            7   8   9   10
    assert laid.labels == [IGNORE] * 6 + [80, 81, 82, t.end, IGNORE]
    assert laid.slot == [-1, 5, 6, 9] + [-1] * 7
    assert (laid.position, laid.answer) == (list(range(11)), [0] * 11)
    opened = [t.begin, image, image, 70, t.assistant]
    laid = lay_out(t, single([1], [70], None), shown)
    assert (laid.ids, laid.labels, laid.slot) == (opened, [IGNORE] * 5, [-1, 5, 6, -1, -1])


def test_a_conversation_from_left_to_right(tokenizer: SentencePieceTokenizer) -> None:
    """A picture and a question, then a question, a clip and a word, then one that waits for its answer."""
    t = tokenizer
    turns = Turn((0, (70,)), (80,)), Turn(((71,), 1, (72,)), (81, 82)), Turn(((73,),), None)
    laid = lay_out(t, Document(turns), {0: ("image", [3, 4]), 1: ("audio", [7])})
    image, audio = t.placeholder("image"), t.placeholder("audio")
    first = [t.begin, image, image, 70, t.assistant, 80, t.end]
    second = [t.user, 71, audio, 72, t.assistant, 81, 82, t.end]
    assert laid.ids == [*first, *second, t.user, 73, t.assistant]
    assert laid.labels == [IGNORE] * len(laid.ids)  # what was said before is a part of the prompt
    answered = lay_out(t, Document(turns[:2]), {0: ("image", [3, 4]), 1: ("audio", [7])})
    assert answered.ids == [*first, *second]
    assert answered.labels == [IGNORE] * 4 + [80, t.end] + [IGNORE] * 5 + [81, 82, t.end] + [IGNORE]
    assert laid.slot == [-1, 3, 4, -1, -1, -1, -1, -1, -1, 7, -1, -1, -1, -1, -1, -1, -1, -1]
    assert document_length(Document(turns), {0: 2, 1: 1}) == len(laid.ids)


def test_several_answers_go_on_from_one_prompt(tokenizer: SentencePieceTokenizer) -> None:
    t = tokenizer
    document = Document((Turn((0, (70,)), None),), (((80, 81), 1.0), ((82,), 0.0)))
    laid = lay_out(t, document, {0: ("image", [3, 4])})
    image = t.placeholder("image")
    assert laid.ids == [t.begin, image, image, 70, t.assistant, 80, 81, t.end, t.assistant, 82, t.end]
    assert laid.labels == [IGNORE] * 4 + [80, 81, t.end, IGNORE, 82, t.end, IGNORE]
    assert laid.position == [0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6]
    assert laid.answer == [-1] * 4 + [0] * 4 + [1] * 3
    assert document_length(document, {0: 2}) == len(laid.ids)


@given(st.lists(st.tuples(st.lists(st.sampled_from(["image", "audio", "What?", " ü "])), st.text(max_size=9))))
def test_the_chat_template_says_the_same(tokenizer: SentencePieceTokenizer, said: list[tuple[list[str], str]]) -> None:
    """With a part of one token for each placeholder; two texts side by side are one to a tokenizer."""
    messages, turns, shown = [], [], {}
    for asked, answer in said:
        items: list[int | tuple[int, ...]] = []
        content = []
        for is_text, group in itertools.groupby(asked, key=lambda name: name not in ("image", "audio")):
            names = list(group)
            for name in () if is_text else names:
                items.append(len(shown))
                shown[len(shown)] = name, [0]
                content.append({"type": name})
            if is_text:
                items.append(tuple(tokenizer.encode("".join(names))))
                content.append({"type": "text", "text": "".join(names)})
        messages.append({"role": "user", "content": content})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        turns.append(Turn(tuple(items), tuple(tokenizer.encode(answer))))
    template = ImmutableSandboxedEnvironment().from_string(CHAT_TEMPLATE.read_text())
    rendered = template.render(messages=messages)
    ids = lay_out(tokenizer, Document(tuple(turns)), shown).ids
    pieces = SentencePieceProcessor(model_file=str(tokenizer.path))
    assert ids == pieces.EncodeAsIds(rendered)


def test_what_is_labelled_is_what_comes_next(tokenizer: SentencePieceTokenizer) -> None:
    laid = lay_out(tokenizer, single([0], [70], [80, 81]), {0: ("sensor", range(3))})
    for i, label in enumerate(laid.labels):
        if label != IGNORE:
            assert label == laid.ids[i + 1]
    assert sum(label != IGNORE for label in laid.labels) == 3


def test_rows_are_filled_longest_first() -> None:
    # 5 and then 4 go into row 0, the other 4 and both 3 into row 1, which is full; 1 fills row 0.
    assert pack([3, 4, 5, 1, 4, 3], 10) == [(1, 4), (0, 5), (0, 0), (0, 9), (1, 0), (1, 7)]
    assert pack([], 10) == []
    with pytest.raises(SkipSample, match=TOO_LONG):
        pack([11], 10)


@given(st.lists(st.integers(1, 20), max_size=40))
@settings(max_examples=60, deadline=None)
def test_packed_documents_never_overlap(lengths: list[int]) -> None:
    taken: set[tuple[int, int]] = set()
    for length, (row, first) in zip(lengths, pack(lengths, 20), strict=True):
        cells = {(row, first + i) for i in range(length)}
        assert not cells & taken
        assert first + length <= 20
        taken |= cells


def two_samples() -> list[Prepared]:
    """First a picture of 4 patches (1 token) and a clip of 3 (2 tokens); then a picture of 8 (2 tokens)."""
    return [
        prepared("a", [picture(4), clip(3)], single([1, 0], [70], [80, 81]), concept=5, seed=1),
        prepared("b", [picture(8)], single([0], [], [90]), concept=6, seed=2),
    ]


def test_a_batch_by_hand(collate: Collate, tokenizer: SentencePieceTokenizer) -> None:
    batch = collate(two_samples(), {"corrupt picture": 1})
    t = tokenizer
    # The longer picture stands first: tokens 0, 1 are b's, token 2 is a's picture, tokens 3, 4 are a's clip.
    assert list(batch.streams) == ["image", "audio", "text"]
    assert batch.streams["image"].owner.tolist() == [1, 0]
    assert batch.streams["image"].values.shape == (2, 8, 192)
    assert batch.streams["image"].valid.sum(1).tolist() == [8, 4]
    assert batch.streams["image"].values[1, 4:].abs().max() == 0
    assert batch.streams["audio"].owner.tolist() == [0]
    assert batch.streams["text"].owner.tolist() == [-1]
    assert (batch.keys, batch.concept.tolist(), batch.seeds.tolist()) == (("a", "b"), [5, 6], [1, 2])
    assert batch.skipped == {"corrupt picture": 1}

    image, audio = t.placeholder("image"), t.placeholder("audio")
    first = [t.begin, audio, audio, image, 70, t.assistant, 80, 81, t.end]
    second = [t.begin, image, image, t.assistant, 90, t.end]
    rows = batch.rows
    assert rows.ids.tolist() == [first + [t.pad] * 3, second + [t.pad] * 6]
    assert rows.labels.tolist() == [
        [IGNORE] * 5 + [80, 81, t.end] + [IGNORE] * 4,
        [IGNORE] * 3 + [90, t.end] + [IGNORE] * 7,
    ]
    assert rows.document.tolist() == [[0] * 9 + [-1] * 3, [1] * 6 + [-1] * 6]
    assert rows.position.tolist() == [[*range(9), 0, 0, 0], [*range(6), 0, 0, 0, 0, 0, 0]]
    assert rows.slot.tolist() == [[-1, 3, 4, 2] + [-1] * 8, [-1, 0, 1] + [-1] * 9]
    assert rows.answer.tolist() == rows.document.tolist()
    assert (rows.owner.tolist(), rows.of.tolist(), rows.score.tolist()) == ([0, 1], [0, 1], [1.0, 1.0])


def test_answers_are_counted_over_the_batch(collate: Collate) -> None:
    two = Document((Turn(((70,),), None),), (((80,), 1.0), ((81, 82), 0.0)))
    rows = collate([prepared("a", [], single([], [], [80])), prepared("b", [], two)]).rows
    assert (rows.owner.tolist(), rows.of.tolist(), rows.score.tolist()) == ([0, 1], [0, 1, 1], [1, 1, 0])
    assert rows.answer.tolist() == [[-1] * 2 + [1] * 3 + [2] * 4 + [-1] * 3, [0] * 4 + [-1] * 8]
    assert rows.document.tolist() == [[1] * 9 + [-1] * 3, [0] * 4 + [-1] * 8]
    assert rows.position.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4, 5, 0, 0, 0], [0, 1, 2, 3] + [0] * 8]


def test_the_dummy_parts_token_is_counted(collate: Collate) -> None:
    """Without a picture the first valid token is the dummy's, so the clip's are 1 and 2."""
    batch = collate([prepared("a", [clip(4)], single([0], [], [80]))])
    assert batch.streams["image"].owner.tolist() == [-1]
    assert batch.streams["image"].valid.tolist() == [[True, False, False, False]]
    assert batch.rows.slot[0, :4].tolist() == [-1, 1, 2, -1]


def test_patches_that_are_not_valid_make_no_token(collate: Collate) -> None:
    """Five patches and three of padding are two tokens of four."""
    batch = collate([prepared("a", [picture(5, padding=3), clip(1)], single([0, 1], [], [80]))])
    assert batch.rows.slot[0, :5].tolist() == [-1, 0, 1, 2, -1]


def test_a_batch_of_holes_alone_is_a_batch(collate: Collate, tokenizer: SentencePieceTokenizer) -> None:
    batch = collate([], {"corrupt sound": 4})
    assert batch.keys == ()
    assert batch.concept.shape == (0,)
    assert {name: stream.owner.tolist() for name, stream in batch.streams.items()} == {
        "image": [-1],
        "audio": [-1],
        "text": [-1],
    }
    assert batch.rows.ids.tolist() == [[tokenizer.pad] * 12]
    assert (batch.rows.document == -1).all()
    assert (batch.rows.labels == IGNORE).all()


def test_documents_share_rows(collate: Collate) -> None:
    short = [prepared(k, [clip(1)], single([], [], [80])) for k in "abcd"]
    rows = collate(short).rows
    assert rows.document.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], [3, 3, 3, 3] + [-1] * 8]
    assert rows.position[0].tolist() == [0, 1, 2, 3] * 3


def every_slot_is_its_owners(batch: Batch) -> None:
    """Whatever was sorted and packed, a filled place holds a token of its document's sample, and each token once."""
    merge = {"image": 4, "audio": 2}
    owners: list[int] = []
    for name, stream in batch.streams.items():
        if name != "text":
            for valid, owner in zip(stream.valid, stream.owner.tolist(), strict=True):
                groups = torch.nn.functional.pad(valid, (0, -len(valid) % merge[name])).view(-1, merge[name])
                owners += [owner] * int(groups.any(1).sum())
    filled = batch.rows.slot >= 0
    slots = batch.rows.slot[filled]
    assert len(set(slots.tolist())) == len(slots)
    wanted = batch.rows.owner[batch.rows.document[filled]]
    assert torch.tensor(owners, dtype=torch.int64)[slots].tolist() == wanted.tolist()


@given(st.lists(st.lists(st.tuples(st.booleans(), st.integers(1, 9)), min_size=1, max_size=3), max_size=6))
@settings(max_examples=60, deadline=None)
def test_slots_hold_their_owners_tokens(collate: Collate, sizes: list[list[tuple[bool, int]]]) -> None:
    samples = []
    for i, parts in enumerate(sizes):
        made = [picture(n) if is_picture else clip(n) for is_picture, n in parts]
        document = single(range(len(made)), [], [80])
        if document_length(document, tokens_of(made)) > 12:
            document = single([], [], [80])
        samples.append(prepared(str(i), made, document))
    every_slot_is_its_owners(collate(samples))


def test_lengths_are_known_before_they_are_laid_out(tokenizer: SentencePieceTokenizer) -> None:
    parts = [picture(5, padding=3), clip(3)]
    tokens = tokens_of(parts)
    for document in (single([0, 1], [70], [80, 81]), single([], [], None), single([1], [], [80])):
        shown: dict[int, tuple[Modality, Sequence[int]]] = {
            i: (name, range(tokens[i])) for i, (name, _) in enumerate(parts)
        }
        assert document_length(document, tokens) == len(lay_out(tokenizer, document, shown).ids)


def test_series_of_few_channels_beside_many(tokenizer: SentencePieceTokenizer) -> None:
    def series(channels: int, patches: int) -> PartPatches:
        values = np.ones((patches, channels, 8, 2), np.float32)
        described = np.arange(1, channels + 1), np.ones((channels, 2), np.float32)
        return PartPatches(values, np.zeros((patches, 4), np.float32), np.ones(patches, bool), described)

    collate = Collate({"sensor": small_patchify()["sensor"]}, tokenizer, 12)
    batch = collate([prepared("a", [("sensor", series(1, 2))]), prepared("b", [("sensor", series(3, 1))])])
    stream = batch.streams["sensor"]
    assert stream.values.shape == (2, 2, 3, 8, 2)
    assert stream.values.sum((1, 3, 4)).tolist() == [[32, 0, 0], [16, 16, 16]]
    assert stream.description is not None
    assert stream.description.name.tolist() == [[1, 0, 0], [1, 2, 3]]
    assert stream.description.valid.tolist() == [[True, False, False], [True, True, True]]
    assert stream.description.grid.shape == (2, 3, 2)


def test_the_row_length_that_texts_need(tokenizer: SentencePieceTokenizer) -> None:
    said = Part(type="text", lang="fr", text="goose, duck")
    shown = (Part(type="image"), Part(type="audio"), said, Part(type="audio", text="goose"))
    pieces = len(tokenizer.encode("fr")) + len(tokenizer.encode("goose, duck"))
    # <|begin|>, <|assistant|>, <|end|>, 9 for the picture, 18 for one of the clips, the longer text and its language
    assert longest_document(Sample(key="a", parts=shown), tokenizer) == 3 + 9 + 18 + pieces
    assert longest_document(Sample(key="a", parts=shown[:1]), tokenizer) == 3 + 9
    turns = (Part(type="image", role="user"), Part(type="text", role="user", text="goose, duck"),
             Part(type="text", role="assistant", text="goose"))  # fmt: skip
    said = len(tokenizer.encode("goose, duck")) + len(tokenizer.encode("goose"))
    assert longest_document(Sample(key="a", parts=turns), tokenizer) >= 3 + 9 + said
    assert row_length_for([128] * 40) is None
    assert row_length_for([100] * 39 + [129]) == 192
    assert row_length_for([100] * 995 + [500] * 5) is None  # five in a thousand may be left out
    assert row_length_for([100] * 994 + [500] * 6) == 512
