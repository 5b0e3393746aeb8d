"""Load, embed, evaluate, refuse on a tiny model with random weights, saved and loaded as a run would be."""

from __future__ import annotations

import copy
import functools
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import TOKENIZER, node, picture, png, tree, wav

import mmfusion
from mmfusion import api, checkpoint, config, report
from mmfusion.api import InputError, Model
from mmfusion.checkpoint import CheckpointError
from mmfusion.data.writer import write_manifest, write_shard
from mmfusion.evaluation import pictures, run
from mmfusion.types import Batch, Modality, Part, Patches, Sample

WATCH: dict[str, Any] = {"rate_hz": 50, "channels": ["acc_x", "acc_y"], "units": ["g", "g"], "place": "wrist"}
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return mmfusion.load(tiny_run)


# ---------------------------------------------------------------------------------------------------------------- load


def test_load_keeps_the_weights_and_names_no_path(tiny_run: Path, model: Model) -> None:
    torch.manual_seed(0)
    expected = config.build(tree()["model"]).state_dict()
    loaded = model.network.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    assert model.modalities == ("image", "audio", "sensor", "text")
    assert model.lineage["step"] == 3
    assert sum(model.parameter_counts.values()) == sum(weight.numel() for weight in model.network.parameters())
    assert str(TOKENIZER) not in (tiny_run / "checkpoint" / "config.yaml").read_text()


def test_a_pipeline_that_does_not_fit(tmp_path: Path) -> None:
    broken = tree()
    broken["pipeline"]["row_size"] = broken["pipeline"].pop("row_length")
    network = config.build(tree()["model"])
    checkpoint.save(tmp_path / "c", config=broken, model=network, tokenizer=TOKENIZER, lineage={}, card="")
    with pytest.raises(CheckpointError, match="pipeline cannot be built"):
        mmfusion.load(tmp_path / "c")


def test_parts_of_another_kind_than_a_model(tmp_path: Path) -> None:
    network = config.build(tree()["model"])
    other = {**tree(), "pipeline": node("models.attention.rules.Document")}
    checkpoint.save(tmp_path / "a", config=other, model=network, tokenizer=TOKENIZER, lineage={}, card="")
    with pytest.raises(CheckpointError, match="pipeline cannot be built"):
        mmfusion.load(tmp_path / "a")
    encoder = tree()["model"]["encoders"]["text"]
    other = {**tree(), "model": encoder}
    checkpoint.save(tmp_path / "b", config=other, model=config.build(encoder), tokenizer=TOKENIZER, lineage={}, card="")
    with pytest.raises(CheckpointError, match="model is a TextEncoder, no MultimodalModel"):
        mmfusion.load(tmp_path / "b")


# --------------------------------------------------------------------------------------------------------------- embed


def test_every_way_to_give_a_picture_is_one(model: Model, tmp_path: Path) -> None:
    image = picture()
    path = tmp_path / "a.png"
    path.write_bytes(png(image))
    same = [image, np.asarray(image), png(image), path, str(path), Part(type="image", data=np.asarray(image))]
    rows = model.embed(image=same)
    assert rows.shape == (6, 12)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx([1] * 6, abs=1e-5)
    assert rows == pytest.approx(rows[:1].repeat(6, 0), abs=1e-6)
    assert model.embed(image=image) == pytest.approx(rows[:1], abs=1e-6)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "CMYK", "1"])
def test_pil_modes_are_decoded_like_files(model: Model, mode: str) -> None:
    image = picture(mode)
    file = io.BytesIO()
    image.save(file, "JPEG" if mode == "CMYK" else "PNG", **({"quality": 100} if mode == "CMYK" else {}))
    rows = model.embed(image=[image, file.getvalue()])
    assert rows[0] @ rows[1] == pytest.approx(1, abs=0.02 if mode == "CMYK" else 1e-5)


def test_a_pil_picture_is_turned_as_its_file_is(model: Model) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    picture().save(file, "PNG", exif=exif)
    rows = model.embed(image=[Image.open(file), file.getvalue(), picture()])
    assert np.array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2], atol=1e-3)


@pytest.mark.parametrize("mode", ["I;16", "I", "I;16B"])
def test_16_bits_are_those_of_the_file(model: Model, mode: str) -> None:
    values = np.arange(48 * 32, dtype=np.uint16).reshape(32, 48) * 40
    rows = model.embed(image=[Image.fromarray(values).convert("I").convert(mode), png(Image.fromarray(values))])
    assert np.array_equal(rows[0], rows[1])


