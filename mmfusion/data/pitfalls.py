"""What a researcher would trip over in a set of shards, said in words before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterator

from mmfusion.data.stats import STOPS, UNKNOWN, Stats, label_numbers

SKIPPED = 0.01  # the share of holes at which a run stops (data.max_skipped_fraction)
UNEVEN = 50  # times as many samples of the commonest class as of the rarest


def pitfalls(stats: Stats) -> list[str]:
    """One sentence each, the gravest first; nothing where nothing is wrong."""
    checks = (_holes, _twice, _splits, _people, _labels, _languages, _unstated)
    return [sentence for check in checks for sentence in check(stats)]


def _holes(stats: Stats) -> Iterator[str]:
    samples = sum(cell["samples"] for cell in stats.cells.values())
    skipped = stats.tables["skipped"]
    for reason, n in skipped.most_common():
        if reason == STOPS:
            yield f"{n:,} samples stop a run when they are read, the first is {stats.first[reason]}: write them anew."
    holes = skipped.total() - skipped[STOPS]
    if holes > SKIPPED * samples:
        yield f"{holes:,} of {samples:,.0f} samples cannot be used; a run stops above data.max_skipped_fraction=0.01."


def _twice(stats: Stats) -> Iterator[str]:
    for (one, other), n in stats.twice["key"].items():
        remedy = "a run refuses such a set" if "train" in (one, other) else "give each its own"
        yield f"{n:,} keys stand in {one} and in {other}, {stats.first['key']!r} first: {remedy}."
    for (one, other), n in stats.twice["bytes"].items():
        first = f"first seen in {stats.first['bytes']!r}"
        yield f"{n:,} parts of {one} and {other} are the same to the byte: a leak unless meant, {first}."


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
            yield (
                f"{len(shared):,} of {len(found):,} {role}s stand in train and in another split ({names}): what is "
                f"measured there says nothing about a new {role}."
            )


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
        yield f"{languages[UNKNOWN]:,} of {languages.total():,} texts state no language: no prompt will ask for one."


def _unstated(stats: Stats) -> Iterator[str]:
    if n := stats.tables["licences"][UNKNOWN]:
        yield f"{n:,} samples state no licence."
