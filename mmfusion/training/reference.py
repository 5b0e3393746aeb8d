"""Models that are compared with, or judge, and are never trained."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from annotated_types import MinLen
from torch import Tensor

from mmfusion import checkpoint as checkpoints
from mmfusion.checkpoint.layout import weights_sha256
from mmfusion.converters import lora
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.objectives.reward import reward_of_answers
from mmfusion.types import Batch, Outputs


@runtime_checkable
class Comparing(Protocol):
    """An objective that compares the model with what it was, if it has a `reference`, which the module gives it."""

    reference: bool
    frozen: Callable[[Batch], Outputs] | None


class Frozen:
    """A model as it is now, whatever becomes of it: where it has adapters itself with these switched off, else a copy.

    No nn.Module, so that it is neither trained nor saved with what has it; a `copy` follows the model to its device.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self._model = model
        self.copy = None if lora.names(model) else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        if self.copy is not None:
            if next(self.copy.parameters()).device != batch.rows.ids.device:
                self.copy.to(batch.rows.ids.device)
            return self.copy(batch)
        with lora.switched_off(self._model):
            return self._model(batch)


class Learned:
    """What a reward model thinks of answers: a run or checkpoint of `stage=reward` with the vocabulary of this run.

    Raises ValueError for one of another stage. The weights are read when they are first asked for.
    """

    def __init__(self, *, checkpoint: Annotated[str, MinLen(1)]) -> None:
        self.folder = checkpoints.locate(Path(checkpoint))
        stage = json.loads((self.folder / checkpoints.LINEAGE).read_bytes()).get("stage")
        if stage != "reward":
            raise ValueError(f"reward.checkpoint: {checkpoint} is of stage {stage}, which gives no rewards")
        self._piece = SentencePieceTokenizer(self.folder / checkpoints.TOKENIZER).score

    @functools.cached_property
    def sha256(self) -> str:
        """Of its weights, read once: every resume point holds it."""
        return weights_sha256(self.folder)

    @functools.cached_property
    def _model(self) -> Any:
        with torch.random.fork_rng(devices=[]):  # what is drawn for weights that are then read is no part of the run
            return checkpoints.load(self.folder)[0].eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, view: Batch, said: Sequence[str]) -> Tensor:
        """The reward [K] of the answers in the rows."""
        outputs = self._model.to(view.rows.ids.device)(view)
        return reward_of_answers(outputs, view.rows, self._piece)
