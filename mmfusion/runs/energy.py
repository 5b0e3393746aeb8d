"""energy.json: the joules that a run took, of training and of evaluation, and how they are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from mmfusion.runs.folder import RunError, write
from mmfusion.runs.status import load

FILE = "energy.json"
SIZES = ((1e6, "MJ"), (1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ"))
Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]


class Source(BaseModel):
    """Where a device's joules come from; `method` says of what they are, `constants` what was assumed, with units."""

    kind: Literal["counter", "estimate", "unknown"]
    method: str
    constants: dict[str, float | str] = {}


class Spent(BaseModel):
    """Joules by device, summed over processes; `seconds` that passed meanwhile; samples trained, tokens generated."""

    joules: dict[str, Amount] = {}
    seconds: Amount = 0.0
    samples: Count = 0
    tokens: Count = 0

    @property
    def total(self) -> float:
        """Joules of all devices."""
        return sum(self.joules.values())

    def plus(self, other: Spent, *, together: bool = False) -> Spent:
        """Both; what was spent `together` took the longer's seconds."""
        devices = dict.fromkeys([*self.joules, *other.joules])
        return Spent(
            joules={name: self.joules.get(name, 0.0) + other.joules.get(name, 0.0) for name in devices},
            seconds=max(self.seconds, other.seconds) if together else self.seconds + other.seconds,
            samples=self.samples + other.samples,
            tokens=self.tokens + other.tokens,
        )


class Energy(BaseModel):
    """What a run spent so far, in all its processes and however often it went on.

    `training` is without `validation`; `generation` is the part of `evaluation` in which captions and answers are made.
    `sources` holds for each device all that its joules came from: a run may go on elsewhere.
    """

    training: Spent = Spent()
    validation: Spent = Spent()
    evaluation: Spent = Spent()
    generation: Spent = Spent()
    sources: dict[str, list[Source]] = {}

    @property
    def joules(self) -> float:
        """Of the whole run."""
        return self.training.total + self.validation.total + self.evaluation.total

    @property
    def how(self) -> Literal["counter", "estimate", "unknown"]:
        """`counter` if all that is known was counted, `estimate` if any of it was not."""
        kinds = {source.kind for of_device in self.sources.values() for source in of_device} - {"unknown"}
        return "estimate" if "estimate" in kinds else "counter" if kinds else "unknown"

    @property
    def lacking(self) -> list[str]:
        """What is not among the joules, though something else is."""
        return [name for name, of in self.sources.items() if any(source.kind == "unknown" for source in of)]

    @property
    def joules_per_sample(self) -> float | None:
        """Of training, without validation; None where nothing was trained or nothing is known."""
        return _each(self.training, self.training.samples, self.how)

    @property
    def joules_per_generated_token(self) -> float | None:
        """Of the evaluation's generation, prompts read and wrong answers among it; None where there was none."""
        return _each(self.generation, self.generation.tokens, self.how)

    def plus(self, other: Energy, *, together: bool = False) -> Energy:
        """Both; of processes that worked `together`, seconds passed once."""
        sources = {name: [*of] for name, of in self.sources.items()}
        for name, of_device in other.sources.items():
            there = sources.setdefault(name, [])
            there += [source for source in of_device if source not in there]
        return Energy(
            training=self.training.plus(other.training, together=together),
            validation=self.validation.plus(other.validation, together=together),
            evaluation=self.evaluation.plus(other.evaluation, together=together),
            generation=self.generation.plus(other.generation, together=together),
            sources=sources,
        )


def _each(spent: Spent, count: int, how: str) -> float | None:
    return spent.total / count if count and how != "unknown" else None


def read(run: Path) -> Energy:
    """What the folder says was spent; nothing where it says nothing. Raises RunError if the file is damaged."""
    return load(run / FILE, Energy)


def kept(run: Path) -> Energy:
    """`read`, to be added to: what is damaged counts as nothing, and is said to be lacking."""
    try:
        return read(run)
    except RunError:
        return Energy(sources={"before it went on": [Source(kind="unknown", method=f"{FILE} was damaged")]})


def keep(run: Path, spent: Energy) -> None:
    """Write the file whole, the sums first. One that cannot be written ends no run."""
    told = {
        "how": spent.how,
        "joules": spent.joules,
        "joules_per_sample": spent.joules_per_sample,
        "joules_per_generated_token": spent.joules_per_generated_token,
        **spent.model_dump(),
    }
    try:
        write(run / FILE, json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    except OSError:
        return


# --------------------------------------------------------------------------------------------------------- in words


def amount(joules: float | None) -> str:
    """Three digits with their unit: 1.24 kJ."""
    if joules is None:
        return "?"
    for size, unit in SIZES:
        if joules >= size:
            return f"{joules / size:.{0 if joules >= 100 * size else 3}{'f' if joules >= 100 * size else 'g'}} {unit}"
    return "0 J"


def facts(spent: Energy) -> dict[str, str]:
    """Headings and what stands below them on a page; none where nothing is known."""
    if spent.how == "unknown":
        return {}
    about = "estimated" if spent.how == "estimate" else "counted"
    told = {"Whole run": ", ".join([amount(spent.joules), about, *_without(spent)])}
    for name in ("training", "validation", "evaluation"):
        phase: Spent = getattr(spent, name)
        if phase.seconds:
            told[name.capitalize()] = f"{amount(phase.total)} in {phase.seconds:.0f} s"
    if spent.joules_per_sample is not None:
        told["A sample, trained"] = f"{amount(spent.joules_per_sample)} (of {spent.training.samples:,})"
    if spent.joules_per_generated_token is not None:
        told["A token, generated"] = f"{amount(spent.joules_per_generated_token)} (of {spent.generation.tokens:,})"
    return told


def sources(spent: Energy) -> list[str]:
    """A sentence for each source: which device, counted or estimated, how, with what."""
    return [_sentence(name, source) for name, of_device in spent.sources.items() for source in of_device]


def _sentence(device: str, source: Source) -> str:
    kinds = {"counter": "read from a counter", "estimate": "an estimate", "unknown": "not known"}
    assumed = ", ".join(f"{name.replace('_', ' ')} {_plain(value)}" for name, value in source.constants.items())
    return f"{device}: {kinds[source.kind]}. {source.method}." + (f" Assumed: {assumed}." if assumed else "")


def _without(spent: Energy) -> list[str]:
    return [f"without {' and '.join(spent.lacking)}"] if spent.lacking else []


def _plain(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


def line(spent: Energy) -> str:
    """All of it in one line, for a terminal."""
    if spent.how == "unknown":
        return "not known: nothing counts it, and no estimate is made" if spent.sources else "not recorded"
    how = "an estimate" if spent.how == "estimate" else "read from counters"
    told = [f"{amount(spent.joules)} ({', '.join([how, *_without(spent)])})"]
    told += [f"{amount(each)} a sample trained"] if (each := spent.joules_per_sample) is not None else []
    told += [f"{amount(each)} a token generated"] if (each := spent.joules_per_generated_token) is not None else []
    return ", ".join(told)
