"""The losses of pairs and of single answers are TRL's, on the same weights and texts."""

from __future__ import annotations

from functools import partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from mmfusion.data.batching import Collate, Document, Prepared, Turn
from mmfusion.models.attention.rules import Causal, Places
from mmfusion.models.attention.rules import Document as Own
from mmfusion.objectives.functional import dpo, ipo, kto, log_probability
from mmfusion.objectives.kto import Kto
from mmfusion.objectives.reward import Reward
from mmfusion.types import Batch, Outputs, Rows

PAIRS = {
    "prompt": ["a b", "c", "b b a", "d"],
    "chosen": [" c d d", " a", " d c", " b a b"],
    "rejected": [" b", " c d a b", " a", " d d"],
}


SINGLE = {  # all begin with `a` and end with `?`, as ours do with pieces of their own
    "prompt": ["a b ?", "a c c d ?", "a d b ?", "a a ?"],
    "completion": [" c d d", " a", " d c", " b a b c"],
    "label": [True, False, False, True],
}
HOW = {"per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "disable_tqdm": True, "bf16": False}


def llama(seed: int, kind: str = "LlamaForCausalLM", **more: Any) -> Any:
    transformers = import_module("transformers")
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ends: dict[str, Any] = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    config = transformers.LlamaConfig(vocab_size=12, **sizes, **ends, initializer_range=0.5, **more)
    return getattr(transformers, kind)(config)


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
    config = trl.DPOConfig(
        output_dir=str(tmp_path), loss_type=[loss_type], gradient_checkpointing=False, beta=0.3, **HOW
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
    same(ours(policy, reference, length).mean(), theirs, trainer.model)


def same(mine: Tensor, theirs: Tensor, model: Any) -> None:
    """Value, and gradient of every weight."""
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    weights = list(model.parameters())
    gradients = [torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True) for loss in (mine, theirs)]
    assert any(gradient is not None and gradient.any() for gradient in gradients[0])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5)


def packed(data: Any) -> Batch:
    """Prompts and completions, as TRL cut them, as documents with one scored answer each, two in a row."""
    pieces: Any = SimpleNamespace(pad=0, begin=3, end=1, assistant=2)
    documents = [
        Document(
            (Turn((tuple(one["prompt_ids"][1:-1]),), None),),
            ((tuple(one["completion_ids"][:-1]), float(one["label"])),),
        )
        for one in data
    ]
    return Collate({}, pieces, 16)([Prepared(str(i), i, i, (), (one,)) for i, one in enumerate(documents)])


def read(model: Any, batch: Batch) -> Outputs:
    """A Llama under our rule, several documents a row."""
    rows = batch.rows
    places = Places(rows.document, rows.position, rows.answer)
    allowed = (Causal() & Own())(places, places)
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    hidden = model.model(rows.ids, attention_mask=mask, position_ids=rows.position).last_hidden_state
    return Outputs({}, {}, hidden, model.lm_head.weight)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_single_answers_is_trls(tmp_path: Path) -> None:
    """Answers to other prompts, among them."""
    datasets, trl = import_module("datasets"), import_module("trl")
    weights = {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7}
    trainer: Any = trl.KTOTrainer(
        model=llama(1), ref_model=llama(0), processing_class=tokenizer(),
        args=trl.KTOConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **weights, **HOW),
        train_dataset=datasets.Dataset.from_dict(SINGLE),
    )  # fmt: skip
    data = list(trainer.train_dataset)
    theirs = trainer._compute_loss(trainer.model, trainer.data_collator(data), return_outputs=False)
    objective = Kto(loss=partial(kto, **weights))
    objective.frozen = partial(read, trainer.ref_model)
    batch = objective.views(packed(data))
    losses = objective(read(trainer.model, batch), batch)
    mean = losses["kto"].sum / objective.count(packed(data))
    assert float(losses["kto/divergence"].sum) > 0  # else it would be held at 0 and say nothing
    same(mean, theirs, trainer.model)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_of_a_reward_model_is_trls(tmp_path: Path) -> None:
    datasets, trl = import_module("datasets"), import_module("trl")
    pairs = {**PAIRS, "margin": [0.5, 0.25, 2.0, 1.0]}  # equal scores are no pair
    trainer: Any = trl.RewardTrainer(
        model=llama(0, "LlamaForSequenceClassification", num_labels=1), processing_class=tokenizer(),
        args=trl.RewardConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **HOW),
        train_dataset=datasets.Dataset.from_dict(pairs),
    )  # fmt: skip
    given = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(given))
    ids, real = given["input_ids"], given["attention_mask"].bool()
    of = torch.arange(4).repeat_interleave(2)
    answer = torch.cat([torch.arange(0, 8, 2), torch.arange(1, 8, 2)])[:, None]  # the first half of theirs is chosen
    zero = torch.zeros_like(ids)
    score = torch.stack([given["margin"], torch.zeros(4)], dim=1).flatten()
    rows = Rows(
        ids, zero, answer // 2 + zero, zero, zero - 1, torch.where(real, answer, -1), torch.arange(4), of, score
    )
    objective = Reward(margin=1.0)
    objective.tokenizer = cast("Any", SimpleNamespace(score=0))
    nobody = torch.arange(4)
    batch = Batch(streams={}, rows=rows, keys=("",) * 4, concept=nobody, seeds=nobody)
    hidden = trainer.model.model(ids, attention_mask=given["attention_mask"]).last_hidden_state
    loss = objective(Outputs({}, {}, hidden, trainer.model.score.weight), batch)["reward"]
    same(loss.sum / loss.count, theirs, trainer.model)
