"""Adapters beside weights of four bits: what is packed, what is computed with it, what is saved."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_lora import hidden, stir
from torch import Tensor, nn

from mmfusion.checkpoint import adapter
from mmfusion.checkpoint.weights import once
from mmfusion.converters import lora, nf4
from mmfusion.converters.importing import quietly
from mmfusion.converters.lora import Lora
from mmfusion.converters.nf4 import NF4Linear
from mmfusion.errors import UserError
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.training.reference import Frozen
from tests.models.tiny_multimodal import tiny_batch, tiny_model

BASES = ["nf4", "nf4-double"]


def quantized(base: Any = "nf4", **how: Any) -> MultimodalModel:
    model = tiny_model().eval()
    Lora(rank=2, base=base, **how)(model)
    stir(model, 3)
    return model


def linear(double: bool = False, bias: bool = True) -> tuple[nn.Linear, NF4Linear]:
    torch.manual_seed(0)
    plain = nn.Linear(192, 128, bias=bias)
    return plain, NF4Linear(plain, double)


@pytest.mark.parametrize("double", [False, True])
def test_the_weight_is_what_bitsandbytes_makes_of_it(double: bool) -> None:
    plain, packed = linear(double)
    layer = quietly("bitsandbytes").nn.Linear4bit(
        192, 128, quant_type="nf4", compress_statistics=double, compute_dtype=torch.float32
    )
    layer.load_state_dict(plain.state_dict())
    layer.to("cpu")  # where it packs
    x = torch.randn(5, 192)
    torch.testing.assert_close(packed(x), layer(x), rtol=1e-5, atol=1e-5)
    assert 0 < float((packed.weight - plain.weight).detach().abs().mean() / plain.weight.detach().abs().mean()) < 0.15


@pytest.mark.parametrize(("double", "bits"), [(False, 4.5), (True, 4.13)])
def test_a_value_takes_so_many_bits(double: bool, bits: float) -> None:
    _, packed = linear(double, bias=False)
    kept = sum(x.nbytes for x in (*packed.parameters(), *packed.buffers()))
    assert 8 * kept / (128 * 192) == pytest.approx(bits, abs=0.01)


def test_its_gradients_are_those_of_the_full_weight_of_which_nothing_is_kept() -> None:
    _, packed = linear()
    x, y = torch.randn(2, 3, 192, requires_grad=True), torch.randn(2, 3, 128)
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        (packed(x) * y).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y @ packed.weight)
    assert packed.bias is not None
    assert packed.bias.grad is not None
    assert max(tensor.numel() for tensor in kept) < packed.weight.numel()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = packed(x)
    low.float().sum().backward()
    torch.testing.assert_close(low.float(), packed(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("base", BASES)
def test_the_maps_of_its_parts_are_packed_and_only_adapters_are_trained(base: str) -> None:
    model = quantized(base)
    packed = [module for module in model.modules() if isinstance(module, NF4Linear)]
    assert len(packed) == len(lora.layers(model)) == 8
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert trained
    assert all(".lora_" in name for name in trained)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("dora", [False, True])
def test_saved_in_full_and_loaded_it_is_the_same(base: str, dora: bool, tmp_path: Path) -> None:
    """A plain model reads the state; with the adapter beside it, or merged, it says what was trained."""
    model = quantized(base, dora=dora)
    own = hidden(model)
    state = lora.base_state(model, once(model))
    assert set(state) == set(once(tiny_model()))
    adapter.save_adapter(tmp_path, model, "abc")
    loaded = tiny_model().eval()
    loaded.load_state_dict(state, strict=False)  # what is shared stands once in it
    adapter.load_adapter(tmp_path, loaded, "abc")
    torch.testing.assert_close(hidden(loaded), own, rtol=1e-5, atol=1e-5)
    for one in (model, loaded):
        lora.merge(one)
        assert set(one.state_dict()) == set(tiny_model().state_dict())
        torch.testing.assert_close(hidden(one), own, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_its_own_state_goes_into_another_that_was_packed(base: str) -> None:
    """What a resume point holds: packed weights to the last bit."""
    model, other = quantized(base), tiny_model().eval()
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1.0)
    Lora(rank=2, base=base)(other)  # pyright: ignore[reportArgumentType]
    assert not torch.allclose(hidden(other), hidden(model))
    other.load_state_dict(model.state_dict())
    assert torch.equal(hidden(other), hidden(model))
    assert torch.equal(hidden(copy.deepcopy(model).to("cpu")), hidden(model))


def test_switched_off_it_is_the_rounded_model() -> None:
    model = quantized()
    reference = Frozen(model)(tiny_batch()).hidden
    plain = tiny_model().eval()
    Lora(rank=2, base="nf4")(plain)
    assert torch.equal(reference, hidden(plain))
    assert not torch.allclose(reference, hidden(tiny_model().eval()), atol=1e-3)


def test_a_machine_without_bitsandbytes_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="wants bitsandbytes, which does not run here") as told:
        Lora(base="nf4")
    assert "\n" not in str(told.value)
    Lora()  # as before
    assert not nf4.unpacked(tiny_model())
