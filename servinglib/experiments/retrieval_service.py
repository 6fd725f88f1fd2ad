"""A retrieval-augmented service: an engine that answers from passages which were found for the question.

An open-book examination. The student may not know the subject, but knows how to find the page, copies it
onto the desk, and answers from there. The pages on the desk are most of the prompt, and many people need
the same ones. So it matters in which order the prompt says things, since a prefix cache knows beginnings
only:

    passages-first   instruction | passages | question     who needs the same passages shares them
    question-first   instruction | question | passages     the question differs, and so does all behind it

`experiments.retrieval_study` asks both ways, for lesson 09. The course's own models write no sensible
answers, from the right passage or from any other: what they show is the serving, which is the same for a
model that can read.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from servinglib.engines.base import Engine
from servinglib.errors import InvalidRequest, InvalidSetting, UnknownName
from servinglib.experiments.retrieval import Match, Retriever
from servinglib.request import SamplingParams

Layout = Literal["passages-first", "question-first"]
WORDS = {
    "en": ("Answer the question from the numbered passages of the course alone.", "Question: ", "Answer:"),
    "zh": ("只根据编了号的课程段落回答问题。", "问题：", "回答："),
}


@dataclass(frozen=True, slots=True)
class RetrievedAnswer:
    """An answer, what it was given to read, and what it took.

    Attributes
    ----------
    text, prompt : str
    passages : tuple of Match
        As they stand in the prompt: best first, and the last one perhaps cut short.
    ttft : float
        Seconds from asking the engine to its first token.
    prompt_tokens : int
    cached_tokens : int or None
        Prompt tokens that the engine found in its prefix cache, by its own count while this answer was
        made, so ask one at a time. None if it doesn't count.
    """

    text: str
    prompt: str
    passages: tuple[Match, ...]
    ttft: float
    prompt_tokens: int
    cached_tokens: int | None


class RetrievalService:
    """Answers questions from passages, through any engine.

    Parameters
    ----------
    engine : Engine
        Stays its owner's, who shuts it down.
    retriever : Retriever
    layout : {"passages-first", "question-first"}
        In which order the prompt says things.
    budget : int
        Most tokens, by the engine's own tokenizer, that the passages may take together. It doesn't depend
        on the question, so that the same passages are the same tokens in every prompt.
    k : int
        Most passages.
    lang : {"zh", "en"}
        Language of the instruction.
    """

    def __init__(
        self,
        engine: Engine,
        retriever: Retriever,
        layout: Layout = "passages-first",
        *,
        budget: int = 1024,
        k: int = 3,
        lang: str = "en",
    ) -> None:
        if layout not in get_args(Layout):
            raise UnknownName("layout", layout, get_args(Layout))
        if lang not in WORDS:
            raise UnknownName("language", lang, WORDS)
        if budget < 1 or k < 1:
            raise InvalidSetting(f"budget={budget} tokens and k={k} passages must both be at least 1")
        self.engine, self.retriever, self.layout = engine, retriever, layout
        self.budget, self.k = budget, k
        self.instruction, self._question, self._answer = WORDS[lang]

    def answer(self, question: str, params: SamplingParams | None = None, **changes: Any) -> RetrievedAnswer:
        """Retrieve, write the prompt, and ask the engine; arguments as for `Engine.generate`.

        Raises
        ------
        InvalidRequest
            If the question is empty, is like no passage, or leaves the passages less than their budget.
        """
        params = (params or SamplingParams()).updated(**changes)
        found = self.retriever.search(question, self.k)
        self._check_room(question, params.max_tokens)
        if not found:
            raise InvalidRequest(f"no passage has anything in common with {question!r}; ask in other words")
        passages = fit(found, self.budget, self._tokens)
        prompt = self.prompt(question, passages)
        before, start = self.engine.counters.prefix_cache_hits, self.engine.now()
        [done] = self.engine.generate(prompt, params)
        after, first = self.engine.counters.prefix_cache_hits, done.timeline.first_token
        assert first is not None, "every engine stamps the first token of an answer"
        cached = None if before is None or after is None else after - before
        return RetrievedAnswer(
            done.text, prompt, tuple(passages), first / 1e9 - start, done.prompt_tokens, cached
        )

    def prompt(self, question: str, passages: Sequence[Match]) -> str:
        """What the engine is asked."""
        middle = [section(passages), self._question + question.strip()]
        if self.layout == "question-first":
            middle.reverse()
        return "\n\n".join([self.instruction, *middle, self._answer])

    def _check_room(self, question: str, max_tokens: int) -> None:
        """Refuse a question that the context can't hold beside the passages, whichever they will be."""
        frame = self._tokens(self.prompt("", []))
        asked = self._tokens(self.prompt(question, [])) - frame
        room = self.engine.context_length - max_tokens - self.budget - frame
        if asked > room:
            raise InvalidRequest(
                f"the question takes {asked} tokens, and {max(0, room)} are left for it: a context of "
                f"{self.engine.context_length} less budget={self.budget} for the passages, "
                f"max_tokens={max_tokens} for the answer and {frame} for the instruction; "
                f"shorten the question, or lower one of the two"
            )

    def _tokens(self, text: str) -> int:
        return len(self.engine.tokenize(text))


def section(passages: Sequence[Match]) -> str:
    """The passages as they stand in a prompt, each with the number that it has in the corpus."""
    return "\n\n".join(f"[{match.passage.number}] {match.passage.text}" for match in passages)


def fit(found: Sequence[Match], budget: int, count: Callable[[str], int]) -> list[Match]:
    """As many of the passages as a budget of tokens holds, in order; the first that it doesn't is cut to it.

    Best first is also a good order for a prefix cache: two questions about one thing agree on the best
    passage more often than on all.

    Parameters
    ----------
    found : sequence of Match
        Best first.
    budget : int
    count : callable
        Tokens of a text.
    """
    kept: list[Match] = []
    for match in found:
        length = _longest(kept, match, budget, count)
        if length > 0:
            kept.append(match.cut(length))
        if length < len(match.passage.text):
            break
    if not kept:
        raise InvalidSetting(f"budget={budget} tokens hold no character of the best passage; allow more")
    return kept


def _longest(kept: Sequence[Match], match: Match, budget: int, count: Callable[[str], int]) -> int:
    """How many characters of a passage fit behind those that are kept; not more than 0 if none does."""

    def tokens_with(characters: int) -> int:
        return count(section([*kept, match.cut(characters)]))

    whole = len(match.passage.text)
    if tokens_with(whole) <= budget:
        return whole
    return bisect_right(range(whole + 1), budget, key=tokens_with) - 1
