"""From a decoded sample to a batch: the one way, for training, evaluation and the API."""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Le

from mmfusion.data.batching import TOO_LONG, Collate, Document, Prepared, Turn, document_length, single
from mmfusion.data.order import stable_hash
from mmfusion.data.patchify import PartPatches, Patchify, PatchifyText
from mmfusion.data.tokenizer import Tokenizer
from mmfusion.types import Batch, Modality, Part, Sample, SkipSample

Documents = Literal["drawn", "all", "none", "open"]
# Reasons for which a conversation, or a preference, costs its sample.
UNANSWERED = "no answer fits in data.pipeline.row_length"
EQUAL = "chosen equals rejected"


def concept_of(sample: Sample, position: int) -> int:
    """63 bits, equal for samples that show the same thing; without a label that says so, the position."""
    for label in ("concept", "kind", "activity"):
        if label in sample.labels:
            return _concept(sample.labels[label])
    return position


@functools.lru_cache(maxsize=1 << 16)
def _concept(label: str) -> int:
    return stable_hash("concept", label)


def chosen_text(sample: Sample) -> Part | None:
    """The text that stands for a sample: its English one, else its first; None in a conversation."""
    if sample.is_conversation:
        return None
    texts = sample.of("text")
    return next((part for part in texts if part.lang == "en"), texts[0] if texts else None)


