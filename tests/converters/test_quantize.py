"""Quantization as a converter: what is rounded and what is not, and that nothing changes from hop to hop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from mmfusion.checkpoint.weights import fill_from, once, read_header
from mmfusion.cli.quantize import SCHEMES
from mmfusion.converters import lora, packing
from mmfusion.converters.lora import Lora
from mmfusion.converters.quantize import Quantize
from mmfusion.converters.rounding import ByRow, Rounding, Scheme, in_steps, nearest_divisor, plain, product
from mmfusion.errors import UserError
from mmfusion.models.multimodal import MultimodalModel
from tests.models.tiny_multimodal import tiny_batch, tiny_model

GROUP = 8


def outputs(model: MultimodalModel) -> dict[str, Tensor]:
    """What each modality is embedded as, and the logits."""
    with torch.no_grad():
        out = model(tiny_batch())
        return {**out.embeddings, "logits": out.hidden @ out.unembedding.T}


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    return {name: float((a[name] - b[name]).abs().max() / a[name].abs().max()) for name in a}


def stirred(*converters: Any) -> MultimodalModel:
    """A tiny model behind some converters, with adapters that do something."""
    model = tiny_model().eval()
    for convert in converters:
        convert(model)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.3)
    return model


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize(("n", "k", "m"), [(1, 8, 8), (3, 20, 5), (17, 64, 48), (40, 1040, 9)])
def test_a_product_of_integers_is_exact_whatever_its_size(n: int, k: int, m: int, device: str) -> None:
    torch.manual_seed(n)
    a, b = (torch.randint(-128, 128, shape, dtype=torch.int8) for shape in ((n, k), (k, m)))
    assert torch.equal(product(a.to(device), b.to(device)).cpu().long(), a.long() @ b.long())


def test_the_command_line_has_every_scheme() -> None:
    assert get_args(Scheme) == SCHEMES


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("adapters", ["none", "before", "behind"])
def test_rounded_in_training_converted_and_read_again_are_one_model(scheme: Any, adapters: str, tmp_path: Path) -> None:
    quantize, low_rank = Quantize(scheme=scheme, group=GROUP), Lora(rank=2, parts=["decoder", "encoders.image"])
    order = {"none": [quantize], "before": [low_rank, quantize], "behind": [quantize, low_rank]}[adapters]
    full = outputs(stirred(*(convert for convert in order if convert is low_rank)))
    model = stirred(*order)
    rounded = outputs(model)
    assert all(0.001 < far < 1.5 for far in differ(full, rounded).values())  # it does round, everywhere
    quantize.convert(model)
    assert max(differ(rounded, outputs(model)).values()) == 0

    state = lora.base_state(model, once(model))
    save_file({name: x.contiguous() for name, x in packing.in_file(state).items()}, tmp_path / "weights")
    again = tiny_model().eval()
    quantize.structure(again)
    fill_from(again, read_header(tmp_path / "weights"), tmp_path / "weights")
    if adapters != "none":
        low_rank(again)
        adapter = {name: x for name, x in model.state_dict().items() if ".lora_" in name}
        assert not again.load_state_dict(adapter, strict=False).unexpected_keys
    assert max(differ(outputs(model), outputs(again)).values()) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([("int8", 16), ("int4", 4), ("int4", 16)]))
def test_what_was_rounded_stays_as_it_is(seed: int, how: tuple[Any, int]) -> None:
    torch.manual_seed(seed)
    rounding = Rounding(how[0], table=False, group=how[1])
    once_rounded = rounding.held(torch.randn(3, 16))
    again = rounding.held(once_rounded.dequantize())
    assert torch.equal(once_rounded.qdata, again.qdata)
    torch.testing.assert_close(once_rounded.scale, again.scale, rtol=1e-6, atol=0)


FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(FINITE, min_size=1, max_size=8), st.sampled_from([7, 127]))
def test_no_number_is_beyond_the_ends(row: list[float], most: int) -> None:
    steps, step = in_steps(torch.tensor([row]), most)
    assert -most - 1 <= float(steps.min())
    assert float(steps.max()) <= most
    assert torch.equal(steps, steps.round())
    assert float((steps * step - torch.tensor([row])).abs().max()) <= 0.5001 * float(step)


def test_weights_of_four_bits_by_hand() -> None:
    """The largest of a group is 7 steps, or -8: here of 0.1, and of 0.2."""
    layer = nn.Sequential(nn.Linear(8, 1, bias=False))
    with torch.no_grad():
        layer.get_parameter("0.weight").copy_(torch.tensor([[0.7, -0.34, 0.1, 0.04, -1.6, 0.51, 0.05, 0.0]]))
    rounding = Rounding("int4", table=False, group=4)
    rounding.prepare(layer, ["0"])
    by_hand = torch.tensor([0.7, -0.3, 0.1, 0.0, -1.6, 0.6, 0.0, 0.0])
    torch.testing.assert_close(layer(torch.eye(8))[:, 0], by_hand)
    plain(layer)
    rounding.convert(layer, ["0"])
    torch.testing.assert_close(layer(torch.eye(8))[:, 0], by_hand)


def test_integers_times_integers_by_hand() -> None:
    """The largest number of a token and of a row is 127 steps, or -128: here of 0.01, of 0.02 and of 0.01."""
    layer = nn.Sequential(nn.Linear(3, 1, bias=False))
    weight = torch.tensor([[1.27, 0.0049, -0.334]])
    with torch.no_grad():
        layer.get_parameter("0.weight").copy_(weight)
    rounding = Rounding("int8", table=False, group=3)
    rounding.prepare(layer, ["0"])
    x = torch.tensor([[1.27, -0.504, 0.0049], [-2.56, 0.021, 0.03]], requires_grad=True)
    y = layer(x)
    steps = torch.tensor([[127.0, -50, 0], [-128, 1, 2]]) * torch.tensor([[0.01], [0.02]])
    rounded = torch.tensor([[1.27, 0.0, -0.33]])
    torch.testing.assert_close(y, steps @ rounded.T)
    y.backward(torch.tensor([[1.0], [3.0]]))
    torch.testing.assert_close(x.grad, torch.tensor([[1.0], [3.0]]) @ rounded)
    torch.testing.assert_close(layer.get_parameter("0.weight").grad, torch.tensor([[1.0, 3.0]]) @ steps)
    plain(layer)
    rounding.convert(layer, ["0"])
    assert torch.equal(layer(x), y)


def test_prepared_it_learns_in_full_and_keeps_its_names() -> None:
    plain, model = tiny_model(), stirred(Quantize(scheme="int4", group=GROUP)).train()
    assert set(model.state_dict()) == set(plain.state_dict())
    out = model(tiny_batch())
    (out.hidden @ out.unembedding.T).square().mean().add(sum(e.sum() for e in out.embeddings.values())).backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_a_copy_rounds_its_own_weights() -> None:
    model = stirred(Quantize(scheme="int8"))
    other, before = copy.deepcopy(model), outputs(model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert max(differ(before, outputs(other)).values()) == 0


def test_until_its_start_it_is_the_model_in_full() -> None:
    quantize = Quantize(scheme="int8", start=3)
    model, full = stirred(quantize), outputs(tiny_model().eval())
    quantize.at_step(model, 2)
    assert max(differ(full, outputs(model)).values()) == 0
    quantize.at_step(model, 3)
    assert min(differ(full, outputs(model)).values()) > 0.001


def test_parts_have_schemes_of_their_own() -> None:
    second = "decoder.transformer.blocks.1"
    parts: Any = {"encoders": "none", "encoders.image": "int8", second: "int4", "embeddings": "int8"}
    model = Quantize(scheme="int8_int4", group=GROUP, parts=parts).convert(tiny_model())
    names = [name.removesuffix(".weight.int8") for name in once(model) if name.endswith(".int8")]
    assert {"decoder.embedding", "encoders.text.embedding", "encoders.sensor.maps"} <= set(names)
    assert [name for name in names if name.startswith("encoders.image.vit.blocks")]
    assert not [name for name in names if name.startswith(("encoders.audio", "decoder.transformer"))]
    assert not [name for name in once(model) if name.startswith("encoders") and name.endswith(".int4")]
    decoder: Any = model.get_submodule("decoder.transformer.blocks")
    rounds_inputs = [block.mlp.out.weight.activation_quantization is not None for block in decoder]
    assert rounds_inputs == [True, False]


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"decodr": "int8"}, r"converter.parts.decodr: .* there are embeddings, head, decoder, decoder.embedding"),
        ({"encoders": "none", "heads": "none", "fusion": "none", "decoder": "none"}, "nothing is left"),
    ],
)
def test_parts_that_are_not_there_are_refused(parts: Any, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Quantize(scheme="int4", parts=parts)(tiny_model())


def test_over_weights_of_four_bits_it_is_refused() -> None:
    with pytest.raises(UserError, match="qlora keeps weights in four bits already"):
        stirred(Lora(rank=2, base="nf4"), Quantize(scheme="int4"))


def test_where_integers_overflow_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "_int_mm", lambda a, b: (a.float() @ b.float()).clamp(-32768, 32767).int())
    with pytest.raises(UserError, match="int8 products overflow on this machine; take int8_int4 or int4"):
        Quantize(scheme="int4", parts={"decoder": "int8"})


def test_tied_ends_read_the_same_rounded_weight() -> None:
    quantize = Quantize(scheme="int4", group=GROUP)
    model = stirred(quantize)
    assert "tied, int4 at both" in quantize.told(model)
    ids = torch.arange(model.decoder.vocab)
    assert torch.equal(model.decoder.embedding(ids), model.decoder.unembedding)
    quantize.convert(model)
    assert isinstance(model.decoder.embedding, ByRow)
    assert torch.equal(model.decoder.embedding(ids), model.decoder.unembedding)


def test_ends_of_two_schemes_are_untied(tmp_path: Path) -> None:
    quantize = Quantize(scheme="int4", group=GROUP, parts={"head": "none"})
    model = stirred(quantize)
    assert "apart, int4 where pieces are read, none where said" in quantize.told(model)
    assert torch.equal(model.decoder.unembedding, tiny_model().decoder.unembedding)
    quantize.convert(model)
    names = {name for name in once(model) if name.startswith(("decoder.embedding", "decoder.head"))}
    assert names == {"decoder.embedding.weight.int4", "decoder.embedding.weight.scale", "decoder.head.weight"}


@pytest.mark.parametrize("adapters_first", [True, False])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("head", ["none", "int8", None])
def test_the_map_to_pieces_has_its_scheme_beside_adapters(adapters_first: bool, tied: bool, head: Any) -> None:
    def made(*converters: Any) -> MultimodalModel:
        model = tiny_model().eval()
        if not tied:
            torch.manual_seed(7)
            model.decoder.head = nn.Linear(model.decoder.width, model.decoder.vocab, bias=False)
        for convert in converters:
            convert(model)
        return model

    quantize = Quantize(scheme="int4", group=GROUP, parts={"head": head} if head else {})
    converters = [Lora(rank=2), quantize]
    model = made(*(converters if adapters_first else converters[::-1]))
    rounded = outputs(model)
    quantize.convert(model)
    assert max(differ(rounded, outputs(model)).values()) == 0
    names = {name for name in lora.base_state(model, once(model)) if name.startswith("decoder.head")}
    behind = {"none": {""}, "int8": {".int8", ".scale"}, None: {".int4", ".scale"}}[head]
    assert names == (set() if tied and head is None else {f"decoder.head.weight{end}" for end in behind})
    again = made()
    quantize.structure(again)
    assert set(once(again)) == set(lora.base_state(model, once(model)))


class Louder(nn.Linear):
    """A linear map that does more."""

    def forward(self, input: Tensor) -> Tensor:
        return 5 * super().forward(input)


def test_layers_that_do_more_stay_in_full_and_are_named() -> None:
    model = tiny_model().eval()
    blocks: Any = model.get_submodule("decoder.transformer.blocks.0")
    blocks.mlp.out = Louder(blocks.mlp.out.in_features, blocks.mlp.out.out_features, bias=False)
    blocks.attention.out.register_forward_hook(lambda module, given, made: 2 * made)
    fusion: Any = model.fusion
    fusion.odd = nn.MultiheadAttention(16, 2)
    fusion.thin = nn.Linear(1, 4)
    fusion.wide = nn.Linear(4, 4, dtype=torch.float64)
    fusion.two, fusion.names = [nn.Linear(4, 4)] * 2
    fusion.bound = nn.Embedding(4, 4, max_norm=1.0)
    quantize = Quantize(scheme="int4", group=GROUP)
    quantize(model)
    told = quantize.told(model).partition("in full, being more than plain: ")[2].split(", ")
    assert set(told) == {
        "decoder.transformer.blocks.0.mlp.out", "decoder.transformer.blocks.0.attention.out", "fusion.odd.out_proj",
        "fusion.thin", "fusion.wide", "fusion.two", "fusion.bound",
    }  # fmt: skip
    rounded = outputs(model)
    quantize.convert(model)
    assert max(differ(rounded, outputs(model)).values()) == 0


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_under_autocast_it_is_one_model_too(scheme: Any) -> None:
    quantize = Quantize(scheme=scheme, group=GROUP)
    model = stirred(quantize)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = outputs(model)
        quantize.convert(model)
        assert max(differ(rounded, outputs(model)).values()) == 0


def test_adapters_can_be_merged_before_weights_are_rounded() -> None:
    quantize = Quantize(scheme="int8", adapters="merge")
    model = stirred(Lora(rank=2), quantize)
    rounded = outputs(model)
    with lora.switched_off(model):
        without = outputs(model)
    quantize.convert(model)
    assert lora.names(model) == []
    far = differ(rounded, outputs(model))["logits"]
    assert 0 < far < 0.5 * differ(rounded, without)["logits"]  # near, and not the same: another sum is rounded


@pytest.mark.parametrize(("width", "group", "nearest"), [(128, 32, 32), (344, 32, 43), (16, 32, 16), (97, 32, 97)])
def test_the_divisor_of_a_row_that_is_nearest(width: int, group: int, nearest: int) -> None:
    assert nearest_divisor(width, group) == nearest
