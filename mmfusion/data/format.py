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
from typing import Any, NoReturn, TypeVar

from mmfusion.types import MEASURABLE, MODALITIES, Answer, Modality, Part, Sample, SkipSample

MAX_TEXT_CHARS = 100_000
_Item = TypeVar("_Item")

PLAIN: Mapping[str, Modality] = {
    **dict.fromkeys(("jpg", "jpeg", "png", "webp"), "image"),
    **dict.fromkeys(("wav", "flac", "ogg", "opus", "mp3"), "audio"),
    "txt": "text",
}
"""What the last piece of a member's name says in a tar without part lists."""


class _Invalid(Exception):
    """A value that does not hold: what is wrong, the countable reason, and, as it rises, the path of fields to it."""

    def __init__(self, what: str, reason: str = "bad json") -> None:
        super().__init__(what)
        self.reason = reason
        self.path = ""

    def under(self, name: str) -> _Invalid:
        """The same, one field further out."""
        self.path = f"{name}.{self.path}".rstrip(".").replace(".[", "[")
        return self

    def skip(self, key: str, url: str) -> SkipSample:
        return SkipSample(self.reason, f"{url}: key {key!r}: {self.path or 'json'} {self}")


# ---------------------------------------------------------------------------------------------- fields and their checks


def _string(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise _Invalid(f"must be a non-empty string, not {value!r:.60}")
    if not value.isascii():
        _check_encodable(value)
    return value


def _check_encodable(value: str) -> None:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Invalid("holds half a surrogate pair", "text not utf-8") from None


def _text(value: object) -> str:
    """A text that can be learnt from, unchanged; raises with a reason of its own otherwise."""
    if not isinstance(value, str):
        raise _Invalid(f"must be a string, not {value!r:.60}")
    if not value or value.isspace():
        raise _Invalid("is empty", "empty text")
    if len(value) > MAX_TEXT_CHARS:
        raise _Invalid(f"has {len(value)} characters, at most {MAX_TEXT_CHARS}", "text too long")
    if "\0" in value:
        raise _Invalid("holds a NUL character", "text with NUL")
    if value.isascii():
        return value
    _check_encodable(value)
    if value[0] == "\ufeff":
        raise _Invalid("starts with a byte order mark", "text with BOM")
    if "\ufffd" in value or _is_mojibake(value):
        raise _Invalid("was decoded with the wrong table", "mojibake")
    return value


def _is_mojibake(value: str) -> bool:
    """True if all of it is Latin-1 and its bytes are UTF-8 again: `Ã©` for `é`. Real text of that form is not known."""
    try:
        value.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return False
    return True


SERIES_HZ = (1e-9, 1e9)  # rates that a part may declare


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Invalid(f"must be a number, not {value!r:.60}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MEASURABLE:
        raise _Invalid(f"must be a number between ±{MEASURABLE:g}")
    return number


def _rate(value: object) -> float:
    number = _number(value)
    low, high = SERIES_HZ
    if not low <= number <= high:
        raise _Invalid(f"must be between {low:g} and {high:g} Hz, not {number}")
    return number


def _one_of(allowed: Sequence[str]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if not isinstance(value, str) or value not in allowed:
            raise _Invalid(f"must be one of {', '.join(allowed)}, not {value!r:.60}")
        return value

    return check


def _member(value: object) -> str:
    name = _string(value)
    if "/" in name or "\\" in name or name.lower() == "json" or "" in name.split("."):
        raise _Invalid(f"must be what follows the key in a member's name, such as fr.ogg, not {name!r}")
    return name


def _each(check: Callable[[object], _Item]) -> Callable[[object], tuple[_Item, ...]]:
    def check_all(value: object) -> tuple[_Item, ...]:
        if not isinstance(value, list):
            raise _Invalid(f"must be a list, not {value!r:.60}")
        made: list[_Item] = []
        try:
            for item in value:
                made.append(check(item))
        except _Invalid as error:
            raise error.under(f"[{len(made)}]") from None
        return tuple(made)

    return check_all


def _cell(value: object) -> tuple[float, float]:
    if not isinstance(value, list) or len(value) != 2:
        raise _Invalid(f"must be [row, column], not {value!r:.60}")
    return _number(value[0]), _number(value[1])


_PART_FIELDS: Mapping[str, Callable[[object], Any]] = {
    "type": _one_of(MODALITIES),
    "file": _member,
    "text": _text,
    "lang": _string,
    "role": _one_of(("user", "assistant")),
    "kind": _string,
    "start_s": _number,
    "rate_hz": _rate,
    "times": _member,
    "place": _string,
    "subject": _string,
    "speaker": _string,
    "channels": _each(_string),
    "units": _each(_string),
    "grid": _each(_cell),
}
_SAMPLE_FIELDS = frozenset(("parts", "prompt", "answers", "check", "labels", "source", "licence"))


# ------------------------------------------------------------------------------------------------------- json -> Sample


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        raise _Invalid(f"repeats the key {next(n for n in names if names.count(n) > 1)!r}")
    return made


def _no_constant(name: str) -> NoReturn:
    raise _Invalid(f"holds {name}")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _utf8(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _Invalid(f"is not UTF-8 at byte {error.start}", "text not utf-8") from None


def _object(raw: object) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise _Invalid(f"must be an object, not {raw!r:.60}")
    return raw


def _load(json_bytes: bytes) -> dict[str, Any]:
    try:
        return _object(_DECODER.decode(_utf8(json_bytes)))
    except RecursionError:
        raise _Invalid("is nested too deeply") from None
    except ValueError as error:
        raise _Invalid(f"is no JSON: {error}") from None


def _check_part(part: Part) -> None:
    """What holds between the fields of one part."""
    if part.type == "text":
        if part.text is None or part.file is not None:
            raise _Invalid("is a text part, which has `text` and no `file`")
        return
    if part.file is None:
        raise _Invalid(f"is of type {part.type} and needs `file`")
    if part.type != "sensor":
        if part.channels or part.units or part.grid or part.times:
            raise _Invalid("has channels, units, grid or times, which belong to sensor parts")
        return
    if (part.rate_hz is None) == (part.times is None):
        raise _Invalid("is a sensor part, which has either rate_hz or times")
    if not part.channels or len(set(part.channels)) != len(part.channels):
        raise _Invalid("must name each channel once in `channels`")
    if len(part.units) != len(part.channels):
        raise _Invalid(f"has {len(part.units)} units for {len(part.channels)} channels")
    if part.grid and len(part.grid) != len(part.channels):
        raise _Invalid(f"has {len(part.grid)} grid cells for {len(part.channels)} channels")


def _part(raw: object, members: Mapping[str, bytes] | None) -> Part:
    fields: dict[str, Any] = {}
    for name, value in _object(raw).items():
        check = _PART_FIELDS.get(name)
        if check is None:
            raise _Invalid(f"has the unknown field {name!r:.60}")
        try:
            fields[name] = check(value)
        except _Invalid as error:
            raise error.under(name) from None
    if "type" not in fields:
        raise _Invalid("needs `type`")
    if members is not None:
        for name, target in (("file", "data"), ("times", "times_s")):
            if name in fields:
                fields[target] = members.get(fields[name].lower())
                if fields[target] is None:
                    raise _Invalid(f"names {fields[name]!r}, which is not there", "missing member").under(name)
    part = Part(**fields)
    _check_part(part)
    return part


def _parts(raw: object, members: Mapping[str, bytes] | None) -> tuple[Part, ...]:
    parts = _each(lambda item: _part(item, members))(raw)
    if not parts:
        raise _Invalid("is empty", "no parts")
    return parts


def _answers(raw: object, members: Mapping[str, bytes] | None) -> tuple[Answer, ...]:
    def answer(item: object) -> Answer:
        fields = _object(item)
        if set(fields) != {"parts", "score"}:
            raise _Invalid("must have `parts` and `score`, nothing else")
        return Answer(
            parts=_named("parts", lambda: _parts(fields["parts"], members)),
            score=_named("score", lambda: _number(fields["score"])),
        )

    return _each(answer)(raw)


def _labels(raw: object) -> dict[str, str]:
    return {name: _named(name, lambda value=value: _string(value)) for name, value in _object(raw).items()}


def _named(name: str, check: Callable[[], _Item]) -> _Item:
    try:
        return check()
    except _Invalid as error:
        raise error.under(name) from None


def _sample(key: str, url: str, raw: dict[str, Any], members: Mapping[str, bytes] | None) -> Sample:
    if not _SAMPLE_FIELDS.issuperset(raw):
        raise _Invalid(f"has the unknown field {min(set(raw) - set(_SAMPLE_FIELDS))!r:.60}")
    if ("parts" in raw) == ("prompt" in raw) or ("prompt" in raw) != ("answers" in raw):
        raise _Invalid("needs either `parts`, or `prompt` and `answers`")
    if "check" in raw and "prompt" not in raw:
        raise _Invalid("has `check`, which belongs beside `prompt`")
    if raw.get("answers") and "check" in raw:
        raise _Invalid("has `check` and `answers`: a check is for a prompt without any")
    checks: dict[str, Callable[[object], Any]] = {
        "parts": lambda value: _parts(value, members),
        "prompt": lambda value: _parts(value, members),
        "answers": lambda value: _answers(value, members),
        "check": _text,
        "labels": _labels,
    }
    fields: dict[str, Any] = {}
    for name, value in raw.items():
        try:
            fields[name] = checks.get(name, _string)(value)
        except _Invalid as error:
            raise error.under(name) from None
    if "prompt" in fields:
        fields["parts"] = fields.pop("prompt")
    return Sample(key=key, url=url, **fields)


def _plain(key: str, url: str, members: Mapping[str, bytes]) -> Sample:
    parts: list[Part] = []
    for name, data in members.items():
        modality = PLAIN.get(name.rpartition(".")[2].lower())
        if modality == "text":
            parts.append(Part(type="text", text=_named(name, lambda data=data: _text(_utf8(data)))))
        elif modality is not None:
            parts.append(Part(type=modality, file=name, data=data))
    if not parts:
        raise _Invalid(f"has no member of a known kind, only {', '.join(members) or 'none'}", "no parts")
    return Sample(key=key, url=url, parts=tuple(parts))


def parse_sample(key: str, json_bytes: bytes, url: str = "") -> Sample:
    """The sample that `<key>.json` lists, without the members' bytes. Raises SkipSample with a countable reason."""
    try:
        return _sample(key, url, _load(json_bytes), None)
    except _Invalid as error:
        raise error.skip(key, url) from None


def sample_from_members(key: str, members: Mapping[str, bytes], url: str = "") -> Sample:
    """A sample from all members of one key, `{what follows the key in lower case: bytes}`; `Part.data` holds bytes."""
    try:
        raw = _load(members["json"]) if "json" in members else {}
        if "parts" in raw or "prompt" in raw:
            return _sample(key, url, raw, members)
        return _plain(key, url, members)
    except _Invalid as error:
        raise error.skip(key, url) from None


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
    if sample.answers is not None:
        made["prompt"] = _parts_json(sample.parts)
        made["answers"] = [{"parts": _parts_json(a.parts), "score": a.score} for a in sample.answers]
    else:
        made["parts"] = _parts_json(sample.parts)
    for field in dataclasses.fields(Sample):
        if field.name in ("check", "labels", "source", "licence") and (value := getattr(sample, field.name)):
            made[field.name] = dict(value) if field.name == "labels" else value
    return json.dumps(made, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8")
