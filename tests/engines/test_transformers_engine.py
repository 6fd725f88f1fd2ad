from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence
from typing import cast

import pytest
import torch
from contract import EngineContract, Loader

from servinglib.engines.base import Engine
from servinglib.engines.transformers_engine import TransformersEngine, choose_device, choose_dtype
from servinglib.errors import InvalidSetting, ServerClosed, UnknownName
from servinglib.request import Request, SamplingParams


def load_tiny(folder: str, **options: object) -> TransformersEngine:
    return TransformersEngine.load(folder, **{"device": "cpu", "dtype": "float32", "threads": 1, **options})  # type: ignore[arg-type]


class TestContract(EngineContract):
    @pytest.fixture(scope="class")
    @classmethod
    def load(cls, tiny_qwen3: str) -> Loader:
        return lambda **options: load_tiny(tiny_qwen3, **options)

    def decode(self, engine: Engine, token_ids: Sequence[int]) -> str:
        tokenizer = cast(TransformersEngine, engine)._tokenizer
        return str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


@pytest.mark.parametrize("architecture", ["tiny_qwen3", "tiny_llama", "tiny_gpt2"])
@pytest.mark.parametrize("lengths", [(9,), (9, 9, 9), (1, 17, 5, 9)], ids=["alone", "equal", "ragged"])
def test_greedy_answers_are_those_of_generate(
    architecture: str, lengths: Sequence[int], request: pytest.FixtureRequest
):
    engine = load_tiny(request.getfixturevalue(architecture))
    prompts = [[(7 * i + 3 * k) % 299 + 1 for k in range(n)] for i, n in enumerate(lengths)]
    width = max(lengths)
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    model = engine._model
    assert model is not None
    expected = model.generate(  # type: ignore[operator]
        ids, attention_mask=mask, do_sample=False, max_new_tokens=40, min_new_tokens=40, pad_token_id=0
    )[:, width:].tolist()
    # min_new_tokens keeps generate() from choosing the end token; the same ban for ours:
    with banned(engine, 0):
        answers = engine.generate(prompts, max_tokens=40, ignore_eos=True)
    assert [list(a.token_ids) for a in answers] == expected


class banned:
    """Make one token impossible while in this block."""

    def __init__(self, engine: TransformersEngine, token: int) -> None:
        assert engine._model is not None
        self.head, self.token = engine._model.lm_head, token

    def __enter__(self) -> None:
        def hide(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
            return logits.index_fill(-1, torch.tensor([self.token]), -torch.inf)

        self.hook = self.head.register_forward_hook(hide)

    def __exit__(self, *_: object) -> None:
        self.hook.remove()


def test_the_end_token_ends_a_row_shows_no_text_and_can_be_ignored(tiny_qwen3: str):
    engine = load_tiny(tiny_qwen3)
    [full] = engine.generate("hello", max_tokens=20, ignore_eos=True)
    engine.eos_ids = frozenset({full.token_ids[6]})
    first = full.token_ids.index(full.token_ids[6])
    [ended] = engine.generate("hello", max_tokens=20)
    assert ended.token_ids == full.token_ids[: first + 1]
    assert ended.finish_reason == "stop"
    assert ended.text == engine.decode(full.token_ids[:first])
    assert engine.generate("hello", max_tokens=20, ignore_eos=True)[0].token_ids == full.token_ids


def test_the_checkpoint_s_generation_settings_say_what_ends_an_answer(tiny_qwen3: str):
    assert load_tiny(tiny_qwen3).eos_ids == {0}


def test_a_finished_row_may_step_past_the_context_with_its_batch(tiny_gpt2: str):
    engine = load_tiny(tiny_gpt2)
    long = Request("long", [5] * 250, SamplingParams(max_tokens=2, ignore_eos=True))
    short = Request("short", [5] * 2, SamplingParams(max_tokens=40, ignore_eos=True))
    answers = engine.generate_batch([long, short])
    [alone] = engine.generate([short.prompt], short.params)
    assert [len(a.token_ids) for a in answers] == [2, 40]  # type: ignore[union-attr]
    assert answers[1].token_ids == alone.token_ids  # type: ignore[union-attr]


def test_inference_mode_is_left_between_two_tokens(tiny_qwen3: str):
    events = load_tiny(tiny_qwen3).stream("hello", max_tokens=3, ignore_eos=True)
    next(events)
    assert not torch.is_inference_mode_enabled()


def test_shutdown_frees_the_model_even_while_a_reader_holds_a_stream(tiny_qwen3: str):
    engine = load_tiny(tiny_qwen3)
    events = engine.stream("hello", max_tokens=3, ignore_eos=True)
    next(events)
    weights = weakref.ref(engine._model)  # type: ignore[arg-type]
    engine.shutdown()
    gc.collect()
    assert weights() is None
    with pytest.raises(ServerClosed):
        next(events)


def test_bad_options_are_refused_before_the_model_is_loaded():
    with pytest.raises(UnknownName, match="option 'quantize'"):
        TransformersEngine.load("no such model", quantize=True)
    with pytest.raises(UnknownName, match="device 'tpu'"):
        TransformersEngine.load("no such model", device="tpu")
    with pytest.raises(UnknownName, match="dtype 'int3'"):
        TransformersEngine.load("no such model", dtype="int3")
    with pytest.raises(InvalidSetting, match="threads=0"):
        TransformersEngine.load("no such model", threads=0)


def test_automatic_choices_follow_the_hardware(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"
    with pytest.raises(InvalidSetting, match="no CUDA GPU"):
        choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert (choose_device("auto"), choose_device("cuda:1")) == ("cuda", "cuda:1")
    for native, dtype in [(True, "bfloat16"), (False, "float32")]:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert choose_dtype("auto", "cpu") == dtype
        assert choose_dtype("auto", "cuda") == "bfloat16"
        assert choose_dtype("float16", "cpu") == "float16"
