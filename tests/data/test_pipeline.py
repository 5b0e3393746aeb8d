"""From decoded samples to batches: which documents, which prompts, which positives."""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np
import pytest
from tiny_media import picture_sample, small_patchify, small_pipeline, spoken_sample, watch_sample

from mmfusion.data.batching import TOO_LONG, Document, Turn
from mmfusion.data.decode import decode_sample
from mmfusion.data.order import stable_hash
from mmfusion.data.pipeline import EQUAL, UNANSWERED, Pipeline, concept_of
from mmfusion.data.tokenizer import SentencePieceTokenizer
from mmfusion.types import IGNORE, Answer, Part, Sample, SkipSample

PICTURE, SPOKEN, WATCH = (decode_sample(s) for s in (picture_sample(0), spoken_sample(0), watch_sample(0)))


@pytest.fixture(scope="module")
def pipeline(tokenizer: SentencePieceTokenizer) -> Pipeline:
    return small_pipeline(tokenizer)


def said(pipeline: Pipeline, sample: Sample, seed: int) -> tuple[tuple[int, ...], str, str]:
    """(parts, prompt, answer) of the document that this seed draws."""
    (document,) = pipeline.prepare(sample, seed, 0).documents
    (turn,) = document.turns
    decode = pipeline.tokenizer.decode
    asked = [piece for item in turn.asked if not isinstance(item, int) for piece in item]
    return document.parts, decode(asked), decode(turn.answer or ())


def test_a_concept_is_the_same_for_all_who_name_it() -> None:
    goose = concept_of(Sample(key="a", labels={"concept": "goose"}), 3)
    assert goose == concept_of(Sample(key="b", labels={"kind": "goose"}), 4)
    assert goose == concept_of(Sample(key="c", labels={"activity": "goose", "subject": "s1"}), 5)
    assert goose == stable_hash("concept", "goose")
    assert concept_of(Sample(key="d", labels={"concept": "swan", "kind": "goose"}), 6) != goose
    assert concept_of(Sample(key="e", labels={"category": "goose"}), 7) == 7


def test_documents_hold_one_part_or_all_and_a_clip_alone_says_its_own_words(pipeline: Pipeline) -> None:
    drawn = Counter(said(pipeline, SPOKEN, seed) for seed in range(600))
    assert set(drawn) == {
        ((0,), "en", "a guitar 0"),
        ((1,), "de", "eine Gans"),
        ((2,), "en", "a guitar 0"),
        ((0, 1, 2), "en", "a guitar 0"),
    }
    assert drawn[(0, 1, 2), "en", "a guitar 0"] / 600 == pytest.approx(0.25, abs=0.06)
    assert said(pipeline, SPOKEN, 5) == said(pipeline, SPOKEN, 5)


def test_a_share_of_the_samples_has_a_document(tokenizer: SentencePieceTokenizer) -> None:
    some = small_pipeline(tokenizer, captioned=0.25)
    made = [some.prepare(PICTURE, seed, 0) for seed in range(400)]
    assert np.mean([len(one.documents) for one in made]) == pytest.approx(0.25, abs=0.07)
    assert all([name for name, _ in one.parts] == ["image", "text"] for one in made)
    assert (some.batch([PICTURE]).rows.document == 0).any()  # without chance always


def test_the_english_text_else_the_first_stands_for_a_sample(pipeline: Pipeline) -> None:
    assert said(pipeline, PICTURE, 0) == ((0,), "en", "goose 0")
    french = dataclasses.replace(PICTURE, parts=(PICTURE.parts[0], PICTURE.parts[2]))
    assert said(pipeline, french, 0) == ((0,), "fr", "une oie 0")
    plain = dataclasses.replace(PICTURE, parts=(PICTURE.parts[0], Part(type="text", text="a goose")))
    assert said(pipeline, plain, 0) == ((0,), "", "a goose")


def test_what_has_nothing_to_say_has_no_document(pipeline: Pipeline) -> None:
    silent = dataclasses.replace(PICTURE, parts=PICTURE.parts[:1])
    made = pipeline.prepare(silent, 0, 0)
    assert made.documents == ()
    assert [name for name, _ in made.parts] == ["image"]
    batch = pipeline.collate([made])
    assert (batch.rows.labels == IGNORE).all()
    assert batch.streams["text"].owner.tolist() == [-1]


def test_a_text_alone_is_a_document_of_its_own(pipeline: Pipeline) -> None:
    text = Sample(key="t", parts=(Part(type="text", lang="fr", text="une oie"),))
    assert said(pipeline, text, 0) == ((), "fr", "une oie")


def test_the_text_stream_has_the_chosen_text(pipeline: Pipeline) -> None:
    batch = pipeline.batch([PICTURE, WATCH])
    stream = batch.streams["text"]
    for ids, valid, owner in zip(stream.values, stream.valid, stream.owner.tolist(), strict=True):
        text = pipeline.tokenizer.decode(ids[valid].tolist())
        assert text == ("goose 0", "rowing the boat")[owner]


