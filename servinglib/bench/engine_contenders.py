"""The contenders of the engine benchmark: each loads one model and answers token ids with token ids.

A race must not be won at the tailor's, so each has the settings that were found best for it by measuring.
Which packages they need, and how their processes are started, stands in `engine_rivals.py`.
"""

from __future__ import annotations

import itertools
import time
from importlib import import_module
from typing import Any, Protocol

from servinglib.engines.continuous.engine import ContinuousEngine
from servinglib.engines.registry import load_engine
from servinglib.errors import InvalidSetting
from servinglib.request import Request, SamplingParams

MOST_TOGETHER = 128  # sequences; the longest list of prompts that the benchmark hands over
CONTEXT = 1024  # tokens of prompt and answer; the benchmark's longest request has 512 + 256


class Contender(Protocol):
    """What the benchmark asks of every one; `Ours` has two more questions."""

    def answer(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """Answer all prompts together, each with exactly so many likeliest tokens.

        Returns
        -------
        dict
            `seconds` from the call to the last token, and `tokens`, how many each answer has.
        """
        ...


class Ours:
    """An engine of this library."""

    def __init__(self, engine: str, model: str, dtype: str) -> None:
        together = {"max_num_seqs": MOST_TOGETHER} if engine == ContinuousEngine.name else {}  # as vLLM may
        self._engine = load_engine(engine, model, dtype=dtype, **together)
        self._serial = itertools.count()

    def answer(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """As `Contender` says, by `generate_batch`, as a server would ask."""
        requests = [
            Request(f"bench-{next(self._serial)}", prompt, _exactly(length))
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        start = time.perf_counter()
        answers = self._engine.generate_batch(requests)
        seconds = time.perf_counter() - start
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return {
            "seconds": seconds,
            "tokens": [len(a.token_ids) for a in answers if not isinstance(a, Exception)],
        }

    def first_tokens(self, prompts: list[list[int]]) -> list[float]:
        """Seconds to the first token of each prompt, streamed one after another."""
        seconds = []
        for prompt in prompts:
            start = time.perf_counter()
            events = list(self._engine.stream(prompt, _exactly(2)))
            seconds.append(events[0].time - start)
        return seconds

    def hits(self, prompt: list[int], length: int, times: int) -> dict[str, list[float]]:
        """Seconds of each of `times` hits in the result cache, which one request has filled before.

        Returns
        -------
        dict
            `lookup`: the key of the prompt and what the cache has for it; `answer`: the whole request.
        """
        from servinglib.cache.result_cache import Hit, ResultCache, cache_key
        from servinglib.engines.cached import CachedEngine

        cache: ResultCache[Any] = ResultCache(2**20)
        cached, params = CachedEngine(self._engine, cache), _exactly(length)
        first = cached.generate([prompt], params)[0].token_ids
        lookups, answers = [], []
        for _ in range(times):
            start = time.perf_counter()
            key = cache_key(cached.model_name, prompt, params)
            found = cache.lookup(key, start, None) if key else None
            middle = time.perf_counter()
            [answer] = cached.generate([prompt], params)
            answers.append(time.perf_counter() - middle)
            lookups.append(middle - start)
            if not isinstance(found, Hit) or answer.token_ids != first:
                raise InvalidSetting("the result cache did not give the answer that it was filled with")
        return {"lookup": lookups, "answer": answers}

    def bookkeeping(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, float]:
        """Seconds that the decode steps of a full batch took, by what they were spent on.

        Returns
        -------
        dict
            `planning`, `computing` and `telling` (sampled tokens to events), and the number of `steps`.
        """
        if not isinstance(self._engine, ContinuousEngine):
            raise InvalidSetting(
                f"the engine {self._engine.name!r} keeps no record of its steps; leave bookkeeping out"
            )
        start = time.perf_counter()
        self.answer(prompts, lengths)
        steps = [
            s
            for s in self._engine.steps
            if s.start >= start and not s.prefill_tokens and s.sequences == len(prompts)
        ]
        return {
            "planning": sum(s.planned - s.start for s in steps),
            "computing": sum(s.computed - s.planned for s in steps),
            "telling": sum(s.end - s.computed for s in steps),
            "steps": len(steps),
        }


def _exactly(tokens: int) -> SamplingParams:
    return SamplingParams(max_tokens=tokens, ignore_eos=True)


class Transformers:
    """`model.generate` of Hugging Face Transformers: one static batch, rows padded on the left.

    A batch goes on until its longest answer is complete; tokens beyond a row's own length don't count.
    """

    def __init__(self, model: str, dtype: str) -> None:
        self._model = _transformers_model(model, dtype)

    def answer(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """As `Contender` says, all in one batch."""
        import torch

        start = time.perf_counter()
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        device = self._model.device
        with torch.inference_mode():
            rows = self._model.generate(
                input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=max(lengths)
            ).tolist()
        seconds = time.perf_counter() - start
        return {
            "seconds": seconds,
            "tokens": [min(len(r) - width, n) for r, n in zip(rows, lengths, strict=True)],
        }


class TransformersContinuous:
    """Transformers' own continuous batching; its manager runs from the start, so a call pays no set-up."""

    def __init__(self, model: str, dtype: str) -> None:
        loaded = _transformers_model(model, dtype)
        # Left alone it takes nearly all memory of the machine; this is room for twice as many as are asked.
        from transformers import ContinuousBatchingConfig

        settings = ContinuousBatchingConfig(page_size=128, num_blocks=MOST_TOGETHER, max_batch_tokens=2048)
        self._manager = loaded.init_continuous_batching(continuous_batching_config=settings)
        self._manager.start()

    def answer(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """As `Contender` says."""
        start = time.perf_counter()
        asked = [
            self._manager.add_request(prompt, max_new_tokens=length)
            for prompt, length in zip(prompts, lengths, strict=True)
        ]
        tokens: dict[str, int] = {}
        while len(tokens) < len(asked):
            result = self._manager.get_result(timeout=1)
            if result is not None and result.error is not None:
                raise RuntimeError(result.error)
            if result is not None and result.is_finished():
                tokens[result.request_id] = len(result.generated_tokens)
            elif result is None and not self._manager.is_running():
                raise RuntimeError("the manager of continuous batching has ended")
        return {"seconds": time.perf_counter() - start, "tokens": [tokens[i] for i in asked]}


def _transformers_model(model: str, dtype: str) -> Any:
    """The model with SDPA attention, told to be greedy and never to stop by itself."""
    from servinglib.engines.transformers_engine import choose_device, choose_dtype
    from servinglib.models.loading import load_model

    device = choose_device("auto")
    loaded, _ = load_model(model, device=device, dtype=choose_dtype(dtype, device))
    settings = loaded.generation_config
    settings.do_sample, settings.eos_token_id, settings.pad_token_id = False, None, 0
    return loaded


class Vllm:
    """vLLM's offline `LLM.generate`."""

    def __init__(self, model: str, dtype: str) -> None:
        from servinglib.models.zoo import resolve

        self._vllm: Any = import_module(
            "vllm"
        )  # by name: most machines have no such package to check types of
        self._llm = self._vllm.LLM(
            str(resolve(model, progress=False)),
            dtype=dtype,
            max_model_len=CONTEXT,
            max_num_seqs=MOST_TOGETHER,
            enable_prefix_caching=False,  # no two prompts are alike here, so it could only cost
            disable_log_stats=True,
        )

    def answer(self, prompts: list[list[int]], lengths: list[int]) -> dict[str, Any]:
        """As `Contender` says; vLLM is spared turning the ids into text."""
        start = time.perf_counter()
        answers = self._llm.generate(
            [{"prompt_token_ids": prompt} for prompt in prompts],
            [self._params(n) for n in lengths],
            use_tqdm=False,
        )
        seconds = time.perf_counter() - start
        return {"seconds": seconds, "tokens": [len(a.outputs[0].token_ids) for a in answers]}

    def _params(self, tokens: int) -> Any:
        return self._vllm.SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
