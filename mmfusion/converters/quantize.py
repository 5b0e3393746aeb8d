"""Quantization as a converter: a model that rounds while it is trained, and one that holds integers for good."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from mmfusion.converters import lora, nf4
from mmfusion.converters.calibration import fit_scale
from mmfusion.converters.rounding import Rounding, Scheme, check_available, nearest_divisor, plain, switch
from mmfusion.errors import UserError

Policy = Scheme | Literal["none"]
EMBEDDINGS, HEAD = "embeddings", "head"  # parts by what they are, beside those by where they are
_EMBEDDING, _HEAD = "decoder.embedding", "decoder.head"
_READERS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Quantize:
    """Linear maps and embeddings in small integers, rounded while they are trained (Jacob et al. 1712.05877).

    `int8`: weights and inputs in eight bits, a scale for each row of the weight and for each token. `int8_int4`: inputs
    so, weights in four bits with a scale for each `group` of a row. `int4`: such weights, inputs in full. Tables, which
    are the embeddings and the map from the decoder to pieces, have only their weights rounded: a row has one scale in
    eight bits and one for each group in four. Where a row does not divide by `group`, the divisor nearest to it is
    taken.

    `parts` gives schemes by the path of a part, of which the longest counts, and `none` leaves it in full:
    `{decoder: int8, encoders.sensor: none}`. `embeddings` are all embeddings and `head` is the map to pieces; these
    count before any path but that of the layer itself. Where the map to pieces is the decoder's embedding too (tied),
    both ends read the same rounded weight; if the two are to differ, they are untied first. Layers that do more than
    multiply or look up, classes of their own among them, stay in full, and the log names them.

    Until `start` steps are taken the model trains in full. With adapters, their base is rounded and they are not;
    converted they stay apart (`keep`) or are added to the weights before these are rounded (`merge`). With
    `distillation` > 0 the model as it was before is its teacher: that times the divergence of what comes next, in nats
    a piece, is added to the loss (Kim et al. 1911.12491; see `objectives.distillation`). Raises UserError for what this
    machine cannot run.
    """

    def __init__(
        self,
        *,
        scheme: Scheme,
        group: Annotated[int, Gt(1), Le(1 << 20)] = 32,
        parts: Mapping[str, Policy] | None = None,
        start: Annotated[int, Ge(0)] = 0,
        adapters: Literal["keep", "merge"] = "keep",
        distillation: Annotated[float, Ge(0)] = 0.0,
    ) -> None:
        self.scheme: Scheme = scheme
        self.group, self.start = group, start
        self.parts: dict[str, Policy] = dict(parts or {})
        self.adapters, self.distillation = adapters, distillation
        if "int8" in (scheme, *self.parts.values()):
            check_available()

    @property
    def node(self) -> dict[str, Any]:
        """What a checkpoint's configuration says of it: all that its integers depend on."""
        by_group = {self.scheme, *self.parts.values()} - {"int8", "none"}
        return {"scheme": self.scheme, "parts": self.parts, **({"group": self.group} if by_group else {})}

    def __call__(self, model: nn.Module) -> nn.Module:
        """Layers that round in the forward pass, from step `start` on, and learn in full; in place.

        Raises UserError for a part that has nothing to round.
        """
        for rounding, names in self._roundings(model).items():
            rounding.prepare(model, names)
        self.at_step(model, 0)
        return model

    def at_step(self, model: nn.Module, step: int) -> None:
        """What a prepared model is to do in the step behind `step` others."""
        switch(model, on=step >= self.start)

    def convert(self, model: nn.Module, moments: Mapping[str, Tensor] | None = None) -> nn.Module:
        """A model that holds integers, of one that was prepared or of one in full; in place. Adapters as asked.

        With `moments`, the mean squares of inputs by layer (see `calibrate`), scales are those under which the outputs
        change least, and not those that reach from the least to the largest weight.
        """
        if self.adapters == "merge":
            lora.merge(model)
        plain(model)
        for rounding, names in self._roundings(model).items():
            fitted = [] if moments is None else names
            full = {name: model.get_submodule(name).get_parameter("weight") for name in fitted}
            rounding.convert(model, names)
            for name, weight in full.items():
                moment = None if rounding.table else (moments or {})[name]
                fit_scale(model.get_submodule(name).get_parameter("weight"), weight, moment)
        return model

    def structure(self, model: nn.Module) -> None:
        """Let the layers of a plain model hold integers, to be filled with those of a converted one; in place."""
        for rounding, names in self._roundings(model).items():
            rounding.convert(model, names)

    def _roundings(self, model: nn.Module) -> dict[Rounding, list[str]]:
        """The layers that are to be rounded, by how, once the ends of the decoder are untied where they have to be.

        Raises UserError for parts that are not there.
        """
        if any(isinstance(module, nf4.NF4Linear) for module in model.modules()):
            raise UserError("converter: qlora keeps weights in four bits already; take lora beside int8 or int4")
        self._untie(model)
        layers = {name: layer for name, layer in _layers(model) if _is_plain(model, name, layer)}
        self._check_parts(layers)
        found: dict[Rounding, list[str]] = {}
        for name, layer in layers.items():
            scheme = self._policy(name, layer)
            if scheme != "none":
                table = isinstance(layer, nn.Embedding) or _own(name) == _HEAD
                width = layer.get_parameter("weight").shape[1]
                group = width if scheme == "int8" else nearest_divisor(width, self.group)
                found.setdefault(Rounding(scheme, table, group), []).append(name)
        if not found:
            raise UserError("converter.parts: nothing is left to quantize; set fewer parts to none")
        return found

    def _check_parts(self, names: Iterable[str]) -> None:
        split = [_own(name).split(".") for name in names]
        paths = {".".join(words[:n]) for words in split for n in range(1, len(words) + 1)}
        if unknown := sorted(self.parts.keys() - paths - {EMBEDDINGS, HEAD}):
            known = sorted(path for path in paths if path.count(".") <= 1)
            told = f"converter.parts.{unknown[0]}: the model has no linear map or embedding there"
            raise UserError(f"{told}; there are {', '.join((EMBEDDINGS, HEAD, *known))}")

    def _policy(self, name: str, layer: nn.Module) -> Policy:
        name = _own(name)
        kind = EMBEDDINGS if isinstance(layer, nn.Embedding) else HEAD if name == _HEAD else ""
        if kind in self.parts and name not in self.parts:
            return self.parts[kind]
        holding = [part for part in self.parts if f"{name}.".startswith(f"{part}.")]
        return self.parts[max(holding, key=len)] if holding else self.scheme

    def told(self, model: nn.Module) -> str:
        """One line about a prepared model: what is rounded, and what became of the decoder's two ends."""
        counts: dict[str, int] = {}
        for rounding, names in self._roundings(model).items():
            counts[rounding.scheme] = counts.get(rounding.scheme, 0) + len(names)
        layers = ", ".join(f"{scheme} in {count} layers" for scheme, count in sorted(counts.items()))
        read, said = self.ends(model)
        decoder: Any = model.get_submodule("decoder")
        ends = (
            f"tied, {read} at both"
            if decoder.head is None
            else f"apart, {read} where pieces are read, {said} where said"
        )
        begins = f", from step {self.start} on" if self.start else ""
        odd = [_own(name) for name, layer in _layers(model) if not _is_plain(model, name, layer)]
        in_full = f"; in full, being more than plain: {', '.join(odd)}" if odd else ""
        return f"rounding     {layers}{begins}; ends of the decoder: {ends}{in_full}"

    def ends(self, model: nn.Module) -> tuple[Policy, Policy]:
        """The schemes of the decoder's two ends: where pieces are read, and where they are said."""
        read = self._policy(_EMBEDDING, model.get_submodule(_EMBEDDING))
        decoder: Any = model.get_submodule("decoder")
        tied = decoder.head is None
        return read, self.parts.get(HEAD, read) if tied else self._policy(_HEAD, decoder.head)

    def _untie(self, model: nn.Module) -> None:
        """A map to pieces of its own where it is to have another scheme than the embedding that it was."""
        decoder: Any = model.get_submodule("decoder")
        read, said = self.ends(model)
        if decoder.head is None and read != said:
            weight = decoder.embedding.weight
            decoder.head = nn.Linear(*weight.shape[::-1], bias=False, device="meta")
            decoder.head.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)) and ".lora_" not in name:
            yield name, module


def _own(name: str) -> str:
    """A layer's name without what peft puts behind that of a layer with adapters."""
    return name.removesuffix(".base_layer")


def _is_plain(model: nn.Module, name: str, layer: nn.Module) -> bool:
    """Whether a layer multiplies with its weight, or looks up in it, and does nothing else.

    Not so for classes derived from torch's, for what stands under two names, and where a block of torch's own reads the
    weight.
    """
    known = type(layer) in (nn.Linear, nn.Embedding) or hasattr(layer, "weight_fake_quantizer")
    hooked = layer._forward_hooks or layer._forward_pre_hooks or getattr(layer, "max_norm", None) is not None
    if not known or hooked:
        return False
    weight: Tensor = layer.get_parameter("weight")
    if weight.dtype != torch.float32 or weight.shape[1] < 2:  # in_steps' own type, and more than one to share a step
        return False
    above = [model.get_submodule(".".join(name.split(".")[:n])) for n in range(1, name.count(".") + 1)]
    if any(isinstance(module, _READERS) for module in above):
        return False
    return sum(module is layer for _, module in model.named_modules(remove_duplicate=False)) == 1
