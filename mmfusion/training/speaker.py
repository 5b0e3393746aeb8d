"""A model in training that is asked to speak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from mmfusion.data.tokenizer import Tokenizer, silent
from mmfusion.models.generate import generate
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.types import Batch


class Speaker:
    """What the model says as it is now, through the cached decoder, without dropout and without a gradient.

    No nn.Module, so that the model is not saved with what has it. `banned` pieces are never said but `end`s every
    answer that is not cut.
    """

    def __init__(self, model: MultimodalModel, tokenizer: Tokenizer) -> None:
        self._model, self._tokenizer = model, tokenizer
        self.end = tokenizer.end
        self.banned: Sequence[int] = silent(tokenizer, model.decoder.vocab)

    def __call__(self, batch: Batch, **how: Any) -> list[list[int]]:
        """The pieces of each answer, without its end; `how` as `models.generate.stream` has it."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.compiler.set_stance("force_eager"):  # a step of a few rows would compile anew as they grow
                return generate(self._model, batch, end=self.end, banned=self.banned, **how)
        finally:
            self._model.train(training)
            torch.clear_autocast_cache()  # it holds weights without a gradient

    def text(self, pieces: Sequence[int]) -> str:
        return self._tokenizer.decode(pieces)


@runtime_checkable
class Speaking(Protocol):
    """An objective that lets the model speak: the module gives it the `speaker`."""

    speaker: Speaker | None
