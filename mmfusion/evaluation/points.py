"""A run's model along its training: with the weights of each resume point, and of its checkpoint."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from mmfusion import api, checkpoint, runs
from mmfusion.config import build, from_environment
from mmfusion.runs import RunError

MAX_TOKENIZER_BYTES = 50_000_000
PREFIX = "model."  # of the model among what a training module saves


def configuration(run: Path) -> dict[str, Any]:
    """What a run was configured with; empty where the folder is no run."""
    path = run / "config.yaml"
    return checkpoint.plain_yaml(path) if path.is_file() else {}


def steps(run: Path) -> dict[int, Path]:
    """The resume points that a run kept, the last ones and the best one, by step."""
    best = {
        runs.step_of(Path(point.name.removeprefix("best-"))): point for point in (run / "resume").glob("best-*.ckpt")
    }
    return dict(sorted({**best, **{runs.step_of(point): point for point in runs.resume_points(run)}}.items()))


def along(run: Path, allow: Collection[str] = ()) -> Iterator[tuple[int, api.Model]]:
    """Each step at which weights were kept, and the model with them: one model, valid until the next is asked for.

    In the order of the steps, also where the checkpoint has the best weights and not the last. Raises RunError for a
    run that kept none, and for a point that cannot be read.
    """
    points = steps(run)
    done = (run / "checkpoint").exists()
    if not points and not done:
        raise RunError(f"{run}: neither resume points nor a checkpoint yet; train it longer")
    model = api.load(run, allow) if done else _begun(run, allow)
    final = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    last = int(model.lineage["step"]) if done else -1
    kept = {*points, last} if done else {*points}
    for step in sorted(kept):
        if step == last:
            model.network.load_state_dict(final)
        else:
            _fill(model, points[step])
        yield step, model


def _begun(run: Path, allow: Collection[str]) -> api.Model:
    """The model that a run without a checkpoint describes, its weights drawn anew: read like any checkpoint."""
    tree = configuration(run)
    try:
        config = {"model": {**tree["model"]}, "pipeline": {**tree["data"]["pipeline"]}}
        tokenizer = Path(from_environment(tree["data"]["tokenizer"]))
    except (KeyError, TypeError) as error:
        raise RunError(f"{run}: no run folder (its config.yaml does not say {error})") from error
    names = checkpoint.buildable(allow)
    checkpoint.check_buildable(config, run / "config.yaml", names)
    if not tokenizer.is_file() or tokenizer.stat().st_size > MAX_TOKENIZER_BYTES:
        reason = f"no file of at most {MAX_TOKENIZER_BYTES // 1_000_000} MB"
        raise RunError(f"{run / 'config.yaml'}: data.tokenizer: {tokenizer}: {reason}; put the vocabulary there")
    with tempfile.TemporaryDirectory() as folder:
        network = build(config["model"], allow=names)
        checkpoint.save(
            Path(folder) / "checkpoint", config=config, model=network, tokenizer=tokenizer, lineage={}, card=""
        )
        return api.load(folder, allow)


def _fill(model: api.Model, point: Path) -> None:
    try:
        state = torch.load(point, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
        weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
        model.network.load_state_dict(weights)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        reason = " ".join(str(error).split())[:120]
        raise RunError(f"{point}: no weights of this run's model can be read ({reason}); remove the file") from error
