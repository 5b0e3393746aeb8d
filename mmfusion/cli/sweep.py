"""`mmfusion sweep`."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmfusion.cli.flags import config_dir, positive
from mmfusion.cli.start import for_good

if TYPE_CHECKING:
    from mmfusion.sweep.result import Tried
    from mmfusion.sweep.space import Sweep
    from mmfusion.sweep.study import Study
    from mmfusion.sweep.trial import How

HELP = "search a space of values, each trial a run"
DESCRIPTION = """\
Search the space of conf/sweep/NAME.yaml: Optuna suggests values, each trial is a run of `mmfusion train` in a process
of its own, judged on the validation split. Bad trials are ended early, failed ones are told, and the same command goes
on where a sweep was stopped or killed."""
EXAMPLES = """\
  mmfusion sweep quickstart                         learning rate and sizes of the quickstart
  mmfusion sweep quickstart --dry-run               what would be run
  mmfusion sweep quickstart --trials 40             go on with one of fewer trials
  mmfusion sweep mine --config-dir my_conf --jobs 2 --folder sweeps/mine data.root=shards"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="of a file conf/sweep/NAME.yaml, ours or in --config-dir")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="what holds for all trials, as train takes it"
    )
    parser.add_argument("--trials", type=positive, metavar="N", help="how many in all (what the file says)")
    parser.add_argument(
        "--jobs", type=positive, default=1, metavar="N", help="trials at once, which share the cores (1)"
    )
    parser.add_argument("--folder", metavar="FOLDER", help="where the sweep is kept (sweeps/NAME)")
    parser.add_argument("--dry-run", action="store_true", help="check all of it, print the first command, run nothing")
    config_dir(parser)


