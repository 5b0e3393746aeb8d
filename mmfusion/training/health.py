"""What tells a healthy run from a sick one before its loss does: gradients, ranks, waste, what is never trained."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import lightning.pytorch as pl
import torch
from annotated_types import Gt
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from mmfusion import runs
from mmfusion.data.datamodule import datamodule_of
from mmfusion.types import Batch

FILE = "health.json"


def effective_rank(embeddings: Tensor) -> float:
    """exp of the entropy of the singular values of embeddings[n, E]: how many directions are in use, 1 to min(n, E).

    Roy & Vetterli 2007 (EUSIPCO); as a sign of collapse RankMe, Garrido et al. 2210.02885.
    """
    share = torch.linalg.svdvals(embeddings.double())
    share = share / share.sum().clamp(min=torch.finfo(share.dtype).tiny)
    return float(torch.special.entr(share).sum().exp())


def padding(batch: Batch) -> dict[str, float]:
    """The share of each stream's patches, and of the rows' places, that hold nothing."""
    real = {name: parts.valid[parts.owner >= 0] for name, parts in batch.streams.items()}
    wasted = {name: 1 - float(valid.float().mean()) for name, valid in real.items() if len(valid)}
    wasted["rows"] = 1 - float((batch.rows.document >= 0).float().mean())
    return wasted


def without_gradient(run: Path) -> list[str]:
    """The parameters that a run's `Health` named; none where it looked at none."""
    path = run / FILE
    return json.loads(path.read_text())["without_gradient"] if path.is_file() else []


class Health(Callback):
    """`health/…` at every logged step: `grad_norm` before clipping, `padding/…` of the batch, `skipped` samples and
    `masked` values so far; at every validation `rank/…` of each modality's embeddings, over at most `most` parts of
    those that the first rank validates.

    Parameters whose gradient was zero or absent at every logged step are named in `health.json` and on the console.
    """

    def __init__(self, most: Annotated[int, Gt(1)] = 2048) -> None:
        self.most = most
        self._moved: set[str] = set()
        self._looked = 0
        self._embedded: dict[str, list[Tensor]] = defaultdict(list)

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Batch, batch_idx: int) -> None:
        if pl_module.logs_now:
            pl_module.told.update({f"health/padding/{name}": share for name, share in padding(batch).items()})
            data = datamodule_of(trainer)
            pl_module.told.update({"health/skipped": data.skips.skipped.total(), "health/masked": data.masked})

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        if not pl_module.logs_now:
            return
        named = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        norms = torch.stack([gradient.norm() for gradient in named.values()])
        pl_module.told["health/grad_norm"] = float(norms.norm())
        self._looked += 1
        self._moved.update(name for name, norm in zip(named, norms.tolist(), strict=True) if norm)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for name, embedded in (outputs or {}).items():
            if sum(map(len, self._embedded[name])) < self.most:
                self._embedded[name].append(embedded)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        for name, embedded in self._embedded.items():
            if len(rows := torch.cat(embedded)[: self.most]) > 1:
                pl_module.log(f"health/rank/{name}", effective_rank(rows))
        self._embedded.clear()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not self._looked:
            return
        trained = [name for name, p in pl_module.named_parameters() if p.requires_grad]
        still = [name.removeprefix("model.") for name in trained if name not in self._moved]
        kept = {"steps_looked_at": self._looked, "without_gradient": still}
        if not trainer.is_global_zero:
            return
        runs.write(Path(trainer.default_root_dir) / FILE, json.dumps(kept, indent=1))
        if still:
            shown = ", ".join(still[:5]) + (f" and {len(still) - 5} more" if len(still) > 5 else "")
            print(f"no gradient reached {shown} in any of {self._looked} logged steps", flush=True)

    def state_dict(self) -> dict[str, Any]:
        return {"moved": sorted(self._moved), "looked": self._looked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._moved, self._looked = set(state_dict["moved"]), state_dict["looked"]
