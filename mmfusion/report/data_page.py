"""The page of `mmfusion data show`: samples of a set as a person would look at them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from mmfusion.data.decode import decode_part
from mmfusion.data.series import array_of, base_units, times_of
from mmfusion.data.shards import ShardSet
from mmfusion.report.html import environment
from mmfusion.report.media import LARGEST_PX, about_series, duration, media
from mmfusion.types import DataError, Modality, Part, Sample, SkipSample

SHOWN_S = 10  # of a sound
SHOWN_STEPS = 500  # of a series
SHOWN_CHANNELS = 12
SHOWN_CHARS = 1000  # of a text
SHOWN_PARTS = 100  # of a sample
FIRST = 4  # parts of one modality that are seen without opening the rest


@dataclass(frozen=True)
class Block:
    """One part: its media as HTML, its text or transcript, notes beside it, and why it cannot be used."""

    part: Part
    media: Markup | None = None
    notes: tuple[str, ...] = ()
    fault: str | None = None

    @property
    def text(self) -> str:
        return (self.part.text or "")[:SHOWN_CHARS]

    @property
    def more_characters(self) -> int:
        return max(0, len(self.part.text or "") - SHOWN_CHARS)


@dataclass(frozen=True)
class Card:
    """One sample. Without `sample` it could not be read, and `fault` says why."""

    key: str
    shard: str
    split: str
    source: str
    sample: Sample | None = None
    fault: str | None = None
    blocks: tuple[Block, ...] = ()
    folded: tuple[Block, ...] = ()
    prompt: tuple[Block, ...] = ()
    answers: tuple[tuple[float, tuple[Block, ...]], ...] = ()
    left_out: int = 0


def page(title: str, facts: Mapping[str, str], cards: Sequence[Card]) -> str:
    """The page of `cards`, together by source in the order in which the sources come first."""
    by_source: dict[str, list[Card]] = {}
    for card in cards:
        by_source.setdefault(card.source, []).append(card)
    template = environment().get_template("data_page.html.j2")
    return template.render(title=title, facts=facts, by_source=by_source)


def card(shards: ShardSet, i: int) -> Card:
    """Sample `i` of a set, decoded; what is wrong with it or with one of its parts stands on the card."""
    entry = shards.entry_of(i)
    known = Card(key=shards.key_of(i), shard=entry.file, split=entry.split, source=entry.source)
    try:
        sample = shards.read(i)
    except SkipSample as error:
        return dataclasses.replace(known, fault=str(error))
    known = dataclasses.replace(known, sample=sample, source=sample.source or known.source)
    if sample.answers is not None:
        answers = tuple((answer.score, _blocks(answer.parts)) for answer in sample.answers)
        return dataclasses.replace(known, prompt=_blocks(sample.parts), answers=answers)
    seen, folded = _folded(sample.parts[:SHOWN_PARTS])
    left_out = max(0, len(sample.parts) - SHOWN_PARTS)
    return dataclasses.replace(known, blocks=_blocks(seen), folded=_blocks(folded), left_out=left_out)


def _folded(parts: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """The first few of each modality, and the others; a conversation stays whole."""
    seen, folded = [], []
    count: dict[Modality, int] = {}
    for part in parts:
        count[part.type] = count.get(part.type, 0) + 1
        (seen if part.role or count[part.type] <= FIRST else folded).append(part)
    return seen, folded


def _blocks(parts: Sequence[Part]) -> tuple[Block, ...]:
    return tuple(_block(part) for part in parts)


def _block(part: Part) -> Block:
    if part.type == "text":
        return Block(part)
    try:
        decoded = decode_part(part)
        base_units(part)
    except SkipSample as error:
        return Block(part, fault=str(error))
    except DataError as error:
        return Block(part, fault=f"stops a run: {error}")
    shown, notes = {"image": _picture, "audio": _sound, "sensor": _series}[part.type](decoded)
    if part.start_s:
        notes.append(f"from {part.start_s:g} s on")
    said = [part.kind, part.lang, f"speaker {part.speaker}" if part.speaker else None]
    alt = " ".join(["picture" if part.type == "image" else "sound", part.file or ""])
    return Block(part, media(shown, alt), tuple(notes + [note for note in said if note]))


def _picture(part: Part) -> tuple[Part, list[str]]:
    height, width = array_of(part).shape[:2]
    smaller = ["shown smaller"] if max(height, width) > LARGEST_PX else []
    return part, [f"{width} x {height} px", *smaller]


def _sound(part: Part) -> tuple[Part, list[str]]:
    wave, rate_hz = array_of(part), part.rate_hz or 1.0
    seconds = len(wave) / rate_hz
    notes = [duration(seconds), f"{rate_hz / 1000:g} kHz"]
    if seconds > SHOWN_S:
        notes[0] = f"the first {SHOWN_S} s of {duration(seconds)}"
    if not np.abs(wave).max() > 0:
        notes.append("silent")
    return dataclasses.replace(part, data=wave[: round(SHOWN_S * rate_hz)]), notes


def _series(part: Part) -> tuple[Part, list[str]]:
    values, times = array_of(part), times_of(part)
    notes = [about_series(part), f"{part.rate_hz:.3g} Hz" if part.rate_hz else "at its own times"]
    if part.subject:
        notes.append(f"subject {part.subject}")
    if len(times) > SHOWN_STEPS:
        notes[0] = f"the first {duration(times[SHOWN_STEPS] - times[0])} of {notes[0]}"
    if len(part.channels) > SHOWN_CHANNELS:
        notes.append(f"the first {SHOWN_CHANNELS} of {len(part.channels)} channels")
    if missing := np.isnan(values).mean():
        notes.append(f"{missing:.0%} not measured")
    some = slice(SHOWN_CHANNELS)
    shown = dataclasses.replace(
        part,
        data=values[:SHOWN_STEPS, some],
        times_s=times[:SHOWN_STEPS],
        channels=part.channels[some],
        units=part.units[some],
    )
    return shown, notes
