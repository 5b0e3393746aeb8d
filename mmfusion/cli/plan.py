"""`mmfusion plan`: what a training step would cost, counted without running it."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cli.flags import configuration, positive, positive_number

if TYPE_CHECKING:
    from mmfusion.plan.budget import Budget
    from mmfusion.plan.measured import Measured
    from mmfusion.training.module import TrainingModule

HELP = "count parameters, FLOPs and memory of a configuration"
DESCRIPTION = """\
Count parameters, FLOPs and memory of the configuration that `train` would use, on the meta device: nothing is
trained and no weight is made. With data.root there, the first batch of the data is counted, else a made-up one."""
EXAMPLES = """\
  mmfusion plan                                               the quickstart experiment
  mmfusion plan experiment=base_gpu --gpu-gb 80 --tflops 400  will it fit, how long a step takes
  mmfusion plan experiment=large_gpu gradient_checkpointing=false data.batch_size=256 --json"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--gpu-gb", type=positive_number, metavar="GB", help="say whether it fits into so many 10^9 bytes"
    )
    parser.add_argument("--devices", type=positive, metavar="N", help="devices of all nodes (default: as configured)")
    parser.add_argument(
        "--tflops", type=positive_number, metavar="T", help="achieved by a device (default: measured here)"
    )
    help = "take two steps here, of one device, and print what they took beside what is counted"
    parser.add_argument("--measure", action="store_true", help=help)
    parser.add_argument("--json", action="store_true", help="print numbers for programs")
    configuration(parser)


def run(options: argparse.Namespace) -> int:
    from mmfusion.plan import budget, measured

    tree = _settled(options)
    nodes = (tree["data"], tree["trainer"])
    recompute = bool(tree.get("gradient_checkpointing"))
    # Measured first: what counting leaves in memory would hide what a step takes.
    taken = measured.take(_module(tree), *nodes, recompute=recompute) if options.measure else None
    found = budget.count(_module(tree), *nodes, recompute=recompute)
    flops = options.tflops * 1e12 if options.tflops else _measured()
    told = {
        "step_flops": found.step_flops,
        "flops_per_s": flops,
        "flops_measured": not options.tflops,
        "step_s": found.step_flops / flops,
        "memory_total": found.memory.total,
        "fits": found.memory.total <= options.gpu_gb * 1e9 if options.gpu_gb else None,
    }
    if options.json:
        beside = {"measured": dataclasses.asdict(taken)} if taken else {}
        print(json.dumps({**dataclasses.asdict(found), **told, **beside}, indent=1))
    else:
        _print(found, told, options.gpu_gb, taken)
    return 0


def _measured() -> float:
    import torch

    from mmfusion.training.speed import matrix_flops

    gpu = torch.cuda.is_available()
    return matrix_flops(torch.device("cuda" if gpu else "cpu"), torch.bfloat16 if gpu else torch.float32)


def _settled(options: argparse.Namespace) -> dict[str, Any]:
    from omegaconf import OmegaConf, open_dict

    from mmfusion import config
    from mmfusion.cli.settle import settled

    devices = [f"trainer.devices={options.devices}", "trainer.num_nodes=1"] if options.devices else []
    cfg = config.compose([*options.overrides, *devices], Path(options.config_dir) if options.config_dir else None)
    with open_dict(cfg):
        for key in ("root", "tokenizer"):  # a recipe can be counted before there is data
            if OmegaConf.is_missing(cfg.data, key):
                cfg.data[key] = "nowhere"
    return settled(cfg)


def _module(tree: dict[str, Any]) -> TrainingModule:
    from mmfusion import config
    from mmfusion.cli.session import train
    from mmfusion.training.module import TrainingModule

    wanted = ("model", "objective", "converter", "optim", "scheduler", "parameters")
    given = config.build_arguments({name: tree[name] for name in wanted if name in tree}, train)
    return TrainingModule(
        model=given["model"],
        objectives=given["objective"],
        weights={},
        optimizer=given["optim"],
        scheduler=given["scheduler"],
        seed=tree["seed"],
        parameters=given["parameters"],
        converters=given.get("converter"),
    )


def _print(found: Budget, told: dict[str, float], gpu_gb: float | None, taken: Measured | None) -> None:
    from rich.table import Table

    from mmfusion.console import console

    out = console()
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    names = {field.name: field.name.split("_")[0] for field in dataclasses.fields(found.parts[0])}
    for name, heading in names.items():
        values = [getattr(part, name) for part in found.parts]
        table.add_column(
            f"{heading} {_unit(name)}".strip(),
            justify="left" if name == "name" else "right",
            footer="sum" if name == "name" else _scaled(name, sum(values)),
        )
    for part in found.parts:
        table.add_row(*(_scaled(name, getattr(part, name)) for name in names))
    out.print(table)
    layout, memory = found.layout, found.memory
    dealt = f"{layout.devices} device{'s' * (layout.devices > 1)} x {layout.accumulate} x {layout.samples} samples"
    patches = ", ".join(f"{n:,} {name}" for name, n in found.patches.items())
    out.print(f"\nstep         {dealt}; patches: {patches}; {found.pieces:,} decoder pieces")
    out.print(f"counted on   {found.counted_on}")
    each = ", ".join(f"{name} {value / 1e9:.3g}" for name, value in dataclasses.asdict(memory).items())
    out.print(f"memory       {memory.total / 1e9:.2f} GB a device: {each};")
    out.print("             an estimate: what the allocator cannot use and other processes take is not in it")
    if taken:
        each = ", ".join(f"{name} {value / 1e9:.3g}" for name, value in dataclasses.asdict(taken).items())
        out.print(f"measured     {each} GB, of one device's second step")
    if gpu_gb:
        out.print(f"             {'fits' if told['fits'] else 'DOES NOT FIT'} into {gpu_gb:g} GB")
    how = "this machine's matrix peak, measured now" if told["flops_measured"] else "given"
    rate = f"{told['flops_per_s'] / 1e12:.3g} TFLOP/s a device ({how})"
    out.print(f"time         {told['step_s']:.3g} s a step: {told['step_flops'] / 1e12:.3g} TFLOP at {rate};")
    out.print("             an estimate: no data, communication or waiting in it")


def _unit(name: str) -> str:
    return {"flops": "GFLOP", "bytes": "MB"}.get(name.split("_")[-1], "")


def _scaled(name: str, value: object) -> str:
    if not isinstance(value, int):
        return str(value)
    return {"GFLOP": f"{value / 1e9:,.1f}", "MB": f"{value / 1e6:,.1f}"}.get(_unit(name), f"{value:,}")
