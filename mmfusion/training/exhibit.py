"""A few held-out samples as a person meets them, and what the model says of them, for every logger."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import numpy as np
import soundfile
from annotated_types import Gt
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image

from mmfusion import api, runs
from mmfusion.data.datamodule import datamodule_of
from mmfusion.data.decode import decode_sample
from mmfusion.data.pipeline import Pipeline, chosen_text
from mmfusion.data.series import array_of
from mmfusion.data.shards import ShardSet
from mmfusion.training import plot
from mmfusion.types import Part, Sample, SkipSample

COLUMNS = ("key", "source", "type", "file", "text", "said")


@dataclasses.dataclass(frozen=True)
class Piece:
    """A decoded picture, sound or series on show: of which sample, the text that stands for it, what the model says."""

    part: Part
    key: str
    source: str
    text: str
    said: str

    @property
    def name(self) -> str:
        return f"{self.source}/{self.key}/{self.part.type}".replace(" ", "_")


class Exhibit(Callback):
    """At every `every_n`th validation, `count` samples of the validation split, the sources in turn, chosen by a hash.

    Pictures, sounds that play, plots of series and the captions go to each logger: TensorBoard and W&B under
    `exhibit/…`, beside metrics.csv into `media/step=N/`, with captions.csv. Other loggers get nothing.
    """

    def __init__(
        self,
        *,
        every_n: Annotated[int, Gt(0)] = 2,
        count: Annotated[int, Gt(0)] = 4,
        max_new: Annotated[int, Gt(0)] = 24,
    ) -> None:
        self.every_n, self.count, self.max_new = every_n, count, max_new
        self._samples: list[Sample] | None = None
        self._validations = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._validations += 1
        data = datamodule_of(trainer)
        if data.validation is None or self._validations % self.every_n or not trainer.is_global_zero:
            return
        if self._samples is None:
            self._samples = list(usable(data.validation, data.pipeline, self.count))
        model = api.Model(pl_module.model, data.pipeline, {})
        media = [[part for part in sample.parts if part.type != "text"] for sample in self._samples]
        said = model.generate_parts(media, "en", self.max_new)
        pieces = [
            Piece(part, sample.key, sample.source or Path(sample.url).stem, _text(sample), words)
            for sample, parts, words in zip(self._samples, media, said, strict=True)
            for part in parts
        ]
        for logger in trainer.loggers:
            show(logger, pieces, trainer.global_step)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]


def usable(shards: ShardSet, pipeline: Pipeline, count: int) -> Iterator[Sample]:
    """The first `count` samples that can be decoded and cut, in the order of their keys' hashes, sources in turn."""
    order = sorted(range(len(shards)), key=lambda i: hashlib.blake2b(f"exhibit {i}".encode(), digest_size=8).digest())
    turn = dict.fromkeys(shards.sources, 0)
    ranked = []
    for i in order:
        turn[shards.source_of(i)] += 1
        ranked.append((turn[shards.source_of(i)], i))
    for _, i in sorted(ranked, key=lambda item: item[0]):
        try:
            sample = decode_sample(pipeline.readable(shards.read(i)))
            media = [sample.of(modality)[0] for modality in pipeline.media if sample.of(modality)]
            if not media:
                continue
            first = dataclasses.replace(sample, parts=(*media, *sample.of("text")))
            pipeline.batch([first], documents="open", language="en")
        except SkipSample:
            continue
        yield first
        count -= 1
        if not count:
            return


def _text(sample: Sample) -> str:
    found = chosen_text(sample)
    return (found.text if found else None) or ""


def show(logger: Logger, pieces: list[Piece], step: int) -> None:
    """Hand the pieces to one logger in its own way."""
    if isinstance(logger, CSVLogger):
        _to_files(Path(logger.log_dir) / "media" / f"step={step}", pieces)
    elif isinstance(logger, TensorBoardLogger):
        for piece in pieces:
            tag, writer = f"exhibit/{piece.name}", logger.experiment
            if piece.part.type == "audio":
                writer.add_audio(tag, array_of(piece.part)[None], step, int(piece.part.rate_hz or 1))
            else:
                writer.add_image(tag, picture_of(piece.part), step, dataformats="HWC")
            writer.add_text(tag, f"{piece.said}  \n(is: {piece.text})", step)
    elif isinstance(logger, WandbLogger):
        for piece in pieces:
            tag, caption = f"exhibit/{piece.name}", [f"{piece.said} (is: {piece.text})"]
            if piece.part.type == "audio":
                rate = [int(piece.part.rate_hz or 1)]
                logger.log_audio(tag, [array_of(piece.part)], sample_rate=rate, caption=caption)
            else:
                logger.log_image(tag, [picture_of(piece.part)], caption=caption)


def _to_files(folder: Path, pieces: list[Piece]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    table = csv.writer(text)
    table.writerow(COLUMNS)
    for number, piece in enumerate(pieces):
        if piece.part.type == "audio":
            file = f"{number}.wav"
            soundfile.write(folder / file, np.clip(array_of(piece.part), -1, 1), int(piece.part.rate_hz or 1))
        else:
            file = f"{number}.png"
            Image.fromarray(picture_of(piece.part)).save(folder / file)
        table.writerow([piece.key, piece.source, piece.part.type, file, piece.text, piece.said])
    runs.write(folder / "captions.csv", text.getvalue())


def picture_of(part: Part) -> np.ndarray:
    """A decoded picture as it is, a series as a plot, uint8 [height, width, 3]."""
    return plot.series(part) if part.type == "sensor" else array_of(part)
