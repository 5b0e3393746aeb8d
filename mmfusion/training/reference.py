"""Models that are compared with and never trained."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch

from mmfusion.converters import lora
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.types import Batch, Outputs


@runtime_checkable
class Comparing(Protocol):
    """An objective that compares the model with what it was, if it has a `reference`, which the module gives it."""

    reference: bool
    frozen: Callable[[Batch], Outputs] | None


class Frozen:
    """A model as it is now, whatever becomes of it: where it has adapters itself with these switched off, else a copy.

    No nn.Module, so that it is neither trained nor saved with what has it; a copy follows the model to its device.
    """

    def __init__(self, model: MultimodalModel) -> None:
        self._model = model
        self._copy = None if lora.names(model) else copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Outputs:
        if self._copy is not None:
            if next(self._copy.parameters()).device != batch.rows.ids.device:
                self._copy.to(batch.rows.ids.device)
            return self._copy(batch)
        with lora.switched_off(self._model):
            return self._model(batch)
