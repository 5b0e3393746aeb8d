"""A micro-batch to count with: of the data where there is some, else made up from the configuration itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmfusion import config
from mmfusion.config import ConfigError
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.shards import MANIFEST
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import Batch, Modality, Part, Sample, SkipSample

LONG_S = 30.0  # of a made-up clip or series, before augmentation and patches cut it to what the configuration says
_CHANNELS = {f"{name}_{axis}": unit for name, unit in (("acc", "m/s^2"), ("gyr", "rad/s")) for axis in "xyz"}
MADE_UP = (
    "every sample has a square picture, a clip and a series as long as data.augment and data.pipeline.patchify let "
    f"them be ({len(_CHANNELS)} channels at 50 Hz), and a text of data.pipeline.text_pieces pieces: more than most do"
)


def micro_batch(data: Mapping[str, Any], samples: int, vocab: int) -> tuple[Batch, Tokenizer, str]:
    """A training batch of `samples` under the checked node `data`, its tokenizer, and where it comes from.

    It is the first one of the data where `data.root` has a manifest. Raises ConfigError where made-up samples do not
    fit the pipeline.
    """
    if (Path(data["root"]) / MANIFEST).is_file():
        module = config.build({**data, "batch_size": samples, "workers": 0})
        module.prepare_data()
        module.setup("fit")
        (batch,) = next(iter(module.steps(0, 1))).batches
        return batch, module.pipeline.tokenizer, f"the first {samples} samples of {data['root']}"
    pipeline = config.build(data["pipeline"])(tokenizer=_Pieces(vocab, data["pipeline"].get("text_pieces", 32)))
    augment = config.build(data.get("augment")) or (lambda sample, seed: sample)
    sample = _sample(pipeline)
    try:
        prepared = [pipeline.prepare(augment(sample, seed), seed, seed) for seed in range(samples)]
    except SkipSample as error:
        raise ConfigError([f"data.pipeline: a sample with everything cannot be used: {error}"]) from error
    made_up = f"made up, {data['root']} has no {MANIFEST}: {MADE_UP}"
    return pipeline.collate(prepared), pipeline.tokenizer, made_up


class _Pieces:
    """A tokenizer of `size` pieces to which every text is one of `length` pieces."""

    pad, begin, end, assistant = range(4)
    user, score = begin, 5

    def __init__(self, size: int, length: int) -> None:
        self.size, self.length = size, length

    def encode(self, text: str) -> list[int]:
        return [4] * self.length

    def decode(self, ids: Sequence[int]) -> str:
        return ""

    def placeholder(self, modality: Modality) -> int:
        return 5

    def reserved(self) -> tuple[int, ...]:
        return ()


def _sample(pipeline: Pipeline) -> Sample:
    made: dict[Modality, Callable[[], Part]] = {"image": _image, "audio": _audio, "sensor": _sensor}
    if unknown := [name for name in pipeline.media if name not in made]:
        raise ConfigError(
            [f"data.root: has no {MANIFEST}, and no {unknown[0]} can be made up; give data to count with"]
        )
    return Sample(key="made-up", parts=(*(made[name]() for name in pipeline.media), Part(type="text", text="a text")))


def _image() -> Part:
    return Part(type="image", data=np.zeros((64, 64, 3), np.uint8))


def _audio() -> Part:
    rate = 16_000
    return Part(type="audio", rate_hz=rate, data=np.zeros(round(LONG_S * rate), np.float32))


def _sensor() -> Part:
    rate, units = 50, tuple(_CHANNELS.values())
    times = np.arange(round(LONG_S * rate)) / rate
    series = np.zeros((len(times), len(units)), np.float32)
    return Part(type="sensor", rate_hz=rate, channels=tuple(_CHANNELS), units=units, data=series, times_s=times)
