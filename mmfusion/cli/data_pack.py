"""`mmfusion data pack`."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

HELP = "own data to shards: a table, folders by class, or a published layout"
DESCRIPTION = """\
Make shards and a manifest of your own data, so that `mmfusion train data=shards data.root=OUT` takes it.

SOURCE is one of (recognised, or named with --layout)
  table            a .csv, .tsv or .parquet: a row is a sample. Columns image, audio, sensor, text (text_fr: in French;
                   image_depth, audio_2: further ones) or whose values end in .jpg .png .webp, .wav .flac .ogg .opus
                   .mp3, .npy .csv; label, label_NAME, concept, key, split, source, licence, subject, speaker, lang,
                   kind, rate_hz, start_s, place, channels, units by name. What each was taken for is printed.
                   Paths start from the table's folder (or --root) and must stay below it, absolute ones too.
  folders          a folder by class: cats/*.jpg, dogs/*.wav; below train/, validation/, test/ or not
  coco, flickr30k  pictures with captions; COCO's val is the test split, as results on it are reported, and a
                   validation split is taken out of train
  esc50            folds 1-3 train, 4 validates, 5 tests
  speech-commands  split by the published lists; _background_noise_ is left out
  uci-har          split as published, a validation split taken out of train by subject
  tars             samples as img2dataset writes them

Series are .npy [time, channel] or .csv with a header such as `time_s, acc_x (m/s^2)`. A sample with a label and no text
is called by its label. Splits that the source names are kept; without any, they are made by group: --group, else
subject and speaker, else the file, else the texts; the same file is never in two of them. Bad rows are listed in
OUT/skipped.csv."""
EXAMPLES = """\
  mmfusion data pack recordings.csv data/mine
  mmfusion data pack photos/ data/photos --validation 0.2 --test 0.2
  mmfusion data pack table.parquet data/mine --image photo --text title:en --label species --group site
  mmfusion data pack walks.csv data/walks --sensor file --rate-hz 50 --channels acc_x,acc_y,acc_z --units m/s^2
  mmfusion data pack ESC-50-master data/esc50"""

_COLUMNS = ("image", "audio", "sensor", "text", "label")
_LAYOUTS = ("table", "folders", "coco", "flickr30k", "esc50", "speech-commands", "uci-har", "tars")


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE", help="the data as it is")
    add("out", type=Path, metavar="OUT", help="the folder to make")
    add("--layout", choices=_LAYOUTS, help="how SOURCE is laid out, where it would be taken for another")
    add("--overwrite", action="store_true", help="replace OUT, if it was packed")
    add("--tokenizer", type=Path, metavar="FILE", help="a SentencePiece model (default: the embedded sample's)")
    add("--shard-mb", type=float, default=256, metavar="MB", help="of one shard at most (default 256)")
    add("--max-skipped", type=float, default=0.1, metavar="SHARE", help="of bad rows at which it stops (default 0.1)")
    splits = parser.add_argument_group("splits")
    splits.add_argument("--validation", type=float, metavar="SHARE", help="of the groups (default 0.1)")
    splits.add_argument("--test", type=float, metavar="SHARE", help="of the groups (default 0.1)")
    splits.add_argument("--split", metavar="COLUMN", help="that says train, validation (val, dev) or test")
    splits.add_argument("--group", metavar="COLUMN", help="whose equal values must not stand in two splits")
    columns = parser.add_argument_group("columns of a table, each as often as needed")
    for name in _COLUMNS:
        metavar = {"text": "COLUMN[:LANG]", "label": "COLUMN[:NAME]"}.get(name, "COLUMN")
        columns.add_argument(f"--{name}", action="append", default=[], metavar=metavar)
    columns.add_argument("--root", type=Path, metavar="FOLDER", help="where paths start (default: the table's folder)")
    all_rows = parser.add_argument_group("what holds for all samples, where no column says otherwise")
    all_rows.add_argument("--lang", default="en", help="of texts (default en)")
    all_rows.add_argument("--kind", help="of sounds: speech, sound, music")
    all_rows.add_argument("--rate-hz", type=float, metavar="HZ", help="of series without a time column")
    all_rows.add_argument("--channels", type=_names, default=[], metavar="NAME,…", help="of series")
    all_rows.add_argument("--units", type=_names, default=[], metavar="UNIT,…", help="of series: one for all, or each")
    all_rows.add_argument("--place", help="of the sensor: right wrist")
    all_rows.add_argument("--source", dest="source_name", metavar="NAME", help="of the source (default: SOURCE's name)")
    all_rows.add_argument("--licence", help="of the data")


def run(options: argparse.Namespace) -> int:
    from mmfusion.data.pack.draft import Settings
    from mmfusion.data.pack.pack import pack
    from mmfusion.data.pack.vocabulary import NAME, SIZE
    from mmfusion.data.tokenizer import SentencePieceTokenizer

    given = vars(options)
    settings = Settings(
        **{name: given[name] for name in ("lang", "kind", "rate_hz", "channels", "units", "place", "licence")},
        **{name: given[name] for name in ("split", "group", "root")},
        source=options.source_name,
        columns={name: given[name] for name in _COLUMNS},
    )
    row_length = pack(
        options.source,
        options.out,
        settings=settings,
        layout=options.layout,
        validation=options.validation,
        test=options.test,
        shard_mb=options.shard_mb,
        max_skipped=options.max_skipped,
        tokenizer=options.tokenizer,
        overwrite=options.overwrite,
    )
    pieces, out = SentencePieceTokenizer(options.out / NAME).size, shlex.quote(str(options.out))
    needed = "" if pieces == SIZE else f" model.decoder.vocab={pieces}"
    needed += f" data.pipeline.row_length={row_length}" if row_length else ""
    print(f"\nnext:\n  mmfusion data stats {out}\n  mmfusion train data=shards data.root={out}{needed}")
    return 0