def test_batches_change_nothing(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(size=size) for size in ((48, 48), (16, 48), (40, 20), (8, 8), (48, 16))]
    alone = np.concatenate([model.embed(image=one) for one in pictures])
    assert model.embed(image=pictures) == pytest.approx(alone, abs=1e-5)
    monkeypatch.setattr(api, "BATCH", 2)
    assert model.embed(image=pictures) == pytest.approx(alone, abs=1e-5)


def test_sound_as_array_and_as_file(model: Model) -> None:
    wave = (0.3 * RNG.normal(size=9000)).astype(np.float32).clip(-1, 1)
    stereo = np.stack([wave, wave], axis=1)
    as_array = model.embed(audio=[wave, stereo], rate_hz=16000)
    assert model.embed(audio=[wav(wave), wav(stereo)]) == pytest.approx(as_array, abs=1e-5)
    integers = (wave * 32767).round().astype(np.int16)
    assert model.embed(audio=integers, rate_hz=16000) == pytest.approx(as_array[:1], abs=1e-2)


def test_series_of_any_channels(model: Model) -> None:
    values = RNG.normal(size=(200, 2)).astype(np.float32)
    rows = model.embed(sensor=values, **WATCH)
    swapped = {**WATCH, "channels": ["acc_y", "acc_x"]}
    assert model.embed(sensor=values[:, ::-1], **swapped) == pytest.approx(rows, abs=1e-5)
    in_si = {**WATCH, "units": ["m/s^2", "m/s^2"]}
    assert model.embed(sensor=values * 9.80665, **in_si) == pytest.approx(rows, abs=1e-4)
    values[50:60, 1] = np.nan
    assert np.isfinite(model.embed(sensor=values, **WATCH)).all()


def test_parts_are_the_arrays_that_they_hold(model: Model) -> None:
    values = RNG.normal(size=(200, 2))
    named: dict[str, Any] = {"channels": ("acc_x", "acc_y"), "units": ("g", "g"), "place": "wrist"}
    times = np.arange(200) / 50
    how: list[dict[str, Any]] = [{"rate_hz": 50}, {"times_s": times}, {"rate_hz": 50.0, "times_s": times}]
    rows = model.embed(sensor=[Part(type="sensor", data=values, **named, **one) for one in how])
    assert rows == pytest.approx(model.embed(sensor=values, **WATCH).repeat(3, 0), abs=1e-6)
    wave = np.sin(np.arange(9000) / 9)
    sound = Part(type="audio", data=wave, rate_hz=16000)
    assert np.array_equal(model.embed(audio=sound), model.embed(audio=wave, rate_hz=16000))


def test_a_series_file_is_the_array_that_it_holds(model: Model, tmp_path: Path) -> None:
    values = RNG.normal(size=(200, 2)).astype(np.float32)
    expected = model.embed(sensor=values, **WATCH)
    np.save(tmp_path / "a.npy", values)
    assert model.embed(sensor=tmp_path / "a.npy", **WATCH) == pytest.approx(expected, abs=1e-6)
    rows = [f"{i / 50!r},{x!r},{y!r}" for i, (x, y) in enumerate(values.tolist())]
    table = "\n".join(["t (s),acc_x (g),acc_y [g]", *rows]).encode()
    assert model.embed(sensor=table, place="wrist") == pytest.approx(expected, abs=1e-5)
    timeless = "\n".join(["a,b", *(row.partition(",")[2] for row in rows)]).encode()
    assert model.embed(sensor=timeless, **WATCH) == pytest.approx(expected, abs=1e-5)


# ----------------------------------------------------------------------------------------------- evaluated and reported


def shards(root: Path) -> Path:
    """Three pictures to learn from and the same three to be asked about."""

    def samples(split: str) -> list[Sample]:
        made = []
        for i, name in enumerate(("cat", "dog", "owl")):
            image = Part(type="image", file="png", data=png(picture(size=(16 + 8 * i, 24))))
            labels = {"concept": name, "category": "c"}
            parts = (image, Part(type="text", lang="en", text=name))
            made.append(Sample(key=f"{split}-{name}", parts=parts, labels=labels, source="p"))
        return made

    entries = [write_shard(root / f"{split}.tar", samples(split), split=split) for split in ("train", "test")]
    write_manifest(root, entries)
    return root


def test_from_checkpoint_to_report(model: Model, tmp_path: Path) -> None:
    tasks = {
        "names": functools.partial(pictures.picture_to_name, source="p", train_source="p"),
        "captions": functools.partial(pictures.captions, source="p", train_source="p", max_new=4),
    }
    root = shards(tmp_path)
    done = run(model, tasks, root)
    assert run(model, tasks, root).metrics == done.metrics  # bit for bit
    assert {(r["task"], r["metric"]) for r in done.metrics} >= {("names", "R@1"), ("captions", "chrF, seen")}
    assert done.metrics[0]["baselines"]["pixel nearest neighbour"] == 1
    cards = report.collect(model, done)
    assert [card.task for card in cards] == ["names"] * 3
    report.write(
        tmp_path / "report.html", title="t", facts={}, history=tmp_path / "none.csv", evaluation=done, examples=cards,
        counts={},
    )  # fmt: skip
    assert (tmp_path / "report.html").read_text().count('class="input"') == 3