def run(options: argparse.Namespace) -> int:
    with for_good():
        from mmfusion import config
        from mmfusion.cli.settle import settled
        from mmfusion.sweep import process, space

    where = Path(options.config_dir) if options.config_dir else None
    file, sweep = space.read(options.name, where)
    sweep = sweep.overridden(options.overrides)
    if options.trials:
        sweep = sweep.model_copy(update={"trials": options.trials})
    own = ["paths.run=unused", "paths.id=unused"]  # of no trial: what is left is the same each time
    trees = space.check(file, sweep, lambda given: settled(config.compose([*given, *own], where)))
    folder = Path(options.folder or f"sweeps/{options.name}")
    if options.dry_run:
        return _dry(file, sweep, folder)
    devices = trees[0]["trainer"].get("devices")
    ranks = devices if isinstance(devices, int) and devices > 0 else 1
    if options.jobs > max(1, (cores := process.cores()) // ranks):
        options.parser.error(f"--jobs {options.jobs}: wants {options.jobs * ranks} cores, of {cores}; give fewer")
    return _search(options, sweep, _how(folder, trees, where), ranks, _configured(trees[0]))


def _how(folder: Path, trees: Sequence[dict[str, Any]], where: Path | None) -> How:
    """What all trials share, read from the configurations that were checked."""
    from mmfusion import config
    from mmfusion.cli.resume import ours
    from mmfusion.sweep.trial import How

    own = sorted({str(target) for tree in trees for _, target in config.targets(tree)} - ours(list(trees)))
    return How(
        folder=folder,
        seed=trees[0]["seed"],
        steps=trees[0]["steps"],
        best=trees[0].get("keep") == "best",
        more=["--config-dir", str(where)] if where else [],
        allow=[word for target in own for word in ("--allow", target)],
    )


def _configured(tree: Mapping[str, Any]) -> dict[str, str]:
    """A digest of each part of a configuration."""
    parts = {name: json.dumps(part, sort_keys=True, default=str) for name, part in tree.items() if name != "paths"}
    return {name: hashlib.sha256(part.encode()).hexdigest()[:16] for name, part in parts.items()}


def _search(options: argparse.Namespace, sweep: Sweep, how: How, ranks: int, configured: Mapping[str, str]) -> int:
    import torch

    from mmfusion.sweep import process, search, study

    with study.alone(how.folder):
        kept = study.Study(how.folder, sweep, configured)
        try:
            search.tidy_all(kept, how.folder)
            _begin(kept, options, how.folder)
            gpus = torch.cuda.device_count()
            search.search(
                kept,
                how,
                trials=sweep.trials,
                jobs=options.jobs,
                share=lambda slot: process.shared(process.cores(), options.jobs, ranks, slot, gpus),
                told=lambda one: print(_line(one, sweep), flush=True),
            )
            return _end(kept, options.name, how.folder, Path(options.config_dir) if options.config_dir else None)
        except (KeyboardInterrupt, SystemExit):
            print(f"go on with: {_again(options)}", file=sys.stderr)
            raise
        finally:
            kept.close()


def _dry(file: Path, sweep: Sweep, folder: Path) -> int:
    """What would be run: the space, and the first trial's command."""
    from mmfusion.sweep import space, study

    print(f"{file}: {sweep.trials} trials of {sweep.repeats} run{'s' * (sweep.repeats > 1)}, {sweep.direction} "
          f"{sweep.metric}, into {folder}")  # fmt: skip
    for key, one in sweep.space.items():
        told = ", ".join(map(space.short, one.ends)) if one.kind == "choice" else f"{one.low:g} to {one.high:g}"
        print(f"  {key}  {one.kind} {told}{' on a log scale' if getattr(one, 'log', False) else ''}")
    first = study.suggested(sweep, [])
    assert first is not None
    command = ["mmfusion", "train", *sweep.arguments(study.given(sweep, first))]
    print(f"the first would be: {shlex.join(command)}")
    return 0


def _begin(kept: Study, options: argparse.Namespace, folder: Path) -> None:
    there, wanted = kept.trials(), kept.sweep.trials
    left = len(kept.unfinished())
    print(f"sweep folder  {folder}")
    if kept.renewed:
        print(f"its {kept.renewed} trials all failed; it begins anew")
    if len(there) >= wanted and not left:
        print(f"its {len(there)} trials are there already; go on to more with --trials {len(there) + 10}")
    elif there:
        print(f"{len(there)} of {wanted} trials are there" + (f", {left} to be gone on with" if left else ""))
    sys.stdout.flush()


def _line(one: Tried, sweep: Sweep) -> str:
    from mmfusion.sweep.space import short

    values = ", ".join(f"{key} {short(value)}" for key, value in one.values.items())
    came = "" if one.value is None else f"{sweep.metric} {one.value:.4g}"
    came += "" if one.sd is None else f" (sd {one.sd:.2g}, n {one.n})"
    told = one.message if one.state != "done" else ""
    return (
        f"trial {one.number:<3} {one.state:<7} {', '.join(filter(None, (came, told)))}  [{values}]  {one.seconds:.0f} s"
    )


def _end(kept: Study, name: str, folder: Path, where: Path | None) -> int:
    from mmfusion.report import sweep as page
    from mmfusion.report import terminal
    from mmfusion.sweep import winner
    from mmfusion.sweep.result import result

    found = result(kept, name, folder)
    print()
    terminal.show(terminal.tried(found))
    if found.importance:
        print()
        terminal.show(terminal.importance(found))
    file, command = winner.write(found, where) if found.best else (None, "")
    page.write(folder / "sweep.html", found, command)
    if file is None:
        print("mmfusion: no trial is done, so there is no best one; the table says why", file=sys.stderr)
        if all(one.state == "failed" for one in found.tried):
            kept.give_up()
        return 1
    print(f"\nbest          {file}\ntrain it      {command}")
    print(
        f"page          {folder / 'sweep.html'}  (open it in a browser: {(folder / 'sweep.html').resolve().as_uri()})"
    )
    return 0


def _again(options: argparse.Namespace) -> str:
    """The command that goes on with this sweep."""
    flags = {"--trials": options.trials, "--folder": options.folder, "--config-dir": options.config_dir,
             "--jobs": options.jobs if options.jobs > 1 else None}  # fmt: skip
    given = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    return shlex.join(["mmfusion", "sweep", options.name, *given, *options.overrides])
