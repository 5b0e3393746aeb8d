"""`launcher=slurm`: a run as a job of SLURM. submitit writes the script and hands it in; the job runs `mmfusion train`.

The command stands in the script as it would be typed: nothing is pickled. Shortly before its time is up the job hears
SIGTERM, ends its step and leaves a resume point; `resume=RUN launcher=slurm` goes on.
"""

from __future__ import annotations

import io
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt, MinLen
from omegaconf import DictConfig

from mmfusion import config, runs
from mmfusion.cli.resume import split_resume
from mmfusion.errors import UserError
from mmfusion.sweep.space import assigned, key_of

KEY = "launcher"
WARNED_S = 120  # before the end of a job's time
Name = Annotated[str, MinLen(1)]


@dataclass(frozen=True)
class Slurm:
    """What a job asks for: nodes and tasks are the trainer's; `setup` are shell lines before the command.

    `gpus_per_node` is the trainer's devices where its accelerator is gpu, and none else, if it is not given.
    """

    minutes: Annotated[int, Gt(WARNED_S // 60)] = 60
    partition: Name | None = None
    account: Name | None = None
    qos: Name | None = None
    constraint: Name | None = None
    cpus_per_task: Annotated[int, Gt(0)] | None = None
    gpus_per_node: Annotated[int, Gt(0)] | None = None
    memory_gb: Annotated[int, Gt(0)] | None = None
    setup: list[str] = field(default_factory=list)
    dry_run: bool = False


def wanted(cfg: DictConfig) -> bool:
    """Whether the run is to be handed in: it asks for it, and this is not the job already."""
    return bool(cfg.get(KEY)) and os.environ.get("SUBMITIT_EXECUTOR") != "slurm"


def without(overrides: Sequence[str]) -> list[str]:
    """Overrides that are not about the launcher."""
    return [one for one in overrides if key_of(one).partition(".")[0] != KEY]


def of_resumed(cfg: DictConfig, overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """A run that goes on, with the launcher that is asked for now: it is no part of the run."""
    about = [one for one in overrides if one not in without(overrides)]
    cfg[KEY] = config.compose(about, config_dir).get(KEY) if about else None
    return cfg


def submit(tree: Mapping[str, Any], overrides: Sequence[str], more: Sequence[str]) -> int:
    """Hand the run in, or print the script that would be; `more` are the flags behind its overrides.

    Raises UserError where there is no SLURM, or it refuses the job, or the run's folder is used already.
    """
    slurm: Slurm = config.build(tree[KEY])
    run, rest = split_resume(without(overrides))
    if not run:
        runs.refuse_used(Path(tree["paths"]["run"]))
    given = [f"resume={run}"] if run else [assigned("paths.run", tree["paths"]["run"])]
    rest = [one for one in rest if key_of(one) != "paths.run"]
    command = shlex.join([sys.executable, "-m", "mmfusion.cli.main", "train", *rest, *given, *more])
    parameters = _parameters(slurm, tree)
    folder = Path(tree["paths"]["run"]).absolute().parent / ".slurm"
    from submitit.slurm import slurm as of_submitit

    if slurm.dry_run:
        print(of_submitit._make_sbatch_string(command=command, folder=folder, **parameters))
        return 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        executor = of_submitit.SlurmExecutor(folder=folder)
        executor.update_parameters(**parameters)
        with redirect_stderr(io.StringIO()):  # what sbatch says is in the error too
            job = executor._submit_command(command)
    except (RuntimeError, OSError) as error:  # no srun here; what sbatch said; submitit's own errors
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"launcher=slurm: {reason}; launcher.dry_run=true prints the script") from error
    print(f"job           {job.job_id}\nrun folder    {tree['paths']['run']}\nlog           {job.paths.stdout}")
    return 0


def _parameters(slurm: Slurm, tree: Mapping[str, Any]) -> dict[str, Any]:
    """submitit's names for what is asked for; None is left out by it."""
    trainer = tree["trainer"]
    devices = trainer.get("devices", 1)
    if not isinstance(devices, int) or devices < 1:
        raise config.ConfigError([f"trainer.devices: {devices!r} is not known before the job; give a number"])
    on_gpus = trainer.get("accelerator") in ("gpu", "cuda")
    if on_gpus and slurm.gpus_per_node and slurm.gpus_per_node < devices:
        told = f"launcher.gpus_per_node={slurm.gpus_per_node}: {devices} processes of a node want a GPU each"
        raise config.ConfigError([f"{told}; leave it out, or set trainer.devices"])
    found = {
        "job_name": str(tree["name"]),
        "time": slurm.minutes,
        "nodes": trainer.get("num_nodes", 1),
        "ntasks_per_node": devices,
        "gpus_per_node": slurm.gpus_per_node or (devices if on_gpus else None),
        "cpus_per_task": slurm.cpus_per_task,
        "mem": slurm.memory_gb and f"{slurm.memory_gb}GB",
        "setup": slurm.setup or None,
        "additional_parameters": {"signal": f"TERM@{WARNED_S}"},  # submitit's own is one that would end training
        "srun_args": ["--kill-on-bad-exit=1"],
        "stderr_to_stdout": True,
    }
    found |= {name: getattr(slurm, name) for name in ("partition", "account", "qos", "constraint")}
    return {name: value for name, value in found.items() if value is not None}
