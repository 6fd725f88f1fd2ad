"""The glossary: forbidden variants are found in prose, and only there."""

from __future__ import annotations

from pathlib import Path

import pytest

from servinglib.course import glossary
from servinglib.course.lesson import LessonError

ROOT = Path(__file__).parents[2]


def write(root: Path, **files: str) -> None:
    for name, text in files.items():
        (root / name.replace("_md", ".md").replace("_yml", ".yml")).write_text(text, encoding="utf-8")


def test_the_projects_own_texts_keep_to_the_glossary():
    assert glossary.problems(ROOT) == []
    assert len(glossary.terms(ROOT / "glossary.yml")) >= 40


def test_a_forbidden_word_is_found_in_a_lesson_and_in_a_readme(lesson):
    lesson.edit("# ## 练习", "# ## 练习：时延")
    write(lesson.root, README_md="平均时延")
    assert glossary.problems(lesson.root) == [
        "01_mini/task (zh): '时延'; the glossary's word is '延迟'",
        "README.md: '时延'; the glossary's word is '延迟'",
    ]


def test_code_formulas_and_addresses_are_not_prose(lesson):
    write(
        lesson.root,
        README_md="`时延` $时延$ [x](时延) \n```\n时延\n```\n",
        README_EN_md="时延",
    )
    assert glossary.problems(lesson.root) == []


def test_english_variants_match_whole_words_and_patterns_look_around(lesson):
    write(
        lesson.root,
        glossary_yml="- {en: latency, zh: 延迟, forbidden_zh: ['(?<!拖)延时'], forbidden_en: [lag]}\n",
        README_md="拖延时间",
        README_EN_md="A flag is no Lag.",
    )
    assert [p.partition(";")[0] for p in glossary.problems(lesson.root)] == ["README_EN.md: 'Lag'"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("- {en: a}", "needs en and zh"),
        ("- {en: a, zh: b, banned: [c]}", "needs en and zh"),
        ("- {en: batch, zh: 批, forbidden_zh: [批]}", "both the term and forbidden"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(tmp_path, entry, message):
    write(tmp_path, glossary_yml=entry)
    with pytest.raises(LessonError, match=message):
        glossary.terms(tmp_path / "glossary.yml")
