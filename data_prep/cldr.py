"""Emoji names from CLDR's annotations: 24 languages of 13 scripts, chosen among the 76 locales that name everything."""

from __future__ import annotations

import json

from data_prep.common import LEFT_OUT_LANGUAGES, Packages, members, read_one

# Latin, Cyrillic, Greek, Arabic, Hebrew, Devanagari, Bengali, Thai, Georgian, Armenian, Japanese, Hangul, Han;
# among them every language of the spoken names that CLDR covers (Danish it does not).
LANGUAGES = (
    *("en", "fr", "es", "de", "it", "pt", "ro", "ca", "pl", "tr"),
    *("ru", "be", "bg"),
    *("el", "ar", "he", "hi", "bn", "th", "ka", "hy", "ja", "ko", "zh"),
)
VARIATION = "\ufe0f"  # "show as a picture": CLDR's keys leave it out

assert not LEFT_OUT_LANGUAGES & set(LANGUAGES)


def read_names(packages: Packages) -> dict[str, dict[str, str]]:
    """Names by language and character; what the full table lacks (flags, keycaps, families) the derived one has."""
    names: dict[str, dict[str, str]] = {language: {} for language in LANGUAGES}
    for package, folder in (
        ("cldr-annotations-full", "annotations"),
        ("cldr-annotations-derived-full", "annotationsDerived"),
    ):
        paths = {f"{folder}/{language}/annotations.json": language for language in LANGUAGES}
        for path, content in members(packages.path(package), paths.__contains__):
            for character, entry in json.loads(content)[folder]["annotations"].items():
                if "tts" in entry:
                    names[paths[path]].setdefault(character, entry["tts"][0].strip())
    return names


def name_of(character: str, names: dict[str, str]) -> str:
    """The name of one emoji in one language; KeyError where there is none."""
    return names[character] if character in names else names[character.replace(VARIATION, "")]


def licence(packages: Packages) -> str:
    """Unicode's licence text, as the package carries it."""
    return read_one(packages.path("cldr-annotations-full"), "LICENSE".__eq__).decode()
