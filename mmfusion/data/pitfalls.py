"""What a researcher would trip over in a set of shards, said in words before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator

from mmfusion.data.batching import ROW_LENGTH, row_length_for
from mmfusion.data.stats import STOPS, UNKNOWN, Stats, label_numbers

SKIPPED = 0.01  # data.max_skipped_fraction, as it is where nobody changed it
UNEVEN = 50  # times as many samples of the commonest class as of the rarest


def pitfalls(stats: Stats) -> list[str]:
    """One sentence each, the gravest first; nothing where nothing is wrong."""
    checks = (_holes, _long, _twice, _splits, _people, _labels, _languages, _unstated)
    return [sentence for check in checks for sentence in check(stats)]


def _holes(stats: Stats) -> Iterator[str]:
    samples = sum(cell["samples"] for cell in stats.cells.values())
    skipped = stats.tables["skipped"]
    if n := skipped[STOPS]:
        yield f"Samples that stop a run when they are read: {n:,} (first {stats.first[STOPS]}); write them anew."
    if (holes := skipped.total() - n) > SKIPPED * samples:
        yield f"Samples that cannot be used: {holes:,} of {samples:,.0f}; a run stops above {SKIPPED:.0%} of them."


def _long(stats: Stats) -> Iterator[str]:
    if stats.documents and (needed := row_length_for(stats.documents)):
        n = sum(length > ROW_LENGTH for length in stats.documents)
        of = f"Samples whose text may fit no row of {ROW_LENGTH} pieces: {n:,} of {len(stats.documents):,}"
        yield f"{of}; a run skips them without data.pipeline.row_length={needed}."


def _twice(stats: Stats) -> Iterator[str]:
    for (one, other), n in stats.twice["key"].items():
        remedy = "a run refuses such a set" if "train" in (one, other) else "give each its own"
        yield f"Keys in both {one} and {other}: {n:,} (first {stats.first['key']!r}); {remedy}."
    for same, which in (("bytes", "Parts that are the same to the byte"), ("texts", "Samples of the same texts alone")):
        for (one, other), n in stats.twice[same].items():
            yield f"{which} in {one} and {other}: {n:,} (first {stats.first[same]!r}); a leak unless meant."


def _splits(stats: Stats) -> Iterator[str]:
    splits = {split for split, _ in stats.cells}
    if "train" not in splits:
        yield f"There is no train split, only {', '.join(sorted(splits))}: it can be evaluated, not trained on."
    if "validation" not in splits:
        yield "There is no validation split: no validation loss, nothing for early stopping to watch."
    for split in sorted(splits):
        cells = [cell for (name, _), cell in stats.cells.items() if name == split]
        if sum(cell["samples"] - cell["skipped"] for cell in cells) == 0:
            yield f"No sample of split {split} can be used."


def _people(stats: Stats) -> Iterator[str]:
    for role, found in stats.people.items():
        shared = sorted(who for who, splits in found.items() if "train" in splits and len(splits) > 1)
        if shared:
            names = ", ".join(shared[:5]) + (", …" if len(shared) > 5 else "")
            of = f"{role.capitalize()}s in train and in another split: {len(shared):,} of {len(found):,} ({names})"
            yield f"{of}; what is measured there says nothing about a new {role}."


def _labels(stats: Stats) -> Iterator[str]:
    uneven = []
    for name, by_split in stats.labels.items():
        numbers = label_numbers(by_split)
        alone = numbers["in_this_split_alone"]
        new = [f"{alone[s]:,} of {len(by_split[s]):,} in {s}" for s in sorted(by_split) if s != "train" and alone[s]]
        if "train" in by_split and new and name not in stats.people:
            meant = "meant where new values are asked for, else never learnt"
            yield f"Values of label {name!r} that stand in no other split: {', '.join(new)}; {meant}."
        value, most = next(iter(numbers["commonest"].items()))
        if most > UNEVEN * numbers["rarest"]:
            uneven.append(f"{name!r} ({most:,} of {value!r}, {numbers['rarest']:,} of the rarest)")
    if uneven:
        yield f"Uneven labels: {', '.join(uneven)}."


def _languages(stats: Stats) -> Iterator[str]:
    languages = stats.tables["languages"]
    known = [name for name in languages if name != UNKNOWN]
    if len(known) == 1:
        yield f"All texts with a language are in {known[0]!r}: a model will know no other."
    if languages[UNKNOWN]:
        of = f"{languages[UNKNOWN]:,} of {languages.total():,}"
        yield f"Texts that state no language: {of}; no prompt will ask for one."


def _unstated(stats: Stats) -> Iterator[str]:
    if n := stats.tables["licences"][UNKNOWN]:
        yield f"Samples that state no licence: {n:,}."
