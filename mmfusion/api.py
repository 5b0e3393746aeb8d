"""A trained model behind three verbs: `load`, `embed`, `generate`. Data and models meet here.

    model = mmfusion.load("runs/quickstart/2026-11-24_14-03-59")
    model.embed(image="cat.png") @ model.embed(text=["a cat", "a dog"]).T
    model.generate(image="cat.png", lang="fr")

An input is a path, bytes, an array, a PIL image or a `Part`; a list is a batch. Inputs are decoded and cut into patches
as in training, without augmentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, Unpack, cast

import numpy as np
import torch

from mmfusion import checkpoint
from mmfusion.config import ConfigError, build, check, near
from mmfusion.converters import lora
from mmfusion.data.pipeline import Pipeline
from mmfusion.data.tokenizer import SentencePieceTokenizer, silent
from mmfusion.inputs import Describing, Description, InputError, Inputs, Things, checked_text, part_of
from mmfusion.models.generate import generate, stream
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.objectives.preference import log_probability_of_answers
from mmfusion.objectives.reward import reward_of_answers
from mmfusion.types import MODALITIES, Batch, Modality, Part, Sample, SkipSample

BATCH = 128  # parts or prompts that go through the model at once
MAX_NEW = 48  # pieces of an answer
T = TypeVar("T")


class Asking(Describing, total=False):
    """How to answer, see `models.generate.stream`, beside how inputs are described."""

    max_new: int
    temperature: float
    top_p: float
    seed: int


def load(folder: str | Path, allow: Collection[checkpoint.Allowed] = ()) -> Model:
    """The model of a run folder or checkpoint folder, on the CPU.

    `allow` gives own classes that the checkpoint may build beside mmfusion's: the class (`MyEncoder`) or its name
    (`"my_package.MyEncoder"`). Raises CheckpointError for anything that is not exactly a checkpoint; nothing in it is
    run.
    """
    where = checkpoint.locate(Path(folder))
    network, config = checkpoint.load(where, allow)
    node = {**config["pipeline"], "_partial_": True}
    try:
        factory = build(node, allow=checkpoint.buildable(allow))
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
    """A model with its preprocessing. `lineage` is what its checkpoint came from.

    `pieces_said` counts what `generate` has said so far, in pieces of the tokenizer, the end of each answer among them.
    """

    def __init__(self, network: MultimodalModel, pipeline: Pipeline, lineage: Mapping[str, Any]) -> None:
        self.network, self.pipeline, self.lineage = network.eval(), pipeline, lineage
        self.pieces_said = 0

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
        **described: Unpack[Describing],
    ) -> np.ndarray:
        """Inputs of one modality -> float32 [n, E] of unit norm; n is 1 for a single input.

        `rate_hz`, `channels`, `units` and `place` say what an input does not: a sound as an array is [T] or
        [T, channels] at `rate_hz`; a series as an array or npy file is [T, C] at `rate_hz`, with the name and unit of
        each channel and the place where it was worn; a CSV file has names, units and perhaps times of its own (see
        `data.series_csv`). Of a long series the first window counts (cut it with `mmfusion.data.series.windows`), of a
        long text its first `pipeline.text.max_pieces` pieces. Raises InputError for what cannot be read.
        """
        _known(described, Describing)
        how = Description(**described)
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
        image: Things | None = None,
        audio: Things | None = None,
        sensor: Things | None = None,
        prompt: str | None = None,
        lang: str | None = None,
        **how: Unpack[Asking],
    ) -> str | list[str]:
        """What the decoder says about inputs of any modalities, asked `prompt`, or for a caption in the language
        `lang`: English without either; with both, the answer is to be in that language.

        Lists are batches of equal length: item i of each is about one thing, and may be a list of several parts of it.
        Without any list one string comes back. Inputs are described as in `embed`. Of `max_new` pieces (48) at most,
        `temperature` 0 takes the likeliest each time; above it, pieces are drawn (nucleus `top_p`), the same for the
        same `seed`. Raises InputError for what cannot be read.
        """
        given = _given(image=image, audio=audio, sensor=sensor)
        lengths = {modality: len(inputs) for modality, inputs in given.items()}
        if len(set(lengths.values())) > 1 or not (given or prompt):
            raise InputError(f"generate takes a prompt, or inputs, as many of each modality; got {lengths or 'none'}")
        description, sampling = _apart(how)
        asked = _asked(prompt, lang)
        count = next(iter(lengths.values()), 1)
        things = [
            self._thing({name: inputs[i] for name, inputs in given.items()}, description, i) for i in range(count)
        ]
        said = self._say(things, asked, **sampling)
        batched = any(isinstance(item, (list, tuple)) for item in (image, audio, sensor))
        return said if batched else said[0]

    def stream(
        self,
        *,
        image: Inputs | None = None,
        audio: Inputs | None = None,
        sensor: Inputs | None = None,
        prompt: str | None = None,
        lang: str | None = None,
        **how: Unpack[Asking],
    ) -> Iterator[str]:
        """What `generate` says about one thing, as it is said: joined, the texts are its answer.

        Here a list is several parts of that thing. Raises InputError at once for what cannot be read.
        """
        given = _given(image=image, audio=audio, sensor=sensor)
        if not (any(given.values()) or prompt):
            raise InputError("stream takes a prompt or inputs; got none")
        description, sampling = _apart(how)
        batch, decoding = self._open([self._thing(given, description)], _asked(prompt, lang))
        pieces = (int(piece[0]) for piece in stream(self.network, batch, **decoding, **sampling))
        return as_text(pieces, decoding["end"], self.pipeline.tokenizer.decode)

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
            patches = self._batch(samples, documents="none").streams[modality]
            with torch.inference_mode():
                embedded = self.network.embed({modality: patches})[modality]
            rows.append(embedded[patches.owner.argsort()].float().cpu().numpy())
        return np.concatenate(rows)

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        """What the decoder says, greedily, in `language` about each prompt's decoded parts."""
        return self._say(prompts, {"language": language}, max_new=max_new)

    def unusable(self, sample: Sample, *, answered: bool) -> str | None:
        """Why a decoded conversation cannot be asked about, or with its answers be scored; None if it can."""
        try:
            self.pipeline.prepare(self.pipeline.readable(sample), 0, 0, documents="all" if answered else "open")
        except SkipSample as error:
            return error.reason
        return None

    def score_answers(self, samples: Sequence[Sample]) -> list[tuple[np.ndarray, ...]]:
        """log p in nats of each answer of decoded preferences, [answers], and without adapters where the model has any.

        Raises InputError for one that cannot be used.
        """
        scored: list[tuple[np.ndarray, ...]] = []
        for chunk in _chunks(samples):
            batch = self._batch(chunk, documents="all")
            passes = [self._log_probability(batch)]
            if lora.names(self.network):
                with lora.switched_off(self.network):
                    passes.append(self._log_probability(batch))
            scored += zip(*(_by_document(one, batch) for one in passes), strict=True)
        return scored

    @property
    def rewards(self) -> bool:
        """Whether it is a reward model, to whose rewards a meaning was given."""
        return self.lineage.get("stage") == "reward"

    @torch.inference_mode()
    def reward_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The reward of each answer of decoded preferences, [answers]; only differences within one say anything.

        Raises InputError for one that cannot be used.
        """
        rewards: list[np.ndarray] = []
        for chunk in _chunks(samples):
            batch = self._batch(chunk, documents="all")
            each = reward_of_answers(self.network(batch), batch.rows, self.pipeline.tokenizer.score)
            rewards += _by_document(each.float().cpu().numpy(), batch)
        return rewards

    @torch.inference_mode()
    def _log_probability(self, batch: Batch) -> np.ndarray:
        return log_probability_of_answers(self.network(batch), batch.rows).float().cpu().numpy()

    def _say(
        self, things: Sequence[Sequence[Part]], asked: Mapping[str, str | None], *, max_new: int, **sampling: Any
    ) -> list[str]:
        said: list[str] = []
        for chunk in _chunks(things):
            batch, decoding = self._open(chunk, asked)
            pieces = generate(self.network, batch, **decoding, max_new=max_new, **sampling)
            self.pieces_said += sum(min(len(ids) + 1, max_new) for ids in pieces)
            said += [self.pipeline.tokenizer.decode(ids).strip() for ids in pieces]
        return said

    def _open(self, things: Sequence[Sequence[Part]], asked: Mapping[str, str | None]) -> tuple[Batch, dict[str, Any]]:
        """Prompts left open, one about each thing's decoded parts, and what ends an answer or is never said in one."""
        tokenizer = self.pipeline.tokenizer
        banned = silent(tokenizer, self.network.decoder.vocab)
        samples = [Sample(key=str(i), parts=tuple(parts)) for i, parts in enumerate(things)]
        return self._batch(samples, documents="open", **asked), {"end": tokenizer.end, "banned": banned}

    def _batch(self, samples: Sequence[Sample], **how: Any) -> Batch:
        """Where the weights are: a run in training keeps them on its device. Raises InputError."""
        try:
            return self.pipeline.batch(samples, **how).to(next(self.network.parameters()).device)
        except SkipSample as error:
            raise InputError(str(error)) from error

    def _thing(self, given: Mapping[Modality, Any], how: Description, index: int | None = None) -> list[Part]:
        """One thing's inputs, an item or a list of them for each modality, as decoded parts."""
        parts = []
        for modality, inputs in given.items():
            where = modality if index is None else f"{modality}[{index}]"
            if isinstance(inputs, (list, tuple)):
                if not inputs:
                    raise InputError(f"{where}: an empty list")
                parts += [self._part(modality, item, f"{where}[{i}]", how) for i, item in enumerate(inputs)]
            else:
                parts.append(self._part(modality, inputs, where, how))
        return parts

    def _part(self, modality: Modality, item: object, where: str, how: Description) -> Part:
        if modality not in self.modalities:
            raise InputError(f"{where}: this model reads {', '.join(self.modalities)}, not {modality}")
        return part_of(modality, item, where, how)


