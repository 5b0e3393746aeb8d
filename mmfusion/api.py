"""A trained model behind three verbs: `load`, `embed`, `generate`. Data and models meet here.

    model = mmfusion.load("runs/quickstart/2026-11-24_14-03-59")
    model.embed(image="cat.png") @ model.embed(text=["a cat", "a dog"]).T
    model.generate(image="cat.png", prompt="fr")

An input is a path, bytes, an array, a PIL image or a `Part`; a list is a batch. Inputs are decoded and cut into patches
as in training, without augmentation.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from PIL import Image

from mmfusion import checkpoint
from mmfusion.config import ConfigError, build, check
from mmfusion.data.decode import SOUND_HZ, decode_part
from mmfusion.data.format import SERIES_HZ
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.errors import UserError
from mmfusion.models.generate import generate
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.types import MEASURABLE, Batch, DataError, Modality, Part, Sample, SkipSample

BATCH = 128  # parts or prompts that go through the model at once

Input = str | Path | bytes | np.ndarray | Image.Image | Part
Inputs = Input | Sequence[Input]
T = TypeVar("T")


class InputError(UserError, ValueError):
    """An input that cannot be used; the message says which one, what is wrong, and what is expected."""


def load(folder: str | Path, allow: Collection[str] = ()) -> Model:
    """The model of a run folder or checkpoint folder, on the CPU.

    `allow` names own classes (`my_package.MyEncoder`) that the checkpoint may build beside mmfusion's. Raises
    CheckpointError for anything that is not exactly a checkpoint; nothing in it is run.
    """
    where = checkpoint.locate(Path(folder))
    network, config = checkpoint.load(where, allow)
    node = {**config["pipeline"], "_partial_": True}
    try:
        factory = build(node, allow=checkpoint.BUILDABLE | set(allow))
        pipeline = factory(tokenizer=SentencePieceTokenizer(where / checkpoint.TOKENIZER))
    except Exception as error:  # a constructor's own complaint about its arguments
        reason = " ".join(str(error).split()) or type(error).__name__
        raise checkpoint.CheckpointError(f"{where / checkpoint.CONFIG}: pipeline cannot be built ({reason})") from error
    for key, made, expected in (("model", network, MultimodalModel), ("pipeline", pipeline, Pipeline)):
        if not isinstance(made, expected):
            problem = f"{key} is a {type(made).__name__}, no {expected.__name__}; was it edited?"
            raise checkpoint.CheckpointError(f"{where / checkpoint.CONFIG}: {problem}")
    return Model(cast("MultimodalModel", network), pipeline, json.loads((where / checkpoint.LINEAGE).read_bytes()))


class Model:
    """A model with its preprocessing. `lineage` is what its checkpoint came from."""

    def __init__(self, network: MultimodalModel, pipeline: Pipeline, lineage: Mapping[str, Any]) -> None:
        self.network, self.pipeline, self.lineage = network.eval(), pipeline, lineage

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What it reads, in the order of MODALITIES."""
        return self.network.modalities

    @property
    def parameter_counts(self) -> dict[str, int]:
        """Weights of each part of the model."""
        parts = {"decoder": self.network.decoder, "fusion": self.network.fusion, **dict(self.network.encoders.items())}
        parts["heads"] = self.network.heads
        return {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()}

    # ---------------------------------------------------------------------------------------------------------- verbs

    def embed(
        self,
        *,
        image: Inputs | None = None,
        audio: Inputs | None = None,
        sensor: Inputs | None = None,
        text: str | Sequence[str] | None = None,
        rate_hz: float | None = None,
        channels: Sequence[str] = (),
        units: Sequence[str] = (),
        place: str | None = None,
    ) -> np.ndarray:
        """Inputs of one modality -> float32 [n, E] of unit norm; n is 1 for a single input.

        A sound as an array is [T] or [T, channels] at `rate_hz`. A series as an array is [T, C] at `rate_hz`, with the
        name and unit of each channel and the place where it was worn; of a long one the first window counts (cut it
        with `mmfusion.data.series.windows`), of a long text its first `pipeline.text.max_pieces` pieces. Raises
        InputError for what cannot be read.
        """
        how = _how(rate_hz, channels, units, place)
        given = _given(image=image, audio=audio, sensor=sensor, text=text)
        if len(given) != 1:
            raise InputError(f"embed takes inputs of one modality, not {len(given)}: {', '.join(given) or 'none'}")
        ((modality, inputs),) = given.items()
        if not inputs:
            raise InputError(f"{modality}: an empty list")
        return self.embed_parts([self._part(modality, item, f"{modality}[{i}]", how) for i, item in enumerate(inputs)])

    def generate(
        self,
        *,
        image: Inputs | None = None,
        audio: Inputs | None = None,
        sensor: Inputs | None = None,
        prompt: str = "en",
        rate_hz: float | None = None,
        channels: Sequence[str] = (),
        units: Sequence[str] = (),
        place: str | None = None,
        max_new: int = 48,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str | list[str]:
        """What the decoder says about inputs of any modalities; `prompt` is the language to say it in.

        Lists are batches of equal length: item i of each is about one thing. Without any list one string comes back.
        Temperature 0 takes the likeliest piece each time; above it, pieces are drawn (nucleus `top_p`), the same for
        the same seed. Raises InputError for what cannot be read.
        """
        how = _how(rate_hz, channels, units, place)
        given = _given(image=image, audio=audio, sensor=sensor)
        given_values = {"max_new": max_new, "temperature": temperature, "top_p": top_p, "seed": seed}
        sampling: dict[str, Any] = {n: v.item() if isinstance(v, np.generic) else v for n, v in given_values.items()}
        try:
            check({"_partial_": True, **sampling}, generate)
        except ConfigError as error:
            raise InputError(error.problems[0]) from error
        _text(prompt, "prompt")
        lengths = {modality: len(inputs) for modality, inputs in given.items()}
        if len(set(lengths.values())) != 1:
            raise InputError(f"generate takes inputs, as many of each modality; got {lengths or 'none'}")
        prompts = [
            [self._part(modality, inputs[i], f"{modality}[{i}]", how) for modality, inputs in given.items()]
            for i in range(next(iter(lengths.values())))
        ]
        said = self._say(prompts, prompt, **sampling)
        batched = any(isinstance(item, (list, tuple)) for item in (image, audio, sensor))
        return said if batched else said[0]

    # ------------------------------------------------------------------------------------------------- what they share

    def embed_parts(self, parts: Sequence[Part]) -> np.ndarray:
        """Decoded parts of one modality -> float32 [n, E] of unit norm, in their order."""
        found = {part.type for part in parts}
        if len(found) != 1:
            raise InputError(f"parts must be of one modality, not of {sorted(found) or 'none'}")
        modality = parts[0].type
        if modality not in self.network.heads:
            raise InputError(f"this model embeds {', '.join(self.network.heads)}, not {modality}")
        rows = []
        for chunk in _chunks(parts):
            samples = [Sample(key=str(i), parts=(part,)) for i, part in enumerate(chunk)]
            stream = self._batch(samples, documents="none").streams[modality]
            with torch.inference_mode():
                embedded = self.network.embed({modality: stream})[modality]
            rows.append(embedded[stream.owner.argsort()].float().numpy())
        return np.concatenate(rows)

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        """What the decoder says, greedily, in `language` about each prompt's decoded parts."""
        return self._say(prompts, language, max_new=max_new)

    def _say(self, prompts: Sequence[Sequence[Part]], language: str, **how: Any) -> list[str]:
        tokenizer = self.pipeline.tokenizer
        silent = [piece for piece in tokenizer.reserved() if piece != tokenizer.end]
        silent += range(tokenizer.size, self.network.decoder.vocab)  # rows of an embedding larger than the vocabulary
        said: list[str] = []
        for chunk in _chunks(prompts):
            samples = [Sample(key=str(i), parts=tuple(parts)) for i, parts in enumerate(chunk)]
            batch = self._batch(samples, prompt=language)
            pieces = generate(self.network, batch, end=tokenizer.end, banned=silent, **how)
            said += [tokenizer.decode(ids).strip() for ids in pieces]
        return said

    def _batch(self, samples: Sequence[Sample], **how: Any) -> Batch:
        try:
            return self.pipeline.batch(samples, **how)
        except SkipSample as error:
            raise InputError(str(error)) from error

    # --------------------------------------------------------------------------------------------------------- inputs

    def _part(self, modality: Modality, item: object, where: str, how: Mapping[str, Any]) -> Part:
        """Any kind of input as a decoded part."""
        if modality not in self.modalities:
            raise InputError(f"{where}: this model reads {', '.join(self.modalities)}, not {modality}")
        if isinstance(item, Part):
            part = item
        elif modality == "text":
            part = Part(type="text", text=_text(item, where))
        else:
            part = _medium(modality, item, where, how)
        if part.type != modality:
            raise InputError(f"{where}: is a part of type {part.type}")
        return self._decoded(part, where)

    def _decoded(self, part: Part, where: str) -> Part:
        if not isinstance(part.data, bytes):
            return part
        try:
            return decode_part(part)
        except (SkipSample, DataError) as error:
            raise InputError(f"{where}: {error}") from error


def _how(rate_hz: float | None, channels: Sequence[str], units: Sequence[str], place: str | None) -> dict[str, Any]:
    for name, value in (("channels", channels), ("units", units)):
        if not isinstance(value, (list, tuple)):
            raise InputError(f"{name}: must be a list of names, not {value!r:.60}")
        for i, item in enumerate(value):
            _text(item, f"{name}[{i}]")
    if place is not None:
        _text(place, "place")
    return {"rate_hz": rate_hz, "channels": tuple(channels), "units": tuple(units), "place": place}


def _given(**inputs: Any) -> dict[Modality, list[Any]]:
    """The modalities that were given, each as a list."""
    return {
        cast("Modality", modality): list(value) if isinstance(value, (list, tuple)) else [value]
        for modality, value in inputs.items()
        if value is not None
    }


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))


