"""Adapters beside a model: what they change, leave alone, and give back."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor

from mmfusion.checkpoint import CheckpointError, adapter
from mmfusion.checkpoint.weights import once
from mmfusion.converters import lora
from mmfusion.converters.lora import Lora
from mmfusion.models.multimodal import MultimodalModel
from tests.models.tiny_multimodal import tiny_batch, tiny_model


def hidden(model: MultimodalModel) -> Tensor:
    with torch.no_grad():
        return model(tiny_batch()).hidden


def adapted(seed: int = 3, **how: object) -> MultimodalModel:
    """A tiny model with an adapter that does something."""
    model = tiny_model().eval()
    Lora(rank=2, **how)(model)  # pyright: ignore[reportArgumentType]
    stir(model, seed)
    return model


def stir(model: MultimodalModel, seed: int, name: str = lora.DEFAULT) -> None:
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if f".lora_B.{name}" in key:
                weight.normal_(std=0.3)


def test_a_new_adapter_changes_nothing_and_is_all_that_is_trained() -> None:
    model = tiny_model().eval()
    before = hidden(model)
    Lora(parts=["decoder", "encoders.image"], rank=2)(model)
    assert torch.equal(hidden(model), before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_" in name for name in trained)
    assert {name.partition(".")[0] for name in trained} == {"decoder", "encoders"}
    assert lora.names(model) == [lora.DEFAULT]


def test_a_part_without_linear_maps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no linear map below 'decoders'"):
        Lora(parts=["decoders"])(tiny_model())


def test_switched_off_it_is_the_model_without_and_back() -> None:
    before, model = hidden(tiny_model().eval()), adapted()
    own = hidden(model)
    assert not torch.allclose(own, before, atol=1e-3)
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    with lora.switched_off(model):
        assert torch.equal(hidden(model), before)
    assert torch.equal(hidden(model), own)
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == trained


@pytest.mark.parametrize("dora", [False, True])
def test_merged_it_says_the_same_and_no_adapter_is_left(dora: bool) -> None:
    model = adapted(dora=dora)
    own, names = hidden(model), set(tiny_model().state_dict())
    lora.merge(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(hidden(model), own, rtol=1e-4, atol=1e-5)
    Lora(rank=2)(model)  # and another one may come
    torch.testing.assert_close(hidden(model), own, rtol=1e-4, atol=1e-5)


def test_the_state_without_adapters_is_the_models_own() -> None:
    plain, model = once(tiny_model()), adapted()
    state = lora.base_state(model, once(model))
    assert list(state) == list(plain)
    assert all(torch.equal(state[name], plain[name]) for name in plain)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    adapter.save_adapter(tmp_path / "adapter", adapted(), "abc")
    return tmp_path / "adapter"


def test_saved_and_loaded_it_is_the_same_and_peft_loads_it_too(saved: Path) -> None:
    expected = hidden(adapted())
    model = tiny_model().eval()
    adapter.load_adapter(saved, model, "abc")
    assert torch.equal(hidden(model), expected)
    wrapped = peft.PeftModel.from_pretrained(tiny_model().eval(), str(saved))
    with torch.no_grad():
        assert torch.equal(wrapped(tiny_batch()).hidden, expected)


def test_several_stand_beside_one_base_and_are_switched(saved: Path, tmp_path: Path) -> None:
    adapter.save_adapter(tmp_path / "other", adapted(seed=8), "abc")
    model = tiny_model().eval()
    before = hidden(model)
    adapter.load_adapter(saved, model, "abc", "anna")
    adapter.load_adapter(tmp_path / "other", model, "abc", "ben")
    assert lora.names(model) == ["anna", "ben"]
    for name, expected in (("anna", hidden(adapted())), ("ben", hidden(adapted(seed=8))), (None, before)) * 2:
        lora.use(model, name)
        assert torch.equal(hidden(model), expected), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": "sha256:other"}, "an adapter for the weights sha256:other, not for sha256:abc"),
        ({"peft_type": "MEGATRON"}, "no low-rank adapter"),
        ({"r": "2"}, "no low-rank adapter"),
        ({"r": True}, "no low-rank adapter"),
        ({"r": 0}, "no low-rank adapter"),
        ({"lora_alpha": float("nan")}, "no low-rank adapter"),
        ({"target_modules": [1]}, "no low-rank adapter"),
        ({"target_modules": []}, "no low-rank adapter"),
        ({"target_modules": ["nowhere"]}, "does not have the tensors"),
        ({"target_modules": ["decoder"]}, "does not have the tensors"),
        ({"use_rslora": True}, "use_rslora would change what it does"),
        ({"alpha_pattern": {"decoder": 64}}, "alpha_pattern would change what it does"),
        ({"r": 3}, "does not have the tensors that its configuration asks for"),
        ({"target_modules": ["decoder.transformer.blocks.0.attention.qkv"]}, "does not have the tensors"),
    ],
)
def test_one_that_does_not_fit_is_refused(saved: Path, change: dict[str, object], message: str) -> None:
    config = json.loads((saved / adapter.CONFIG).read_text())
    (saved / adapter.CONFIG).write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        adapter.load_adapter(saved, tiny_model(), "abc")


def test_what_a_configuration_could_import_is_not_looked_at(saved: Path) -> None:
    """peft would import what `megatron_core` names."""
    config = json.loads((saved / adapter.CONFIG).read_text())
    config |= {"megatron_config": {"x": 1}, "megatron_core": "no.such.module", "auto_mapping": {"a": "b"}}
    (saved / adapter.CONFIG).write_text(json.dumps(config))
    model = tiny_model().eval()
    adapter.load_adapter(saved, model, "abc")
    assert torch.equal(hidden(model), hidden(adapted()))


def test_cut_or_missing_files_are_named(saved: Path) -> None:
    weights = saved / adapter.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match="it is cut"):
        adapter.load_adapter(saved, tiny_model(), "abc")
    weights.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        adapter.load_adapter(saved, tiny_model(), "abc")
