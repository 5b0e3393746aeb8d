"""The losses of pairs and of single answers are TRL's, on the same weights and texts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mmfusion.objectives.functional import dpo, ipo, log_probability

PAIRS = {
    "prompt": ["a b", "c", "b b a", "d"],
    "chosen": [" c d d", " a", " d c", " b a b"],
    "rejected": [" b", " c d a b", " a", " d d"],
}


def llama(seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=12, **sizes, **ends, initializer_range=0.5))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1, "?": 2, "a": 3, "b": 4, "c": 5, "d": 6}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>", unk_token="?")


def scored(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """log p and pieces of TRL's batch, whose first half is chosen, whose second is rejected: [n, 2] each."""
    hidden = model.model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, :-1]
    following, said = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:]
    each = log_probability(hidden.flatten(0, 1), model.lm_head.weight).view(*following.shape, -1)
    each = each.gather(2, following[:, :, None])[:, :, 0] * said
    return torch.stack(each.sum(1).chunk(2), dim=1), torch.stack(said.sum(1).chunk(2), dim=1)


@pytest.mark.parametrize(
    ("loss_type", "ours"),
    [
        ("sigmoid", lambda *pair: dpo(*pair, beta=0.3)),
        ("sigmoid_norm", lambda *pair: dpo(*pair, beta=0.3, per_piece=True)),
        ("ipo", lambda *pair: ipo(*pair, beta=0.3)),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_loss_of_pairs_is_trls(loss_type: str, ours: Any, tmp_path: Path) -> None:
    datasets, trl = import_module("datasets"), import_module("trl")
    how = {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "beta": 0.3, "disable_tqdm": True}
    config = trl.DPOConfig(
        output_dir=str(tmp_path), loss_type=[loss_type], gradient_checkpointing=False, bf16=False, **how
    )
    trainer: Any = trl.DPOTrainer(
        model=llama(0), ref_model=llama(1), args=config, processing_class=tokenizer(),
        train_dataset=datasets.Dataset.from_dict(PAIRS),
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer._compute_loss(trainer.model, batch, return_outputs=False)
    policy, length = scored(trainer.model, batch)
    with torch.no_grad():
        reference, _ = scored(trainer.ref_model, batch)
    mine = ours(policy, reference, length).mean()
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    weights = list(trainer.model.parameters())
    gradients = [torch.autograd.grad(loss, weights, retain_graph=True) for loss in (mine, theirs)]
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)
