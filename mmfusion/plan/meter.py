"""Counts floating-point operations and bytes of a forward and backward, by part, whether numbers are there or not."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mmfusion.training.speed import flop_counter

REST = "rest"  # what happens between the parts, such as adding the losses up


class Meter:
    """FLOPs (torch's own FlopCounterMode) and bytes by named part of what happens inside `counting`.

    `forward` and `backward` are FLOPs, what is recomputed being part of `backward`; `saved` are the bytes that a part
    keeps for its backward, each storage once, weights left out; `peak` is the most bytes that were alive at once, of
    those made inside.

    A part's backward is told from the forward of others by what it asks for: every operation that multiplies unpacks
    what its part has saved.
    """

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        self.parts = parts
        self.forward: Counter[str] = Counter()
        self.backward: Counter[str] = Counter()
        self.saved: Counter[str] = Counter()
        self._flops = flop_counter()
        self._bytes = _Bytes()
        self._seen = WeakIdKeyDictionary()
        self._phase, self._counted = self.forward, 0
        self._stack = [REST]

    @property
    def peak(self) -> int:
        return self._bytes.peak

    @contextmanager
    def counting(self) -> Iterator[None]:
        for module in self.parts.values():
            for weight in module.parameters():
                self._seen[weight.untyped_storage()] = True
        hooks = [
            hook
            for name, module in self.parts.items()
            for hook in (
                module.register_forward_pre_hook(lambda *_, name=name: self._enter([*self._stack, name])),
                module.register_forward_hook(lambda *_: self._enter(self._stack[:-1])),
            )
        ]
        try:
            with self._bytes, self._flops, saved_tensors_hooks(self._pack, self._unpack):
                yield
        finally:
            self._enter([REST])
            for hook in hooks:
                hook.remove()

    def begin_backward(self) -> None:
        self._enter([REST])
        self._phase = self.backward

    def _enter(self, stack: list[str]) -> None:
        counted = self._flops.get_total_flops()
        self._phase[self._stack[-1]] += counted - self._counted
        self._counted, self._stack = counted, stack

    def _pack(self, tensor: Tensor) -> tuple[str, Tensor]:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen[storage] = True
            self.saved[self._stack[-1]] += storage.nbytes()
        return self._stack[-1], tensor.detach()

    def _unpack(self, packed: tuple[str, Tensor]) -> Tensor:
        name, tensor = packed
        if name != self._stack[-1]:
            self._enter([name])
        return tensor


class _Bytes(TorchDispatchMode):
    """The bytes that are alive of all that is made inside, and the most there were.

    Fake tensors (shapes without numbers) and real ones mix here: masks and indices are real, so that code which looks
    at them runs as it is; where a real mask picks from a fake tensor, its shape is known from the mask.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.index, torch.ops.aten.index_put, torch.ops.aten._index_put_impl_):
            args = (args[0], _as_numbers(args[1]), *args[2:])
        for given in _storages((args, kwargs)):
            self._known[given] = True
        made = func(*args, **(kwargs or {}))
        for new in _storages(made):
            if new not in self._known:
                self._known[new] = True
                self.alive += new.nbytes()
                weakref.finalize(new, self._free, new.nbytes())
        self.peak = max(self.peak, self.alive)
        return made

    def _free(self, size: int) -> None:
        self.alive -= size


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _as_numbers(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Masks as the numbers of their places: one index for each of their axes."""
    made: list[Tensor | None] = []
    for index in indices:
        made += index.nonzero().unbind(1) if index is not None and index.dtype == torch.bool else [index]
    return made
