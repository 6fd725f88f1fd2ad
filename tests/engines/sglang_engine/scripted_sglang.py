"""A stand-in for the package `sglang`: its faces are those of SGLang 0.5.23, its model is made of dice.

What it does as the real one does: chunks repeat the answer so far, in one list that grows; a batch's chunks
have an index; an abort ends all whose ids begin with the one given, and until then a request left by its
reader goes on; seeds are heeded only with deterministic inference, where 42 serves all who bring none; the
engine belongs to the event loop in which it was made, and leaves a task there.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

USUAL = {"device": "cpu", "dtype": "float32"}
SERVER_ARGS = {
    *("model_path", "skip_tokenizer_init", "tp_size", "mem_fraction_static", "chunked_prefill_size"),
    *("disable_radix_cache", "max_running_requests", "context_length", "dtype", "quantization", "device"),
    *("attention_backend", "speculative_algorithm", "speculative_draft_model_path", "speculative_num_steps"),
    *("speculative_eagle_topk", "speculative_num_draft_tokens", "enable_deterministic_inference"),
    *("trust_remote_code", "log_level"),
}
SAMPLING = {
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "ignore_eos",
    "stop_token_ids",
    "sampling_seed",
}


@dataclass
class Script:
    """What is to happen, and what has happened.

    `starting` is called when an engine is made; `ending` gives the finish reason that an answer of so many
    tokens has; `burst` tokens come in a chunk, `retractions` are told in each, and `meta`
    with the end.
    """

    starting: Callable[[], None] = lambda: None
    ending: Callable[[int], dict[str, Any] | None] = lambda tokens: None
    burst: int = 1
    retractions: int = 0
    meta: dict[str, Any] = field(default_factory=dict)
    engines: list[Engine] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        return self.engines[-1]

    def module(self) -> ModuleType:
        module = ModuleType("sglang")
        module.__spec__ = ModuleSpec("sglang", None)
        module.Engine = lambda **arguments: Engine(self, **arguments)  # type: ignore[attr-defined]
        return module


class State:
    def __init__(self, rid: str, prompt: list[int], sampling: dict[str, Any], logprobs: int | None) -> None:
        assert set(sampling) <= SAMPLING
        self.rid, self.prompt, self.sampling, self.logprobs = rid, prompt, sampling, logprobs
        self.ids: list[int] = []
        self.meta: dict[str, Any] = {"id": rid, "finish_reason": None, "prompt_tokens": len(prompt)}
        self.meta |= {"output_token_logprobs": [], "output_top_logprobs": []}


class TokenizerManager:
    def __init__(self, context: int) -> None:
        self.max_req_input_len = context - 1 - 5
        self.rid_to_state: dict[str, State] = {}
        self.aborted: list[str] = []
        self._subprocess_watchdog = Recorder()

    def abort_request(self, rid: str = "", abort_all: bool = False) -> None:
        assert rid
        assert not abort_all
        for name in [name for name in self.rid_to_state if name.startswith(rid)]:
            self.aborted.append(name)
            state = self.rid_to_state.pop(name)
            state.meta["finish_reason"] = {"type": "abort", "message": "Aborted", "status_code": None}


class Recorder:
    """Takes any call, and remembers its name."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **_: self.calls.append(name)


