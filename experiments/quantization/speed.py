"""How long one picture takes, int8 beside the same model in full, in turn (Q5).

uv run python experiments/quantization/speed.py             rows of results.speed.json, about 5 minutes on two cores
uv run python experiments/quantization/speed.py --quick     the tiny model alone, within 180 s
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from experiments.results import matrix_gflops, row, save
from mmfusion import api, config
from mmfusion.cli.settle import settled
from mmfusion.converters.quantize import Quantize
from mmfusion.data.tokenizer import SentencePieceTokenizer

HERE = Path(__file__).parent
COMMAND = "uv run python experiments/quantization/speed.py"
PIECES = 8  # of a caption; random weights hardly ever end one
PAIRS = 25
PRODUCTS = ("aten::_int_mm", "aten::mm", "aten::addmm", "aten::bmm")


def model(size: str) -> api.Model:
    """A model of this size with random weights: how long it takes does not depend on what it has learnt."""
    tree = settled(config.compose(["paths.run=unused", f"model={size}"]))
    torch.manual_seed(0)
    pipeline = config.build({**tree["data"]["pipeline"], "_partial_": True})
    tokenizer = SentencePieceTokenizer(Path(tree["data"]["tokenizer"]))
    return api.Model(config.build(tree["model"]), pipeline(tokenizer=tokenizer), {})


def pairs(full: Callable[[], Any], int8: Callable[[], Any]) -> tuple[float, float, float]:
    """The median over pairs of int8's time over that in full, and both medians in ms."""
    for _ in range(3):
        full()
        int8()
    taken = []
    for k in range(PAIRS):
        of_pair = {}
        for name, call in [("full", full), ("int8", int8)][:: 1 if k % 2 else -1]:
            began = time.perf_counter()
            call()
            of_pair[name] = time.perf_counter() - began
        taken.append(of_pair)
    medians = [statistics.median(one[name] for one in taken) * 1e3 for name in ("full", "int8")]
    return statistics.median(one["int8"] / one["full"] for one in taken), *medians


def shares(call: Callable[[], Any]) -> dict[str, float]:
    """Of the time in torch's operators: how much is products, and how many operators there are."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        call()
    events = seen.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    products = sum(event.self_cpu_time_total for event in events if event.key in PRODUCTS)
    calls = sum(event.count for event in events if event.key.startswith("aten::"))
    return {"share of products": products / total, "operators": calls}


def measured(size: str) -> list[dict[str, Any]]:
    """Q5: one picture's embedding and caption."""
    picture = np.random.default_rng(0).integers(0, 255, (48, 48, 3), dtype=np.uint8)
    full = model(size)
    int8 = api.Model(Quantize(scheme="int8").convert(copy.deepcopy(full.network)), full.pipeline, {})  # pyright: ignore[reportArgumentType]
    calls = {
        "embedding": lambda of: of.embed(image=picture),
        "caption": lambda of: of.generate(image=picture, max_new=PIECES),
    }
    rows = []
    for name, call in calls.items():
        ratio, in_full, in_int8 = pairs(lambda call=call: call(full), lambda call=call: call(int8))
        beside = {"full ms": in_full, "int8 ms": in_int8, "matrix GFLOP/s": matrix_gflops()}
        for what, of in (("full", full), ("int8", int8)):
            beside |= {f"{what}, {key}": value for key, value in shares(lambda call=call, of=of: call(of)).items()}
        rows.append(
            row(f"Q5.{size}.{name}", f"one picture's {name}, model={size}, int8 over full, both eager", ratio, "times",
                n=PAIRS, must="<= 0.7", beside=beside)
        )  # fmt: skip
        print(f"{ratio:.3f}  {rows[-1]['what']}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="model=tiny; writes results.speed.quick.json")
    options = parser.parse_args()
    sizes = ("tiny",) if options.quick else ("tiny", "small", "base")
    rows = [one for size in sizes for one in measured(size)]
    save(HERE / f"results.speed{'.quick' if options.quick else ''}.json", rows, COMMAND)


if __name__ == "__main__":
    main()