def as_text(pieces: Iterable[int], end: int, decode: Callable[[Sequence[int]], str]) -> Iterator[str]:
    """Pieces up to `end` as text, each stretch as soon as it is certain: whole characters, no blanks at either end."""
    ids: list[int] = []
    sent = 0
    for piece in pieces:
        if piece == end:
            break
        ids.append(piece)
        certain = re.sub(r"[\s\ufffd]+\Z", "", decode(ids).lstrip())  # U+FFFD: bytes that the next piece may complete
        if certain[sent:]:
            yield certain[sent:]
            sent = len(certain)
    if rest := decode(ids).strip()[sent:]:
        yield rest


def _known(how: Mapping[str, Any], arguments: type[Describing]) -> None:
    known = (*MODALITIES, "prompt", "lang", *arguments.__annotations__)
    for name in how:
        if name not in arguments.__annotations__:
            raise InputError(f"{name}: there is no such argument{near(name, known)}")


def _apart(how: Mapping[str, Any]) -> tuple[Description, dict[str, Any]]:
    """How inputs are described, and how the answer is drawn, checked against the signature of `stream`."""
    _known(how, Asking)
    names = Describing.__annotations__
    sampling = {"max_new": MAX_NEW, **{name: value for name, value in how.items() if name not in names}}
    sampling = {name: value.item() if isinstance(value, np.generic) else value for name, value in sampling.items()}
    try:
        check({"_partial_": True, **sampling}, stream)
    except ConfigError as error:
        raise InputError(error.problems[0]) from error
    return Description(**{name: value for name, value in how.items() if name in names}), sampling


def _asked(prompt: str | None, lang: str | None) -> dict[str, str | None]:
    if prompt is not None:
        checked_text(prompt, "prompt")
    if lang is None:
        lang = None if prompt else "en"
    return {"language": lang if lang is None else checked_text(lang, "lang"), "prompt": prompt}


def _given(**inputs: Any) -> dict[Modality, list[Any]]:
    """The modalities that were given, each as a list."""
    return {
        cast("Modality", modality): list(value) if isinstance(value, (list, tuple)) else [value]
        for modality, value in inputs.items()
        if value is not None
    }


def _by_document(each: np.ndarray, batch: Batch) -> list[np.ndarray]:
    """Values [K] of answers, by the document that they belong to."""
    return np.split(each, torch.bincount(batch.rows.of, minlength=len(batch.keys)).cumsum(0)[:-1].tolist())


def _chunks(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[i : i + BATCH] for i in range(0, len(items), BATCH))
