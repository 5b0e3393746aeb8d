"""A user's own objective and evaluation task, outside mmfusion."""

from typing import Annotated

import numpy as np
from annotated_types import Gt
from torch import cdist, nn

from mmfusion.evaluation.bench import Bench, Lacking, Outcome, Result
from mmfusion.types import Batch, Loss, Modality, Outputs


class Uniformity(nn.Module):
    """Pictures spread over the sphere (Wang & Isola 2005.10242, equation 2, without the logarithm)."""

    modalities: tuple[Modality, ...] = ("image",)

    def __init__(self, *, sharpness: Annotated[float, Gt(0)] = 2.0) -> None:
        super().__init__()
        self.sharpness = sharpness

    def views(self, batch: Batch) -> Batch:
        return batch

    def count(self, batch: Batch) -> int:
        return int((batch.streams["image"].owner >= 0).sum())

    def forward(self, outputs: Outputs, batch: Batch) -> dict[str, Loss]:
        x = outputs.embeddings["image"][batch.streams["image"].owner >= 0]
        nearness = (-self.sharpness * cdist(x, x).square()).exp()
        return {"uniformity": Loss(nearness.mean(dim=-1).sum(), len(x))}


def same_twice(bench: Bench, *, source: str, most: Annotated[int, Gt(0)] = 20) -> Result:
    """Whether a picture embedded again is nearest to itself."""
    bench.require("image")
    pictures = [part for s in bench.samples(bench.split, source)[:most] if (part := bench.decoded(s.of("image")[0]))]
    if not pictures:
        raise Lacking(f"no pictures of {source!r}")
    x = bench.embed(pictures)
    right = ((x @ x.T).argmax(axis=1) == np.arange(len(x))).astype(np.float64)
    return Result((Outcome("accuracy", right, [str(i) for i in range(len(x))], 1 / len(x)),))
