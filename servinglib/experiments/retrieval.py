"""Finding the passages that matter: the course's own text, or any other, searched by TF-IDF.

Whoever looks for a page in a book without an index leafs for rare words: "the" stands on every page,
"preemption" on three. TF-IDF is that, in numbers. A piece of a word weighs the more, the oftener the page
has it and the fewer other pages do, and the page whose weights point the same way as the question's is the
one to open. A `Corpus` holds the passages, a `Retriever` finds them; `experiments.retrieval_service` lets
an engine answer from them, in lesson 09.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from servinglib.errors import InvalidRequest, InvalidSetting, UnknownName

LESSONS = Path(__file__).parents[2] / "notebooks" / "lessons"
LANGUAGES = ("zh", "en")
SECTION = re.compile(r"^(?=#+ )", re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of text that can be found.

    Attributes
    ----------
    number : int
        Its place in the corpus, from 0.
    source, title : str
        Where it is from, and the heading above it; empty where there is none.
    text : str
    """

    number: int
    source: str
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class Match:
    """A passage that was found; `score` is the cosine between it and the question, above 0 and up to 1."""

    passage: Passage
    score: float

    def cut(self, characters: int) -> Match:
        """The same, with so many characters of the text."""
        return replace(self, passage=replace(self.passage, text=self.passage.text[:characters]))


class Corpus:
    """The passages that may be found, in the order in which they were written.

    Parameters
    ----------
    passages : iterable of (source, title, text)
        Those without text are left out; there must be one with.
    """

    def __init__(self, passages: Iterable[tuple[str, str, str]]) -> None:
        kept = [(source, title, text.strip()) for source, title, text in passages if text.strip()]
        if not kept:
            raise InvalidSetting("the corpus holds no text; give at least one passage that is not empty")
        self.passages = tuple(Passage(number, *each) for number, each in enumerate(kept))

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> Corpus:
        """Each text is one passage."""
        return cls(("", _heading(text), text) for text in texts)

    @classmethod
    def from_folder(cls, folder: Path | str, pattern: str = "**/*.md") -> Corpus:
        """The Markdown files of a folder; each section, from one heading to the next, is a passage."""
        files = sorted(Path(folder).glob(pattern))
        if not files:
            raise InvalidSetting(f"no file in {folder} is called {pattern}; give another folder or pattern")
        return cls(
            (file.stem, _heading(section), section)
            for file in files
            for section in SECTION.split(file.read_text(encoding="utf-8"))
        )

    @classmethod
    def from_lessons(cls, folder: Path | str = LESSONS, lang: str = "en") -> Corpus:
        """The course's own text: each Markdown cell of the lessons, in one language, is a passage.

        Parameters
        ----------
        folder : Path or str
            That of the lessons' sources. They are in the repository and not in the installed package.
        lang : {"zh", "en"}
        """
        if lang not in LANGUAGES:
            raise UnknownName("language", lang, LANGUAGES)
        files = sorted(Path(folder).glob("*.py"))
        if not files:
            raise InvalidSetting(
                f"there are no lessons in {folder}: the installed package has none; give the folder "
                f"notebooks/lessons of a clone of the repository, or texts of your own to "
                f"Corpus.from_folder or Corpus.from_texts"
            )
        _need("jupytext")
        return cls(passage for file in files for passage in _cells(file, lang))

    @property
    def topics(self) -> list[str]:
        """The titles that one source alone has, in order: what somebody could ask about."""
        sources: dict[str, set[str]] = {}
        for passage in self.passages:
            sources.setdefault(passage.title, set()).add(passage.source)
        return [title for title, where in sources.items() if title and len(where) == 1]


class Retriever:
    """Finds passages by TF-IDF over pieces of two to four characters.

    Pieces of words need no list of words, so Chinese, which writes no spaces, is found like English.

    Parameters
    ----------
    corpus : Corpus
    """

    def __init__(self, corpus: Corpus) -> None:
        _need("sklearn")
        from sklearn.feature_extraction.text import TfidfVectorizer

        self.corpus = corpus
        self._pieces = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
        self._weights = self._pieces.fit_transform([f"{p.title}\n{p.text}" for p in corpus.passages])

    def search(self, question: str, k: int = 3) -> list[Match]:
        """The `k` passages that are most like the question, best first; fewer if fewer are like it at all."""
        from sklearn.metrics.pairwise import linear_kernel

        if k < 1:
            raise InvalidSetting(f"k={k} passages can't be searched for; ask for at least 1")
        if not question.strip():
            raise InvalidRequest("the question is empty; ask something")
        scores = linear_kernel(self._pieces.transform([question]), self._weights)[0]
        best = (-scores).argsort(kind="stable")[:k]
        return [Match(self.corpus.passages[i], float(scores[i])) for i in best if scores[i] > 0]


def _heading(text: str) -> str:
    found = HEADING.search(text)
    return found[1] if found else ""


def _cells(lesson: Path, lang: str) -> Iterable[tuple[str, str, str]]:
    """The Markdown cells of a lesson in one language, each with the last heading at or above it."""
    import jupytext

    title = ""
    for cell in jupytext.reads(lesson.read_text(encoding="utf-8"), fmt="py:percent").cells:
        if cell.metadata.get("lang") == lang:
            title = _heading(cell.source) or title
            yield lesson.stem, title, cell.source


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise InvalidSetting(
            f"this takes the package {package}, which is not installed here; install servinglib[course]"
        )
