"""A run along its training: in which order, and what the config.yaml of one without a checkpoint may not do."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml

from mmfusion import api
from mmfusion.checkpoint import CheckpointError
from mmfusion.evaluation import points
from mmfusion.runs import RunError

TOKENIZER = Path("data_prep/sample/tokenizer/tokenizer.model").resolve()
CAUSAL = {"_target_": "mmfusion.models.attention.rules.Causal"}


def begun(run: Path, model: object, pipeline: Mapping[str, str] = CAUSAL, tokenizer: Path = TOKENIZER) -> Path:
    (run / "resume").mkdir()
    (run / "resume" / "step=1.ckpt").touch()
    data = {"pipeline": {**pipeline}, "tokenizer": str(tokenizer)}
    (run / "config.yaml").write_text(yaml.safe_dump({"model": model, "data": data}))
    return run


@pytest.mark.parametrize("where", ["model", "pipeline"])
def test_an_interpolation_is_refused_before_it_makes_a_node(tmp_path: Path, where: str) -> None:
    made = tmp_path / "made"
    forged = {**CAUSAL, "x": f"${{oc.create:{{_target_:os.mkdir,_args_:['{made}']}}}}"}
    nodes = {"model": CAUSAL, "pipeline": CAUSAL, where: forged}
    run = begun(tmp_path, nodes["model"], nodes["pipeline"])
    with pytest.raises(CheckpointError, match=rf"config\.yaml: {where}\.x: .* is not resolved"):
        next(points.along(run))
    assert not made.exists()


def test_a_foreign_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\._target_: 'os\.mkdir' is no class that a checkpoint may build"):
        next(points.along(begun(tmp_path, {"_target_": "os.mkdir", "path": str(tmp_path / "made")})))
    assert not (tmp_path / "made").exists()


def test_only_a_file_of_moderate_size_is_copied_as_a_tokenizer(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(points.MAX_TOKENIZER_BYTES + 1)
    for number, path in enumerate((large, Path("/dev/zero"), tmp_path, tmp_path / "none")):
        run = tmp_path / str(number)
        run.mkdir()
        with pytest.raises(RunError, match=r"config\.yaml: data\.tokenizer: .*: no file of at most 50 MB"):
            next(points.along(begun(run, CAUSAL, tokenizer=path)))


@pytest.mark.parametrize("model", [None, "text", [1]])
def test_a_configuration_without_a_model_is_none_of_a_run(tmp_path: Path, model: object) -> None:
    with pytest.raises(RunError, match="no run folder"):
        next(points.along(begun(tmp_path, model)))


def test_the_checkpoint_of_the_best_weights_stands_at_its_step(tiny_run: Path, tmp_path: Path) -> None:
    """Its step is 3; points were kept before and after it, here with every weight larger by their step."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    (run / "resume").mkdir()
    weights = api.load(run).network.state_dict()
    for step in (2, 5):
        moved = {points.PREFIX + name: tensor + step for name, tensor in weights.items()}
        torch.save({"state_dict": moved}, run / "resume" / f"step={step}.ckpt")
    first = float(weights["decoder.embedding.weight"][0, 0])
    found = [(step, model.network.decoder.embedding.weight[0, 0].item()) for step, model in points.along(run)]
    assert found == [(2, pytest.approx(first + 2)), (3, first), (5, pytest.approx(first + 5))]
