"""One term for one thing: the glossary's forbidden words, looked for in every text of the course.

A reader who meets 延迟 on one page and 时延 on the next wonders whether they differ. `glossary.yml`
names, for each term, the one word used in each language and the variants that are not; a variant is
a regular expression, so that 延时 may be forbidden without forbidding 拖延时间.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from servinglib.course.lesson import LANGUAGES, LessonError, find, read

_FIELDS = {"en", "zh", "forbidden_en", "forbidden_zh"}
_NOT_PROSE = re.compile(
    r"^```.*?^```|`[^`\n]+`|\$\$.+?\$\$|\$[^$\n]+\$|\]\([^)]*\)|https?://\S+", re.M | re.S
)


@dataclass(frozen=True, slots=True)
class Term:
    """A term in both languages, with the variants that must not be used (regular expressions)."""

    en: str
    zh: str
    forbidden_en: tuple[str, ...] = ()
    forbidden_zh: tuple[str, ...] = ()


def terms(path: Path) -> list[Term]:
    """Read a glossary file.

    Raises
    ------
    LessonError
        When an entry has unknown fields, or forbids the term itself.
    """
    import yaml

    found = []
    for entry in yaml.safe_load(path.read_text(encoding="utf-8")):
        if not {"en", "zh"} <= set(entry) <= _FIELDS:
            raise LessonError(f"{path.name}: {entry} needs en and zh, and may have {sorted(_FIELDS)}")
        forbidden = (tuple(entry.get(f"forbidden_{lang}", ())) for lang in ("en", "zh"))
        term = Term(entry["en"], entry["zh"], *forbidden)
        for lang in LANGUAGES:
            for word in _uses(term, lang, getattr(term, lang)):
                raise LessonError(
                    f"{path.name}: {getattr(term, lang)!r} is both the term and forbidden ({word})"
                )
        found.append(term)
    return found


def problems(root: Path) -> list[str]:
    """Every forbidden variant in the lessons, READMEs and pages under `root`."""
    glossary = terms(root / "glossary.yml")
    return [
        f"{where}: {word!r}; the glossary's word is {getattr(term, lang)!r}"
        for where, lang, text in _texts(root)
        for term in glossary
        for word in _uses(term, lang, _NOT_PROSE.sub(" ", text))
    ]


def _uses(term: Term, lang: str, text: str) -> Iterator[str]:
    for pattern in getattr(term, f"forbidden_{lang}"):
        bounded = rf"\b(?:{pattern})\b" if lang == "en" else pattern
        for match in re.finditer(bounded, text, re.IGNORECASE):
            yield match.group()


def _texts(root: Path) -> Iterator[tuple[str, str, str]]:
    """Name, language and text of everything that a reader is given to read."""
    for path in find(root / "notebooks" / "lessons"):
        lesson = read(path)
        for lang in LANGUAGES:
            for key, cell in lesson.markdown(lang).items():
                yield f"{lesson.name}/{key} ({lang})", lang, cell.source
    pages = {"zh": [root / "README.md"], "en": [root / "README_EN.md"]}
    for lang in LANGUAGES:
        pages[lang] += [root / "CONTRIBUTING.md", *sorted((root / "docs" / lang).glob("*.md"))]
        for path in pages[lang]:
            if path.is_file():
                yield path.relative_to(root).as_posix(), lang, path.read_text(encoding="utf-8")