def _text(item: object, where: str) -> str:
    if not isinstance(item, str) or not item.strip():
        raise InputError(f"{where}: must be a text, not {item!r:.60}")
    try:
        item.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {item!r:.60} cannot be written as UTF-8") from error
    return item


def _rate(rate_hz: object, where: str, low: float, high: float) -> float:
    if isinstance(rate_hz, (int, float, np.integer, np.floating)) and not isinstance(rate_hz, bool):
        number = float(rate_hz)
        if low <= number <= high:
            return number
    problem = f"needs rate_hz, how many values make a second, {low:g} to {high:g}, not {rate_hz!r:.60}"
    raise InputError(f"{where}: {problem}")


def _medium(modality: Modality, item: object, where: str, how: Mapping[str, Any]) -> Part:
    """A picture, sound or series given as path, bytes, array or PIL image; files stay bytes, decoded as in training."""
    if isinstance(item, (str, Path)):
        try:
            item = Path(item).read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a NUL in the name
            reason = error.strerror if isinstance(error, OSError) else error
            raise InputError(f"{where}: {str(item)!r:.200} cannot be read ({reason})") from error
    if modality == "image":
        return Part(type="image", file="image", data=_picture(item, where))
    if modality == "audio":
        if isinstance(item, bytes):
            return Part(type="audio", file="audio", data=item)
        wave = _wave(item, where)
        return Part(type="audio", data=wave, rate_hz=_rate(how["rate_hz"], where, *SOUND_HZ))
    if modality != "sensor":
        raise InputError(f"{where}: {modality} cannot be given here")
    return _series(item, where, how)


