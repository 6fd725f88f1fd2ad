"""Do the two languages still say the same? Checked where a program can check it.

Two editions of a book part company one small edit at a time. So each Markdown cell remembers the
hash of its partner when a person last looked at both, and an edit to one side alone is an error
until somebody has looked at the other. What must agree in any language is compared as well: heading
levels, formulas, numbers, code spans and links.

`python -m servinglib.course.pairs` checks; `... --accept 01` stores the hashes of lesson 01 once
both sides have been edited.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from servinglib.course.freshness import short_hash
from servinglib.course.lesson import LANGUAGES, Cell, Lesson, LessonError, find, read

_FENCE = re.compile(r"^```[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<!\\)\$([^$\n]+?)(?<!\\)\$", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)[^)]*\)|<(https?://[^>\s]+)>|(?<![(<])\bhttps?://[^\s)>，。；、]+")
_NUMBER = re.compile(r"(?:\d+(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?: ?%)?")
_HEADING = re.compile(r"^(#{1,6})\s", re.MULTILINE)
_HEADER = re.compile(r"^# %% \[markdown\](?P<attributes>.*)$")


def text_hash(text: str) -> str:
    """What a cell keeps of its partner's text."""
    return short_hash(text.strip(), 8)


def traits(text: str) -> dict[str, Counter[str]]:
    """What the two languages of a cell must have in common, each with how often it stands there."""
    found: dict[str, Counter[str]] = {"headings": Counter(_HEADING.findall(_FENCE.sub("", text)))}
    found["code blocks"], text = _take(_FENCE, text)
    found["code spans"], text = _take(_CODE, text)
    found["formulas"], text = _take(_FORMULA, text)
    found["links"], text = _take(_LINK, text)
    found["formulas"] = Counter(
        re.sub(r"\s+", " ", re.sub(r"\\text\{[^}]*\}", r"\\text{}", formula)).strip()
        for formula in found["formulas"].elements()
    )
    found["links"] = Counter(
        re.sub(r"(?<![a-z])(zh|en)(?=/)", "*", link).replace("README_EN", "README")
        for link in found["links"].elements()
    )
    plain = unicodedata.normalize("NFKC", text)
    found["numbers"] = Counter(re.sub("[, ]", "", number) for number in _NUMBER.findall(plain))
    return found


def problems(lesson: Lesson) -> list[str]:
    """Everything in which the two languages disagree, each with what to do about it."""
    sides = {lang: lesson.markdown(lang) for lang in LANGUAGES}
    found = [
        f"{lesson.name}/{key}: only the {lang} text exists; write the other one"
        for lang, other in (("zh", "en"), ("en", "zh"))
        for key in sides[lang]
        if key not in sides[other]
    ]
    if not found and list(sides["zh"]) != list(sides["en"]):
        found.append(f"{lesson.name}: the two languages have their cells in different orders")
    for key, zh in sides["zh"].items():
        if key in sides["en"]:
            en = sides["en"][key]
            found += [f"{lesson.name}/{key}: {what}" for what in [*_unlike(zh, en), *_apart(zh, en, lesson)]]
    return found


def accept(path: Path) -> list[str]:
    """Store each text's hash at its partner and return the keys that changed.

    Raises
    ------
    LessonError
        While the two languages of a cell differ in what a program can compare.
    """
    lesson = read(path)
    sides = {lang: lesson.markdown(lang) for lang in LANGUAGES}
    unlike = [
        f"{lesson.name}/{key}: {what}"
        for key, zh in sides["zh"].items()
        if key in sides["en"]
        for what in _unlike(zh, sides["en"][key])
    ]
    if unlike or set(sides["zh"]) != set(sides["en"]):
        raise LessonError("\n".join(unlike or problems(lesson)))
    changed, lines = [], path.read_text(encoding="utf-8").split("\n")
    markdown = iter([cell for cell in lesson.cells if cell.kind == "markdown"])
    for row, line in enumerate(lines):
        if header := _HEADER.match(line):
            cell = next(markdown)
            partner = text_hash(sides["en" if cell.lang == "zh" else "zh"][cell.key].source)
            if partner != cell.partner:
                changed.append(cell.key)
                attributes = re.sub(r' partner="[^"]*"', "", header["attributes"].rstrip())
                lines[row] = f'# %% [markdown]{attributes} partner="{partner}"'
    path.write_text("\n".join(lines), encoding="utf-8")
    return list(dict.fromkeys(changed))


def _take(pattern: re.Pattern[str], text: str) -> tuple[Counter[str], str]:
    """What the pattern finds, and the text without it."""
    matches = list(pattern.finditer(text))
    found = Counter(next((g for g in match.groups() if g), match.group()) for match in matches)
    return found, pattern.sub(" ", text)


def _unlike(zh: Cell, en: Cell) -> list[str]:
    found, ours, theirs = [], traits(zh.source), traits(en.source)
    for trait, in_zh in ours.items():
        if in_zh != theirs[trait]:
            only_zh = sorted((in_zh - theirs[trait]).elements())
            only_en = sorted((theirs[trait] - in_zh).elements())
            found.append(f"{trait} differ: only in zh {only_zh}, only in en {only_en}")
    return found


def _apart(zh: Cell, en: Cell, lesson: Lesson) -> list[str]:
    changed = [cell.lang for cell, other in ((zh, en), (en, zh)) if other.partner != text_hash(cell.source)]
    if not changed:
        return []
    side = {1: f"the {changed[0]} text was", 2: "both texts were"}[len(changed)]
    return [
        f"{side} edited since the two were last read side by side; bring them into line, then run "
        f"`python -m servinglib.course.pairs --accept {lesson.number}`"
    ]


def main(
    accept_lesson: Annotated[str | None, typer.Option("--accept", help="Lesson number, such as 01.")] = None,
) -> None:
    """Check that the two languages of every lesson agree, or accept a lesson's joint edit."""
    try:
        for path in find(Path("notebooks/lessons"), accept_lesson):
            if accept_lesson:
                typer.echo(f"{path.stem}: accepted {', '.join(accept(path)) or 'nothing; all was in step'}")
            elif found := problems(read(path)):
                raise LessonError("\n".join(found))
    except LessonError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


if __name__ == "__main__":
    typer.run(main)