class Pipeline:
    """Patches, pieces and rows: everything between a decoded sample and a Batch that a checkpoint must remember.

    `patchify` has an entry for every modality that the model's encoders read but text; `text_pieces` is the longest
    text that the text stream takes, 0 for a model without one. `captioned` is the share of training samples that have a
    document for the decoder, `together` the share of those documents that hold all parts of their sample; the others
    hold one.
    """

    def __init__(
        self,
        *,
        tokenizer: Tokenizer,
        patchify: Mapping[Modality, Patchify],
        row_length: Annotated[int, Gt(0)] = 512,
        text_pieces: Annotated[int, Ge(0)] = 32,
        captioned: Annotated[float, Ge(0), Le(1)] = 1.0,
        together: Annotated[float, Ge(0), Le(1)] = 0.25,
    ) -> None:
        for name, cut in patchify.items():
            if cut.modality != name:
                raise ValueError(f"patchify.{name} cuts {cut.modality}")
        self.tokenizer, self.row_length = tokenizer, row_length
        self.captioned, self.together = captioned, together
        self.media: dict[Modality, Patchify] = dict(patchify)
        self.text = PatchifyText(tokenizer, max_pieces=text_pieces) if text_pieces else None
        streams: dict[Modality, Patchify] = {**self.media, **({"text": self.text} if self.text else {})}
        self.collate = Collate(streams, tokenizer, row_length)
        self._languages: dict[str, tuple[int, ...]] = {}
        self._merge: dict[str, int] = {name: cut.merge for name, cut in streams.items()}

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What a batch has streams of, in the order of MODALITIES."""
        return tuple(self.collate.patchify)

    def readable(self, sample: Sample, seed: int = 0) -> Sample:
        """Only the parts that the model reads, before anything is decoded. Raises SkipSample if none is left."""
        parts = tuple(part for part in sample.parts if part.type == "text" or part.type in self.media)
        if not parts:
            raise SkipSample("no parts", f"{sample.url}: key {sample.key!r}: none of {', '.join(self.media)}, text")
        return sample if len(parts) == len(sample.parts) else dataclasses.replace(sample, parts=parts)

    def prepare(
        self,
        sample: Sample,
        seed: int,
        position: int,
        *,
        documents: Documents = "drawn",
        language: str | None = None,
        prompt: str | None = None,
    ) -> Prepared:
        """A decoded sample ready for a batch. Raises SkipSample if a part cannot be cut or a document fits no row.

        Its document is drawn from `seed`, or is about all parts, or there is none. An open one, about all parts too,
        holds the `language` to answer in (`fr`) and the `prompt`, any text, and no answer. A conversation is one
        document, however it is asked for; of it an open one leaves the last turn's answer out.
        """
        if (language or prompt) and documents != "open":
            raise ValueError(f"a language or prompt is for open documents, not for {documents!r} ones")
        media = [part for part in sample.parts if part.type in self.media]
        parts: list[tuple[Modality, PartPatches]] = [(part.type, self.media[part.type](part)) for part in media]
        for modality, part in parts:
            if not (np.isfinite(part.values).all() and np.isfinite(part.coords).all()):
                raise SkipSample("values beyond all measure", f"key {sample.key!r}: {modality} is not finite when cut")
        text = chosen_text(sample)
        ids = self.tokenizer.encode(text.text) if text is not None and text.text else []
        tokens = {i: part.tokens(self._merge[modality]) for i, (modality, part) in enumerate(parts)}
        if self.text is not None and ids:
            parts.append(("text", self.text.of_ids(ids[: self.text.max_pieces])))
        asked = self._language(language) + tuple(self.tokenizer.encode(prompt or ""))
        if documents == "none":
            made = ()
        elif sample.is_conversation:
            made = (self._conversation(sample, tokens, asked, is_open=documents == "open"),)
        elif documents == "open":
            made = (single(range(len(media)), asked, None),)
        else:
            drawn = random.Random(f"document {seed}") if documents == "drawn" else None
            made = self._documents(media, text, ids, drawn)
        for document in made:
            length = document_length(document, tokens)
            if length > self.row_length:
                raise SkipSample(TOO_LONG, f"key {sample.key!r}: {length} pieces, rows have {self.row_length}")
        source = sample.source or PurePath(sample.url).stem
        return Prepared(sample.key, concept_of(sample, position), seed, tuple(parts), made, source, sample.check)

    def _conversation(
        self, sample: Sample, tokens: Mapping[int, int], asked: tuple[int, ...], *, is_open: bool
    ) -> Document:
        """Its turns in order: what the user shows and asks up to each answer, which is text; of a preference the last
        answers are several, of an open prompt there is none.

        Where they do not all fit, whole turns are left off from the end on, so that no part and no answer is cut;
        raises SkipSample where none is left. A question that stands last without an answer is left out, but of an open
        conversation: that ends with its last question, to which `asked` is added.
        """
        *turns, last = self._turns(sample)
        if sample.answers is not None:
            return Document((*turns, dataclasses.replace(last, answer=None)), () if is_open else self._answers(sample))
        if is_open:  # an answer that stands last is the one to be found again
            return Document((*turns, Turn((*last.asked, *([asked] if asked else ())), None)))
        turns += [last] if last.answer else []
        while turns and document_length(Document(tuple(turns)), tokens) > self.row_length:
            turns.pop()
        if not turns:
            raise SkipSample(UNANSWERED, f"key {sample.key!r}: rows have {self.row_length} pieces")
        return Document(tuple(turns))

    def _turns(self, sample: Sample) -> list[Turn]:
        """All turns, the last perhaps without an answer. What has no role is the user's."""
        turns: list[Turn] = []
        question: list[int | tuple[int, ...]] = []
        answer: list[int] = []
        number = 0
        for part in sample.parts:
            by_assistant = part.role == "assistant"
            if answer and not by_assistant:
                turns.append(Turn(tuple(question), tuple(answer)))
                question, answer = [], []
            if by_assistant:
                answer += self._said(part, sample.key)
            elif part.type == "text":
                question.append(tuple(self.tokenizer.encode(part.text or "")))
            elif part.type in self.media:
                question.append(number)
                number += 1
        return [*turns, Turn(tuple(question), tuple(answer) or None)]

    def _answers(self, sample: Sample) -> tuple[tuple[tuple[int, ...], float], ...]:
        """(pieces, score) of a preference's answers. Raises SkipSample where nothing can be preferred."""
        answers = [
            (tuple(piece for part in answer.parts for piece in self._said(part, sample.key)), answer.score)
            for answer in sample.answers or ()
        ]
        different = tuple(dict.fromkeys(answers))  # a wrong one twice is one
        if len({pieces for pieces, _ in different}) < len(different) or len(different) < min(2, len(answers)):
            raise SkipSample(EQUAL, f"key {sample.key!r}: two of {len(answers)} answers say the same")
        return different

    def _said(self, part: Part, key: str) -> list[int]:
        if part.type != "text":
            raise SkipSample("an answer is no text", f"key {key!r}: a {part.type} cannot be said")
        return self.tokenizer.encode(part.text or "")

    def _documents(
        self, media: Sequence[Part], text: Part | None, ids: Sequence[int], rng: random.Random | None
    ) -> tuple[Document, ...]:
        """One document about one part or all (always all without `rng`); none where nothing is to say or drawn.

        The answer is the sample's text; about one spoken clip alone it is what is said there. The prompt is the
        answer's language.
        """
        if rng is not None and rng.random() >= self.captioned:
            return ()
        chosen = tuple(range(len(media)))
        if rng is not None and len(media) > 1 and rng.random() >= self.together:
            chosen = (rng.randrange(len(media)),)
        answer, language = ids, text.lang if text else None
        if len(chosen) == 1 and media[chosen[0]].kind == "speech" and (said := media[chosen[0]].text):
            answer, language = self.tokenizer.encode(said), media[chosen[0]].lang
        if not answer:
            return ()
        return (single(chosen, self._language(language), answer),)

    def _language(self, language: str | None) -> tuple[int, ...]:
        """A language as the prompt's pieces; none without one."""
        if not language:
            return ()
        if language not in self._languages:
            self._languages[language] = tuple(self.tokenizer.encode(language))
        return self._languages[language]

    def batch(self, samples: Sequence[Sample], *, documents: Documents = "all", **asked: str | None) -> Batch:
        """Decoded samples as they are: documents about all their parts or none, or open prompts for `generate`.

        `asked` is the `language` and `prompt` of open ones, which may be about no part at all. Raises SkipSample at the
        first sample that cannot be used.
        """
        ready = [s if documents == "open" and not s.parts else self.readable(s) for s in samples]
        return self.collate([self.prepare(s, i, i, documents=documents, **asked) for i, s in enumerate(ready)])
