"""What a run's energy went into: samples trained, validation, evaluation, tokens generated in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning.pytorch as pl
from annotated_types import Ge
from lightning.pytorch.callbacks import Callback

from mmfusion import api
from mmfusion.ranks import of_all
from mmfusion.runs import energy
from mmfusion.runs.energy import Energy, Spent
from mmfusion.training import power
from mmfusion.training.power import Meter
from mmfusion.types import Part

Phase = Literal["training", "validation", "evaluation", "generation"]
UNLOGGED = 10  # steps between sums over ranks, where no step is logged


class Ledger:
    """Books what its meters move under phases, on top of what `run` spent before."""

    def __init__(
        self, run: Path, meters: Sequence[Meter], *, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.own = Energy(sources={meter.device: [meter.source] for meter in meters})
        self._run, self._meters, self._every_s, self._clock = run, meters, every_s, clock
        self._before, self._others = energy.kept(run), Energy()
        self._read = [meter.joules() for meter in meters]
        self._at = self._written = clock()

    def book(self, *phases: Phase, samples: int = 0, tokens: int = 0) -> None:
        """What was spent since the last booking was for these."""
        read, now = [meter.joules() for meter in self._meters], self._clock()
        moved = {
            meter.device: max(0.0, new - old) for meter, new, old in zip(self._meters, read, self._read, strict=True)
        }
        spent = Spent(joules=moved, seconds=max(0.0, now - self._at), samples=samples, tokens=tokens)
        self.own = self.own.model_copy(update={name: getattr(self.own, name).plus(spent) for name in phases})
        self._read, self._at = read, now

    def hear(self, ranks: Sequence[Energy]) -> None:
        """What every other rank has spent so far."""
        self._others = Energy()
        for other in ranks:
            self._others = self._others.plus(other, together=True)

    @property
    def spent(self) -> Energy:
        """By the whole run: before, by this process, by the others as far as they were heard."""
        return self._before.plus(self.own.plus(self._others, together=True))

    def write(self, *, now: bool = True) -> None:
        """Write energy.json if anything is metered; unless `now`, only where the last is `every_s` ago."""
        if self._meters and (now or self._clock() - self._written >= self._every_s):
            energy.keep(self._run, self.spent)
            self._written = self._clock()

    def close(self) -> None:
        """End what the meters run."""
        for meter in self._meters:
            meter.close()


class EnergyMeter(Callback):
    """`energy.json` in the run folder, and `energy/joules` at every logged step: of the whole run so far, all ranks.

    From the first step on; what validation takes is booked apart. Written every `every_s` seconds at a logged step,
    behind each validation and at the end. A run that goes on adds to what was spent before it was stopped, also to what
    it has to do again: samples count as often as they were trained on.
    """

    def __init__(self, *, every_s: Annotated[float, Ge(0)] = 10.0) -> None:
        self.every_s = every_s
        self._ledger: Ledger | None = None
        self._samples = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        run, device = Path(trainer.default_root_dir), trainer.strategy.root_device
        self._samples = 0
        self._ledger = Ledger(run, power.meters(device, first_here=trainer.local_rank == 0), every_s=self.every_s)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._samples += len(batch.keys)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or self._ledger is None:
            return
        self._book("training")
        if trainer.global_step % (pl_module.log_every or UNLOGGED) == 0:
            self._agree(trainer)
            if pl_module.logs(trainer.global_step):
                pl_module.told["energy/joules"] = self._ledger.spent.joules
            self._write(trainer, now=False)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._book("training")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._ledger is not None:
            self._book("validation")
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self._ledger is not None:
            self._book("training")
            self._agree(trainer)
            self._end(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if self._ledger is not None:  # the other ranks may be gone
            self._book("validation" if trainer.validating else "training")
            self._end(trainer)

    def _book(self, phase: Phase) -> None:
        if self._ledger is not None:
            self._ledger.book(phase, samples=self._samples)
            self._samples = 0

    def _agree(self, trainer: pl.Trainer) -> None:
        """All ranks call it at the same steps."""
        if self._ledger is not None and trainer.world_size > 1:
            given = of_all(self._ledger.own)
            self._ledger.hear([other for rank, other in enumerate(given) if rank != trainer.global_rank])

    def _write(self, trainer: pl.Trainer, *, now: bool = True) -> None:
        ledger = self._ledger
        if ledger is not None and trainer.is_global_zero and ledger.own.training.samples:  # else nothing may be kept
            ledger.write(now=now)

    def _end(self, trainer: pl.Trainer) -> None:
        self._write(trainer)
        if self._ledger is not None:
            self._ledger.close()
        self._ledger = None


class Metered(api.Model):
    """A model in the evaluation of a run; what the evaluation takes, and generation in it, is booked in a ledger."""

    def __init__(self, model: api.Model, ledger: Ledger) -> None:
        super().__init__(model.network, model.pipeline, model.lineage)
        self._ledger = ledger

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        """As `api.Model`'s."""
        self._ledger.book("evaluation")
        before = self.pieces_said
        said = super().generate_parts(prompts, language, max_new)
        self._ledger.book("evaluation", "generation", tokens=self.pieces_said - before)
        self._ledger.write(now=False)
        return said

    def spent(self) -> Energy:
        """What the run has spent until now; written."""
        self._ledger.book("evaluation")
        self._ledger.write()
        return self._ledger.spent


@contextmanager
def metered(model: api.Model, run: Path) -> Iterator[Metered]:
    """The model, metered meanwhile by what its device has, on top of what `run` has spent.

    By nothing where its training was not metered (`~callbacks.energy`).
    """
    device = next(model.network.parameters()).device
    ledger = Ledger(run, power.meters(device) if (run / energy.FILE).exists() else [])
    try:
        yield Metered(model, ledger)
    finally:
        ledger.close()
