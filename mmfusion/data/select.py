"""Which parts of a sample one visit uses, drawn before decoding, so that what is not used costs nothing."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Annotated

from annotated_types import Ge, Gt, Le

from mmfusion.types import Modality, Part, Sample


class Select:
    """At most `image`, `audio` and `sensor` parts of each kind, at random, and one text.

    The text is the English one with probability `english` where there is one, else any of the others, all alike. A clip
    keeps its own transcript, whatever text was chosen. Parts stay in reading order. A conversation stays whole.
    """

    def __init__(
        self,
        *,
        english: Annotated[float, Ge(0), Le(1)] = 0.7,
        image: Annotated[int, Gt(0)] = 1,
        audio: Annotated[int, Gt(0)] = 1,
        sensor: Annotated[int, Gt(0)] = 1,
    ) -> None:
        self.english = english
        self.most: dict[Modality, int] = {"image": image, "audio": audio, "sensor": sensor}

    def __call__(self, sample: Sample, seed: int) -> Sample:
        if sample.is_conversation:
            return sample
        rng = random.Random(f"select {seed}")
        kept: set[int] = set()
        by_type: dict[Modality, list[int]] = {}
        for i, part in enumerate(sample.parts):
            by_type.setdefault(part.type, []).append(i)
        for modality, numbers in by_type.items():
            if modality == "text":
                kept.add(self._text(sample.parts, numbers, rng))
            else:
                most = self.most.get(modality, len(numbers))
                kept.update(numbers if len(numbers) <= most else rng.sample(numbers, most))
        return dataclasses.replace(sample, parts=tuple(sample.parts[i] for i in sorted(kept)))

    def _text(self, parts: Sequence[Part], numbers: list[int], rng: random.Random) -> int:
        english = [i for i in numbers if parts[i].lang == "en"]
        others = [i for i in numbers if parts[i].lang != "en"]
        chosen = english if english and (not others or rng.random() < self.english) else others
        return rng.choice(chosen)
