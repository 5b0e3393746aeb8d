"""Splits are by group, never by row; keys are safe, and no two alike."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_sources import colour, packed, put, table

from mmfusion.data.order import stable_hash
from mmfusion.data.pack.draft import Draft, Settings, in_words, slug
from mmfusion.data.pack.keys import Keys, safe
from mmfusion.data.pack.pack import pack
from mmfusion.data.pack.splits import deal
from mmfusion.types import DataError

SHARES = {"validation": 0.1, "test": 0.1}


def drafts(n: int, **said: Sequence[str | None]) -> list[Draft]:
    def one(i: int) -> Draft:
        labels = {"concept": str(said["concept"][i]), "label": str(said["concept"][i])} if "concept" in said else {}
        return Draft(
            row=i + 1,
            key=f"k{i}",
            pieces=lambda: (),
            labels=labels,
            groups=[str(said["group"][i])] if "group" in said else (),
            split=said["split"][i] if "split" in said else None,
        )

    return [one(i) for i in range(n)]


def files(n: int) -> list[tuple[str, ...]]:
    return [(f"file {i}",) for i in range(n)]


def test_large_sets_get_the_shares_that_are_asked_for() -> None:
    splits, notes = deal(drafts(5000), files(5000), SHARES)
    counts = Counter(splits)
    assert notes == []
    assert abs(counts["test"] - 500) < 90
    assert abs(counts["validation"] - 500) < 90


def test_more_data_moves_nothing() -> None:
    few, _ = deal(drafts(1000), files(1000), SHARES)
    more, _ = deal(drafts(1200), files(1200), SHARES)
    assert more[:1000] == few


def test_a_group_has_one_split() -> None:
    subjects = [f"s{i % 9}" for i in range(200)]
    splits, notes = deal(drafts(200, group=subjects), files(200), SHARES)
    of: dict[str, set[str]] = defaultdict(set)
    for subject, split in zip(subjects, splits, strict=True):
        of[subject].add(split)
    assert all(len(found) == 1 for found in of.values())
    assert set(splits) == {"train", "validation", "test"}
    assert notes == []


def test_the_same_file_is_never_in_two_splits_and_ties_its_groups() -> None:
    digests = files(100)
    digests[3] = ("file 3", "file 60")
    digests[61] = ("file 60",)
    for names in (None, [f"s{i}" for i in range(100)]):
        made = drafts(100, group=names) if names else drafts(100)
        splits, _ = deal(made, digests, SHARES)
        assert splits[3] == splits[60] == splits[61]


@pytest.mark.parametrize("n", [4, 7, 10, 40])
def test_every_class_is_in_every_split_of_a_small_set(n: int) -> None:
    classes = [f"c{i % 5}" for i in range(5 * n)]
    splits, notes = deal(drafts(5 * n, concept=classes), files(5 * n), SHARES)
    for split in ("train", "validation", "test"):
        assert {c for c, s in zip(classes, splits, strict=True) if s == split} == {f"c{i}" for i in range(5)}
    assert notes == []


def test_a_modality_and_the_classes_of_a_few_subjects_are_in_every_split_of_many_pictures() -> None:
    subjects = [f"s{i % 6}" for i in range(60)]
    classes = [f"move {i // 12}" for i in range(60)]
    made = [*drafts(800), *drafts(60, group=subjects, concept=classes)]
    kinds = [*[("image", "text")] * 800, *[("sensor", "text")] * 60]
    splits, notes = deal(made, files(860), SHARES, kinds)
    assert notes == []
    of = {split: {s for s, where in zip(subjects, splits[800:], strict=True) if where == split} for split in splits}
    assert set(of) == {"train", "validation", "test"}
    assert sum(map(len, of.values())) == 6  # no subject in two
    assert min(map(len, of.values())) >= 1


def test_a_concept_takes_no_split_from_another() -> None:
    """By hand, the groups numbered by their hashes, at first all in train: b takes one of a's two last, c leaves it."""
    names = sorted(map(str, range(10)), key=lambda name: stable_hash("split", f"group {name}"))
    concepts = {"a": (0, 1, 2, 3), "b": (2, 4, 5, 6), "c": (3, 7, 8, 9)}
    rows = [(concept, number) for concept, numbers in concepts.items() for number in numbers]
    made = drafts(12, concept=[concept for concept, _ in rows], group=[names[number] for _, number in rows])
    splits, notes = deal(made, [()] * 12, {"validation": 1e-9, "test": 1e-9})
    of: dict[str, set[int]] = defaultdict(set)
    for (_, number), split in zip(rows, splits, strict=True):
        of[split].add(number)
    assert of == {"validation": {0, 2, 7}, "test": {1, 4, 8}, "train": {3, 5, 6, 9}}
    assert notes == []


def test_classes_of_too_few_files_are_told() -> None:
    splits, notes = deal(drafts(40, concept=[f"c{i // 2}" for i in range(40)]), files(40), SHARES)
    missing = 20 - Counter(splits)["test"]
    assert any(note.startswith(f"{missing} of ") and note.endswith("are not in test") for note in notes)


@pytest.mark.parametrize(("n", "there"), [(1, {"train"}), (2, {"train", "validation"}), (3, {*SHARES, "train"})])
def test_too_few_groups_leave_a_split_out_and_say_so(n: int, there: set[str]) -> None:
    subjects = [f"s{i % n}" for i in range(30)]
    splits, notes = deal(drafts(30, group=subjects), files(30), SHARES)
    assert set(splits) == there
    assert len([note for note in notes if f"only {n} group" in note]) == 3 - len(there)


