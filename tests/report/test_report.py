"""The report as a reader gets it: one file, nothing fetched, nothing executed, every number said in words too."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import soundfile
from html_page import Page, assert_whole
from PIL import Image

from mmfusion.evaluation.bench import Outcome, Result, Retrieval, Said
from mmfusion.evaluation.measure import Evaluation, row
from mmfusion.report import answered, collect, facts_of, html, write
from mmfusion.report.curves import plots, read_history
from mmfusion.report.html import bounds, direction, value
from mmfusion.runs.energy import Energy, Source, Spent
from mmfusion.types import Modality, Part

HOSTILE = '<script>alert(1)</script>" onload="x'


class Speaker:
    """A model that only has to say something."""

    modalities: tuple[Modality, ...] = ("image", "audio", "sensor", "text")

    def embed_parts(self, parts: object) -> np.ndarray:
        raise AssertionError("the report shows what was evaluated; it embeds nothing")

    def generate_parts(self, prompts: object, language: str, max_new: int) -> list[str]:
        return ["قلب أحمر" if language == "ar" else "red heart"]

    def unusable(self, sample: object, *, answered: bool) -> str | None:
        return None

    def score_answers(self, samples: object) -> list[tuple[np.ndarray, ...]]:
        raise AssertionError("the report shows what was evaluated; it scores nothing")

    rewards = False

    def reward_answers(self, samples: object) -> list[np.ndarray]:
        raise AssertionError("the report shows what was evaluated; it judges nothing")


def retrieval(queries: list[Part], names: list[str], pictures: tuple[Part, ...] = ()) -> Retrieval:
    """Query i is right about candidate i; the first query is retrieved right, the others wrong."""
    n = len(queries)
    scores = np.linspace(0.9, -0.4, len(names))[None].repeat(n, 0)
    right = np.arange(len(names)) == np.arange(n)[:, None]
    keys = tuple(f"k{i}" for i in range(n))
    return Retrieval(tuple(queries), keys, keys, tuple(names), scores, right, pictures)


def evaluation() -> Evaluation:
    rng = np.random.default_rng(0)
    picture = Part(type="image", data=rng.integers(0, 255, (40, 30, 3)).astype(np.uint8))
    wave = (0.5 * np.sin(np.arange(4000) / 5)).astype(np.float32)
    clip = Part(type="audio", kind="speech", lang="ar", text="قلب أحمر", data=wave, rate_hz=16000)
    times = np.arange(1000) / 50
    watch = Part(
        type="sensor",
        channels=("x", "y", "z", "p"),
        units=("g", "g", "g", "kPa"),
        place="wrist",
        data=np.stack([np.sin(times), np.cos(times), np.full(1000, np.nan), times], 1).astype(np.float32),
        times_s=times,
    )
    clusters = [str(i) for i in range(20)]
    hits = (rng.random(20) < 0.5).astype(float)
    results = {
        "picture_to_name": Result(
            (
                Outcome("R@1", hits, clusters, 0.05, {"pixel": 1 - hits, HOSTILE: hits}),
                Outcome("median rank", 1 + 9 * hits, clusters, 10.0, {"pixel": 2 + hits}, statistic="median"),
            ),
            retrieval([picture, picture], ["red heart", HOSTILE, "c", "d", "e", "f"]),
        ),
        "spoken": Result((Outcome("R@1", hits, ["one"] * 20, 0.1),), retrieval([clip], ["heart", "b"], (picture,) * 2)),
        "watch": Result((), retrieval([watch], ["walk", "run"])),
        "answers": Result(
            (Outcome("about image, exact", hits, clusters, 0.1),),
            said=tuple(
                Said(f"{kind} {i}", kind, (picture, Part(type="text", text=HOSTILE)), f"answer {i}", ("ANSWER 1", "b"))
                for kind in ("language", "sound")
                for i in range(2)
            ),
        ),
        "things": Result(
            tuple(Outcome(f"R@1 from {m}", hits, clusters, 0.1, subset=(m,)) for m in ("picture", "speech"))
        ),
    }
    metrics = [row(task, outcome) for task, result in results.items() for outcome in result.outcomes]
    about = dict.fromkeys(results, "What it asks.")
    return Evaluation("test", metrics, results, {"absent": HOSTILE}, {"cut": 2}, {"spoken": 1.5}, about)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("runs") / "quickstart" / "now"
    run.mkdir(parents=True)
    (run / "environment.json").write_text(json.dumps({"command": HOSTILE, "cores": 2, "packages": {"torch": "2.15"}}))
    lines = ["epoch,step,train/loss,val/loss,train/lr"]
    lines += [f"0,{step},{5 / (step + 1)},,0.001" for step in range(500)]
    lines += ["0,100,,3.5,", "0,499,,nan,"]
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")
    done = evaluation()
    write(
        run / "report.html",
        title="quickstart",
        facts=facts_of(run, steps=500, seconds={"training": 61.2}),
        history=run / "metrics.csv",
        evaluation=done,
        examples=collect(Speaker(), done),
        answers=answered(done),
        counts={"Padding": "3 %"},
    )
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    return run / "report.html", (run / "report.html").read_text(encoding="utf-8")


def test_it_is_whole_html_and_fetches_nothing(report: tuple[Path, str]) -> None:
    assert_whole(report[1])


def test_what_data_says_stays_text(report: tuple[Path, str]) -> None:
    _, source = report
    assert "<script" not in source
    assert source.count("&lt;script&gt;") >= 4  # a baseline's name, a candidate, the command, a reason


def test_one_answer_of_each_kind_of_question_is_shown(report: tuple[Path, str]) -> None:
    cards = [card for card in answered(evaluation()) if card.task == "answers"]
    assert [card.kind for card in cards] == ["language", "sound"]
    assert [card.right for card in cards] == [card.said == "answer 1" for card in cards]
    assert (cards[0].asked, cards[0].truth) == (HOSTILE, "ANSWER 1")
    text = Page(report[1]).text
    assert text.index("Held-out questions") < text.index("Language") < text.index(cards[0].said)


def test_inputs_can_be_seen_and_played(report: tuple[Path, str]) -> None:
    page = Page(report[1])
    pictures = [i["src"] or "" for i in page.all("img") if i.get("class") == "input"]
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2]))).size == (30, 40)
    (audio,) = page.all("audio")
    assert "controls" in audio
    wave, rate_hz = soundfile.read(io.BytesIO(base64.b64decode((audio["src"] or "").partition(",")[2])))
    assert (len(wave), rate_hz) == (4000, 16000)
    assert wave == pytest.approx(0.5 * np.sin(np.arange(4000) / 5), abs=1e-4)
    assert "the first 8 s of 20 s, wrist" in page.text
    assert all(i.get("alt") is not None for i in page.all("img"))
    assert all(s.get("aria-label") or s.get("aria-hidden") for s in page.all("svg") if "viewbox" in s)


def test_right_and_wrong_are_said_in_words(report: tuple[Path, str]) -> None:
    text = " ".join(Page(report[1]).text.split())
    assert "right: first of 6" in text
    assert "wrong: the right one is number 2 of 6" in text
    assert "the first name is right 3 times" in text
    assert "Absent" in text  # the task that was left out
    assert "cut: 2" in text


def test_other_scripts_are_marked(report: tuple[Path, str]) -> None:
    page = Page(report[1])
    marked = [a for tag, a in page.tags if tag in ("bdi", "q") and a.get("lang") == "ar"]
    assert len(marked) == 2  # heard, said
    assert all(a.get("dir") == "auto" for a in marked)


def test_an_evaluation_of_nothing_still_makes_a_page(tmp_path: Path) -> None:
    nothing = Evaluation("validation", [], {}, {}, {}, {}, {})
    path = tmp_path / "report.html"
    write(path, title="x", facts={}, history=tmp_path / "no.csv", evaluation=nothing, examples=[], counts={})
    assert "No task could be asked" in Page(path.read_text()).text


@pytest.mark.parametrize(
    ("kind", "lead"), [("estimate", "Estimated, at least in part"), ("counter", "Read from the machine's own counters")]
)
def test_energy_says_whether_it_was_counted(kind: Literal["estimate", "counter"], lead: str, tmp_path: Path) -> None:
    nothing = Evaluation("validation", [], {}, {}, {}, {}, {})
    source = Source(kind=kind, method=HOSTILE, constants={"watts_per_thread": 2.5})
    spent = Energy(training=Spent(joules={"cpu": 1500.0}, seconds=60.4, samples=3000), sources={"cpu": [source]})
    path = tmp_path / "report.html"
    given: Any = {"title": "x", "facts": {}, "history": tmp_path / "no.csv", "examples": [], "counts": {}}
    write(path, evaluation=nothing, energy=spent, **given)
    text = " ".join(Page(path.read_text()).text.split())
    for told in (lead, "Training1.5 kJ in 60 s", "A sample, trained500 mJ (of 3,000)", "watts per thread 2.5"):
        assert told in text
    assert "A token, generated" not in text
    assert "<script" not in path.read_text()
    write(path, evaluation=nothing, **given)
    assert "Energy" not in Page(path.read_text()).text


def test_numbers_as_they_are_read() -> None:
    assert value(0.4118, "R@1") == "41.2\u202f%"
    assert value(0.0005, "R@1") == "0.05\u202f%"
    assert value(0.0, "R@1") == "0\u202f%"
    assert value(-0.03, "R@1", signed=True) == "\u22123.0\u202f%"
    assert value(82.4, "median rank") == "82"
    assert bounds((0.1, 0.25), "R@1") == "10.0\u202f% to 25.0\u202f%"
    assert bounds(None, "R@1") == "no interval"


def test_direction_by_hand() -> None:
    def told(metric: str, low: float, high: float) -> str:
        return direction({"metric": metric, "ci95": (low, high), "chance": 0.5})

    assert told("R@1", 0.6, 0.7) == "better than chance"
    assert told("R@1", 0.4, 0.7) == "not told from chance"
    assert told("R@1", 0.1, 0.2) == "worse than chance"
    assert told("median rank", 0.1, 0.2) == "better than chance"
    assert direction({"metric": "R@1", "ci95": None, "chance": 0.5}) == "undecided"


def test_history_keeps_columns_apart(report: tuple[Path, str]) -> None:
    columns = read_history(report[0].parent / "metrics.csv")
    assert columns["val/loss"][0].tolist() == [100, 499]
    assert columns["train/loss"][1][:2].tolist() == [5, 2.5]
    assert "epoch" not in columns


def test_what_was_logged_is_plotted_once_in_its_group(tmp_path: Path) -> None:
    names = ["train/loss", "val/loss", "train/captioning", "val/captioning", "val/captioning/tux", "val/captioning/a b",
             "train/captioning/tux", "health/grad_norm", "health/rank/image", "health/padding/rows", "health/skipped",
             "speed/samples_per_s", "speed/flops_per_s", "speed/data_s", "speed/rest_s"]  # fmt: skip
    history = tmp_path / "metrics.csv"
    rows = [",".join(str(step + i) for i in range(len(names) + 1)) for step in (1, 2)]
    history.write_text("\n".join([",".join(["step", *names]), *rows]))
    found = plots(history)
    titles = {group: [re.findall(r'aria-label="([^"]*)"', plot)[0] for plot in made] for group, made in found.items()}
    assert titles == {
        "Losses": ["total loss", "captioning"],
        "Validation losses by source": ["captioning"],
        "Health": ["gradient norm before clipping", "effective rank of embeddings", "share of padding"],
        "Speed": ["samples a second", "seconds of a step"],
    }
    assert "a b" in found["Validation losses by source"][0]


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, as WCAG 2.2 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_letters_stand_out_in_light_and_dark() -> None:
    css = (Path(html.__file__).parent / "report.css").read_text()
    schemes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in re.findall(r":root \{(.*?)\}", css, re.S)]
    assert len(schemes) == 2
    for colours in schemes:
        for name in ("ink", "soft", "one", "two", "three", "four", "five", "six", "ok", "no"):
            for ground in ("paper", "card"):
                dim, bright = sorted((luminance(colours[name]), luminance(colours[ground])))
                assert (bright + 0.05) / (dim + 0.05) >= 4.5, (name, ground)
