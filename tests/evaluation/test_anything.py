"""Tasks for any shards, on the world that can be worked out by hand and on tars of other makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_world import Oracle, flac, picture, png, samples, series, sound, spoken, text, write_world

from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.evaluation import anything
from mmfusion.evaluation.bench import AT_ONCE, Bench, Lacking, Outcome, Result
from mmfusion.evaluation.measure import ask
from mmfusion.evaluation.signals import Labelled, class_names
from mmfusion.types import Part, Sample


def by_metric(result: Result) -> dict[str, Outcome]:
    return {outcome.metric: outcome for outcome in result.outcomes}


def shards(root: Path, **splits: list[Sample]) -> Path:
    write_manifest(root, [write_shard(root / f"{split}.tar", of, split=split) for split, of in splits.items()])
    return root


def named(names: dict[int, str]) -> list[Sample]:
    """A picture of each number, its name its concept."""
    return [picture(f"k{code}", code, name, name, "b") for code, name in names.items()]


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """Two reds and a green; trained on a red and a green."""
    return shards(tmp_path, test=named({11: "red", 10: "red", 200: "green"}), train=named({12: "red", 201: "green"}))


def test_retrieval_by_hand(colours: Path) -> None:
    got = by_metric(anything.retrieval(Bench(Oracle(mistakes={10: "green"}), colours)))
    pairs = ("image to text", "text to image")
    assert set(got) == {f"{pair}, {metric}" for pair in pairs for metric in ("R@1", "median rank")}
    to_text, to_image = got["image to text, R@1"], got["text to image, R@1"]
    asked = sorted(zip(to_text.clusters, to_text.values.tolist(), strict=True))
    assert asked == [("green", 1), ("red", 0), ("red", 1)]  # 10 is taken for green
    assert to_text.chance == 0.5  # two different texts
    assert to_text.baselines["pixel nearest neighbour"].tolist() == [1, 1, 1]
    # Any red picture is right for `red`; for `green` the mistaken one ties with the right one, which counts as lost.
    asked = sorted(zip(to_image.clusters, to_image.values.tolist(), strict=True))
    assert asked == [("green", 0), ("red", 1), ("red", 1)]
    assert to_image.chance == pytest.approx((2 / 3 + 2 / 3 + 1 / 3) / 3)
    assert got["text to image, median rank"].chance == 1  # first in 5/9 of all random orders


def test_every_pair_that_stands_together_is_asked(tmp_path: Path) -> None:
    result = anything.retrieval(Bench(Oracle(), write_world(tmp_path)))
    pairs = {metric.split(",")[0] for metric in by_metric(result)}
    assert pairs == {
        *("image to audio", "audio to image", "image to text", "text to image"),
        *("audio to text", "text to audio", "sensor to text", "text to sensor"),
    }
    assert result.retrieval is not None
    assert result.retrieval.queries[0].type == "image"
    watch = by_metric(result)["sensor to text, R@1"]
    assert set(watch.clusters) == {"s5", "s6"}  # whoever wore it
    assert watch.values.tolist() == [1, 1, 1, 1]
    assert "feature nearest neighbour" in watch.baselines
    assert set(by_metric(result)["text to sensor, R@1"].clusters) == {"walk", "run"}  # a text asked twice is one


def test_equal_pictures_of_other_names_are_right_for_each_other(tmp_path: Path) -> None:
    test = [*named({11: "red", 200: "green"}), picture("same", 11, "pink", "pink", "b")]
    got = by_metric(anything.retrieval(Bench(Oracle(), shards(tmp_path, test=test))))
    assert got["image to text, R@1"].values.tolist() == [1, 1, 1]
    assert got["image to text, R@1"].baselines == {}  # nothing to train on


def test_classes_of_each_label_and_modality(tmp_path: Path) -> None:
    got = by_metric(anything.classes(Bench(Oracle(), write_world(tmp_path))))
    kind, activity = got["kind from audio, accuracy"], got["activity from sensor, accuracy"]
    assert kind.values.tolist() == [1, 1, 1]
    assert kind.chance == pytest.approx(2 / 3)
    assert kind.baselines["logistic regression"].tolist() == [1, 1, 1]
    assert set(activity.clusters) == {"s5", "s6"}
    assert not any(metric.startswith("subject") for metric in got)
    only = anything.classes(Bench(Oracle(), tmp_path), labels=["activity"])
    assert set(by_metric(only)) == {"activity from sensor, accuracy"}


def test_a_class_without_one_text_is_called_by_its_label(tmp_path: Path) -> None:
    def clip(key: str, code: int, kind: str, says: str) -> Sample:
        made = sound(key, code, kind)
        return replace(made, parts=(made.parts[0], text(says)))

    train = [clip(f"t{i}", (70, 120)[i % 2], ("drum", "flute")[i % 2], f"no. {i}") for i in range(8)]
    test = [clip(f"e{i}", (70, 120)[i % 2], ("drum", "flute")[i % 2], f"no. {i}") for i in range(4)]
    result = anything.classes(Bench(Oracle(), shards(tmp_path, train=train, test=test)), labels=["kind"])
    assert result.retrieval is not None
    assert result.retrieval.candidates == ("drum", "flute")
    assert by_metric(result)["kind from audio, accuracy"].values.tolist() == [1, 1, 1, 1]


def test_classes_that_the_texts_call_alike_are_called_by_their_labels() -> None:
    def called(**texts: str) -> dict[str, str]:
        items = [Labelled(sound(label, 70, label), text(name), label) for label, name in texts.items()]
        return class_names(items, lambda sample: texts[sample.key])

    assert called(snare_drum="a drum", bass_drum="a drum", flute="a flute") == {
        "snare_drum": "snare drum", "bass_drum": "bass drum", "flute": "a flute",
    }  # fmt: skip
    chain = called(snare_drum="a drum", bass_drum="a drum", flute="bass drum")  # one of the words is borne already
    assert len(set(chain.values())) == 3


def test_sounds_of_two_kinds_with_one_text_can_be_told_apart(tmp_path: Path) -> None:
    def clip(key: str, code: int, kind: str) -> Sample:
        made = sound(key, code, kind)
        return replace(made, parts=(made.parts[0], text("a recording")))

    both = [(70, "drum"), (120, "flute")] * 4
    train, test = ([clip(f"{split}{i}", *one) for i, one in enumerate(both)] for split in "te")
    got = by_metric(anything.classes(Bench(Oracle(), shards(tmp_path, train=train, test=test)), labels=["kind"]))
    assert got["kind from audio, accuracy"].values.tolist() == [1] * 8


def test_captions_of_any_medium(tmp_path: Path) -> None:
    def called(key: str, code: int, *names: str) -> Sample:
        image = Part(type="image", file="png", data=png(code))
        return Sample(key=key, parts=(image, *(text(name) for name in names)))

    test = [called("1", 10, "red", "a red"), called("2", 11, "crimson", "red"), called("3", 200, "green")]
    test += [Sample(key=f"s{c}", parts=(spoken(c, "fr"), text("frog"))) for c in (52, 53)]
    bench = Bench(Oracle(says=["red"]), shards(tmp_path, test=test, train=[called("4", 12, "red")]))
    got = by_metric(anything.captions(bench))
    assert set(got) == {"exact from image", "chrF from image", "exact from audio", "chrF from audio"}
    exact = got["exact from image"]
    for values in (exact.values, exact.baselines["pixel nearest neighbour"]):
        assert dict(zip(exact.clusters, values, strict=True)) == {"1": 1, "2": 1, "3": 0}
    assert got["exact from audio"].chance == 1  # both say "name fr", which is right for both


def test_captions_are_asked_for_in_the_language_of_the_text(tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []

    class Listener(Oracle):
        def generate_parts(self, prompts, language, max_new):
            asked.append((language, len(prompts)))
            return super().generate_parts(prompts, language, max_new)

    def called(key: str, part: Part) -> Sample:
        return Sample(key=key, parts=(Part(type="image", file="png", data=png(10)), part))

    plain = Part(type="text", text="red")
    test = [called("1", text("rouge", "fr")), called("2", plain), called("3", plain)]
    anything.captions(Bench(Listener(), shards(tmp_path / "tests", test=test)))
    assert sorted(asked) == [("en", 2), ("fr", 1)]
    asked.clear()
    anything.captions(Bench(Listener(), shards(tmp_path / "own", test=test, train=[called("4", plain)])))
    assert sorted(asked) == [("", 2), ("fr", 1)]  # as it was trained


def test_what_is_lacking_is_said(tmp_path: Path) -> None:
    silent = [replace(s, parts=s.parts[:1]) for s in samples()["test"] if s.source == "sounds"]
    bench = Bench(Oracle(), shards(tmp_path, test=silent))
    with pytest.raises(Lacking, match=r"two of the modalities that the model reads .*; split 'test' has audio"):
        anything.retrieval(bench)
    with pytest.raises(Lacking, match="a text beside one of the modalities"):
        anything.captions(bench)
    unlabelled = [replace(s, labels={}) for s in silent]
    with pytest.raises(Lacking, match="which has no labels"):
        anything.classes(Bench(Oracle(), shards(tmp_path / "unlabelled", test=unlabelled)))


def test_only_some_of_many_samples_are_read_the_same_ones_each_time(tmp_path: Path) -> None:
    many = [picture(f"{i:03d}", 10, f"n{i}", f"c{i}", "b") for i in range(50)]
    watch = [series(f"w{i}", 80, "walk", "s") for i in range(3)]
    write_manifest(
        tmp_path, [write_shard(tmp_path / n, of, split="test") for n, of in (("a.tar", many), ("b.tar", watch))]
    )
    chosen = [s.key for s in Bench(Oracle(), tmp_path).samples("test", None, 10)]
    assert len(chosen) == 13  # ten of the fifty with pictures, and all three of another kind
    assert chosen == [s.key for s in Bench(Oracle(), tmp_path).samples("test", None, 10)]


def test_parts_as_bytes_are_decoded_a_few_at_a_time(tmp_path: Path) -> None:
    sizes: list[int] = []

    class Counted(Oracle):
        def embed_parts(self, parts):
            sizes.append(len(parts))
            assert all(isinstance(part.data, np.ndarray) for part in parts)
            return np.eye(len(parts), 8, dtype=np.float32)

    raw = [Part(type="audio", file=f"{i}.flac", data=flac(i)) for i in range(AT_ONCE + 3)]
    bench = Bench(Counted(), shards(tmp_path, test=[sound("k", 70, "drum")]))
    assert bench.embed(raw).shape == (AT_ONCE + 3, 8)
    assert sizes == [AT_ONCE, 3]


def test_another_model_before_the_same_shards_decodes_nothing_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(Oracle(), write_world(tmp_path))
    tasks = {"r": anything.retrieval, "c": anything.classes}
    first = ask(bench, tasks.items())

    def never(*_: object) -> None:
        raise AssertionError("decoded or fitted again")

    monkeypatch.setattr("mmfusion.evaluation.bench.decode_part", never)
    monkeypatch.setattr("mmfusion.evaluation.baselines.logistic_regression", never)
    again = ask(bench.with_model(Oracle()), tasks.items())
    assert again.metrics == first.metrics
    worse = ask(bench.with_model(Oracle(mistakes={70: "flute"})), tasks.items())
    assert worse.metrics != first.metrics  # embeddings are not shared
