"""A sample on disk: `<key>.json` and the members beside it, to and from `Sample`.

Strict on the way in: a field that is unknown, repeated or of the wrong type costs the sample, with a reason that can be
counted. Text is never mended: what is not UTF-8, empty, over-long, or plainly decoded with the wrong table is a reason
too. Plain tars as img2dataset writes them (`key.jpg` + `key.txt`; a `.json` without `parts` is metadata) are read as
they are.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from mmfusion.types import MODALITIES, Answer, Modality, Part, Sample, SkipSample

MAX_TEXT_CHARS = 100_000

PLAIN: Mapping[str, Modality] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    "txt": "text",
}
"""What the last piece of a member's name says in a tar without part lists."""


class _Invalid(Exception):
    """A field that does not hold: its path, what is wrong, and the countable reason."""

    def __init__(self, where: str, what: str, reason: str = "bad json") -> None:
        super().__init__(f"{where}: {what}")
        self.reason = reason


# ---------------------------------------------------------------------------------------------- fields and their checks


def _string(where: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Invalid(where, f"must be a non-empty string, not {value!r:.60}")
    if not value.isascii():
        _encodable(where, value)
    return value


def _encodable(where: str, value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Invalid(where, "holds half a surrogate pair", "text not utf-8") from None


def check_text(where: str, value: object) -> str:
    """A text that can be learnt from, unchanged; raises with a countable reason otherwise."""
    if not isinstance(value, str):
        raise _Invalid(where, f"must be a string, not {value!r:.60}")
    if not value.strip():
        raise _Invalid(where, "is empty", "empty text")
    if len(value) > MAX_TEXT_CHARS:
        raise _Invalid(where, f"has {len(value)} characters, at most {MAX_TEXT_CHARS}", "text too long")
    if "\0" in value:
        raise _Invalid(where, "holds a NUL character", "text with NUL")
    if value.isascii():
        return value
    _encodable(where, value)
    if value[0] == "\ufeff":
        raise _Invalid(where, "starts with a byte order mark", "text with BOM")
    if "\ufffd" in value or _is_mojibake(value):
        raise _Invalid(where, "was decoded with the wrong table", "mojibake")
    return value


def _is_mojibake(value: str) -> bool:
    """True if all of it is Latin-1 and its bytes are UTF-8 again: `Ã©` for `é`. Real text of that form is not known."""
    try:
        value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return False
    return True


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Invalid(where, f"must be a number, not {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _Invalid(where, "must be finite")
    return number


def _rate(where: str, value: object) -> float:
    number = _number(where, value)
    if number <= 0:
        raise _Invalid(where, f"must be positive, not {number}")
    return number


def _type(where: str, value: object) -> Modality:
    if value not in MODALITIES:
        raise _Invalid(where, f"must be one of {', '.join(MODALITIES)}, not {value!r:.60}")
    return value  # pyright: ignore[reportReturnType]  # membership was just tested


def _role(where: str, value: object) -> str:
    if value not in ("user", "assistant"):
        raise _Invalid(where, f"must be user or assistant, not {value!r:.60}")
    return str(value)


def _member(where: str, value: object) -> str:
    name = _string(where, value)
    if "/" in name or "\\" in name or name.lower() == "json" or "" in name.split("."):
        raise _Invalid(where, f"must be what follows the key in a member's name, such as fr.ogg, not {name!r}")
    return name


def _list(where: str, value: object) -> list[object]:
    if not isinstance(value, list):
        raise _Invalid(where, f"must be a list, not {value!r:.60}")
    return value


def _strings(where: str, value: object) -> tuple[str, ...]:
    return tuple(_string(f"{where}[{i}]", item) for i, item in enumerate(_list(where, value)))


def _grid(where: str, value: object) -> tuple[tuple[float, float], ...]:
    cells: list[tuple[float, float]] = []
    for i, item in enumerate(_list(where, value)):
        pair = _list(f"{where}[{i}]", item)
        if len(pair) != 2:
            raise _Invalid(f"{where}[{i}]", "must be [row, column]")
        cells.append((_number(f"{where}[{i}]", pair[0]), _number(f"{where}[{i}]", pair[1])))
    return tuple(cells)


_PART_FIELDS: Mapping[str, Callable[[str, object], Any]] = {
    "type": _type,
    "file": _member,
    "text": check_text,
    "lang": _string,
    "role": _role,
    "kind": _string,
    "start_s": _number,
    "rate_hz": _rate,
    "times": _member,
    "place": _string,
    "subject": _string,
    "speaker": _string,
    "channels": _strings,
    "units": _strings,
    "grid": _grid,
}
_SAMPLE_FIELDS = frozenset(("parts", "prompt", "answers", "check", "labels", "source", "licence"))


# ------------------------------------------------------------------------------------------------------- json -> Sample


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Invalid("json", f"repeats the key {next(n for n in names if names.count(n) > 1)!r}")
    return made


def _no_constant(name: str) -> NoReturn:
    raise _Invalid("json", f"holds {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _load(json_bytes: bytes) -> dict[str, Any]:
    try:
        text = json_bytes.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Invalid("json", f"byte {error.start} is not UTF-8", "text not utf-8") from None
    try:
        raw = _DECODER.decode(text)
    except RecursionError:
        raise _Invalid("json", "is nested too deeply") from None
    except ValueError as error:
        raise _Invalid("json", str(error)) from None
    if not isinstance(raw, dict):
        raise _Invalid("json", "must be an object")
    return raw


def _only(where: str, raw: object, allowed: frozenset[str]) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _Invalid(where, f"must be an object, not {raw!r:.60}")
    if not allowed.issuperset(raw):
        raise _Invalid(where, f"has the unknown field {min(set(raw) - allowed)!r:.60}")
    return raw


def _check_part(where: str, part: Part) -> None:
    """What holds between the fields of one part."""
    if part.type == "text":
        if part.text is None or part.file is not None:
            raise _Invalid(where, "a text part has `text` and no `file`")
        return
    if part.file is None:
        raise _Invalid(where, f"a part of type {part.type} needs `file`")
    if part.type != "sensor":
        if part.channels or part.units or part.grid or part.times:
            raise _Invalid(where, "channels, units, grid and times belong to sensor parts")
        return
    if (part.rate_hz is None) == (part.times is None):
        raise _Invalid(where, "a sensor part needs either rate_hz or times")
    if not part.channels or len(set(part.channels)) != len(part.channels):
        raise _Invalid(f"{where}.channels", "must name each channel once")
    if len(part.units) != len(part.channels):
        raise _Invalid(f"{where}.units", f"has {len(part.units)} entries for {len(part.channels)} channels")
    if part.grid and len(part.grid) != len(part.channels):
        raise _Invalid(f"{where}.grid", f"has {len(part.grid)} entries for {len(part.channels)} channels")


def _part(where: str, raw: object, members: Mapping[str, bytes] | None) -> Part:
    if not isinstance(raw, dict):
        raise _Invalid(where, f"must be an object, not {raw!r:.60}")
    if "type" not in raw:
        raise _Invalid(where, "needs `type`")
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        check = _PART_FIELDS.get(name)
        if check is None:
            raise _Invalid(where, f"has the unknown field {name!r:.60}")
        fields[name] = check(f"{where}.{name}", value)
    if members is not None:
        for name, target in (("file", "data"), ("times", "times_s")):
            if name in fields:
                data = members.get(fields[name].lower())
                if data is None:
                    raise _Invalid(f"{where}.{name}", f"the member {fields[name]!r} is not there", "missing member")
                fields[target] = data
    part = Part(**fields)
    _check_part(where, part)
    return part


def _parts(where: str, raw: object, members: Mapping[str, bytes] | None) -> tuple[Part, ...]:
    parts = tuple(_part(f"{where}[{i}]", item, members) for i, item in enumerate(_list(where, raw)))
    if not parts:
        raise _Invalid(where, "is empty", "no parts")
    return parts


def _answers(raw: object, members: Mapping[str, bytes] | None) -> tuple[Answer, ...]:
    answers: list[Answer] = []
    for i, item in enumerate(_list("answers", raw)):
        where = f"answers[{i}]"
        fields = _only(where, item, frozenset(("parts", "score")))
        if len(fields) != 2:
            raise _Invalid(where, "needs `parts` and `score`")
        parts = _parts(f"{where}.parts", fields["parts"], members)
        answers.append(Answer(parts=parts, score=_number(f"{where}.score", fields["score"])))
    return tuple(answers)


def _labels(raw: object) -> dict[str, str]:
    if not isinstance(raw, dict):
        raise _Invalid("labels", f"must be an object, not {raw!r:.60}")
    return {name: _string(f"labels.{name}", value) for name, value in raw.items()}


def _sample(key: str, url: str, raw: dict[str, Any], members: Mapping[str, bytes] | None) -> Sample:
    _only("json", raw, _SAMPLE_FIELDS)
    if ("parts" in raw) == ("prompt" in raw) or ("prompt" in raw) != ("answers" in raw):
        raise _Invalid("json", "needs either `parts`, or `prompt` and `answers`")
    if "check" in raw and "prompt" not in raw:
        raise _Invalid("check", "belongs beside `prompt`")
    return Sample(
        key=key,
        url=url,
        parts=_parts("parts", raw["parts"], members) if "parts" in raw else (),
        prompt=_parts("prompt", raw["prompt"], members) if "prompt" in raw else (),
        answers=_answers(raw["answers"], members) if "answers" in raw else (),
        check=_string("check", raw["check"]) if "check" in raw else None,
        labels=_labels(raw["labels"]) if "labels" in raw else {},
        source=_string("source", raw["source"]) if "source" in raw else None,
        licence=_string("licence", raw["licence"]) if "licence" in raw else None,
    )


def _plain(key: str, url: str, members: Mapping[str, bytes]) -> Sample:
    parts: list[Part] = []
    for name, data in members.items():
        modality = PLAIN.get(name.rpartition(".")[2].lower())
        if modality == "text":
            try:
                text = data.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _Invalid(name, f"byte {error.start} is not UTF-8", "text not utf-8") from None
            parts.append(Part(type="text", text=check_text(name, text)))
        elif modality is not None:
            parts.append(Part(type=modality, file=name, data=data))
    if not parts:
        raise _Invalid("members", f"no known kind among {', '.join(members) or 'none'}", "no parts")
    return Sample(key=key, url=url, parts=tuple(parts))


def parse_sample(key: str, json_bytes: bytes, url: str = "") -> Sample:
    """The sample that `<key>.json` lists, without the members' bytes. Raises SkipSample with a countable reason."""
    try:
        return _sample(key, url, _load(json_bytes), None)
    except _Invalid as error:
        raise SkipSample(error.reason, f"{url}: key {key!r}: {error}") from None


def sample_from_members(key: str, members: Mapping[str, bytes], url: str = "") -> Sample:
    """A sample from all members of one key, `{what follows the key in lower case: bytes}`; `Part.data` holds bytes."""
    try:
        raw = _load(members["json"]) if "json" in members else {}
        if "parts" in raw or "prompt" in raw:
            return _sample(key, url, raw, members)
        return _plain(key, url, members)
    except _Invalid as error:
        raise SkipSample(error.reason, f"{url}: key {key!r}: {error}") from None


# ------------------------------------------------------------------------------------------------------- Sample -> json


def _part_json(part: Part) -> dict[str, object]:
    made: dict[str, object] = {}
    for name in _PART_FIELDS:
        value = getattr(part, name)
        if value is not None and value != () and not (name == "start_s" and value == 0.0):
            made[name] = value
    return made


def _parts_json(parts: Sequence[Part]) -> list[dict[str, object]]:
    return [_part_json(part) for part in parts]


def dump_sample(sample: Sample) -> bytes:
    """`<key>.json`: the fields that are set, in the order of the types, without spaces. Raises ValueError on NaN."""
    made: dict[str, object] = {}
    if sample.prompt:
        made["prompt"] = _parts_json(sample.prompt)
        made["answers"] = [{"parts": _parts_json(a.parts), "score": a.score} for a in sample.answers]
    else:
        made["parts"] = _parts_json(sample.parts)
    for field in dataclasses.fields(Sample):
        if field.name in ("check", "labels", "source", "licence") and (value := getattr(sample, field.name)):
            made[field.name] = dict(value) if field.name == "labels" else value
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
