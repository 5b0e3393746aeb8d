"""Which sample goes where: by what the source says, else by a stable hash of its group, never by row.

A group is what must not stand in two splits: a subject, a speaker, or the file; samples that share a file, byte for
byte, or all their texts where they have no file, are one group whatever they are called.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from mmfusion.data.order import stable_hash
from mmfusion.data.pack.draft import Draft, Split

_Groups = Mapping[str, Sequence[int]]  # the numbers of the samples of each group, by its name


def deal(
    drafts: Sequence[Draft],
    digests: Sequence[Sequence[str]],
    shares: Mapping[Split, float],
    kinds: Sequence[Sequence[str]] = (),
) -> tuple[list[Split], list[str]]:
    """The split of each draft, and what to tell.

    `digests` of each draft's files or texts; `kinds` its modalities; `shares` of the splits that are made: of
    everything where the source names no split, else of its train. Every split has some of every concept and of every
    modality that stands in more groups than there are splits, where no other would lose its last group by it.
    """
    notes: list[str] = []
    splits: list[Split] = [draft.split or "train" for draft in drafts]
    crossing = [numbers for numbers in _groups(drafts, digests).values() if len({splits[i] for i in numbers}) > 1]
    if crossing:
        notes.append(
            f"{_count(len(crossing))} (or the same file or texts) in more than one split of the source; kept so"
        )
    if shares:
        free = [i for i, split in enumerate(splits) if split == "train"]
        groups = _groups([drafts[i] for i in free], [digests[i] for i in free])
        groups = {name: [free[i] for i in numbers] for name, numbers in groups.items()}
        dealt = _dealt(groups, _strata(groups, drafts, kinds), shares)
        for name, split in dealt.items():
            for i in groups[name]:
                splits[i] = split
        short = f"{_count(len(groups))} to deal (those with the same file or texts are one)"
        notes += [f"no {split} split: only {short}" for split in shares if split not in dealt.values()]
    return splits, notes + _unseen(drafts, splits)


def _count(groups: int) -> str:
    return f"{groups} group{'' if groups == 1 else 's'}"


def _groups(drafts: Sequence[Draft], digests: Sequence[Sequence[str]]) -> _Groups:
    """Samples that are tied by a group's name or by a file, as connected components, named by their least tie."""
    parent: dict[str, str] = {}

    def root(tie: str) -> str:
        parent.setdefault(tie, tie)
        while parent[tie] != tie:
            parent[tie] = tie = parent[parent[tie]]
        return tie

    ties = [
        [*(f"group {group}" for group in draft.groups), *files] or [f"row {draft.key}"]
        for draft, files in zip(drafts, digests, strict=True)
    ]
    for tied in ties:
        for tie in tied[1:]:
            first, second = sorted((root(tied[0]), root(tie)))
            parent[second] = first
    groups: dict[str, list[int]] = defaultdict(list)
    for i, tied in enumerate(ties):
        groups[root(tied[0])].append(i)
    return groups


def _strata(groups: _Groups, drafts: Sequence[Draft], kinds: Sequence[Sequence[str]]) -> list[list[str]]:
    """The groups in which each concept stands, and each modality."""
    strata: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, numbers in groups.items():
        concepts = {concept for i in numbers if (concept := drafts[i].labels.get("concept"))}
        found = {("concept", concept) for concept in concepts}
        found |= {("modality", kind) for i in numbers for kind in (kinds[i] if kinds else ())}
        for stratum in sorted(found):
            strata[stratum].append(name)
    return [strata[stratum] for stratum in sorted(strata)]


def _place(group: str) -> float:
    """In [0, 1), the same on every machine."""
    return stable_hash("split", group) / 2**63


def _dealt(groups: _Groups, strata: Sequence[list[str]], shares: Mapping[Split, float]) -> dict[str, Split]:
    dealt: dict[str, Split] = {}
    for name in groups:
        place, dealt[name] = _place(name), "train"
        for split, share in shares.items():
            if 0 <= place < share:
                dealt[name] = split
            place -= share
    wanted: list[Split] = ["train", *shares]
    large = [names for names in strata if len(names) > len(wanted)]
    beside: dict[str, list[list[str]]] = defaultdict(list)  # of each group: the strata in which it stands
    for names in large:
        for name in names:
            beside[name].append(names)
    for names in large:
        _fill(names, dealt, wanted, beside)
    _fill(list(groups), dealt, wanted, beside)
    return dealt


def _fill(
    names: list[str], dealt: dict[str, Split], wanted: Sequence[Split], beside: Mapping[str, Sequence[list[str]]]
) -> None:
    """A group for each wanted split that has none among `names`, from the one that has most, by the least hash.

    It is no group that is the last of its split in a stratum that it stands in (`beside`), unless train has no other.
    """

    def spare(name: str) -> bool:
        split = dealt[name]
        return all(any(dealt[other] == split for other in of if other != name) for of in (names, *beside.get(name, ())))

    names = sorted(names, key=lambda name: (_place(name), name))
    for split in wanted:
        counts = Counter(dealt[name] for name in names)
        if split in counts or not counts:
            continue
        donors = sorted(names, key=lambda name: -counts[dealt[name]])
        moved = next(filter(spare, donors), donors[0] if split == "train" else None)
        if moved is not None:
            dealt[moved] = split


def _unseen(drafts: Sequence[Draft], splits: Sequence[Split]) -> list[str]:
    """Whether classes of the other splits have nothing to be learnt from, or cannot be tested."""
    classes: dict[str, set[str]] = defaultdict(set)
    for draft, split in zip(drafts, splits, strict=True):
        if "label" in draft.labels:
            classes[split].add(draft.labels["label"])
    train = classes.get("train", set())
    return [
        f"{len(missing)} of {len(train)} classes of train are not in {split}"
        for split in ("validation", "test")
        if split in splits and (missing := train - classes[split])
    ]