def test_splits_of_the_source_are_kept_and_what_crosses_them_is_told() -> None:
    said = ["train"] * 8 + ["test"] * 2
    digests = files(10)
    digests[9] = digests[0]
    splits, notes = deal(drafts(10, split=said), digests, {})
    assert splits == said
    assert notes == ["1 group (or the same file or texts) in more than one split of the source; kept so"]


@pytest.mark.parametrize("group", ["subject", "site"])
def test_a_table_is_split_by_subject_or_by_the_column_asked_for(tmp_path: Path, group: str) -> None:
    rows = []
    for i in range(60):
        put(tmp_path / "in" / f"{i}.png", colour(i))
        rows.append([f"{i}.png", f"s{i % 8}", f"place {i // 8}"])
    source = table(tmp_path / "in" / "t.csv", ["image", "subject", "site"], rows)
    pack(source, tmp_path / "out", settings=Settings(group=None if group == "subject" else group))
    where = {sample.key: split for split, of in packed(tmp_path / "out").items() for sample in of}
    column = 1 if group == "subject" else 2
    of: dict[str, set[str]] = defaultdict(set)
    for i, row in enumerate(rows):
        of[row[column]].add(where[str(i)])
    assert all(len(found) == 1 for found in of.values())
    assert set(where.values()) == {"train", "validation", "test"}


def test_a_table_with_subjects_and_speakers_parts_neither(tmp_path: Path) -> None:
    rows = []
    for i in range(60):
        put(tmp_path / "in" / f"{i}.png", colour(i))
        rows.append([f"{i}.png", f"s{i // 4}", f"v{i // 6}" if i % 3 else ""])
    pack(table(tmp_path / "in" / "t.csv", ["image", "subject", "speaker"], rows), tmp_path / "out")
    where = {sample.key: split for split, of in packed(tmp_path / "out").items() for sample in of}
    for column in (1, 2):
        of: dict[str, set[str]] = defaultdict(set)
        for i, row in enumerate(rows):
            of[row[column]].add(where[str(i)])
        of.pop("", None)
        assert all(len(found) == 1 for found in of.values())
    assert set(where.values()) == {"train", "validation", "test"}


def test_rows_without_files_are_parted_by_their_texts(tmp_path: Path) -> None:
    texts = [[f"Goose  number {i % 30}" if i % 2 else f"goose number {i % 30} "] for i in range(90)]
    pack(table(tmp_path / "in" / "t.csv", ["text"], texts), tmp_path / "out")
    of: dict[str, set[str]] = defaultdict(set)
    for split, samples in packed(tmp_path / "out").items():
        for sample in samples:
            of[str(sample.parts[0].text).split()[-1]].add(split)
    assert len(of) == 30
    assert all(len(found) == 1 for found in of.values())


def test_a_split_column_without_validation_gets_one_only_when_asked(tmp_path: Path) -> None:
    rows = [[f"{i}.png", "test" if i < 5 else "TRAIN"] for i in range(30)]
    for i in range(30):
        put(tmp_path / "in" / f"{i}.png", colour(i))
    source = table(tmp_path / "in" / "t.csv", ["image", "part"], rows)
    pack(source, tmp_path / "as-is", settings=Settings(split="part"))
    assert {split: len(of) for split, of in packed(tmp_path / "as-is").items()} == {"test": 5, "train": 25}
    pack(source, tmp_path / "made", settings=Settings(split="part"), validation=0.2)
    made = {split: len(of) for split, of in packed(tmp_path / "made").items()}
    assert made["test"] == 5
    assert made["validation"] > 0
    assert made["train"] + made["validation"] == 25


@pytest.mark.parametrize("shares", [(0.6, 0.5), (-0.1, 0.1), (float("nan"), 0.1)])
def test_impossible_shares_are_refused(tmp_path: Path, shares: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="shares are at least 0, and together less than 1"):
        pack(tmp_path, tmp_path / "out", validation=shares[0], test=shares[1])


# ------------------------------------------------------------------------------------------------------------- concepts


def test_labels_are_one_concept_only_where_case_or_what_parts_their_words_differs() -> None:
    labels = ["काला", "काली", "कील", "C", "C++", "C#", "5", "-5", "x: 5", "x: -5", "_"]
    assert len({slug(label) for label in labels}) == len({in_words(label) for label in labels}) == len(labels)
    assert {slug(label) for label in ("Caf\u00e9 noir", "cafe\u0301_NOIR", "CAF\u00c9 - noir")} == {"caf\u00e9-noir"}
    assert slug("काला_घोड़ा") == slug("काला घोड़ा")
    assert (in_words("bar_headed-goose"), in_words("_x_")) == ("bar headed goose", "x")


# --------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("pics/IMG (1).v2", "pics_IMG_1_v2"),
        ("/data/../a b", "data_a_b"),
        ("__x__", "x"),
        ("хлеб и соль", "хлеб_и_соль"),
        ("हिन्दी", "हिन्दी"),
        ("C:\\x=1,2", "C_x_1_2"),
        ("...", "sample"),
        ("e\u0301", "\u00e9"),
        ("\udcff", "sample"),
    ],
)
def test_keys_are_safe_and_readable(name: str, key: str) -> None:
    assert safe(name) == key


def test_keys_that_would_be_one_are_numbered_in_their_order() -> None:
    keys = Keys()
    assert [keys(name) for name in ("a.b", "A b", "a-b", "a_b", "a_b-2")] == ["a_b", "A_b-2", "a-b", "a_b-3", "a_b-2-2"]


@given(st.lists(st.text("aAßéÉe\u0301 ._-/2हि", max_size=4), max_size=12))
def test_no_two_keys_are_alike_for_any_file_system(names: list[str]) -> None:
    keys = Keys()
    made = [keys(name) for name in names]
    assert len({key.casefold() for key in made}) == len(names)
    assert not any(set(key) & set("./\\: ") or key.startswith("__") or not key for key in made)
