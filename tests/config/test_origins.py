"""Each value is printed with what set it, and the print reads back as the same tree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Gt, Le, MinLen
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from mmfusion import config
from mmfusion.config.signatures import described, hints_of


class Wheel:
    def __init__(
        self, *, size: Annotated[int, Gt(0)], colour: Literal["red", "blue"] = "red", hub: object = Gt
    ) -> None:
        pass


def lines(*arguments: str, config_dir: Path | None = None, **how: Any) -> dict[str, str]:
    """The printed lines by their text, each with its comment."""
    text = printed(config.compose(arguments, config_dir), config.origins(arguments, config_dir), **how)
    return {line.strip(): comment for line, _, comment in (line.partition("  # ") for line in text.splitlines())}


def printed(cfg: DictConfig, found: dict[str, str], **how: Any) -> str:
    return config.commented(config.printable(cfg), found, config.interpolated(cfg), **how)


def test_the_last_of_files_and_command_line_is_named() -> None:
    found = lines("debug=overfit", "optim.weight_decay=0.1", "data.limits={pixels: 9}", key="")
    assert found["root: data_prep/sample"] == "conf/data/sample.yaml"  # over that of conf/data/shards.yaml
    assert found["batch_size: 8"] == "conf/debug/overfit.yaml"
    assert found["steps: 100"] == "conf/debug/overfit.yaml"  # over that of the experiment
    assert found["seed: 0"] == "conf/train.yaml"
    assert found["weight_decay: 0.1"] == found["pixels: 9"] == "command line"
    assert found["_target_: mmfusion.data.decode.Limits"] == "conf/data/shards.yaml"
    assert found["total_steps: 100"] == "conf/scheduler/cosine.yaml ← steps"
    assert found["patch_bands: 64"] == "conf/model/audio/spectrogram.yaml ← model.encoders.audio.bands"
    assert found["data:"] == ""


def test_a_file_of_ones_own_is_named_by_the_folder_that_was_given(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my/optim").mkdir(parents=True)
    Path("my/optim/mine.yaml").write_text("defaults:\n  - adamw\nlr: 0.5\n")
    found = lines("optim=mine", config_dir=Path("my"))
    assert found["lr: 0.5"] == "my/optim/mine.yaml"
    assert found["weight_decay: 0.05"] == "conf/optim/adamw.yaml"


def test_every_line_with_a_value_has_an_origin() -> None:
    cfg = config.compose(["paths.run=x"])
    text = printed(cfg, config.origins(["paths.run=x"]))
    assert OmegaConf.to_container(OmegaConf.create(text)) == config.printable(cfg)
    bare = [line for line in text.splitlines() if "#" not in line and not line.strip().startswith("- ")]
    assert all(line.endswith(":") for line in bare)


def test_arguments_that_keep_their_default_are_lines_of_comment() -> None:
    tree = {"wheel": {"_target_": f"{__name__}.Wheel", "size": 3}}
    text = config.commented(tree, {"wheel": "my.yaml"}, {}, root=lambda wheel, speed=1.5: None)
    assert OmegaConf.to_container(OmegaConf.create(text)) == tree
    shown = {" ".join(line.split()) for line in text.splitlines()}
    assert shown >= {
        "size: 3 # my.yaml : int > 0",
        "# colour: \"red\" # signature : 'red' or 'blue'",
        "# hub: … # signature : object",
        "# speed: 1.5 # signature",
    }


def test_a_part_and_a_single_value_are_printed_by_key() -> None:
    cfg = config.compose([])
    found = config.origins([])
    assert printed(cfg, found, key="optim.lr") == "lr: 0.003  # conf/optim/adamw.yaml\n"
    assert OmegaConf.to_container(OmegaConf.create(printed(cfg, found, key="data.select"))) == cfg.data.select
    with pytest.raises(config.ConfigError, match=r"--key optim.lrr: there is no 'lrr'; did you mean 'lr'"):
        printed(cfg, found, key="optim.lrr")


def test_a_secret_stays_hidden_in_value_and_comment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "hunter2")
    cfg = OmegaConf.create({"a": "${oc.env:MY_KEY,hunter2}", "b": "x ${a}", "api_key": "hunter2"})
    shown = [" ".join(line.split()) for line in printed(cfg, {"a": "my.yaml"}).splitlines()]
    assert shown == ["a: ${oc.env:MY_KEY} # my.yaml ← oc.env:MY_KEY", "b: x ${oc.env:MY_KEY} # ← a", "api_key: '***'"]


KEYS = st.from_regex(r"[a-z]\w{0,8}", fullmatch=True)
TEXT = st.text(max_size=90).filter(lambda t: "${" not in t)
VALUES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
TREES = st.dictionaries(KEYS, VALUES | st.lists(VALUES, max_size=3), max_size=3)


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(KEYS, VALUES | TREES | st.lists(TREES, max_size=3), max_size=3))
def test_whatever_stands_in_it_the_print_reads_back_as_the_same(tree: dict[str, Any]) -> None:
    plain = OmegaConf.to_yaml(OmegaConf.create(tree))
    text = config.commented(tree, dict.fromkeys(tree, "conf/x.yaml"), {})
    assert OmegaConf.create(text) == OmegaConf.create(plain)


def test_a_type_in_a_few_words() -> None:
    def words(
        share: Annotated[float, Gt(0), Le(1)],
        name: Annotated[str, MinLen(1)] | None,
        counts: dict[str, list[int]],
        wheel: Wheel,
        other: Any,
    ) -> None: ...

    assert [described(hint) for hint in hints_of(words).values()] == [
        "float > 0 and <= 1",
        "str length >= 1 or null",
        "mapping to list of int",
        "Wheel",
        "anything",
        "null",
    ]