def test_a_batch_without_chance_has_all_parts(pipeline: Pipeline) -> None:
    batch = pipeline.batch([SPOKEN, PICTURE])
    assert sorted(batch.streams["audio"].owner.tolist()) == [0, 0]
    assert (batch.rows.slot >= 0).sum() == 1 + 2 + 2 + 1  # one token a picture, clips of 0.3 s and 0.2 s: 2 and 2
    again = pipeline.batch([SPOKEN, PICTURE])
    assert (again.rows.ids == batch.rows.ids).all()
    assert again.seeds.tolist() == [0, 1]


def test_an_open_prompt_is_the_document_without_its_answer(pipeline: Pipeline) -> None:
    closed, open_ = pipeline.batch([PICTURE]), pipeline.batch([PICTURE], documents="open", language="en")
    length = int((open_.rows.document == 0).sum())
    assert (open_.rows.ids[0, :length] == closed.rows.ids[0, :length]).all()
    assert (open_.rows.slot[0, :length] == closed.rows.slot[0, :length]).all()
    assert open_.rows.ids[0, length - 1] == pipeline.tokenizer.assistant
    assert (open_.rows.labels == IGNORE).all()
    assert closed.rows.labels[0, length - 1] == closed.rows.ids[0, length]


def test_an_open_prompt_says_the_language_and_then_what_is_asked(pipeline: Pipeline) -> None:
    encode = pipeline.tokenizer.encode
    for sample, media in ((PICTURE, 1), (Sample(key="x"), 0)):
        open_ = pipeline.prepare(sample, 0, 0, documents="open", language="fr", prompt="What's this?")
        asked = *encode("fr"), *encode("What's this?")
        assert open_.documents == (Document((Turn((*range(media), asked), None),)),)
    rows = pipeline.batch([Sample(key="x")], documents="open", prompt="x").rows
    tokenizer = pipeline.tokenizer
    assert rows.ids[0, :3].tolist() == [tokenizer.begin, *encode("x"), tokenizer.assistant]


def turns_of(*said: str | Part) -> Sample:
    """A conversation: parts and questions, and after `>` what is answered."""
    made: list[Part] = []
    for one in said:
        if isinstance(one, Part):
            made.append(dataclasses.replace(one, role="user"))
        elif one.startswith(">"):
            made.append(Part(type="text", role="assistant", text=one[1:]))
        else:
            made.append(Part(type="text", role="user", text=one))
    return Sample(key="talk", parts=tuple(made))


def test_a_conversation_is_one_document_of_its_turns(pipeline: Pipeline) -> None:
    """Pictures and clips stand where they were shown; several texts of one side are one."""
    encode, picture, clip = pipeline.tokenizer.encode, PICTURE.parts[0], SPOKEN.parts[1]
    talk = turns_of(picture, "What?", ">a ", ">goose", "And ", clip, "this?", ">Gans")
    first = Turn((0, tuple(encode("What?"))), (*encode("a "), *encode("goose")))
    second = Turn((tuple(encode("And ")), 1, tuple(encode("this?"))), tuple(encode("Gans")))
    for documents in ("drawn", "all"):
        made = pipeline.prepare(talk, 3, 0, documents=documents)
        assert made.documents == (Document((first, second)),)
        assert [name for name, _ in made.parts] == ["image", "audio"]  # no text stands for it
    opened = dataclasses.replace(second, answer=None)
    assert pipeline.prepare(talk, 3, 0, documents="open").documents == (Document((first, opened)),)
    waiting = dataclasses.replace(talk, parts=(*talk.parts, Part(type="text", role="user", text="Sure?")))
    assert pipeline.prepare(waiting, 3, 0).documents == (Document((first, second)),)
    asked = Turn((tuple(encode("Sure?")), tuple(encode("fr"))), None)
    made = pipeline.prepare(waiting, 3, 0, documents="open", language="fr")
    assert made.documents == (Document((first, second, asked)),)


def test_a_conversation_that_is_too_long_loses_its_last_turns_whole(tokenizer: SentencePieceTokenizer) -> None:
    talk = turns_of(PICTURE.parts[0], "What?", ">a goose", SPOKEN.parts[1], "And this?", ">" + "Gans " * 30)
    roomy = Pipeline(tokenizer=tokenizer, patchify=small_patchify(), row_length=512)
    whole = roomy.prepare(talk, 0, 0).documents[0]
    assert len(whole.turns) == 2
    cut = Pipeline(tokenizer=tokenizer, patchify=small_patchify(), row_length=30)
    assert cut.prepare(talk, 0, 0).documents == (Document(whole.turns[:1]),)
    with pytest.raises(SkipSample, match=UNANSWERED):
        cut.prepare(turns_of("What?", ">" + "goose " * 30), 0, 0)
    with pytest.raises(SkipSample, match=UNANSWERED):
        cut.prepare(turns_of("What?", Part(type="text", text="And?")), 0, 0)


