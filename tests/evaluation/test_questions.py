"""Questions asked of a model whose every answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tiny_world import flac, png, write_world

from mmfusion.data.series import array_of
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.evaluation.bench import Bench, Lacking
from mmfusion.evaluation.questions import answers, preferred, questions, rewarded
from mmfusion.types import Answer, Modality, Part, Sample


class Knowing:
    """Says the first value of a picture or a clip where it is not zero, "nothing" where it is; told what was asked."""

    modalities: tuple[Modality, ...] = ("image", "audio", "text")

    def __init__(self) -> None:
        self.prompts: list[list[Part]] = []

    def embed_parts(self, parts: Sequence[Part]) -> np.ndarray:
        raise NotImplementedError("questions are answered, nothing is embedded")

    def generate_parts(self, prompts: Sequence[Sequence[Part]], language: str, max_new: int) -> list[str]:
        assert language == ""
        self.prompts += [list(prompt) for prompt in prompts]
        return [self._says([part for part in prompt if part.type != "text"]) for prompt in prompts]

    def unusable(self, sample: Sample, *, answered: bool) -> str | None:
        texts = [part.text or "" for part in sample.all_parts if part.type == "text"]
        return "too long" if any("long" in text for text in texts) else None

    def score_answers(self, samples: Sequence[Sample]) -> list[tuple[np.ndarray, ...]]:
        """Answers are `p` or `p before q`: log-probabilities with adapters, and without them."""
        said = [[answer.parts[0].text or "" for answer in sample.answers or ()] for sample in samples]
        before = any("before" in text for of_one in said for text in of_one)
        return [
            tuple(np.array([float(text.split(" before ")[k]) for text in of_one]) for k in range(1 + before))
            for of_one in said
        ]

    rewards = True

    def reward_answers(self, samples: Sequence[Sample]) -> list[np.ndarray]:
        """The numbers that answers spell."""
        return [np.array([float(answer.parts[0].text or "") for answer in one.answers or ()]) for one in samples]

    def _says(self, shown: Sequence[Part]) -> str:
        values = [float(np.abs(array_of(part)).max()) for part in shown]
        return "nothing" if not any(values) else " and ".join(part.type for part in shown).upper()


def ask(text: str, kind: str | None = None) -> Part:
    return Part(type="text", role="user", text=text, kind=kind)


def say(text: str) -> Part:
    return Part(type="text", role="assistant", text=text)


PICTURE = Part(type="image", file="png", role="user", data=png(10))
CLIP = Part(type="audio", file="flac", role="user", data=flac(20))


def talks(split: str) -> list[Sample]:
    turns = [
        (PICTURE, ask("What?", "name"), say("image"), CLIP, ask("Both?", "match"), say("image and audio")),
        (PICTURE, ask("What else?", "name"), say("a cat"), ask("Sure?"), say("image")),
    ]
    return [Sample(key=f"{split}{i}", parts=parts, labels={"concept": str(i)}) for i, parts in enumerate(turns)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("talks")
    train = [dataclasses.replace(one, parts=(PICTURE, ask("What?", "name"), say("a cat"))) for one in talks("train")]
    splits = {"train": train, "test": talks("test") + talks("more")}
    write_manifest(root, [write_shard(root / f"{s}.tar", of, split=s) for s, of in splits.items()])
    return root


def test_a_question_stands_alone_with_all_that_was_shown() -> None:
    first, second = questions(talks("x")[0])
    assert (first.kind, first.modality, first.right) == ("name", "image", ("image",))
    assert first.prompt == (PICTURE, ask("What?", "name"))
    assert second.prompt == (PICTURE, CLIP, ask("Both?", "match"))
    assert (second.kind, second.modality) == ("match", "audio and image")
    assert [asked.kind for asked in questions(talks("x")[1])] == ["name", "question"]
    lines = Sample(key="l", parts=(PICTURE, ask("What?"), say("a cat\nor two")))
    assert next(questions(lines)).right == ("a cat\nor two",)  # one answer; a check has a wording a line
    checked = Sample(key="c", parts=(PICTURE, ask("What?")), answers=(), check="a cat\ncat")
    assert next(questions(checked)).right == ("a cat", "cat")
    waiting = Sample(key="w", parts=(PICTURE, ask("What?")))
    assert list(questions(waiting)) == []


def test_right_answers_beside_a_blank_input_and_the_commonest_answer(root: Path) -> None:
    model = Knowing()
    found = {outcome.metric: outcome for outcome in answers(Bench(model, root)).outcomes}
    about = ["about audio and image, exact", "about image, exact"]
    assert list(found) == [*about, "match, exact", "name, exact", "question, exact"]
    name = found["name, exact"]
    assert sorted(zip(name.clusters, name.values.tolist(), strict=True)) == [("0", 1), ("0", 1), ("1", 0), ("1", 0)]
    assert name.baselines["blank input"].tolist() == [0] * 4
    assert sorted(name.baselines["commonest answer"].tolist()) == [0, 0, 1, 1]  # "a cat", of training
    assert found["about image, exact"].values.mean() == pytest.approx(4 / 6)
    assert found["match, exact"].values.tolist() == [1, 1]
    assert found["match, exact"].chance == 1  # both are answered alike
    blank = [prompt for prompt in model.prompts if not array_of(prompt[0]).any()]
    assert len(blank) == len(model.prompts) / 2
    assert {prompt[-1].text for prompt in blank} == {"What?", "What else?", "Both?", "Sure?"}


def test_at_most_so_many_of_each_kind_the_same_each_time(root: Path) -> None:
    twice = [answers(Bench(Knowing(), root), limit=2).outcomes for _ in range(2)]
    assert [len(outcome.values) for outcome in twice[0] if outcome.metric == "name, exact"] == [2]
    assert [outcome.clusters for outcome in twice[0]] == [outcome.clusters for outcome in twice[1]]


def test_what_the_model_cannot_read_is_not_asked(root: Path) -> None:
    model = Knowing()
    model.modalities = ("image", "text")
    assert "match, exact" not in {outcome.metric for outcome in answers(Bench(model, root)).outcomes}


def pair(key: str, source: str, chosen: str, rejected: str, turned: bool = False) -> Sample:
    both = [(chosen, 1.0), (rejected, 0.0)]
    made = tuple(Answer(parts=(say(text),), score=score) for text, score in (both[::-1] if turned else both))
    return Sample(key=key, parts=(PICTURE, ask("Which?")), answers=made, source=source, labels={"concept": key})


def preferences(root: Path, *samples: Sample) -> Bench:
    root.mkdir()
    write_manifest(root, [write_shard(root / "a.tar", samples, split="test")])
    return Bench(Knowing(), root)


def test_what_is_preferred_now_and_more_than_before(tmp_path: Path) -> None:
    """Both pairs of `near` are won in the end, one of them by less than before; the tie is lost, both ways."""
    bench = preferences(
        tmp_path / "a",
        pair("1", "near", "-1 before -3", "-2 before -2"),
        pair("2", "near", "-1 before -1", "-2 before -5", turned=True),
        pair("3", "far", "-2 before -2", "-2 before -2"),
        pair("4", "far", "-3 before -9", "-2 before -1", turned=True),
        pair("5", "alone", "-1 before -1", "-2 before -2"),
    )
    found = {outcome.metric: outcome for outcome in preferred(bench).outcomes}
    assert list(found) == ["far, reward", "far, likelier", "near, reward", "near, likelier"]
    got = {name: dict(zip(o.clusters, o.values.tolist(), strict=True)) for name, o in found.items()}
    assert got["near, reward"] == {"1": 1, "2": 0}
    assert got["near, likelier"] == {"1": 1, "2": 1}
    assert (got["far, reward"], got["far, likelier"]) == ({"3": 0, "4": 1}, {"3": 0, "4": 0})
    near = found["near, likelier"]
    assert dict(zip(near.clusters, near.baselines["without adapters"].tolist(), strict=True)) == {"1": 0, "2": 1}
    assert {outcome.chance for outcome in found.values()} == {0.5}


def test_without_adapters_only_what_is_likelier_is_told(tmp_path: Path) -> None:
    bench = preferences(tmp_path / "a", pair("1", "near", "-1", "-2"), pair("2", "near", "-3", "-2"))
    assert [(o.metric, sorted(o.values)) for o in preferred(bench).outcomes] == [("near, likelier", [0, 1])]
    with pytest.raises(Lacking, match="fewer than two pairs"):
        preferred(preferences(tmp_path / "b", talks("x")[0]))


def test_the_higher_reward_is_right_and_a_tie_is_wrong(tmp_path: Path) -> None:
    bench = preferences(
        tmp_path / "a",
        pair("1", "near", "3", "1"),
        pair("2", "near", "-1", "-2", turned=True),
        pair("3", "far", "2", "2"),
        pair("4", "far", "1", "5", turned=True),
    )
    found = {outcome.metric: outcome for outcome in rewarded(bench).outcomes}
    got = {name: dict(zip(o.clusters, o.values.tolist(), strict=True)) for name, o in found.items()}
    assert list(got) == ["all pairs, right", "far, right", "near, right"]
    assert (got["near, right"], got["far, right"]) == ({"1": 1, "2": 1}, {"3": 0, "4": 0})
    assert got["all pairs, right"] == got["near, right"] | got["far, right"]
    assert {outcome.chance for outcome in found.values()} == {0.5}


def test_rewards_are_asked_of_reward_models_about_pairs(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match="fewer than two pairs"):
        rewarded(preferences(tmp_path / "a", talks("x")[0]))
    bench = preferences(tmp_path / "b", pair("1", "near", "3", "1"), pair("2", "near", "3", "1"))
    assert isinstance(bench.model, Knowing)
    bench.model.rewards = False
    with pytest.raises(Lacking, match="stage=reward"):
        rewarded(bench)


def test_what_cannot_be_asked_is_counted_and_left_out(tmp_path: Path) -> None:
    bench = preferences(
        tmp_path / "a", pair("1", "near", "-1", "-2"), pair("2", "near", "-3", "-2"), pair("3", "near", "-1", "-2 long")
    )
    assert [len(outcome.values) for outcome in preferred(bench).outcomes] == [2]
    assert bench.skipped == {"too long": 1}
    long = Sample(key="l", parts=(PICTURE, ask("What a long question?", "name"), say("image")))
    bench = preferences(tmp_path / "b", *talks("x"), long)
    assert {o.metric: len(o.values) for o in answers(bench).outcomes}["name, exact"] == 2
    assert bench.skipped == {"too long": 1}


def test_parts_without_a_role_are_the_users(tmp_path: Path) -> None:
    plain = [
        dataclasses.replace(PICTURE, role=None),
        dataclasses.replace(ask("What?", "name"), role=None),
        say("image"),
    ]
    bench = preferences(tmp_path / "a", *(Sample(key=k, parts=tuple(plain)) for k in "ab"))
    assert answers(bench).outcomes[0].values.tolist() == [1, 1]
    model = bench.model
    assert isinstance(model, Knowing)
    assert {part.role for prompt in model.prompts for part in prompt} == {"user"}


def test_without_conversations_it_is_left_out(tmp_path: Path) -> None:
    with pytest.raises(Lacking, match="fewer than two questions in conversations in split 'test'"):
        answers(Bench(Knowing(), write_world(tmp_path)))
