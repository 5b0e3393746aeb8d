"""Text from a tiny model with random weights: one thing and many, drawn, prompted, bit by bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_run import TOKENIZER, picture, tree, wav

import mmfusion
from mmfusion import api, checkpoint, config
from mmfusion.api import InputError, Model


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Model:
    return mmfusion.load(tiny_run)


def test_generate_one_and_many(model: Model) -> None:
    pictures = [picture(size=size) for size in ((48, 48), (16, 48), (8, 8))]
    said = model.generate(image=pictures, max_new=6)
    assert isinstance(said, list)
    assert [model.generate(image=one, max_new=6) for one in pictures] == said
    both = model.generate(image=pictures[0], audio=np.zeros(8000, np.float32), rate_hz=16000, lang="fr", max_new=6)
    assert isinstance(both, str)
    drawn = [model.generate(image=pictures[0], max_new=8, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_is_drawn_about_one_thing_does_not_depend_on_another(model: Model) -> None:
    pictures = [picture(size=size) for size in ((48, 48), (16, 48))]
    how: dict[str, Any] = {"temperature": 1.0, "seed": 3, "max_new": 8}
    said = [model.generate(image=one, **how) for one in pictures]
    assert model.generate(image=pictures, **how) == said
    assert model.generate(image=pictures[::-1], **how) == said[::-1]


def test_a_prompt_is_part_of_what_is_asked(model: Model) -> None:
    prompts = (None, "What's this, in [French]? a=b", "這是什麼, 猫")
    said = [model.generate(image=picture(), prompt=prompt, max_new=8) for prompt in prompts]
    said += [model.generate(prompt="What?", max_new=8), model.generate(prompt="What?", lang="fr", max_new=8)]
    assert len(set(said)) == 5


def test_one_thing_may_be_several_parts(model: Model) -> None:
    one, two = picture(size=(48, 48)), picture(size=(16, 48))
    how: dict[str, Any] = {"max_new": 8, "temperature": 1.5}
    said = ["".join(model.stream(image=parts, **how)) for parts in ([one, two], [two, one], [one], [two])]
    assert len(set(said)) == 4
    assert model.generate(image=[[one, two]], **how) == said[:1]


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_a_stream_is_the_answer_bit_by_bit(model: Model, temperature: float) -> None:
    for seed in range(4):
        asked: dict[str, Any] = {"temperature": temperature, "max_new": 24, "seed": seed, "prompt": "?", "lang": "ja"}
        texts = list(model.stream(image=picture(), **asked))
        assert "".join(texts) == model.generate(image=picture(), **asked)
        assert len(texts) > 5
        assert all(texts)


def test_a_stream_gives_whole_characters_only(model: Model) -> None:
    tokenizer = model.pipeline.tokenizer
    for text in ("𒀀 a 𒁀𒂀", "é𒀀", "a  b", "𒀀"):
        pieces = tokenizer.encode(f" {text} \n")
        texts = list(api.as_text([*pieces, tokenizer.end, *pieces], tokenizer.end, tokenizer.decode))
        assert "".join(texts) == text
        assert not any("\ufffd" in part for part in texts)
    cut = tokenizer.encode("a𒀀")[:-1]
    assert "".join(api.as_text(cut, tokenizer.end, tokenizer.decode)) == tokenizer.decode(cut).strip()


def test_what_is_said_is_text(model: Model) -> None:
    said = model.generate(image=[picture(size=(8 * i, 8)) for i in range(1, 6)], max_new=20, temperature=3.0)
    assert all("<|" not in text and "\0" not in text for text in said)


def test_generate_wants_lists_of_one_length(model: Model) -> None:
    with pytest.raises(InputError, match="as many of each"):
        model.generate(image=[picture(), picture()], audio=[wav(np.zeros(100, np.float32))])
    with pytest.raises(InputError, match=r"image\[1\]: an empty list"):
        model.generate(image=[picture(), []])
    for verb in (model.generate, model.stream):
        with pytest.raises(InputError, match="got none"):
            verb()


def test_an_embedding_with_more_rows_than_pieces_says_only_pieces(tmp_path: Path) -> None:
    larger = tree()
    for part in (larger["model"]["decoder"], larger["model"]["encoders"]["text"]):
        part["vocab"] = 60_000
    checkpoint.save(
        tmp_path / "c", config=larger, model=config.build(larger["model"]), tokenizer=TOKENIZER, lineage={}, card=""
    )
    assert isinstance(mmfusion.load(tmp_path / "c").generate(image=picture(), temperature=5.0, max_new=20), str)
