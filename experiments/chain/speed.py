"""Pairs a second of preference optimization, against TRL's DPOTrainer on the same weights and pairs.

uv run python experiments/chain/speed.py             rows of results.speed.json
uv run python experiments/chain/speed.py --quick     few steps, into results.speed.quick.json
uv run python experiments/chain/speed.py --profile   where our time goes, and nothing is written
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim import AdamW
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.results import matrix_gflops, row, save
from mmfusion.data.batching import Collate, Document, Prepared, Turn, document_length
from mmfusion.data.shards import ShardSet
from mmfusion.data.tokenizer import SentencePieceTokenizer, tokenizer_of
from mmfusion.models.attention.rules import Both, Causal
from mmfusion.models.attention.rules import Document as SameDocument
from mmfusion.models.decoder import Decoder
from mmfusion.models.fusion.prefix import Prefix
from mmfusion.models.multimodal import MultimodalModel
from mmfusion.objectives.functional import dpo
from mmfusion.objectives.preference import Preference
from mmfusion.training.reference import Frozen

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/chain/speed.py"
SAMPLE = Path("data_prep/sample")
WIDTH, DEPTH, HEADS, KV_HEADS, HIDDEN = 256, 4, 4, 2, 680
PAIRS, BETA, RATE, CLIP, ROW = 8, 0.1, 1e-4, 1.0, 1024  # pairs a step: TRL's own default
SHAPES = {"long prompt": ((150, 250), (10, 40)), "long answers": ((20, 60), (100, 200))}  # pieces, least and most
Step = Callable[[list[int]], float]
Pair = tuple[list[int], list[int], list[int]]


def pairs(shape: str, n: int, tokenizer: SentencePieceTokenizer) -> list[Pair]:
    """Prompts, better and worse answers, cut from the names of things in 24 languages, in a shuffled order."""
    chance = random.Random(0)
    shards = ShardSet(SAMPLE, "train")
    pieces: list[int] = []
    for number in chance.sample(range(len(shards)), len(shards)):
        for part in shards.read(number).of("text"):
            pieces += tokenizer.encode(f"{part.text} ")

    def some(bounds: tuple[int, int]) -> list[int]:
        length = chance.randint(*bounds)
        start = chance.randrange(len(pieces) - length)
        return pieces[start : start + length]

    prompt, answer = SHAPES[shape]
    return [(some(prompt), some(answer), some(answer)) for _ in range(n)]


def llama(vocab: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "max_position_embeddings": ROW, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1,
        "attn_implementation": "sdpa",
    }  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab, **sizes))


def same(theirs: LlamaForCausalLM, vocab: int) -> MultimodalModel:
    """Our decoder with a Llama's weights."""
    decoder = Decoder(
        vocab=vocab, width=WIDTH, depth=DEPTH, heads=HEADS, kv_heads=KV_HEADS, rule=Both(Causal(), SameDocument()),
    )  # fmt: skip
    state = theirs.state_dict()
    ours = {
        "embedding.weight": state["model.embed_tokens.weight"],
        "transformer.norm.weight": state["model.norm.weight"],
    }
    for k in range(DEPTH):
        here, there = f"transformer.blocks.{k}", f"model.layers.{k}"
        joined = {
            "attention_norm": ["input_layernorm"],
            "attention.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
            "attention.out": ["self_attn.o_proj"],
            "mlp_norm": ["post_attention_layernorm"],
            "mlp.gate_and_up": ["mlp.gate_proj", "mlp.up_proj"],
            "mlp.out": ["mlp.down_proj"],
        }
        for name, parts in joined.items():
            ours[f"{here}.{name}.weight"] = torch.cat([state[f"{there}.{part}.weight"] for part in parts])
    decoder.load_state_dict(ours)
    return MultimodalModel(encoders={}, heads={}, fusion=Prefix(widths={}, width=WIDTH), decoder=decoder)


