"""Every task on a world small enough to work out by hand."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_world import Oracle, samples, write_world

from mmfusion.evaluation import pictures, signals
from mmfusion.evaluation.bench import Bench, Lacking, Outcome, Result, Retrieval, chance_of_rank, chance_of_recall
from mmfusion.evaluation.measure import NO_BASELINES, row, run
from mmfusion.types import Part, Sample


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def by_metric(result: Result) -> dict[str, Outcome]:
    return {outcome.metric: outcome for outcome in result.outcomes}


# ----------------------------------------------------------------------------------------------------------- retrieval


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.8, 0.7], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3]])
    right = np.array([[False, True, False], [True, False, False], [True, False, True]])
    found = Retrieval((), ("a", "b", "c"), ("a", "b", "c"), ("x", "y", "z"), scores, right)
    assert found.ranks().tolist() == [2, 2, 1]  # a tie with a wrong candidate is lost: collapse earns nothing
    assert found.recall(1).tolist() == [0, 0, 1]
    assert found.chance(1) == pytest.approx((1 / 3 + 1 / 3 + 2 / 3) / 3)


def test_chance_of_recall_by_hand() -> None:
    assert chance_of_recall(1, 100, 5) == pytest.approx(5 / 100)
    assert chance_of_recall(2, 4, 2) == pytest.approx(1 - (2 / 4) * (1 / 3))
    assert chance_of_recall(3, 3, 5) == 1
    assert chance_of_recall(0, 3, 1) == 0


def test_chance_of_rank_by_hand() -> None:
    assert chance_of_rank(np.array([1, 1]), 2) == 1.5
    assert chance_of_rank(np.array([1]), 99) == 50
    assert chance_of_rank(np.array([2]), 4) == 1.5  # first in 1/2, second in 1/3, third in 1/6 of all orders
    assert chance_of_rank(np.array([0, 0, 3]), 3) == 4  # behind all where nothing is right


def test_a_random_model_has_the_median_rank_of_chance_where_queries_differ_in_their_right_answers() -> None:
    rng = np.random.default_rng(0)
    right = np.arange(100) < np.repeat([1, 40], 4000)[:, None]
    found = Retrieval((), (), (), tuple(map(str, range(100))), rng.random(right.shape), right)
    assert abs(np.median(found.ranks()) - chance_of_rank(right.sum(1), 100)) <= 1
    assert np.median(found.ranks()) < 10  # the mean of the expected ranks, (101 / 2 + 101 / 41) / 2, is 26


# ------------------------------------------------------------------------------------------------------------ pictures


def test_picture_to_name(root: Path) -> None:
    bench = Bench(Oracle(), root)
    result = pictures.picture_to_name(bench, source="b", train_source="a")
    outcome = by_metric(result)["R@1"]
    # Seen: red, rosy, green; `rosy` is drawn like red, so that `red` is right for both. Blue, grey, pink are not asked.
    assert outcome.clusters == ("red", "rosy", "green")
    assert outcome.values.tolist() == [1, 1, 1]
    assert outcome.chance == pytest.approx((2 + 2 + 1) / 3 / 6)
    # The nearest training picture to 11 is 10, `red`, a right name for both.
    assert outcome.baselines["pixel nearest neighbour"].tolist() == [1, 1, 1]


def test_identical_pictures_need_not_be_neighbours(root: Path) -> None:
    oracle = Oracle(mistakes={201: "blue", 11: "green"})
    outcome = by_metric(pictures.picture_to_name(Bench(oracle, root), source="b", train_source="a"))["R@1"]
    assert outcome.values.tolist() == [0, 0, 0]


def test_unseen_concepts(root: Path) -> None:
    got = by_metric(pictures.unseen_concepts(Bench(Oracle(), root), source="b", train_source="a"))
    # Grey and pink; blue is unseen by training, but validation chose among models with it.
    assert got["R@1"].clusters == ("grey", "pink")
    assert got["R@1"].values.tolist() == [1, 1]
    assert got["R@1"].chance == 0.5
    assert got["median rank"].values.tolist() == [1, 1]
    assert got["median rank"].chance == 1.5
    assert got["category accuracy"].values.tolist() == [1, 1]
    # Nearest training pictures: 150 -> green (200, category d, right), 13 -> rosy (12, category d, wrong).
    assert got["category accuracy"].baselines["pixel nearest neighbour"].tolist() == [1, 0]
    # Spelt most like `green` among {grey, pink}: grey, right. `rosy` shares nothing with either: a tie, lost.
    assert got["R@1"].baselines["pixel nearest neighbour"].tolist() == [1, 0]
    assert got["R@1 in 1 other language"].values.tolist() == [1, 1]


def test_captions(root: Path) -> None:
    bench = Bench(Oracle(says=["red"]), root)
    got = by_metric(pictures.captions(bench, source="b", train_source="a", limit=50))
    keys = ("red", "rosy", "green")
    right = dict(zip(got["exact, seen"].clusters, got["exact, seen"].values, strict=True))
    assert [right[key] for key in keys] == [1, 1, 0]
    assert got["exact, unseen"].values.tolist() == [0, 0]
    near = dict(zip(got["exact, seen"].clusters, got["exact, seen"].baselines["pixel nearest neighbour"], strict=True))
    assert [near[key] for key in keys] == [1, 1, 1]
    limited = by_metric(pictures.captions(bench, source="b", train_source="a", limit=2))
    assert len(limited["exact, seen"].values) == 2


# ------------------------------------------------------------------------------------------------------------- signals


def test_spoken_to_picture(root: Path) -> None:
    result = signals.spoken_to_picture(Bench(Oracle(), root), source="things")
    got = by_metric(result)
    assert set(got) == {"R@1 of 2, seen things", "R@5 of 2, seen things"}
    assert got["R@1 of 2, seen things"].values.tolist() == [1, 1]
    assert got["R@1 of 2, seen things"].chance == 0.5
    assert sorted(got["R@1 of 2, seen things"].clusters) == ["cow", "frog"]
    swapped = Oracle(mistakes={53: "cow"})
    values = by_metric(signals.spoken_to_picture(Bench(swapped, root), source="things"))["R@1 of 2, seen things"].values
    assert sorted(values.tolist()) == [0, 1]


def test_by_modality(root: Path) -> None:
    oracle = Oracle(mistakes={53: "drum", 61: "drum"})  # its picture is known, the clip and its own sound are not
    got = by_metric(signals.by_modality(Bench(oracle, root), source="things"))
    # Only the frog has a sound. frog + drum ties with nothing among {frog, cow}; drum alone ties both names.
    assert {metric: outcome.values.tolist() for metric, outcome in got.items()} == {
        "R@1 from picture": [1],
        "R@1 from speech": [0],
        "R@1 from sound": [0],
        "R@1 from picture + speech": [1],
        "R@1 from picture + sound": [1],
        "R@1 from speech + sound": [0],
        "R@1 from picture + speech + sound": [1],
    }
    assert got["R@1 from picture + sound"].subset == ("picture", "sound")


def test_zero_shot_sound(root: Path) -> None:
    task = functools.partial(signals.class_by_name, source="sounds", modality="audio", label="kind")
    result = task(Bench(Oracle(), root))
    (outcome,) = result.outcomes
    assert outcome.values.tolist() == [1, 1, 1]
    assert outcome.chance == pytest.approx(2 / 3)  # drum, flute, drum
    assert outcome.baselines["logistic regression"].tolist() == [1, 1, 1]
    assert result.retrieval is not None
    assert result.retrieval.candidates == ("a drum", "a flute")  # as their texts call them, not their labels
    assert task(Bench(Oracle(mistakes={120: "drum"}), root)).outcomes[0].values.tolist() == [1, 0, 1]


def test_zero_shot_series_by_subject(root: Path) -> None:
    bench = Bench(Oracle(), root)
    result = signals.class_by_name(bench, source="watch", modality="sensor", label="activity", cluster="subject")
    assert result.outcomes[0].clusters == ("s5", "s6", "s5", "s6")
    assert result.outcomes[0].values.tolist() == [1, 1, 1, 1]


def test_series_of_other_channels_than_those_in_training_have_no_regression_beside(tmp_path: Path) -> None:
    def with_two_channels(sample: Sample) -> Sample:
        part = sample.parts[0]
        file = io.BytesIO()
        assert isinstance(part.data, bytes)
        np.save(file, np.repeat(np.load(io.BytesIO(part.data)), 2, axis=1))
        part = replace(part, channels=("x", "y"), units=("g", "g"), data=file.getvalue())
        return replace(sample, parts=(part, *sample.parts[1:]))

    test = [with_two_channels(s) if s.source == "watch" else s for s in samples()["test"]]
    bench = Bench(Oracle(), write_world(tmp_path, {"test": test}))
    (outcome,) = signals.class_by_name(bench, source="watch", modality="sensor", label="activity").outcomes
    assert outcome.values.tolist() == [1, 1, 1, 1]
    assert outcome.baselines == {}


def test_a_series_is_the_mean_of_its_windows(root: Path) -> None:
    times = np.arange(1200) / 100  # 12 s: windows at 0, 4 s
    values = np.where(times < 8, 80.0, 90.0)[:, None]  # the first window walks, the second starts to run in its middle
    values[:400] = 80
    part = Part(type="sensor", channels=("x",), units=("g",), data=values, times_s=times)
    bench = Bench(Oracle(), root)
    walk, run_ = bench.embed_names(["walk", "run"], "en")
    assert bench.embed_whole([part], 8.0)[0] == pytest.approx(walk)
    values[400:] = 90
    assert bench.embed_whole([part], 8.0)[0] == pytest.approx((walk + run_) / 2**0.5)


# ---------------------------------------------------------------------------------------- the whole run, and what lacks

TASKS = {
    "names": functools.partial(pictures.picture_to_name, source="b", train_source="a"),
    "unseen": functools.partial(pictures.unseen_concepts, source="b", train_source="a"),
    "watch": functools.partial(signals.class_by_name, source="watch", modality="sensor", label="activity"),
}


def test_run_gives_the_rows_of_metrics_json(root: Path) -> None:
    oracle = Oracle()
    done = run(oracle, TASKS, root)
    assert [(r["task"], r["metric"], r["value"], r["n"]) for r in done.metrics][:2] == [
        ("names", "R@1", 1, 3),
        ("names", "R@5", 1, 3),
    ]
    for r in done.metrics:
        assert {"task", "metric", "value", "n", "clusters", "ci95", "chance", "baselines", "differences"} == set(r)
    assert done.about["names"].startswith("Which of all names")
    assert set(done.seconds) == set(TASKS)
    asked = oracle.asked
    run(oracle, {"names": TASKS["names"], "again": TASKS["names"]}, root)
    assert oracle.asked - asked == 2 + 6  # of three pictures two are equal; six names; the second task asks for nothing


def test_a_task_without_its_data_is_left_out_by_name(root: Path) -> None:
    done = run(Oracle(), TASKS, root, split="validation")
    assert set(done.left_out) == set(TASKS)
    assert not done.metrics

    class Deaf(Oracle):
        modalities = ("image", "text")

    assert "no sensor" in run(Deaf(), TASKS, root).left_out["watch"]
    with pytest.raises(Lacking, match="nowhere"):
        pictures.picture_to_name(Bench(Oracle(), root), source="nowhere", train_source="a")


def test_a_corrupt_picture_costs_itself_and_is_counted(tmp_path: Path) -> None:
    test = samples()["test"]
    cut = replace(test[2].parts[0], data=bytes(test[2].parts[0].data or b"")[:40])
    test[2] = replace(test[2], parts=(cut, *test[2].parts[1:]))
    done = run(Oracle(), TASKS, write_world(tmp_path, {"test": test}))
    assert done.metrics[0]["n"] == 2
    assert sum(done.skipped.values()) == 1


def test_a_unit_that_nobody_knows_costs_its_series(tmp_path: Path) -> None:
    test = samples()["test"]
    part, name = test[-1].parts
    test[-1] = replace(test[-1], parts=(replace(part, units=("furlong",)), name))
    done = run(Oracle(), {"watch": TASKS["watch"]}, write_world(tmp_path, {"test": test}))
    assert done.metrics[0]["n"] == 3
    assert done.skipped == {"unknown unit": 1}


def test_one_class_is_no_question(tmp_path: Path) -> None:
    train = [s for s in samples()["train"] if s.labels.get("activity") != "run"]
    done = run(Oracle(), {"watch": TASKS["watch"]}, write_world(tmp_path, {"train": train}))
    assert "two or more 'activity'" in done.left_out["watch"]


def test_validation_runs_like_the_test(tmp_path: Path) -> None:
    validation = [replace(s, key=f"v-{s.key}") for s in samples()["test"]]
    root = write_world(tmp_path, {"validation": validation, "test": []})
    assert run(Oracle(), TASKS, root, split="validation").metrics[0]["n"] == 3


def test_on_the_training_split_no_baseline_finds_its_own_examples(root: Path) -> None:
    trained, tested = (run(Oracle(), TASKS, root, split) for split in ("train", "test"))
    assert any(row["baselines"] for row in tested.metrics)
    assert trained.metrics
    assert not any(row["baselines"] or row["differences"] for row in trained.metrics)
    assert not any(outcome.baselines for result in trained.results.values() for outcome in result.outcomes)
    assert all(NO_BASELINES in about for about in trained.about.values())
    assert not any(NO_BASELINES in about for about in tested.about.values())


def test_row_of_a_median_has_no_paired_difference() -> None:
    made = row("t", Outcome("median rank", np.array([1.0, 9.0]), ["a", "b"], 5, {"x": np.array([2.0, 4.0])}, "median"))
    assert made["value"] == 5
    assert made["baselines"] == {"x": 3}
    assert made["differences"] == {}


def test_sample_without_concept_is_its_own_cluster() -> None:
    named = pictures.Named((Sample(key="k"),), (Part(type="image"),), (("n",),))
    assert named.concepts == ("k",)