def _picture(item: object, where: str) -> bytes:
    """Bytes of a picture file; arrays and PIL images become one, so that transparency has one result everywhere."""
    if isinstance(item, bytes):
        return item
    if isinstance(item, np.ndarray):
        channels = item.shape[2:]
        if item.dtype != np.uint8 or item.ndim < 2 or not item.size or channels not in ((), (3,), (4,)):
            raise InputError(
                f"{where}: an array must be uint8 [height, width, 3 or 4] or [height, width], "
                f"not {item.dtype} {list(item.shape)}"
            )
        item = Image.fromarray(item)
    if not isinstance(item, Image.Image):
        raise InputError(f"{where}: must be a path, bytes, array or PIL image, not {type(item).__name__}")
    if not min(item.size):
        raise InputError(f"{where}: a picture of {item.width} x {item.height} pixels")
    file = io.BytesIO()
    try:
        if item.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):  # what a PNG can hold
            item = item.convert("RGB")
        item.save(file, "PNG", compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:  # a PIL image reads its file only now
        raise InputError(f"{where}: cannot be read ({error})") from error
    return file.getvalue()


def _wave(item: object, where: str) -> np.ndarray:
    """float32 [T], the mean of the channels; integers are scaled to -1..1, unsigned ones around their middle."""
    if not isinstance(item, np.ndarray) or item.ndim not in (1, 2) or not item.size or item.dtype.kind not in "fiu":
        raise InputError(f"{where}: must be a path, bytes, or an array of numbers [T] or [T, channels]")
    scale = 1.0 if item.dtype.kind == "f" else 2.0 ** (8 * item.dtype.itemsize - 1)
    middle = scale if item.dtype.kind == "u" else 0.0
    wave = ((item - middle) / scale).astype(np.float32) if scale > 1 else item.astype(np.float32)
    wave = wave.mean(axis=1) if wave.ndim == 2 else wave
    if not (np.abs(wave) <= MEASURABLE).all():
        raise InputError(f"{where}: holds NaN or values beyond all measure; sound lies between -1 and 1")
    return wave


def _series(item: object, where: str, how: Mapping[str, Any]) -> Part:
    if isinstance(item, np.ndarray):
        if item.dtype.kind not in "fiu" or not item.size:
            raise InputError(f"{where}: an array must be of numbers [T, C], not {item.dtype} {list(item.shape)}")
        file = io.BytesIO()
        np.save(file, np.asarray(item, dtype=np.float32), allow_pickle=False)
        item = file.getvalue()
    if not isinstance(item, bytes):
        raise InputError(f"{where}: must be a path of an npy file, bytes, or an array [T, C]")
    if not how["channels"]:
        raise InputError(f"{where}: a series needs channels and units by name")
    if len(how["channels"]) != len(how["units"]):
        raise InputError(f"{where}: {len(how['channels'])} channels, but {len(how['units'])} units")
    return Part(type="sensor", file="npy", data=item, **{**how, "rate_hz": _rate(how["rate_hz"], where, *SERIES_HZ)})
