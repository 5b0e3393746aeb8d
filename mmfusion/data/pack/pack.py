"""The whole way from a source to a folder that `mmfusion train data=shards data.root=OUT` takes."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mmfusion.data.batching import longest_document, row_length_for
from mmfusion.data.pack.check import check_all, refuse_too_many, write_skipped
from mmfusion.data.pack.columns import is_language
from mmfusion.data.pack.draft import Found, Settings, Split
from mmfusion.data.pack.keys import safe
from mmfusion.data.pack.layouts import recognise
from mmfusion.data.pack.splits import deal
from mmfusion.data.pack.summary import tell, tell_skipped
from mmfusion.data.pack.vocabulary import NAME, default_tokenizer
from mmfusion.data.pack.write import check_out, draft_folder, write_shards
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.progress import tracked
from mmfusion.types import DataError, Sample

SHARE = 0.1  # of the groups, for each split that is made


def pack(
    source: Path,
    out: Path,
    *,
    settings: Settings | None = None,
    layout: str | None = None,
    validation: float | None = None,
    test: float | None = None,
    shard_mb: float = 256,
    max_skipped: float = 0.1,
    tokenizer: Path | None = None,
    overwrite: bool = False,
) -> int | None:
    """Packs `source` into the new folder `out` and prints what it did; the same source gives the same bytes.

    `validation` and `test` are shares of the groups in [0, 1); None makes the splits that are missing where the source
    names none. Returns the row length that its texts need to be trained on, None where the usual one does. Raises
    DataError on a source that cannot be packed; then nothing is left behind.
    """
    source, out, settings = Path(source), Path(out), settings or Settings()
    _check_said(validation or 0, test or 0, shard_mb, max_skipped, settings)
    name, kind = recognise(source, layout)
    if name != "table" and (flag := _table_only(settings)):
        raise DataError(f"{flag}: is for tables; {source} is read as {name}")
    check_out(source, out, overwrite)
    vocabulary = SentencePieceTokenizer(tokenizer or default_tokenizer())
    found = kind.find(source, settings)
    print(*found.notes, sep="\n", flush=True)
    if not found.total:
        raise DataError(f"{source}: nothing to pack in it; {name} needs {kind.needs}")
    documents: list[int] = []
    with draft_folder(out) as draft:
        good, skipped = check_all(found.drafts, lambda items: tracked(items, "checking", found.total))
        tell_skipped(skipped)
        refuse_too_many(skipped, found.total, max_skipped)
        named = {item.draft.split for item in good if item.draft.split}
        shares = _shares(found, named, validation, test)
        digests, kinds = [item.digests for item in good], [item.kinds for item in good]
        splits, notes = deal([item.draft for item in good], digests, shares, kinds)
        print(*_told(found, named, shares), *notes, sep="\n", flush=True)
        written = tracked(range(len(good)), "writing", len(good))

        def measured(samples: Iterable[Sample]) -> Iterator[Sample]:
            for sample, _ in zip(samples, written, strict=False):
                documents.append(longest_document(sample, vocabulary))
                yield sample

        entries = write_shards(
            draft,
            good,
            splits,
            source=settings.source or safe(source.resolve().stem),
            shard_bytes=round(shard_mb * 1e6),
            watch=measured,
        )
        shutil.copyfile(vocabulary.path, draft / NAME)
        if skipped:
            write_skipped(draft / "skipped.csv", skipped)
    tell(entries, good)
    return row_length_for(documents)


def _check_said(validation: float, test: float, shard_mb: float, max_skipped: float, settings: Settings) -> None:
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise DataError(f"--validation {validation} --test {test}: shares are at least 0, and together less than 1")
    if not 0 < shard_mb <= 1e6:
        raise DataError(f"--shard-mb {shard_mb}: must be between 0 and a million")
    if not 0 <= max_skipped <= 1:
        raise DataError(f"--max-skipped {max_skipped}: is a share between 0 and 1")
    if not is_language(settings.lang):
        raise DataError(f"--lang {settings.lang!r}: is no language such as en or pt-BR")
    if settings.rate_hz is not None and not 1e-9 <= settings.rate_hz <= 1e9:
        raise DataError(f"--rate-hz {settings.rate_hz}: must be between 1e-9 and 1e9")


def _table_only(settings: Settings) -> str | None:
    given: Mapping[str, object] = {
        **settings.columns,
        "split": settings.split,
        "group": settings.group,
        "root": settings.root,
    }
    return next((f"--{name}" for name, value in given.items() if value), None)


def _shares(found: Found, named: set[Split], validation: float | None, test: float | None) -> dict[Split, float]:
    """Of the splits that are to be made: both where the source names none, else what it lacks and is asked for."""
    shares: dict[Split, float] = {
        "validation": (SHARE if not named or found.validation else 0) if validation is None else validation,
        "test": (0 if named else SHARE) if test is None else test,
    }
    return {split: share for split, share in shares.items() if share > 0 and split not in named}


def _told(found: Found, named: set[Split], shares: Mapping[Split, float]) -> Sequence[str]:
    told = [f"splits of the source: {', '.join(sorted(named))}"] if named else []
    made = " and ".join(f"{100 * share:g}% for {split}" for split, share in shares.items())
    return [*told, *([f"split by {found.group}: {made}"] if made else [])]