# ------------------------------------------------------------------------------------------------- what is not accepted


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "one modality"),
        ({"image": b"x", "text": "y"}, "one modality"),
        ({"image": b"no picture"}, r"image\[0\].*corrupt picture"),
        ({"image": [png(picture()), b"GIF89a"]}, r"image\[1\]"),
        ({"image": "nowhere.png"}, "nowhere.png' cannot be read"),
        ({"image": np.zeros((4, 4, 3))}, "uint8"),
        ({"image": np.zeros((4, 4, 5), np.uint8)}, "uint8"),
        ({"image": 3}, "must be a path"),
        ({"audio": np.zeros(100)}, "rate_hz"),
        ({"audio": np.zeros((2, 16000)), "rate_hz": 16000}, r"16000 channels; .* give array\.T"),
        ({"audio": np.full(100, np.nan), "rate_hz": 16000}, "NaN"),
        ({"audio": np.zeros(0), "rate_hz": 16000}, "array"),
        ({"audio": b"RIFF"}, r"audio\[0\].*corrupt sound"),
        ({"sensor": np.zeros((9, 2)), "rate_hz": 50}, "channels"),
        ({"sensor": b"a,b\n1,2"}, "column 'a' names no unit"),
        ({"sensor": b"a (g)\n1", "rate_hz": None}, "rate_hz"),
        ({"sensor": b"a (g)\nx", "rate_hz": 50}, r"sensor\[0\]: line 2, column 'a': 'x' is no number"),
        ({"sensor": b"\xff\xd8\xff", "rate_hz": 50}, "no CSV table"),
        ({"sensor": np.zeros((9, 2)), **WATCH, "units": ["g"]}, "2 channels, but 1 units"),
        ({"sensor": np.zeros((9, 3)), **WATCH}, "3"),
        ({"sensor": np.zeros((9, 2)), **WATCH, "units": ["furlong", "g"]}, "unknown unit"),
        ({"sensor": np.full((9, 2), np.nan), **WATCH}, "empty series"),
        ({"image": []}, "image: an empty list"),
        ({"image": np.zeros((0, 4, 3), np.uint8)}, "uint8"),
        ({"image": Image.new("RGB", (0, 4))}, "0 x 4 pixels"),
        ({"image": Image.open(io.BytesIO(png(picture(size=(256, 256)))[:3000]))}, "truncated"),
        ({"image": "a\0b"}, "cannot be read"),
        ({"audio": np.array([None, 1]), "rate_hz": 16000}, "numbers"),
        ({"audio": np.zeros(100), "rate_hz": np.inf}, "rate_hz"),
        ({"audio": np.zeros(100), "rate_hz": 1e-3}, "1000 to 384000"),
        ({"audio": np.zeros(100), "rate_hz": True}, "rate_hz"),
        ({"audio": 3}, "must be a path"),
        ({"sensor": np.zeros((9, 1)), **WATCH, "channels": None}, "list of names"),
        ({"sensor": np.zeros((9, 2)), **WATCH, "channels": [1, 2]}, "must be a text"),
        ({"sensor": np.zeros((9, 2)), **WATCH, "place": "\ud800"}, "UTF-8"),
        ({"audio": np.zeros(100), "rate_hz": "16000"}, "rate_hz"),
        ({"audio": np.full(100, 1e30), "rate_hz": 16000}, "beyond all measure"),
        ({"sensor": np.zeros((0, 2)), **WATCH}, "numbers"),
        ({"sensor": np.array([["a", "b"]]), **WATCH}, "numbers"),
        ({"sensor": np.zeros((9, 2)), **WATCH, "rate_hz": np.nan}, "rate_hz"),
        ({"sensor": np.zeros((9, 1)), **WATCH, "channels": "x", "units": "g"}, "list of names"),
        ({"text": "\ud800"}, "UTF-8"),
        ({"text": ""}, "must be a text"),
        ({"text": [3]}, "must be a text"),
        ({"image": Part(type="text", text="x")}, "part of type text"),
        ({"text": Part(type="text", text=" ")}, "must be a text"),
        ({"image": Part(type="image")}, "must be a path, bytes, array"),
        ({"image": Part(type="image", data=np.zeros((4, 4, 3)))}, "uint8"),
        ({"image": Part(type="image", data=np.zeros((0, 4, 3), np.uint8))}, "uint8"),
        ({"audio": Part(type="audio")}, "must be a path, bytes"),
        ({"audio": Part(type="audio", data=np.zeros(9))}, "rate_hz"),
        ({"audio": Part(type="audio", data=wav(np.zeros(9000)), rate_hz=8000)}, "another sample rate than declared"),
        ({"sensor": Part(type="sensor", rate_hz=50, data=np.zeros((9, 2)))}, "channels and units by name"),
        ({"sensor": Part(type="sensor", data=np.zeros((9, 1)), channels=("x",), units=("g",))}, "rate_hz"),
        (
            {"sensor": Part(type="sensor", data=np.zeros((9, 1)), channels=("x",), units=("g",), times_s=np.zeros(8))},
            "9 rows",
        ),
        ({"image": b"x", "rate": 3}, "rate: there is no such argument"),
        ({"imgae": b"x"}, "imgae: there is no such argument; did you mean 'image'?"),
    ],
)
def test_refused_in_one_line(model: Model, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        model.embed(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_new": 0}, "max_new: must be greater than 0, not 0"),
        ({"temperature": -1.0}, "temperature: must be greater than or equal to 0"),
        ({"temperature": 1e300}, "temperature: must be less than or equal to 10000"),
        ({"max_new": 10**9}, "max_new: must be less than or equal to 100000"),
        ({"temperature": math.nan}, "temperature: must be a finite number"),
        ({"top_p": 0}, "top_p: must be greater than 0"),
        ({"seed": "x"}, "seed: must be a valid integer"),
        ({"seed": 2**70}, "seed: must be less than"),
        ({"max_new": np.int64(0)}, "max_new: must be greater than 0"),
        ({"temperature": np.float32(-1)}, "temperature: must be greater than or equal to 0"),
        ({"top_p": object()}, "top_p: must be a plain value"),
        ({"prompt": " "}, "prompt: must be a text"),
        ({"prompt": ["What?"]}, "prompt: must be a text"),
        ({"prompt": "\ud800"}, "UTF-8"),
        ({"lang": 5}, "lang: must be a text"),
        ({"temprature": 1.0}, "temprature: there is no such argument; did you mean 'temperature'?"),
        ({"end": 3}, "end: there is no such argument"),
        ({"banned": [3]}, "banned: there is no such argument"),
        ({"prompt": "x y " * 200}, "document longer than data.pipeline.row_length"),
    ],
)
def test_ways_to_say_that_there_are_not(model: Model, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        model.generate(image=picture(), **arguments)


def test_unsigned_sound_lies_around_its_middle(model: Model) -> None:
    tone = np.sin(np.arange(8000) / 9).astype(np.float32)
    of_bytes = (128 + 127 * tone).astype(np.uint8)
    embedded = model.embed(audio=[of_bytes, (of_bytes.astype(np.float32) - 128) / 128], rate_hz=16000)
    assert np.array_equal(embedded[0], embedded[1])


# -------------------------------------------------------------------------------------------------------------- device


def on(device: str, model: Model) -> Model:
    return Model(copy.deepcopy(model.network).to(device), model.pipeline, {})


def test_what_is_read_goes_where_the_weights_are_and_what_is_made_comes_back(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On torch's device `meta`, which every machine has: its tensors have a shape and no values."""
    there, found = on("meta", model), set[torch.device]()

    def embed(streams: dict[Modality, Patches]) -> dict[Modality, torch.Tensor]:
        found.update(parts.values.device for parts in streams.values())
        return {name: torch.zeros(len(parts.owner), 12, device="meta") for name, parts in streams.items()}

    def generate(network: object, batch: Batch, **how: object) -> list[list[int]]:
        found.update({batch.rows.ids.device, batch.streams["image"].values.device})
        return [[]]

    monkeypatch.setattr(there.network, "embed", embed)
    monkeypatch.setattr(api, "generate", generate)
    # A `meta` tensor holds nothing: that it cannot be copied says that the copy back to the CPU is made.
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        there.embed(image=picture())
    assert there.generate(image=picture()) == ""
    assert found == {torch.device("meta")}


@pytest.mark.gpu
def test_a_gpu_changes_nothing(model: Model) -> None:
    there = on("cuda", model)
    assert there.embed(image=picture()) == pytest.approx(model.embed(image=picture()), abs=1e-4)
    assert there.generate(image=picture(), max_new=6) == model.generate(image=picture(), max_new=6)
    assert "".join(there.stream(image=picture(), max_new=6)) == model.generate(image=picture(), max_new=6)
