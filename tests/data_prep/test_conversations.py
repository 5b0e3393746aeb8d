"""Conversations about the embedded sample: their turns, what is held out, and where they are kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from data_prep import conversations
from data_prep.common import SAMPLE
from data_prep.conversations import FORMS, LANGUAGES, SPLITS, prepare
from mmfusion.data.decode import decode_sample
from mmfusion.data.series import array_of
from mmfusion.data.shards import MANIFEST, ShardSet
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.types import DataError, Part, Sample


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("made") / "conversations"
    prepare(root)
    return root


@pytest.fixture(scope="module")
def talks(made: Path) -> dict[str, list[Sample]]:
    shards = {split: ShardSet(made, split) for split in SPLITS}
    return {split: [one.read(i) for i in range(len(one))] for split, one in shards.items()}


def asked(sample: Sample) -> list[tuple[str, str, str]]:
    """(kind, question, answer) of each turn."""
    texts = sample.of("text")
    assert [part.role for part in texts] == ["user", "assistant"] * (len(texts) // 2)
    return [(q.kind or "", q.text or "", a.text or "") for q, a in zip(texts[::2], texts[1::2], strict=True)]


def test_every_kind_is_asked_in_every_split_in_words_of_its_own(talks: dict[str, list[Sample]]) -> None:
    """A form with its gaps filled differs from sample to sample; without gaps it is met as it is."""
    plain = {kind: forms for kind, forms in FORMS.items() if "{" not in "".join(forms)}
    met: dict[str, dict[str, set[str]]] = {split: {} for split in SPLITS}
    for split, samples in talks.items():
        turns = [turn for sample in samples for turn in asked(sample)]
        assert {kind for kind, _, _ in turns} == set(FORMS)
        for kind, question, _ in turns:
            met[split].setdefault(kind, set()).add(question)
    for kind, forms in plain.items():
        assert met["train"][kind] == set(forms[:-2])
        assert met["validation"][kind] == {forms[-2]}
        assert met["test"][kind] == {forms[-1]}
    for kind, forms in FORMS.items():
        assert len(set(forms)) == len(forms) == 7, kind


def test_the_answers_are_the_samples_own(talks: dict[str, list[Sample]]) -> None:
    originals = {}
    for split in SPLITS:
        shards = ShardSet(SAMPLE, split)
        originals |= {split + one.key: one for one in map(shards.read, range(len(shards)))}
    right = Counter[str]()
    for split, samples in talks.items():
        for sample in samples:
            original = originals.get(split + sample.key)
            if original is None:
                continue
            texts = {part.lang: part.text for part in original.of("text")}
            for kind, question, answer in asked(sample):
                if kind == "translation":
                    (language,) = [code for code, name in LANGUAGES.items() if name in question]
                    assert texts[language] == answer
                elif kind in ("name", "choice", "sound"):
                    assert texts["en"] == answer
                    assert kind != "choice" or answer in question
                right[kind] += 1
    assert min(right[kind] for kind in ("name", "choice", "sound", "translation")) > 100


def test_movements_last_as_long_as_is_said(talks: dict[str, list[Sample]]) -> None:
    for sample in talks["validation"]:
        for kind, _, answer in asked(sample):
            if kind == "duration":
                (series,) = decode_sample(sample).of("sensor")
                assert series.rate_hz
                assert f"{len(array_of(series)) / series.rate_hz:.0f} seconds" == answer


def test_half_of_the_pictures_belong_to_the_sound(talks: dict[str, list[Sample]]) -> None:
    answers = Counter(answer for sample in talks["train"] for kind, _, answer in asked(sample) if kind == "belongs")
    assert set(answers) == {"yes", "no"}
    assert 0.4 < answers["yes"] / answers.total() < 0.6


def test_a_part_stands_once_and_keeps_no_words(talks: dict[str, list[Sample]]) -> None:
    for sample in talks["train"]:
        shown = [part for part in sample.parts if part.type != "text"]
        assert len({part.data for part in shown if isinstance(part.data, bytes)}) == len(shown)
        assert all((part.role, part.text, part.lang) == ("user", None, None) for part in shown)
    assert max(len(asked(sample)) for sample in talks["train"]) == 4


def test_the_same_bytes_again(made: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "again")
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}
        for root in (made, tmp_path / "again")
    ]
    assert digests[0] == digests[1]


def own_shards(root: Path) -> Path:
    root.mkdir()
    text = Part(type="text", role="user", text="Who?"), Part(type="text", role="assistant", text="I.")
    write_manifest(root, [write_shard(root / "own.tar", [Sample(key="a", parts=text)], split="train")])
    return root


def test_it_is_made_once_and_anew_where_it_would_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of small shards, with the time of each building counted."""
    built: list[Path] = []

    def build(out: Path, root: Path) -> None:
        built.append(out)
        (out / "a.tar").write_bytes(b"")
        (out / MANIFEST).write_text(json.dumps({"made_from": conversations.made_from(root), "shards": []}))

    monkeypatch.setattr(conversations, "build", build)
    root, out = own_shards(tmp_path / "root"), tmp_path / "cache" / "out"
    prepare(out, root)
    prepare(out, root)
    assert len(built) == 1
    (root / MANIFEST).write_text((root / MANIFEST).read_text() + " ")  # other shards
    prepare(out, root)
    assert len(built) == 2
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_what_somebody_else_put_there_stays(tmp_path: Path) -> None:
    own = own_shards(tmp_path / "own")
    before = {path.name: path.read_bytes() for path in own.iterdir()}
    prepare(own)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds no manifest"):
        prepare(other)
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
