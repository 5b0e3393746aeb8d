"""What a command line may hold, and the one line that a stranger reads where it is wrong."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from mmfusion import config
from mmfusion.config import ConfigError


def refusal(*arguments: str, config_dir: Path | None = None) -> str:
    """The one line that composing and resolving end in."""
    with pytest.raises(ConfigError) as refused:
        config.plain(config.compose(arguments, config_dir))
    assert len(refused.value.problems) == 1
    assert "\n" not in refused.value.problems[0]
    return refused.value.problems[0]


def test_overrides_reach_keys_that_only_a_signature_knows() -> None:
    given = ["optim.fused=true", "model=tiny", "objective=[contrastive,captioning]", "+a=1", "~b", "~model/audio"]
    assert config.as_overrides(given, [config.conf_dir()]) == ["++optim.fused=true", *given[1:]]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("model=tinny", "model=tinny: no such option; did you mean 'tiny'?"),
        ("model=", "model=: no such option; there are: "),
        ("objective=[contrastive,captoining]", "objective=captoining: no such option; did you mean 'captioning'?"),
        ("optim=5", "optim=5: no such option; there are: "),
        ("optim=null", "optim=null: a group is set to no name; give optim=NAME, or ~optim to leave it out"),
        ("model.image=naflex", "model.image=naflex: model.image is no group; did you mean model/image=naflex?"),
        ("fusion=prefix", "fusion=prefix: fusion is no group; did you mean model/fusion=prefix?"),
        ("model.fusion=prefix", "model.fusion is no group; did you mean model/fusion=prefix?"),
        ("model.encoders.audio=null", "did you mean ~model/audio to leave out all of it?"),
        ("overfit", "overfit: not of the form key=value (missing EQUAL at '<EOF>'); did you mean debug=overfit?"),
        ("steps", "did you mean steps=VALUE?"),
        ("optim.betas=0.9,0.98", "a list is 'optim.betas=[0.9,0.98]', a text 'optim.betas=\"0.9,0.98\"'"),
        ("--fast", "--fast: no such option"),
    ],
)  # fmt: skip
def test_what_a_command_line_gets_wrong_is_told_with_what_was_meant(argument: str, expected: str) -> None:
    assert expected in refusal(argument)


@pytest.mark.parametrize("text", ["What's this?", "a, b", 'say "a"', "été", "a=b", "it's $HOME, isn't it"])
def test_the_quotes_that_a_refusal_prints_hold_the_text_as_it_was(text: str) -> None:
    line = refusal(f"name={text}")
    _, _, quoted = line.partition("a text " if "several" in line else "quote text: ")
    (argument,) = shlex.split(quoted.removesuffix(", one run for each needs train -m"))
    assert OverridesParser.create().parse_override(argument).value() == text


def test_a_sweep_is_for_those_who_ask_for_one() -> None:
    assert config.as_overrides(["seed=0,1"], [config.conf_dir()], sweep=True) == ["++seed=0,1"]
    assert "one run for each needs train -m" in refusal("seed=0,1")


def test_what_takes_its_value_from_a_part_left_out_is_named_with_the_way_out() -> None:
    said = refusal("~model/text")
    assert said.startswith("model.heads.image.out: is taken from model.heads.text.out, which is not there")
    assert said.endswith("~model.heads.image")
    without = config.plain(config.compose(["~model/audio", "name=x"]))
    assert set(without["model"]["encoders"]) == set(without["data"]["pipeline"]["patchify"]) | {"text"}


def test_a_value_that_nobody_gave_is_asked_for() -> None:
    assert refusal("data=shards") == "data.root: has no value yet; give data.root=VALUE"


def test_configuration_folders_that_lack_something(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    (tmp_path / "file").write_text("")
    assert refusal(config_dir=tmp_path / "nowhere").endswith("nowhere: no such folder")
    assert refusal(config_dir=tmp_path / "file").endswith("file: no such folder")
    assert "holds no GROUP/NAME.yaml" in refusal(config_dir=tmp_path)
    mine = tmp_path / "optim" / "mine.yaml"
    for content, expected in [
        (b"lr: [1\nb: }", f'"{mine}", line 2'),
        (b"lr: \xff", f"{mine}: not text in UTF-8"),
        (b"_target_: torch.optim.AdamW\nlr: ${optm.lr}", "optim.lr: is taken from optm.lr, which is not there"),
    ]:
        mine.write_bytes(content)
        assert expected in refusal("optim=mine", config_dir=tmp_path)
    assert "optim=mime: no such option; did you mean 'mine'?" in refusal("optim=mime", config_dir=tmp_path)


def test_a_tree_of_ones_own_is_searched_beside_ours_and_listed(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Mine: seven steps.\n# needs: gpu\nname: mine\nsteps: 7\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    cfg = config.compose(["experiment=mine"], tmp_path)
    assert (cfg.name, cfg.steps) == ("mine", 7)
    options = {(option.group, option.name): option for option in config.listing("experiment", tmp_path)}
    mine, quickstart = options["experiment", "mine"], options["experiment", "quickstart"]
    assert (mine.about, mine.needs, mine.default, mine.tree) == ("Mine: seven steps.", "gpu", False, str(tmp_path))
    assert (quickstart.default, quickstart.tree) == (True, "conf")
    with pytest.raises(ConfigError, match="no such group; did you mean 'model'"):
        config.listing("modle")


def test_the_default_of_each_group_is_marked() -> None:
    marked = {f"{option.group}={option.name}" for option in config.listing() if option.default}
    assert marked >= {
        "data=sample",
        "model=tiny",
        "model/image=naflex",
        "objective=captioning",
        "objective=contrastive",
    }
    assert not marked & {"data=shards", "evaluation=none", "debug=one_step"}
    assert all(option.about for option in config.listing())
