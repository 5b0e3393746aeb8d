"""Conversations asked turn by turn: is the answer the right one, word for word?"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated

import numpy as np
from annotated_types import Gt

from mmfusion.data.series import array_of
from mmfusion.evaluation.bench import Bench, Embedder, Lacking, Outcome, Result, Said, by_hash
from mmfusion.evaluation.together import cluster_of
from mmfusion.evaluation.wording import exact
from mmfusion.types import Part, Sample

UNNAMED = "question"  # the kind of those whose text has none
Pair = tuple[Sample, int]  # two answers to one prompt, and which of them is the better one


@dataclasses.dataclass(frozen=True)
class Asked:
    """One turn on its own: all that was shown up to it and the question, and what is right to say, in any wording."""

    sample: Sample
    number: int
    kind: str
    prompt: tuple[Part, ...]
    right: tuple[str, ...]

    @property
    def shown(self) -> tuple[Part, ...]:
        return tuple(part for part in self.prompt if part.type != "text")

    @property
    def modality(self) -> str:
        """What is asked about: `image`, `audio and image`; `text` where nothing is shown."""
        return " and ".join(sorted({part.type for part in self.shown})) or "text"


def questions(sample: Sample) -> Iterator[Asked]:
    """The turns of a conversation that have an answer, without the answers before; a prompt that has a check."""
    if sample.check:
        yield Asked(sample, 0, _kind(sample.parts), sample.parts, tuple(sample.check.splitlines()))
    shown: list[Part] = []
    asked: list[Part] = []
    for number, part in enumerate(sample.parts):
        if part.role == "assistant":
            if part.text and asked:
                yield Asked(sample, number, _kind(asked), (*shown, *asked), (part.text,))
            asked = []
        else:
            (asked if part.type == "text" else shown).append(dataclasses.replace(part, role="user"))


def _kind(asked: Sequence[Part]) -> str:
    return next((part.kind for part in asked if part.type == "text" and part.kind), None) or UNNAMED


def answers(
    bench: Bench,
    *,
    source: str | None = None,
    limit: Annotated[int, Gt(1)] = 256,
    max_new: Annotated[int, Gt(0)] = 24,
) -> Result:
    """What the decoder answers to up to 256 questions of each kind, each on its own: exact but for case and blanks.

    Beside it stand the same model shown nothing (a black picture, silence, a series of zeros) and the commonest answer
    to such questions in training. Chance is the answer to another question of the kind. A line for each modality that
    is asked about, then one for each kind of question.
    """
    chosen = _chosen(bench, source, limit)
    if len(chosen) < 2:
        raise Lacking(f"fewer than two questions in conversations in split {bench.split!r}")
    common = _commonest(bench, source)
    right = [asked.right for asked in chosen]
    said = _say(bench, chosen, max_new)
    values = exact(said, right)
    beside = {
        "blank input": exact(_say(bench, [_blank(bench, asked) for asked in chosen], max_new), right),
        "commonest answer": exact([common.get(asked.kind, "") for asked in chosen], right),
    }
    outcomes = []
    for name in ("modality", "kind"):
        of = [getattr(asked, name) for asked in chosen]
        for group in dict.fromkeys(of):
            rows = [i for i, own in enumerate(of) if own == group]
            if len(rows) < 2:
                continue
            others = [right[i] for i in (*rows[1:], rows[0])]
            outcomes.append(
                Outcome(
                    f"about {group}, exact" if name == "modality" else f"{group}, exact",
                    values[rows],
                    tuple(_cluster(chosen[i]) for i in rows),
                    float(exact([answer for answer, *_ in others], [right[i] for i in rows]).mean()),
                    {baseline: of_each[rows] for baseline, of_each in beside.items()},
                )
            )
    each = zip(chosen, said, strict=True)
    kept = [Said(f"{one.sample.key} {one.number}", one.kind, one.prompt, answer, one.right) for one, answer in each]
    return Result(tuple(outcomes), said=tuple(kept))


def preferred(bench: Bench, *, source: str | None = None, limit: Annotated[int, Gt(1)] = 512) -> Result:
    """Of up to 512 pairs of answers of each source: which does the model hold to be the better one? Ties are wrong.

    `reward` is what adapters changed: the right answer has become likelier against the wrong one than it was without
    them (the implicit reward of Rafailov et al. 2305.18290). `likelier` compares the two answers' probabilities as
    they are; beside it stands the model without its adapters. Chance is a half.
    """
    outcomes: list[Outcome] = []
    for kind, asked in pairs(bench, source, limit).items():
        scored = bench.model.score_answers([sample for sample, _ in asked])
        gaps = np.array(
            [[own[chosen] - own[1 - chosen] for own in of] for of, (_, chosen) in zip(scored, asked, strict=True)]
        )
        clusters = clusters_of(asked)
        beside: dict[str, np.ndarray] = {}
        if gaps.shape[1] > 1:
            outcomes.append(Outcome(f"{kind}, reward", (gaps[:, 0] > gaps[:, 1]).astype(float), clusters, 0.5))
            beside["without adapters"] = (gaps[:, 1] > 0).astype(float)
        outcomes.append(Outcome(f"{kind}, likelier", (gaps[:, 0] > 0).astype(float), clusters, 0.5, beside))
    return Result(tuple(outcomes))


def rewarded(bench: Bench, *, source: str | None = None, limit: Annotated[int, Gt(1)] = 512) -> Result:
    """Of up to 512 pairs of answers of each source: does a reward model give the better one more? Ties are wrong.

    Over all pairs, then a line for each source. Chance is a half.
    """
    if not bench.model.rewards:
        raise Lacking("the model gives no rewards; stage=reward makes one that does")
    found = pairs(bench, source, limit)
    found = {"all pairs": [pair for of_kind in found.values() for pair in of_kind], **found}
    outcomes = [Outcome(f"{kind}, right", won(bench.model, of), clusters_of(of), 0.5) for kind, of in found.items()]
    return Result(tuple(outcomes))


def won(model: Embedder, asked: Sequence[Pair]) -> np.ndarray:
    """1 where the better answer of a pair has the higher reward, else 0, [pairs]."""
    rewards = model.reward_answers([sample for sample, _ in asked])
    gained = [own[chosen] > own[1 - chosen] for own, (_, chosen) in zip(rewards, asked, strict=True)]
    return np.array(gained, dtype=np.float64)


def clusters_of(asked: Sequence[Pair]) -> tuple[str, ...]:
    return tuple(cluster_of(sample, sample.parts[0]) for sample, _ in asked)


def pairs(bench: Bench, source: str | None, limit: int) -> dict[str, list[Pair]]:
    """By source up to `limit` decoded pairs in the order of a hash. Raises Lacking where there are none."""
    found: dict[str, list[Pair]] = {}
    for sample in sorted(bench.samples(bench.split, source), key=lambda sample: by_hash(sample.key)):
        scores = [answer.score for answer in sample.answers or ()]
        of_kind = found.setdefault(sample.source or "pairs", [])
        if len(scores) != 2 or scores[0] == scores[1] or len(of_kind) == limit:
            continue
        if (decoded := _readable(bench, sample, answered=True)) is not None:
            of_kind.append((decoded, int(scores[1] > scores[0])))
    if several := {kind: of_kind for kind, of_kind in sorted(found.items()) if len(of_kind) > 1}:
        return several
    raise Lacking(f"fewer than two pairs of answers in split {bench.split!r}")


def _chosen(bench: Bench, source: str | None, limit: int) -> list[Asked]:
    """Up to `limit` of each kind, in the order of a hash, all of whose parts can be read."""
    found = [asked for sample in bench.samples(bench.split, source) for asked in questions(sample)]
    found.sort(key=lambda asked: by_hash(f"{asked.sample.key} {asked.number}"))
    kept: Counter[str] = Counter()
    chosen = []
    for asked in found:
        if kept[asked.kind] == limit:
            continue
        alone = dataclasses.replace(asked.sample, parts=asked.prompt)
        if _readable(bench, alone, answered=False) is not None:
            kept[asked.kind] += 1
            chosen.append(asked)
    return sorted(chosen, key=lambda asked: (asked.modality, asked.kind))


def _readable(bench: Bench, sample: Sample, *, answered: bool) -> Sample | None:
    """The sample decoded, None where the model cannot read all of it; what is wrong with it is counted."""
    reads: Sequence[str] = (*bench.model.modalities, "text")
    if not all(part.type in reads for part in sample.parts):
        return None
    parts = [part for part in map(bench.decoded, sample.parts) if part is not None]
    if len(parts) < len(sample.parts):
        return None
    decoded = dataclasses.replace(sample, parts=tuple(parts))
    if (reason := bench.model.unusable(decoded, answered=answered)) is not None:
        bench.skipped[reason] += 1
        return None
    return decoded


def _commonest(bench: Bench, source: str | None) -> dict[str, str]:
    """By kind, the answer that most such questions in training have; of equals the first."""
    found: dict[str, Counter[str]] = {}
    for sample in bench.samples("train", source):
        for asked in questions(sample):
            found.setdefault(asked.kind, Counter())[asked.right[0]] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in found.items()}


def _say(bench: Bench, asked: Sequence[Asked], max_new: int) -> list[str]:
    prompts = [[part for p in one.prompt if (part := bench.decoded(p)) is not None] for one in asked]
    return bench.model.generate_parts(prompts, "", max_new)


def _blank(bench: Bench, asked: Asked) -> Asked:
    """The same question about parts of the same shapes that show nothing."""
    prompt = []
    for part in asked.prompt:
        decoded = part if part.type == "text" else bench.decoded(part)
        if decoded is not None and decoded.data is not None:
            decoded = dataclasses.replace(decoded, data=np.zeros_like(array_of(decoded)))
        prompt.append(decoded or part)
    return dataclasses.replace(asked, prompt=tuple(prompt))


def _cluster(asked: Asked) -> str:
    return cluster_of(asked.sample, asked.shown[0]) if asked.shown else asked.sample.key
