"""What the processes that train one model tell each other, through torch.distributed; one alone talks to nobody."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def together() -> bool:
    """Whether there are other ranks that hear this one."""
    return dist.is_available() and dist.is_initialized()


def of_all(item: T) -> list[T]:
    """What every rank gives here, in their order. All ranks must call it, as often as each other."""
    if not together():
        return [item]
    given: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(given, item)
    return given


def leave() -> None:
    """Talk to nobody any more; who waits for this rank gets an error."""
    if together():
        dist.destroy_process_group()


def rows_of_all(x: Tensor) -> Tensor:
    """x[n, *] of all ranks, one below the other in their order; n may differ. Gradients find their way back.

    All ranks must call it, and go back through it, as often as each other.
    """
    if not together():
        return x
    if not x.requires_grad:  # as objects: of a batch that is not on its device yet, the backend may know nothing
        return torch.cat([rows.to(x.device) for rows in of_all(x.cpu())])
    return _Rows.apply(x, of_all(len(x)))


class _Rows(torch.autograd.Function):
    """Forward gathers rows; backward sums what every rank's loss says of this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, lengths: list[int]) -> Tensor:
        ctx.lengths = lengths
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        given = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(given, padded)
        return torch.cat([rows[:length] for rows, length in zip(given, lengths, strict=True)])

    @staticmethod
    def backward(ctx: Any, *of_rows: Tensor) -> tuple[Tensor, None]:
        total = of_rows[0].contiguous().clone()
        dist.all_reduce(total)
        rank = dist.get_rank()
        return total.split(ctx.lengths)[rank], None
