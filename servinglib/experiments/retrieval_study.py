"""What the order of a prompt costs: the same questions, with the passages first and with the question first.

Two clerks answer the same letters from the same folders. One lays out the folder and then reads the
letter; the next letter often needs the folder that already lies there. The other begins each time with
an empty desk. Some subjects are asked about far more often than others (Zipf's law), which is why the
first clerk gains. No two questions are equal, word for word: whole answers that can be given twice are
the business of a result cache (lesson 08). Part of lesson 09.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from servinglib.engines.base import Engine
from servinglib.errors import InvalidSetting, UnknownName
from servinglib.experiments.cache_traffic import zipf
from servinglib.experiments.retrieval import Retriever
from servinglib.experiments.retrieval_service import Layout, RetrievalService, RetrievedAnswer
from servinglib.statistics import streams

WAYS_TO_ASK = {
    "en": (
        ("What is “", "Please explain “", "Tell me about “", "I don't understand “", "Why care about “", "“"),
        (
            "”?",
            "”, in a few words?",
            "”, with an example?",
            "”, for a beginner?",
            "”, and when does it fail?",
        ),
    ),
    "zh": (
        ("什么是「", "请解释「", "讲讲「", "我没看懂「", "为什么要关心「", "「"),
        ("」？", "」？用几句话说。", "」？请举个例子。", "」？我是初学者。", "」？什么时候会失灵？"),
    ),
}
"""What may stand before a topic and behind it."""


def questions_about(
    topics: Sequence[str], count: int, *, exponent: float = 1.0, lang: str = "en", seed: int = 0
) -> list[str]:
    """Questions about subjects of Zipf's popularity, no two of them equal.

    Parameters
    ----------
    topics : sequence of str
        Which of them is the most popular is drawn by lot.
    count : int
    exponent : float
        Of Zipf's law; 0 makes all topics equally popular.
    lang : {"zh", "en"}
    seed : int
    """
    if lang not in WAYS_TO_ASK:
        raise UnknownName("language", lang, WAYS_TO_ASK)
    if not topics or count < 1:
        raise InvalidSetting(f"{count} questions about {len(topics)} topics: give at least 1 of both")
    rng = streams(seed, "questions")["questions"]
    ranked = rng.permutation(len(topics))
    drawn = [int(ranked[i]) for i in rng.choice(len(topics), count, p=zipf(len(topics), exponent))]
    ways = [(before, after) for before in WAYS_TO_ASK[lang][0] for after in WAYS_TO_ASK[lang][1]]
    most, times = Counter(drawn).most_common(1)[0]
    if times > len(ways):
        raise InvalidSetting(
            f"{times} of the {count} questions are about {topics[most]!r}, and there are {len(ways)} ways to ask; "
            f"ask fewer questions, about more topics, or with a lower exponent"
        )
    left = {topic: list(rng.permutation(len(ways))) for topic in set(drawn)}
    asked = [(topics[topic], ways[left[topic].pop()]) for topic in drawn]
    return [before + topic + after for topic, (before, after) in asked]


@dataclass(frozen=True, slots=True)
class LayoutRun:
    """What became of the questions in one layout, in the order in which they were asked.

    Attributes
    ----------
    layout : str
    answers : tuple of RetrievedAnswer
    """

    layout: Layout
    answers: tuple[RetrievedAnswer, ...]

    @property
    def ttft(self) -> np.ndarray:
        """Time to first token in seconds, shape (questions,)."""
        return np.array([answer.ttft for answer in self.answers])

    @property
    def hit_rate(self) -> float | None:
        """Share of the prompts' tokens that the prefix cache had; None if the engine doesn't count them."""
        cached = [answer.cached_tokens for answer in self.answers if answer.cached_tokens is not None]
        if len(cached) < len(self.answers):
            return None
        return sum(cached) / sum(answer.prompt_tokens for answer in self.answers)


@dataclass(frozen=True, slots=True)
class RetrievalStudy:
    """The same questions in both layouts.

    Attributes
    ----------
    questions : tuple of str
    passages_first, question_first : LayoutRun
    """

    questions: tuple[str, ...]
    passages_first: LayoutRun
    question_first: LayoutRun

    @property
    def ttft_ratio(self) -> float:
        """Mean TTFT with the question first over that with the passages first: above 1, the latter pays.

        One run on a busy machine says little; repeat it with other seeds, and give both means of each run
        to `statistics.paired_difference`.
        """
        return float(self.question_first.ttft.mean() / self.passages_first.ttft.mean())

    @property
    def computed_ratio(self) -> float | None:
        """The same of the prompt tokens that had to be computed: what the TTFT would do if it were these alone.

        It is counted and so without noise; None if the engine doesn't count.
        """
        hit_rates = self.question_first.hit_rate, self.passages_first.hit_rate
        if hit_rates[0] is None or hit_rates[1] is None:
            return None
        return (1 - hit_rates[0]) / (1 - hit_rates[1])


def compare_layouts(
    engine: Engine,
    retriever: Retriever,
    questions: Sequence[str],
    *,
    budget: int = 1024,
    k: int = 3,
    lang: str = "en",
    max_tokens: int = 8,
) -> RetrievalStudy:
    """Ask each question in both layouts, one request at a time.

    The layouts take turns, and so do who goes first, so that a machine that slows down slows both. One
    engine serves both: of the two layouts' prompts only the instruction begins alike, and only the very
    first request of all has to compute it.

    Parameters
    ----------
    engine : Engine
        Freshly loaded, or its prefix cache already holds what others have asked.
    retriever : Retriever
    questions : sequence of str
    budget, k, lang
        As for `RetrievalService`.
    max_tokens : int
        Tokens of each answer.
    """
    if not questions:
        raise InvalidSetting("there are no questions to ask; give at least one")
    engine.warm_up()
    layouts: tuple[Layout, ...] = get_args(Layout)
    services = {
        layout: RetrievalService(engine, retriever, layout, budget=budget, k=k, lang=lang)
        for layout in layouts
    }
    answers: dict[Layout, list[RetrievedAnswer]] = {layout: [] for layout in layouts}
    for i, question in enumerate(questions):
        for layout in layouts if i % 2 == 0 else layouts[::-1]:
            answer = services[layout].answer(question, max_tokens=max_tokens, ignore_eos=True)
            answers[layout].append(answer)
    first, second = (LayoutRun(layout, tuple(answers[layout])) for layout in layouts)
    return RetrievalStudy(tuple(questions), first, second)
