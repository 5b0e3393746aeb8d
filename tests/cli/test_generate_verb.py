"""`mmfusion generate`: what is asked arrives as it was typed, what is said arrives as it was drawn."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmfusion
from mmfusion.cli.main import main

PROMPTS = ("What's this, in [French]? a=b, ${x} {y}", 'say "猫", (1) --n 2', "\\ $HOME `ls` é; 'ü'", "-x=*.png\n?")
NAMES = ("IMG (1).jpg", "a=b, [c] 猫.png", "-x 'y' \"z\".png", "${oc.env:HOME}.png")


@pytest.fixture
def media(media_files: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a picture, a sound and a series, which is the current one."""
    monkeypatch.chdir(media_files)
    return media_files


def said(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", *arguments]) == 0
    return capsys.readouterr().out


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["generate", *arguments]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.parametrize(("prompt", "name"), zip(PROMPTS, NAMES, strict=True))
def test_prompts_and_file_names_arrive_as_they_were_typed(
    prompt: str, name: str, tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (media / name).write_bytes((media / "a.png").read_bytes())
    expected = mmfusion.load(tiny_run).generate(image=media / "a.png", prompt=prompt, lang="fr", max_new=6)
    got = said(str(tiny_run), f"--image={name}", f"--prompt={prompt}", "--lang", "fr", "--max-new", "6", capsys=capsys)
    assert got == f"{expected}\n"


WITHOUT_LIGHTNING = """
import sys
from mmfusion.cli.main import main
status = main()
sys.exit(status or " ".join(name for name in sys.modules if "lightning" in name) or 0)
"""


def test_the_real_command_line_which_needs_no_lightning(tiny_run: Path, media_files: Path) -> None:
    name = media_files / NAMES[1]
    name.write_bytes((media_files / "a.png").read_bytes())
    command = [sys.executable, "-c", WITHOUT_LIGHTNING, "generate", str(tiny_run), "--image", str(name)]
    done = subprocess.run([*command, "--prompt", PROMPTS[1], "--max-new", "6"], capture_output=True, encoding="utf-8")
    expected = mmfusion.load(tiny_run).generate(image=name, prompt=PROMPTS[1], max_new=6)
    assert (done.returncode, done.stdout) == (0, f"{expected}\n")
    assert done.stderr.startswith("note: this model was pretrained on captions and never shown questions")
    assert len(done.stderr.splitlines()) == 1


def test_any_subset_of_inputs_and_each_several_times(
    tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mmfusion.load(tiny_run)
    short = ["--max-new", "6"]
    all_of_it = ["--image", "a.png", "--image", "a.png", "--audio", "a.wav", "--sensor", "a.csv", "--rate-hz", "50"]
    thing: dict[str, Any] = {"image": ["a.png", "a.png"], "audio": ["a.wav"], "sensor": ["a.csv"]}
    expected = "".join(model.stream(**thing, rate_hz=50, max_new=6))
    assert said(str(tiny_run), *all_of_it, *short, capsys=capsys) == f"{expected}\n"
    assert said(str(tiny_run), *all_of_it[4:6], *short, capsys=capsys) != f"{expected}\n"
    watch = ["--sensor", "a.npy", "--rate-hz", "50", "--channels", "acc_x, acc_y", "--units", "g,g"]
    same = said(str(tiny_run), "--sensor", "a.csv", "--rate-hz", "50", *short, capsys=capsys)
    assert said(str(tiny_run), *watch, *short, capsys=capsys) == same
    assert (
        said(str(tiny_run), "--prompt", "What?", *short, capsys=capsys)
        == f"{model.generate(prompt='What?', max_new=6)}\n"
    )


def test_a_terminal_without_some_letters_shows_their_numbers(
    tiny_run: Path, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = io.BytesIO()
    terminal = io.TextIOWrapper(kept, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    asked = ["generate", str(tiny_run), "--image", "a.png", "--temperature", "3", "--max-new", "20"]
    assert main(asked) == 0
    terminal.flush()
    shown = kept.getvalue().decode()
    expected = mmfusion.load(tiny_run).generate(image="a.png", temperature=3.0, max_new=20)
    assert not str(expected).isascii()
    assert shown.encode().decode("unicode_escape") == f"{expected}\n"


def test_answers_are_those_of_following_seeds(tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(tiny_run), "--image", "a.png", "--temperature", "2", "--top-p", "0.9", "--max-new", "6"]
    single = [said(*asked, "--seed", str(seed), capsys=capsys) for seed in (3, 4, 5)]
    assert len(set(single)) == 3
    assert said(*asked, "--seed", "3", "--n", "3", capsys=capsys) == "".join(single)
    made = json.loads(said(*asked, "--seed", "3", "--n", "3", "--json", capsys=capsys))
    assert [answer["text"] + "\n" for answer in made["answers"]] == single
    assert [answer["seed"] for answer in made["answers"]] == [3, 4, 5]


@pytest.mark.parametrize("temperature", ["1e-40", "1e-320", "5e-324"])
def test_all_but_no_temperature_says_what_none_does(
    temperature: str, tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [str(tiny_run), "--image", "a.png", "--max-new", "6"]
    assert said(*asked, "--temperature", temperature, capsys=capsys) == said(*asked, capsys=capsys)


def test_the_last_seed_is_a_seed(tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [str(tiny_run), "--image", "a.png", "--max-new", "6", "--temperature", "1"]
    assert said(*asked, "--n", "2", "--seed", str(2**63 - 2), capsys=capsys).count("\n") >= 2


def test_each_fault_is_one_line(tiny_run: Path, media: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tiny_run)
    warm = ["--image", "a.png", "--temperature", "1"]
    os.mkfifo(media / "pipe")
    for arguments, words in (
        ([run], "stream takes a prompt or inputs; got none"),
        ([run, "--image", "nowhere.png"], "image[0]: 'nowhere.png' cannot be read (No such file or directory)"),
        ([run, "--image", "a.png", "--image", "a.wav"], "image[1]: corrupt picture"),
        ([run, "--sensor", "a.csv"], "sensor[0]: needs rate_hz"),
        ([run, "--sensor", "a.npy", "--rate-hz", "50"], "sensor[0]: a series needs channels and units by name"),
        ([run, "--image", "a.png", "--n", "2"], "--n 2: at temperature 0 all answers are the same"),
        ([run, "--image", "a.png", "--n", "0"], "--n: must be 1 or more, not 0"),
        ([run, "--image", "a.png", "--top-p", "2"], "top_p: must be less than or equal to 1, not 2.0"),
        ([run, *warm, "--n", "2", "--seed", str(2**63 - 1)], "--seed 9223372036854775807: with --n 2 seeds must lie"),
        ([run, *warm, "--seed", "-1"], "--seed -1: with --n 1 seeds must lie between 0 and"),
        ([run, "--image", "a.png", "--temperature", "1e300"], "temperature: must be less than or equal to 10000"),
        ([run, "--audio", "pipe"], "audio[0]: 'pipe' cannot be read (is no regular file)"),
        ([run, "--prompt", " "], "prompt: must be a text"),
        ([run, "--prompt", "\udcff"], "prompt: "),
        (["nowhere", "--prompt", "x"], "nowhere: no such folder"),
        ([".", "--prompt", "x"], ".: no checkpoint"),
    ):
        assert refused(*arguments, capsys=capsys).startswith(f"mmfusion: {words}")
