"""Tables: what each column is taken for, what a row becomes, and what is said of rows that cannot be used."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from tiny_media import png
from tiny_sources import COLOURS, clip, colour, everything, mixed_table, packed, put, series_csv, table, wave_npy

from mmfusion.data.pack.draft import Settings
from mmfusion.data.pack.pack import pack
from mmfusion.data.shards import read_manifest, verify
from mmfusion.types import DataError


def test_a_table_of_pictures_sounds_and_series(tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(mixed_table(tmp_path / "mine"), out)
    verify(out)
    samples = everything(out)
    assert len(samples) == 40
    sample = samples["pics_IMG_7"]
    assert [(part.type, part.file) for part in sample.parts] == [
        ("image", "png"),
        ("audio", "wav"),
        ("sensor", "npy"),
        ("text", None),
    ]
    assert (sample.parts[3].text, sample.parts[3].lang) == ("grey", "en")
    assert sample.labels == {"label": "grey", "concept": "grey"}
    assert sample.parts[2].channels == ("acc_x", "gyro_z")
    for split, of in packed(out).items():
        assert {sample.labels["label"] for sample in of} == set(COLOURS), split
    assert {entry.split: entry.modalities["audio"] for entry in read_manifest(out)} == {
        split: len(of) for split, of in packed(out).items()
    }


def test_columns_by_name_by_value_and_by_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "mine"
    for i in range(4):
        put(root / f"{i}.png", colour(i))
        put(root / f"{i}d.png", colour(100 + i))
        put(root / f"{i}.npy", wave_npy(20, 2))
    columns = ["photo", "image_Depth", "motion", "text", "text_fr", "text:pt-BR", "caption_long", "title", "species"]
    texts = ["a goose", "une oie", "um ganso", "long", "Gans", "Anser", "-"]
    rows = [[f"{i}.png", f"{i}d.png", f"{i}.npy", *texts] for i in range(4)]
    settings = Settings(
        columns={
            "image": ["photo", "image_Depth"],
            "text": ["title:de", "text", "text_fr:fr", "text:pt-BR"],
            "label": ["species:genus"],
        },
        rate_hz=50,
        channels=("a", "b"),
        units=("1",),
        place="ankle",
        licence="CC0-1.0",
        source="field",
    )
    pack(table(root / "t.csv", [*columns, "notes"], rows), tmp_path / "out", settings=settings)
    sample = everything(tmp_path / "out")["2"]
    assert [part.file for part in sample.of("image")] == ["png", "depth.png"]
    assert [(part.text, part.lang) for part in sample.of("text")] == [
        ("Gans", "de"),
        ("a goose", "en"),
        ("une oie", "fr"),
        ("um ganso", "pt-BR"),
    ]
    (series,) = sample.of("sensor")
    assert (series.units, series.place, series.rate_hz) == (("1", "1"), "ankle", 50.0)
    assert sample.labels == {"genus": "Anser", "concept": "anser"}
    assert (sample.source, sample.licence) == ("field", "CC0-1.0")
    told = capsys.readouterr().out
    assert "notes         not used" in told
    assert "caption_long  not used" in told
    assert "motion        series" in told


def test_languages_of_text_columns_by_their_names(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    put(root / "a.png", colour(1))
    columns = ["image", "text", "text_fr", "text:pt-BR", "caption", "lang"]
    pack(table(root / "t.csv", columns, [["a.png", "щи", "une oie", "um ganso", "два", "ru"]]), tmp_path / "out")
    texts = everything(tmp_path / "out")["a"].of("text")
    assert [(part.text, part.lang) for part in texts] == [
        ("щи", "ru"),
        ("une oie", "fr"),
        ("um ganso", "pt-BR"),
        ("два", "ru"),
    ]


def test_names_that_only_begin_like_a_part_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put(tmp_path / "in" / "a.png", colour(1))
    put(tmp_path / "in" / "b.png", colour(2))
    columns = ["image", "image_id", "image_mask", "text_length", "url", "label_site", "label_dog"]
    row = ["a.png", "7", "b.png", "12", "https://example.org/a.png", "north", "rex"]
    pack(table(tmp_path / "in" / "t.csv", columns, [row]), tmp_path / "out")
    sample = everything(tmp_path / "out")["a"]
    assert [part.file for part in sample.of("image")] == ["png", "mask.png"]
    assert sample.labels == {"site": "north", "dog": "rex", "concept": "north"}
    assert [part.text for part in sample.of("text")] == ["north"]
    told = capsys.readouterr().out
    assert all(f"{name:11}  not used" in told for name in ("image_id", "text_length", "url"))


def test_what_a_row_says_of_itself(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    put(root / "a.npy", wave_npy(20, 2))
    put(root / "a.wav", clip(1))
    row = {"key": "s.1/x", "sensor": "a.npy", "audio": "a.wav", "rate_hz": "25", "start_s": "1.5", "place": "wrist"}
    row |= {"channels": "acc_x acc_y", "units": "g;m/s²", "subject": "7", "speaker": "ann", "kind": "speech"}
    row |= {"lang": "fi", "source": "lab", "licence": "MIT", "split": "Val"}
    pack(table(root / "t.tsv", list(row), [list(row.values())], "\t"), tmp_path / "out")
    assert [(entry.split, entry.source) for entry in read_manifest(tmp_path / "out")] == [("validation", "lab")]
    sample = everything(tmp_path / "out")["s_1_x"]
    series, audio = sample.parts
    assert (audio.kind, audio.speaker, audio.lang) == ("speech", "ann", "fi")
    assert (series.rate_hz, series.start_s, series.place, series.subject) == (25.0, 1.5, "wrist", "7")
    assert (series.channels, series.units) == (("acc_x", "acc_y"), ("g", "m/s^2"))
    assert sample.labels == {"subject": "7", "speaker": "ann"}


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for i in range(3):
        put(root / f"{i}.png", colour(i))
    columns = {"image": ["0.png", "1.png", "2.png"], "key": [10, 11, None], "label": ["a", None, "c"]}
    pa_parquet.write_table(pa.table(columns), root / "t.parquet")
    pack(root / "t.parquet", tmp_path / "out")
    samples = everything(tmp_path / "out")
    assert set(samples) == {"10", "11", "2"}
    assert samples["11"].labels == {}
    assert samples["10"].of("text")[0].text == "a"


def test_semicolons_a_byte_order_mark_and_empty_lines_are_read(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    put(root / "a,b.png", colour(1))
    put(root / "t.csv", "\ufeffimage;text\r\na,b.png;une oie, blanche\r\n\r\n;ein Text allein\r\n")
    pack(root / "t.csv", tmp_path / "out")
    texts = {sample.of("text")[0].text: sample.key for sample in everything(tmp_path / "out").values()}
    assert texts == {"une oie, blanche": "a_b", "ein Text allein": "row-2"}


def test_several_sources_have_shards_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for i in range(20):
        put(root / f"{i}.png", colour(i))
    rows = [[f"{i}.png", "A/b" if i % 2 else "A b"] for i in range(20)]
    pack(table(root / "t.csv", ["image", "source"], rows), tmp_path / "out", validation=0, test=0)
    assert [(entry.file, entry.source) for entry in read_manifest(tmp_path / "out")] == [
        ("A_b/A_b-train-00000.tar", "A b"),
        ("A_b-2/A_b-2-train-00000.tar", "A/b"),
    ]


def bad_rows(root: Path) -> Path:
    for i in range(5):
        put(root / f"{i}.png", colour(i))
    put(root / "cut.png", png(size=(64, 64))[:60])
    put(root / "empty.wav", b"")
    put(root / "walk.csv", series_csv(1).replace("m/s^2", "furlongs"))
    put(root / "words.csv", "time_s,a (1)\n0,x\n1,y\n")
    put(root / "back.csv", "time_s,a (1)\n1,1\n0,2\n")
    (root / "folder.png").mkdir()
    put(root.parent / "outside.png", colour(9))
    columns = ["image", "audio", "sensor", "text", "rate_hz"]
    rows = [[f"{i}.png", "", "", "goose", ""] for i in range(5)]
    rows += [
        ["nowhere.png", "", "", "", ""],
        ["cut.png", "", "", "", ""],
        ["", "empty.wav", "", "", ""],
        ["", "0.png", "", "", ""],
        ["", "", "walk.csv", "", ""],
        ["", "", "words.csv", "", ""],
        ["", "", "back.csv", "", ""],
        ["folder.png", "", "", "", ""],
        ["../outside.png", "", "", "", ""],
        ["/etc/passwd", "", "", "", ""],
        ["0.png", "", "", "Ã©", ""],
        ["0.png", "", "walk.csv", "", "fast"],
        ["", "", "", "", ""],
        ["", "", "", "", "50"],
        ["0.png", "", "", "text", "", "more"],
    ]
    return table(root / "t.csv", columns, rows)


def test_bad_rows_are_counted_and_listed_with_their_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(bad_rows(tmp_path / "mine"), tmp_path / "out", max_skipped=0.8)
    with (tmp_path / "out" / "skipped.csv").open() as file:
        listed = {row["row"]: (row["file"], row["reason"].partition(":")[0]) for row in csv.DictReader(file)}
    assert listed == {
        "6": ("nowhere.png", "missing file"),
        "7": ("cut.png", "corrupt picture"),
        "8": ("empty.wav", "corrupt sound"),
        "9": ("0.png", "another kind of file"),
        "10": ("walk.csv", "unknown unit"),
        "11": ("words.csv", "bad csv"),
        "12": ("back.csv", "times run backwards"),
        "13": ("folder.png", "no plain file"),
        "14": ("../outside.png", "path outside"),
        "15": ("/etc/passwd", "path outside"),
        "16": ("", "mojibake"),
        "17": ("walk.csv", "no number"),
        "18": ("", "no parts"),
        "19": ("", "another number of cells"),
    }
    shown = capsys.readouterr().err
    assert "14 rows left out" in shown
    assert "row 6: nowhere.png: missing file" in shown
    assert len(everything(tmp_path / "out")) == 5


def test_too_many_bad_rows_stop_it_with_a_remedy_that_works(tmp_path: Path) -> None:
    source = bad_rows(tmp_path / "mine")
    with pytest.raises(DataError, match=r"14 of 19 rows cannot be used.*--max-skipped 0\.74") as stopped:
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
    pack(source, tmp_path / "out", max_skipped=float(str(stopped.value).rpartition(" ")[2]))


def test_languages_and_numbers_that_are_none_are_told_with_their_column(tmp_path: Path) -> None:
    put(tmp_path / "in" / "a.npy", wave_npy(20, 1))
    rows = [["a.npy", "50", "0", "en"], ["a.npy", "1e400", "0", "en"], ["a.npy", "50", "nan", ""]]
    rows += [["a.npy", "fast", "0", ""], ["a.npy", "50", "0", "not a lang!"]]
    source = table(tmp_path / "in" / "t.csv", ["sensor", "rate_hz", "start_s", "lang"], rows)
    settings = Settings(channels=("a",), units=("1",))
    pack(source, tmp_path / "out", settings=settings, max_skipped=0.9)
    with (tmp_path / "out" / "skipped.csv").open() as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [
            "no number: rate_hz '1e400' is no finite number",
            "no number: start_s 'nan' is no finite number",
            "no number: rate_hz 'fast' is no finite number",
            "no language: lang 'not a lang!'; write en or pt-BR",
        ]
    with pytest.raises(DataError, match=r"--lang 'not a lang!': is no language"):
        pack(source, tmp_path / "no", settings=Settings(lang="not a lang!"))
    with pytest.raises(DataError, match=r"--text lang:klingon\?: 'klingon\?' is no language"):
        pack(source, tmp_path / "no", settings=Settings(columns={"text": ["lang:klingon?"]}))


def test_a_wrong_column_ends_in_one_line_whatever_is_allowed(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", ["image"], [["a.png"], ["b.png"]])
    with pytest.raises(DataError, match=r"2 of 2 rows cannot be used: missing file \(2\); such as row 1: a\.png"):
        pack(source, tmp_path / "out", max_skipped=1.0)


def test_paths_may_be_absolute_and_linked_but_must_stay_below_the_root(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "a.png", colour(1))
    put(tmp_path / "data" / "b.png", colour(2))
    put(tmp_path / "data" / "deep" / "c.png", colour(3))
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "near").symlink_to(tmp_path / "data" / "deep")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    rows = [[str(tmp_path / "data" / "b.png")], ["near/c.png"], ["linked/a.png"], ["x/../../elsewhere/a.png"]]
    source = table(tmp_path / "tables" / "t.csv", ["image"], rows)
    pack(source, tmp_path / "out", settings=Settings(root=tmp_path / "link"), max_skipped=0.5)
    assert len(everything(tmp_path / "out")) == 3
    assert ",path outside: " in (tmp_path / "out" / "skipped.csv").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("image,text\na.png,goose\nb.png,\xe9\n".encode("latin-1"), r"t\.csv: line 3 is not UTF-8"),
        (b"", r"no rows, only the columns none"),
        (b"image,text\n", r"no rows, only the columns image, text"),
        (b"image,image\na.png,b.png\n", r"'image' is there twice"),
        (b"image,split\na.png,holdout\n", r"row 1: the split 'holdout' is none of train, validation"),
        (b"a,b\n1,2\n", r"no column holds pictures.*\(a, b\).*--image"),
        (b'image,text\n"a.png,x\n', r"line 2 is no CSV"),
        (b"image,text\na\0.png,x\n", r"1 of 1 rows|line 2 is no CSV"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    source = put(tmp_path / "t.csv", "")
    source.write_bytes(content)
    with pytest.raises(DataError, match=message):
        pack(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_column_that_is_not_there_has_a_near_match(tmp_path: Path) -> None:
    source = table(tmp_path / "t.csv", ["photo", "species"], [["a.png", "b"]])
    with pytest.raises(DataError, match=r"no column 'fotos'; did you mean 'photo'\?"):
        pack(source, tmp_path / "out", settings=Settings(columns={"image": ["fotos"]}))
    with pytest.raises(DataError, match=r"no column 'q'; it has photo, species"):
        pack(source, tmp_path / "out", settings=Settings(group="q"))


def test_a_parquet_of_structs_or_of_nothing_is_refused(tmp_path: Path) -> None:
    pa_parquet.write_table(pa.table({"image": [{"bytes": b"x"}]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"the column 'image' holds struct"):
        pack(tmp_path / "t.parquet", tmp_path / "out")
    put(tmp_path / "u.parquet", "no parquet")
    with pytest.raises(DataError, match=r"u\.parquet: no Parquet file can be read here"):
        pack(tmp_path / "u.parquet", tmp_path / "out")