def ours(
    weights: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: SentencePieceTokenizer,
    given: list[Pair],
    *,
    keep: bool,
) -> Step:
    """A step on pairs of these numbers, as documents of two answers, packed in rows; the reference a frozen copy, or
    what it said of all of them is known (`keep`)."""
    model = same(weights, tokenizer.size)
    objective = Preference(loss=partial(dpo, beta=BETA), keep=keep)
    objective.frozen = Frozen(same(reference, tokenizer.size))
    optimizer = AdamW(model.parameters(), lr=RATE, fused=True)
    prepared = [
        Prepared(str(k), k, k, (), (Document((Turn((tuple(p),), None),), ((tuple(c), 1.0), (tuple(r), 0.0))),))
        for k, (p, c, r) in enumerate(given)
    ]
    longest = max(document_length(one.documents[0], {}) for one in prepared)
    collate = Collate({}, tokenizer, -(-longest // 8) * 8)  # attention costs a row's square
    if keep:
        for k in range(0, len(prepared), PAIRS):
            made = collate(prepared[k : k + PAIRS])
            with torch.no_grad():
                objective(model(made), made)

    def step(numbers: list[int]) -> float:
        made = collate([prepared[k] for k in numbers])
        loss = objective(model(made), made)["preference"]
        mean = loss.sum / loss.count
        mean.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(mean.detach())

    return step


def trls(
    weights: LlamaForCausalLM,
    reference: LlamaForCausalLM,
    tokenizer: SentencePieceTokenizer,
    given: list[Pair],
    folder: Path,
    *,
    precompute: bool,
) -> Step:
    """A step of TRL's on pairs of these numbers: its collator, its loss with what it measures, its backward.

    Its gradient checkpointing and bf16, on by default, are slower here and off; the reference is its own frozen copy,
    or its log-probabilities are computed before (`precompute`).
    """
    words = _words(tokenizer)

    def text(ids: list[int]) -> str:
        return " ".join(f"<{k}>" for k in ids)

    columns = {
        "prompt": [text([tokenizer.begin, *prompt, tokenizer.assistant]) for prompt, _, _ in given],
        "chosen": [f" {text(chosen)} " for _, chosen, _ in given],  # the end, which is a word, is put behind it
        "rejected": [f" {text(rejected)} " for _, _, rejected in given],
    }
    how: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": PAIRS, "beta": BETA, "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "report_to": "none", "disable_tqdm": True,
        "max_length": ROW, "precompute_ref_log_probs": precompute, "max_grad_norm": CLIP,
    }  # fmt: skip
    trl = import_module("trl")  # which hides its names from a type checker
    trainer: Any = trl.DPOTrainer(
        model=weights, ref_model=reference, args=trl.DPOConfig(**how),
        processing_class=words, train_dataset=Dataset.from_dict(columns),
    )  # fmt: skip
    trainer.current_gradient_accumulation_steps = 1
    examples = [dict(example) for example in trainer.train_dataset]
    optimizer = AdamW(trainer.model.parameters(), lr=RATE, fused=True)
    trainer.optimizer = optimizer

    def step(numbers: list[int]) -> float:
        loss = trainer.training_step(trainer.model, trainer.data_collator([examples[k] for k in numbers]))
        nn.utils.clip_grad_norm_(trainer.model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss)

    return step


def _words(tokenizer: SentencePieceTokenizer) -> PreTrainedTokenizerFast:
    """A tokenizer whose words are our pieces' numbers, so that both read the same ids."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({f"<{k}>": k for k in range(tokenizer.size)}, unk_token="<0>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=f"<{tokenizer.pad}>", eos_token=f"<{tokenizer.end}>", unk_token="<0>"
    )


def bound(given: list[Pair]) -> float:
    """Places of TRL's padded batches for one piece of ours: how many times as fast we could be, had rows no padding and
    attention and the vocabulary no cost."""
    once = sum(2 + len(p) + len(c) + 1 + len(r) + 2 for p, c, r in given)
    twice = 0
    for k in range(0, len(given), PAIRS):
        batch = given[k : k + PAIRS]
        longest = max(len(p) + 2 + max(len(c), len(r)) + 1 for p, c, r in batch)
        twice += 2 * len(batch) * longest
    return twice / once


def compare(shape: str, steps: int, work: Path, precompute: bool) -> dict[str, Any]:
    """Pairs of steps in turn, ours and theirs, on the same batches; the first two are left out."""
    tokenizer = tokenizer_of(SAMPLE)
    assert tokenizer is not None
    given = pairs(shape, PAIRS * (steps + 2), tokenizer)
    our_step = ours(llama(tokenizer.size, 0), llama(tokenizer.size, 1), tokenizer, given, keep=precompute)
    their_step = trls(
        llama(tokenizer.size, 0), llama(tokenizer.size, 1), tokenizer, given, work / shape, precompute=precompute
    )
    seconds: dict[str, list[float]] = {"ours": [], "TRL": []}
    for k in range(steps + 2):
        numbers = list(range(PAIRS * k, PAIRS * (k + 1)))
        began = time.perf_counter()
        loss = our_step(numbers)
        between = time.perf_counter()
        their_loss = their_step(numbers)
        ended = time.perf_counter()
        if abs(loss - their_loss) > 1e-4:
            raise SystemExit(f"{shape}: step {k}: our loss is {loss:.6f}, TRL's {their_loss:.6f}")
        if k >= 2:
            seconds["ours"].append(between - began)
            seconds["TRL"].append(ended - between)
    ratios = [theirs / mine for mine, theirs in zip(seconds["ours"], seconds["TRL"], strict=True)]
    low, high = _interval(ratios)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    beside = {f"{name}, pairs/s": PAIRS / took for name, took in middle.items()}
    beside |= {"places of TRL's for one of ours": bound(given), "matrix GFLOP/s": matrix_gflops()}
    how = "what each reference says known before" if precompute else "each with a frozen copy as reference"
    must = ">= 1.5" if shape == "long prompt" and not precompute else None
    return row(f"L8{'.kept' if precompute else ''}.{shape.replace(' ', '-')}", f"pairs/s over TRL's, {shape}, {how}",
              statistics.median(ratios), "times", n=steps, ci95=[low, high], must=must, beside=beside)  # fmt: skip


def _interval(values: list[float]) -> tuple[float, float]:
    """Of the median, by resampling."""
    chance = random.Random(0)
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def profile() -> None:
    from torch.profiler import ProfilerActivity, profile

    tokenizer = tokenizer_of(SAMPLE)
    assert tokenizer is not None
    given = pairs("long prompt", PAIRS * 4, tokenizer)
    step = ours(llama(tokenizer.size, 0), llama(tokenizer.size, 1), tokenizer, given, keep=False)
    step(list(range(PAIRS)))
    with profile(activities=[ProfilerActivity.CPU]) as told:
        for k in range(1, 4):
            step(list(range(PAIRS * k, PAIRS * (k + 1))))
    print(told.key_averages().table(sort_by="self_cpu_time_total", row_limit=25, max_name_column_width=50))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few steps; writes results.speed.quick.json")
    parser.add_argument("--profile", action="store_true", help="print where our time goes")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)  # two that share their cores with something else wait for one another
    if options.profile:
        return profile()
    path = HERE / ("results.speed.quick.json" if options.quick else "results.speed.json")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for shape, known in (("long prompt", False), ("long answers", False), ("long prompt", True)):
            rows.append(compare(shape, 3 if options.quick else 10, Path(work), known))
            save(path, rows, COMMAND)
    return None


if __name__ == "__main__":
    main()