class Engine:
    def __init__(self, script: Script, **arguments: Any) -> None:
        assert set(arguments) <= SERVER_ARGS
        script.engines.append(self)
        self.script, self.arguments = script, arguments
        self.loop = asyncio.get_running_loop()
        self.task: asyncio.Task[Any] | None = None
        config = json.loads(Path(arguments["model_path"], "config.json").read_text())
        self.vocabulary = config["vocab_size"]
        self.context = arguments.get("context_length", config["max_position_embeddings"])
        self.tokenizer_manager = TokenizerManager(self.context)
        self.send_to_rpc = Recorder()
        self.prompts: list[list[int]] = []
        self.own_distribution = os.environ.get("SGLANG_RETURN_ORIGINAL_LOGPROB") == "1"
        script.starting()

    def shutdown(self) -> None:
        raise AssertionError("the real one would end all children of this process")

    async def async_generate(
        self,
        prompt: list[str] | str | None = None,
        sampling_params: list[dict[str, Any]] | dict[str, Any] | None = None,
        input_ids: list[Any] | None = None,
        image_data: Any = None,
        audio_data: Any = None,
        video_data: Any = None,
        mm_hashes: Any = None,
        mm_content_hashes: Any = None,
        return_logprob: list[bool] | bool | None = False,
        logprob_start_len: list[int] | int | None = None,
        top_logprobs_num: list[int] | int | None = None,
        token_ids_logprob: Any = None,
        lora_path: Any = None,
        custom_logit_processor: Any = None,
        require_reasoning: bool = False,
        return_hidden_states: bool = False,
        return_routed_experts: bool = False,
        routed_experts_start_len: int = 0,
        stream: bool = False,
        bootstrap_host: Any = None,
        bootstrap_port: Any = None,
        bootstrap_room: Any = None,
        routed_dp_rank: int | None = None,
        disagg_prefill_dp_rank: int | None = None,
        kv_hints: Any = None,
        data_parallel_rank: int | None = None,
        external_trace_header: Any = None,
        rid: list[str] | str | None = None,
        session_params: Any = None,
        priority: int | None = None,
        session_id: str | None = None,
        *,
        cache_salt: Any = None,
    ) -> AsyncGenerator[dict[str, Any]]:
        assert stream
        assert prompt is None
        assert asyncio.get_running_loop() is self.loop
        assert input_ids
        assert rid
        assert sampling_params
        self.task = self.task or self.loop.create_task(asyncio.Event().wait())
        logprobs = top_logprobs_num if return_logprob else None
        assert logprobs is None or isinstance(logprobs, int)
        if isinstance(rid, str):
            assert isinstance(sampling_params, dict)
            return self._chunks([State(rid, input_ids, sampling_params, logprobs)], indexed=False)
        assert isinstance(sampling_params, list)
        rows = zip(rid, input_ids, sampling_params, strict=True)
        return self._chunks([State(*row, logprobs) for row in rows], indexed=True)

    async def _chunks(self, states: list[State], indexed: bool) -> AsyncGenerator[dict[str, Any]]:
        states_by_id = self.tokenizer_manager.rid_to_state
        for state in states:
            assert state.rid not in states_by_id, "Duplicate request ID detected"
            states_by_id[state.rid] = state
            state.meta["cached_tokens"] = self._cached(state.prompt)
        running = list(enumerate(states))
        while running:
            await asyncio.sleep(0)
            for index, state in list(running):
                for _ in range(self.script.burst):
                    self._step(state)
                over = state.meta["finish_reason"] is not None
                if over:
                    running.remove((index, state))
                    states_by_id.pop(state.rid, None)
                meta = {
                    **state.meta,
                    "num_retractions": self.script.retractions,
                    **(self.script.meta if over else {}),
                }
                chunk: dict[str, Any] = {"output_ids": state.ids, "meta_info": meta}
                yield chunk | ({"index": index} if indexed else {})

    def _cached(self, prompt: list[int]) -> int:
        shared = (
            0 if self.arguments["disable_radix_cache"] else max(map(common(prompt), self.prompts), default=0)
        )
        self.prompts.append(prompt)
        return min(shared, len(prompt) - 1)

    def _step(self, state: State) -> None:
        told, sampling = state.meta, state.sampling
        if told["finish_reason"] is not None:
            return
        told["finish_reason"] = self.script.ending(len(state.ids))
        if told["finish_reason"] is not None:
            return
        token = self._choose(state)
        state.ids.append(token)
        limit = min(sampling["max_new_tokens"], self.context - 1 - len(state.prompt) - 1)
        if token in sampling["stop_token_ids"] and not sampling["ignore_eos"]:
            told["finish_reason"] = {"type": "stop", "matched": token}
        elif len(state.ids) >= limit:
            told["finish_reason"] = {"type": "length", "length": limit}

    def _choose(self, state: State) -> int:
        place = hash((tuple(state.prompt), len(state.ids), *state.ids[-3:]))
        scores = 3 * np.random.default_rng(place % 2**63).normal(size=self.vocabulary)
        temperature, chance = state.sampling["temperature"], scores
        if temperature > 0:
            seed: Any = None
            if self.arguments["enable_deterministic_inference"]:
                seed = [state.sampling.get("sampling_seed", 42), len(state.ids)]
            chance = scores / temperature + np.random.default_rng(seed).gumbel(size=self.vocabulary)
        token = int(chance.argmax())
        if state.logprobs is not None:
            told = scores if self.own_distribution or not temperature else scores / temperature
            values = told - np.log(np.exp(told).sum())
            ranked = np.argsort(-values)[: state.logprobs]
            state.meta["output_token_logprobs"].append((float(values[token]), token, None))
            state.meta["output_top_logprobs"].append([(float(values[i]), int(i), None) for i in ranked])
        return token


def common(prompt: list[int]) -> Callable[[list[int]], int]:
    """How many tokens another prompt has in common with this one from the beginning."""
    return lambda other: next(
        (i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b),
        min(len(prompt), len(other)),
    )
