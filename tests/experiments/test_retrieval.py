"""Passages are found, cut to a budget, and shared between prompts as the layout allows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clocks import VirtualClock

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import InvalidRequest, InvalidSetting, UnknownName
from servinglib.experiments import retrieval
from servinglib.experiments.caching import simulator_hits
from servinglib.experiments.retrieval import Corpus, Retriever
from servinglib.experiments.retrieval_service import RetrievalService, fit, section
from servinglib.experiments.retrieval_study import LayoutRun, compare_layouts, questions_about
from servinglib.policies.step_time import StepTime

TEXTS = [
    "# Baking\n\nBread needs flour, water, salt and yeast; the dough rises for an hour before the oven.",
    "# Sailing\n\nTo sail against the wind, tack: go left and right of it, and keep the boom low in a gust.",
    "# 围棋\n\n两眼活棋，一眼死棋。开局先占角，再占边，最后向中央发展；被围住的棋子要提掉。",
    "# 泡茶\n\n绿茶用八十度的水，红茶用沸水。先温杯，再投茶，第一泡不要太久，茶汤才不苦。",
]
LAW = StepTime(a=1.0, b=0.1, c=0.01, d=0.001)


def simulated(context_length: int = 4096) -> SimulatedEngine:
    clock = VirtualClock()
    return SimulatedEngine(LAW, clock.sleep, clock, context_length=context_length)


@pytest.fixture(scope="module")
def retriever() -> Retriever:
    return Retriever(Corpus.from_texts(TEXTS))


@pytest.fixture
def engine():
    with ContinuousEngine.load("course-tiny", kv_cache_memory="8MiB", max_num_seqs=2) as loaded:
        yield loaded


# Finding


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("How long must the dough rise?", "Baking"),
        ("Which way do I sail if the wind is against me?", "Sailing"),
        ("棋子被围住了怎么办", "围棋"),
        ("红茶要用多热的水？", "泡茶"),
    ],
)
def test_the_passage_that_answers_is_found_first_in_both_languages(retriever, question, title):
    best = retriever.search(question, k=2)
    assert best[0].passage.title == title
    assert 1 >= best[0].score > 0
    assert [m.score for m in best] == sorted((m.score for m in best), reverse=True)


@pytest.mark.parametrize(
    ("lang", "question", "lesson"),
    [
        ("en", "Which blocks does the prefix cache find in its tree?", "08_caching"),
        ("zh", "投机解码的草稿模型要多便宜？", "10_speculative_and_quantized"),
    ],
)
def test_a_question_about_the_course_finds_the_lesson(lang, question, lesson):
    corpus = Corpus.from_lessons(lang=lang)
    assert Retriever(corpus).search(question, k=1)[0].passage.source == lesson
    chinese = ["\u4e00" <= c <= "\u9fff" for p in corpus.passages for c in p.text]
    assert (np.mean(chinese) > 0.2) == (lang == "zh")
    assert len(set(corpus.topics)) == len(corpus.topics) > 20


def test_headings_that_every_lesson_has_are_no_topics():
    shared = Corpus([("a", "Exercises", "x"), ("b", "Exercises", "y"), ("a", "Tea", "z"), ("a", "Tea", "w")])
    assert shared.topics == ["Tea"]


def test_a_folder_is_cut_at_its_headings(tmp_path: Path):
    (tmp_path / "b.md").write_text("# Two\nbeta\n## Three\ngamma\n", encoding="utf-8")
    (tmp_path / "a.md").write_text("preface\n\n# One\n\nalpha", encoding="utf-8")
    found = [(p.number, p.source, p.title, p.text) for p in Corpus.from_folder(tmp_path).passages]
    assert found == [
        (0, "a", "", "preface"),
        (1, "a", "One", "# One\n\nalpha"),
        (2, "b", "Two", "# Two\nbeta"),
        (3, "b", "Three", "## Three\ngamma"),
    ]


def test_what_has_nothing_in_common_with_the_question_is_not_found(retriever):
    assert retriever.search("Ωμέγα", k=4) == []
    assert len(retriever.search("棋", k=4)) <= 1
    with pytest.raises(InvalidRequest, match="no passage has anything in common with 'Ωμέγα'"):
        RetrievalService(simulated(), retriever).answer("Ωμέγα", max_tokens=1)


# The budget


@pytest.mark.parametrize("budget", [20, 77, 150, 301])
def test_the_passages_fill_the_budget_to_the_last_character_that_fits(engine, retriever, budget):
    def count(text: str) -> int:
        return len(engine.tokenize(text))

    found = retriever.search("bread against the wind 茶 棋子", k=4)
    assert len(found) == 4
    kept = fit(found, budget, count)
    whole = next(m for m in found if m.passage.number == kept[-1].passage.number)
    assert kept[:-1] == found[: len(kept) - 1], "only the last one is cut"
    assert kept[-1] == whole.cut(len(kept[-1].passage.text)) != whole
    longer = [*kept[:-1], whole.cut(len(kept[-1].passage.text) + 1)]
    assert count(section(kept)) <= budget < count(section(longer))


def test_passages_that_fit_are_not_cut_and_where_a_token_is_a_byte_none_is_left_over(retriever):
    found = retriever.search("bread in the wind", k=2)
    needed = len(section(found).encode())
    assert fit(found, needed, lambda text: len(text.encode())) == found
    cut = fit(found, needed - 1, lambda text: len(text.encode()))
    assert len(section(cut).encode()) == needed - 1


def test_a_budget_without_room_for_a_character_is_refused(retriever):
    with pytest.raises(InvalidSetting, match=r"budget=3 tokens hold no character"):
        RetrievalService(simulated(), retriever, budget=3).answer("bread", max_tokens=1)


def test_a_question_is_refused_from_the_first_token_that_does_not_fit(retriever):
    question = "bread"
    probe = RetrievalService(simulated(), retriever, budget=30)
    exact = len(probe.prompt(question, []).encode()) + 30 + 8
    fits = RetrievalService(simulated(exact), retriever, budget=30)
    answer = fits.answer(question, max_tokens=8)
    assert answer.prompt_tokens + 8 == exact
    with pytest.raises(InvalidRequest, match=r"takes 6 tokens, and 5 are left .* budget=30 .* max_tokens=8"):
        fits.answer(question + "?", max_tokens=8)
    with pytest.raises(InvalidRequest, match="and 0 are left"):
        fits.answer(question, max_tokens=exact)


# Serving


def shared_blocks(engine: ContinuousEngine, first: str, second: str) -> int:
    """Tokens of the full blocks that two prompts begin with alike."""
    a, b = (engine.tokenize(prompt) for prompt in (first, second))
    alike = next(i for i, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
    return alike // 16 * 16


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_passages_are_found_in_the_prefix_cache_only_if_they_come_first(engine, retriever, lang):
    cached = {}
    for layout in ("passages-first", "question-first"):
        service = RetrievalService(engine, retriever, layout, k=1, lang=lang)
        first, second = (
            service.answer(question, max_tokens=2) for question in ("Why does dough rise?", "Bread, how?")
        )
        assert [m.passage.title for m in first.passages + second.passages] == ["Baking"] * 2
        assert second.cached_tokens == shared_blocks(engine, first.prompt, second.prompt)
        cached[layout] = second.cached_tokens
    passage = len(engine.tokenize(section(retriever.search("dough", k=1))))
    instruction = len(engine.tokenize(service.instruction))
    assert cached["question-first"] <= instruction + 4, "not more than the instruction"
    assert cached["passages-first"] > instruction + passage - 16, "all but the block that the question is in"


def test_the_study_finds_in_the_cache_what_the_simulator_does(engine, retriever):
    questions = questions_about(["Baking", "Sailing", "泡茶"], 8, seed=3)
    study = compare_layouts(engine, retriever, questions, k=2, max_tokens=1)
    runs = (study.passages_first, study.question_first)
    asked = [(runs[(i + turn) % 2].answers[i]) for i in range(8) for turn in range(2)]
    expected = simulator_hits([engine.tokenize(answer.prompt) for answer in asked])
    assert [answer.cached_tokens for answer in asked] == expected.tolist()
    for run in runs:
        tokens = sum(a.prompt_tokens for a in run.answers)
        assert run.hit_rate == pytest.approx(sum(a.cached_tokens or 0 for a in run.answers) / tokens)
    counted = sum(a.cached_tokens or 0 for a in asked)
    assert engine.counters.prefix_cache_hits == counted > 0
    assert (runs[0].hit_rate or 0) > 2 * (runs[1].hit_rate or 0)
    computed = [sum(a.prompt_tokens - (a.cached_tokens or 0) for a in run.answers) for run in runs]
    assert study.computed_ratio == pytest.approx(computed[1] / computed[0])
    assert [list(study.questions), 8] == [questions, len(study.question_first.answers)]


def test_on_an_engine_without_a_prefix_cache_ttft_is_the_whole_prefill_and_no_hit_is_claimed(retriever):
    study = compare_layouts(simulated(), retriever, ["How does dough rise?", "红茶要用多热的水？"], k=1)
    for run in (study.passages_first, study.question_first):
        assert run.hit_rate is None
        assert run.ttft == pytest.approx([1.1 + 0.001 * a.prompt_tokens for a in run.answers])
        assert [len(a.text.encode()) >= 8 for a in run.answers] == [True] * 2
    assert study.ttft_ratio == pytest.approx(1)
    assert study.computed_ratio is None


def test_the_layouts_take_turns_in_going_first(retriever, monkeypatch: pytest.MonkeyPatch):
    engine, asked = simulated(), []
    generate = engine.generate
    monkeypatch.setattr(engine, "warm_up", lambda: None)
    monkeypatch.setattr(
        engine, "generate", lambda prompt, *rest: (asked.append(prompt), generate(prompt, *rest))[1]
    )
    study = compare_layouts(engine, retriever, ["bread", "wind", "dough"], k=1)
    first, second = ([a.prompt for a in run.answers] for run in (study.passages_first, study.question_first))
    assert asked == [first[0], second[0], second[1], first[1], first[2], second[2]]


def test_the_ratio_is_above_one_where_passages_first_is_faster(retriever):
    study = compare_layouts(simulated(), retriever, ["bread"], k=1)
    [answer] = study.passages_first.answers
    faster = LayoutRun("passages-first", (type(answer)("", "", (), answer.ttft / 2, 1, 1),))
    assert type(study)(study.questions, faster, study.question_first).ttft_ratio == pytest.approx(2)


# Questions


def test_questions_are_the_same_for_a_seed_and_never_equal_to_each_other():
    topics = [f"topic {i}" for i in range(9)]
    for lang in ("en", "zh"):
        asked = questions_about(topics, 60, lang=lang, seed=1)
        assert asked == questions_about(topics, 60, lang=lang, seed=1)
        assert asked != questions_about(topics, 60, lang=lang, seed=2)
        assert len(set(asked)) == 60


def favourite(exponent: float, seed: int) -> tuple[str, float]:
    """The topic that most questions are about, and its share of them."""
    asked = questions_about([f"<{i}>" for i in range(40)], 30, exponent=exponent, seed=seed)
    [(topic, times)] = Counter(re.findall("<.*>", " ".join(asked).replace(">", ">\n"))).most_common(1)
    return topic, times / 30


def test_some_topics_are_asked_about_more_often_as_zipf_has_it_and_which_is_drawn_by_lot():
    shares = {exponent: np.mean([favourite(exponent, s)[1] for s in range(40)]) for exponent in (0, 1, 2)}
    assert shares[0] < 0.12
    assert shares[1] == pytest.approx(0.24, abs=0.03)  # 1/H(40) = 0.234, and the largest is rarely below
    assert shares[2] == pytest.approx(0.62, abs=0.03)
    assert len({favourite(2, s)[0] for s in range(40)}) > 15


def test_a_topic_that_would_be_asked_about_in_the_same_words_again_is_refused():
    with pytest.raises(InvalidSetting, match=r"31 of the 31 questions .* 'tea', and there are 30 ways"):
        questions_about(["tea"], 31)
    assert len(set(questions_about(["tea"], 30))) == 30


# Refusals


def test_what_cannot_be_searched_is_refused(retriever, tmp_path: Path):
    with pytest.raises(InvalidSetting, match="no text"):
        Corpus.from_texts(["", " \n"])
    with pytest.raises(InvalidSetting, match="notebooks/lessons of a clone"):
        Corpus.from_lessons(tmp_path / "nowhere")
    with pytest.raises(InvalidSetting, match=r"called \*\*/\*\.md"):
        Corpus.from_folder(tmp_path)
    with pytest.raises(UnknownName, match="language 'fr'"):
        Corpus.from_lessons(lang="fr")
    with pytest.raises(InvalidSetting, match="k=0"):
        retriever.search("bread", k=0)
    with pytest.raises(InvalidRequest, match="question is empty"):
        retriever.search(" ")


def test_a_service_refuses_settings_that_serve_nobody(retriever):
    for budget, k in ((0, 1), (1, 0)):
        with pytest.raises(InvalidSetting, match=f"budget={budget} tokens and k={k}"):
            RetrievalService(simulated(), retriever, budget=budget, k=k)
    with pytest.raises(UnknownName, match="did you mean 'passages-first'"):
        RetrievalService(simulated(), retriever, "passage-first")  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="language"):
        RetrievalService(simulated(), retriever, lang="de")
    with pytest.raises(InvalidSetting, match="no questions"):
        compare_layouts(simulated(), retriever, [])
    with pytest.raises(InvalidSetting, match="0 topics"):
        questions_about([], 3)
    with pytest.raises(UnknownName, match="language"):
        questions_about(["tea"], 3, lang="de")


def test_a_missing_package_is_named_with_the_extra_that_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retrieval, "find_spec", lambda package: None)
    with pytest.raises(InvalidSetting, match=r"package sklearn, .* servinglib\[course\]"):
        Retriever(Corpus.from_texts(TEXTS))


def test_importing_it_loads_nothing_heavy():
    code = (
        "import sys, servinglib.experiments.retrieval_study; "
        "sys.exit(bool({'sklearn', 'jupytext', 'torch', 'servinglib.server'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