def test_what_cannot_be_said_is_no_answer(pipeline: Pipeline) -> None:
    shown = dataclasses.replace(PICTURE.parts[0], role="assistant")
    with pytest.raises(SkipSample, match="an answer is no text"):
        pipeline.prepare(Sample(key="x", parts=(Part(type="text", role="user", text="Draw."), shown)), 0, 0)


def preferred(*answers: tuple[str, float]) -> Sample:
    """A picture and a question, the answers to which have scores."""
    made = tuple(Answer(parts=(Part(type="text", text=text),), score=score) for text, score in answers)
    return Sample(key="p", parts=(PICTURE.parts[0], Part(type="text", text="What?")), answers=made)


def test_a_preference_is_one_document_of_several_answers(pipeline: Pipeline) -> None:
    encode = pipeline.tokenizer.encode
    asked = Turn((0, tuple(encode("What?"))), None)
    (made,) = pipeline.prepare(preferred(("goose", 1), ("duck", 0)), 0, 0).documents
    assert made == Document((asked,), ((tuple(encode("goose")), 1), (tuple(encode("duck")), 0)))
    assert pipeline.prepare(preferred(("goose", 1)), 0, 0, documents="open").documents == (Document((asked,)),)
    assert pipeline.prepare(preferred(), 0, 0).documents == (Document((asked,)),)  # for a reward that is computed
    with pytest.raises(SkipSample, match=EQUAL):
        pipeline.prepare(preferred(("goose", 1), ("goose", 0)), 0, 0)
    with pytest.raises(SkipSample, match=EQUAL):
        pipeline.prepare(preferred(("goose", 1), ("goose", 1)), 0, 0)
    (twice,) = pipeline.prepare(preferred(("goose", 1), ("duck", 0), ("duck", 0)), 0, 0).documents
    assert [score for _, score in twice.answers] == [1, 0]  # a wrong one that is there twice is one
    with pytest.raises(SkipSample, match=TOO_LONG):
        pipeline.prepare(preferred(("goose", 1), ("goose " * 100, 0)), 0, 0)


def test_parts_that_no_encoder_reads_are_left_out_before_decoding(tokenizer: SentencePieceTokenizer) -> None:
    pictures = Pipeline(tokenizer=tokenizer, patchify={"image": small_patchify()["image"]}, row_length=64)
    assert [p.type for p in pictures.readable(spoken_sample(0)).parts] == ["image", "text"]
    assert pictures.readable(PICTURE) is PICTURE
    assert list(pictures.batch([PICTURE]).streams) == ["image", "text"]
    silent = dataclasses.replace(spoken_sample(0), parts=spoken_sample(0).parts[1:3])
    with pytest.raises(SkipSample, match="no parts"):
        pictures.readable(silent)
    without = Pipeline(tokenizer=tokenizer, patchify=small_patchify(), row_length=64, text_pieces=0)
    assert list(without.batch([PICTURE]).streams) == ["image", "audio", "sensor"]


def test_a_document_that_fits_no_row_costs_the_sample(pipeline: Pipeline) -> None:
    long = Part(type="text", lang="en", text="goose " * 100)
    with pytest.raises(SkipSample, match=TOO_LONG):
        pipeline.prepare(dataclasses.replace(PICTURE, parts=(PICTURE.parts[0], long)), 0, 0)


def test_series_carry_their_channels(pipeline: Pipeline) -> None:
    stream = pipeline.batch([WATCH]).streams["sensor"]
    assert stream.values.shape == (1, 4, 3, 8, 2)  # 4 s cut to a window of 2 s, half a second a patch
    assert stream.description is not None
    expected = [stable_hash("channel", f"acc_{axis}", "m/s^2", "right wrist") for axis in "xyz"]
    assert stream.description.name.tolist() == [expected]
    np.testing.assert_allclose(stream.coords[0, :, 0], [0.25, 0.75, 1.25, 1.75])


def test_patchify_under_a_wrong_name_is_refused(tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(ValueError, match=r"patchify\.audio cuts image"):
        Pipeline(tokenizer=tokenizer, patchify={"audio": small_patchify()["image"]}, row_length=64)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_sound_beyond_all_measure_is_skipped(pipeline: Pipeline) -> None:
    clip = Part(type="audio", file="wav", data=np.full(8000, 1e30, np.float32), rate_hz=16_000)
    with np.errstate(all="ignore"), pytest.raises(SkipSample, match="audio is not finite when cut"):
        pipeline.prepare(Sample(key="loud", parts=(clip,)), 0, 0)
