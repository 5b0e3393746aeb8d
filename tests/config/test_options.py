"""Every option of every group composes and is checked; those that a laptop can run take one real step.

A new YAML file is covered by being there. One that needs more than a laptop says so in the comment at its top
(`# needs: gpu`) and is not stepped; nor is one that starts processes (`# needs: processes`), which this one is not
the program of: see tests/cli/test_ddp.py; nor one for a cluster (`# needs: slurm`): tests/cli/test_slurm.py. A key it
needs (`# needs: checkpoint`) is given here.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data_prep import checks, conversations, preferences
from mmfusion import config
from mmfusion.cli.main import main
from mmfusion.cli.settle import settled
from mmfusion.config.listing import Option

SAMPLE = Path("data_prep/sample")
ONE_STEP = ["steps=1", "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "evaluation=none"]
ONE_STEP += ["data.workers=0", "data.batch_size=8"]
SHORTER = {"debug=find_lr": ["callbacks.find_lr.steps=21"]}  # it takes its own steps
RECIPES = ("experiment", "debug", "stage")  # change anything, so each is stepped alone
# Data that is made, here of the few samples.
MADE = {"stage=finetune": conversations, "stage=preference": preferences, "stage=reward": preferences}
MADE |= {"stage=policy": checks, "data=checks": checks}
MADE |= {"data=conversations": conversations, "data=preferences": preferences}
OPTIONS = [
    option for option in config.listing() if option.group != "sweep"
]  # no part of a run: tests/sweep/test_space.py
# Groups from which several options are chosen at once, with those chosen.
SEVERAL = {
    group: list(options)
    for entry in OmegaConf.load(config.conf_dir() / f"{config.ROOT}.yaml").defaults
    if OmegaConf.is_dict(entry)
    for group, options in entry.items()
    if OmegaConf.is_list(options)
}


def name_of(option: Option) -> str:
    return f"{option.group}={option.name}"


def chosen(option: Option) -> list[str]:
    """The argument that chooses it, beside the default ones where several can be."""
    if option.group not in SEVERAL:
        return [name_of(option)]
    return [f"{option.group}=[{','.join(dict.fromkeys([*SEVERAL[option.group], option.name]))}]"]


def needed(options: Sequence[Option], run: Path, root: Path) -> list[str]:
    """Values for the keys that options need; every run reads the shards in `root`."""
    data = [f"data.root={root}", f"data.tokenizer={root / 'tokenizer' / 'tokenizer.model'}"]
    return data + [f"checkpoint={run}" for option in options if "checkpoint" in option.needs]


NOT_HERE = ("gpu", "processes", "slurm")
ALONE = [option for option in OPTIONS if option.needs in NOT_HERE or not (option.default or option.group in RECIPES)]


@pytest.mark.parametrize("option", ALONE, ids=name_of)
def test_every_option_composes_and_is_checked(option: Option) -> None:
    """But those that the steps below compose in the same way."""
    settled(config.compose([*chosen(option), *needed([option], Path("run"), SAMPLE)]))


def rounds() -> list[list[Option]]:
    """Few runs that step every option: one of each group at a time, each recipe alone."""
    here = [option for option in OPTIONS if option.needs not in NOT_HERE]
    by_group: dict[str, list[Option]] = {}
    for option in here:
        if option.group not in RECIPES:
            by_group.setdefault(option.group, []).append(option)
    together = [[option for option in row if option] for row in zip_longest(*by_group.values())]
    return together + [[option] for option in here if option.group in RECIPES]


def names_of(options: Sequence[Option]) -> str:
    return "+".join(name_of(option) for option in options if not option.default) or "defaults"


@pytest.mark.parametrize("options", rounds(), ids=names_of)
def test_every_option_that_a_laptop_can_run_takes_one_step(
    options: list[Option], few: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    arguments = [argument for option in options if option.group != "evaluation" for argument in chosen(option)]
    trained = any("checkpoint" in option.needs for option in options)
    needs = needed(options, request.getfixturevalue("one_step_run") if trained else Path(), few)
    for script in [MADE[name] for name in map(name_of, options) if name in MADE]:
        script.prepare(tmp_path / "made", few)
        needs += [f"data.root={tmp_path / 'made'}", "data.weights=null"]
    shorter = [argument for option in options for argument in SHORTER.get(name_of(option), ())]
    assert main(["train", *arguments, *ONE_STEP, *needs, *shorter, f"paths.run={tmp_path / 'run'}"]) == 0
    assert {"metrics.json", "lr_find.csv"} & {file.name for file in (tmp_path / "run").iterdir()}
