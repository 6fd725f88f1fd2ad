"""Starting and stopping SGLang: its settings, its processes, and its news when one of them fails.

SGLang is made to have a process of its own to itself, like a guest who is used to a house and not to a room:
at the first failure, and at its own `shutdown`, it ends every child of this process, another engine's as
well, and at a failure this process too. So we take over both: SIGQUIT, by which its processes cry for help,
becomes an error that the requests hear of; and what is ended is what it has started.

Written after the source of SGLang 0.5.23. Loading it also sets two things for this whole process, which we
leave: new processes of `multiprocessing` are spawned (so a script needs its `if __name__ == "__main__"`),
and new event loops are uvloop's.
"""

from __future__ import annotations

import asyncio
import atexit
import multiprocessing
import secrets
import signal
import tempfile
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from servinglib.engines.child_processes import end, environment, output_to, reason, started, watched
from servinglib.engines.sglang_config import SGLangConfig
from servinglib.engines.transformers_engine import choose_device, choose_dtype
from servinglib.errors import EngineFailed
from servinglib.models.loading import find_checkpoint
from servinglib.process_guard import Guard
from servinglib.request import SamplingParams

OWN_DISTRIBUTION = {"SGLANG_RETURN_ORIGINAL_LOGPROB": "1"}
"""Log-probabilities in the model's own distribution; else SGLang tells those after the temperature."""


class SGLangProcess:
    """A started `sglang.Engine`; for the event loop in which it was started, which it binds itself to.

    Attributes
    ----------
    longest_prompt : int
        Most tokens of a prompt.
    context_length : int
        Most tokens of prompt and answer. SGLang's scheduler keeps two tokens of the context to itself, and
        shortens without a word an answer that would need them.
    """

    def __init__(
        self, engine: Any, config: SGLangConfig, children: list[BaseProcess], guard: Guard, log: IO[str]
    ) -> None:
        self._engine, self._config, self._children = engine, config, children
        self._guard, self._log = guard, log
        self._watchdog = engine.tokenizer_manager._subprocess_watchdog
        limit = int(engine.tokenizer_manager.max_req_input_len)  # that of the scheduler: context - 6
        self.longest_prompt, self.context_length = limit - 1, limit + 4

    @classmethod
    async def start(cls, folder: Path, config: SGLangConfig) -> SGLangProcess:
        """Load the model; an `EngineFailed` leaves no process behind."""
        arguments = _arguments(folder, config)
        guard, before = Guard(), set(multiprocessing.active_children())
        log = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115, its processes write to it for life
        try:
            with environment(OWN_DISTRIBUTION), output_to(log), watched(guard, before):
                engine = import_module("sglang").Engine(**arguments)
            return cls(engine, config, started(before), guard, log)
        except Exception as error:
            end(started(before))
            guard.close()
            raise EngineFailed(reason(log, error), "did not start") from error

    async def generate(
        self, params: SamplingParams, prompt: list[int], request_ids: Sequence[str], eos_ids: Collection[int]
    ) -> AsyncGenerator[dict[str, Any]]:
        """SGLang's chunks of one request, whose `n` answers go by `request_ids`.

        A chunk has all tokens of an answer so far ("output_ids"), "meta_info", and with several answers the
        "index" of the one it tells of.
        """
        alone = params.n == 1
        sampling = [self._sampling(params, choice, eos_ids) for choice in range(params.n)]
        return await self._engine.async_generate(
            input_ids=prompt if alone else [prompt] * params.n,
            sampling_params=sampling[0] if alone else sampling,
            rid=request_ids[0] if alone else list(request_ids),
            return_logprob=params.logprobs is not None,
            top_logprobs_num=params.logprobs or 0,
            stream=True,
        )

    def abort(self, request_id: str) -> None:
        """End an answer; nothing happens if it has ended."""
        self._engine.tokenizer_manager.abort_request(rid=request_id)

    async def stop(self) -> None:
        """End SGLang's processes and what it does in this loop."""
        atexit.unregister(self._engine.shutdown)
        if self._watchdog is not None:  # it would take the end of the processes for a failure
            self._watchdog.stop()
        if self._engine.send_to_rpc is not None:
            self._engine.send_to_rpc.close(linger=0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        end(self._children)
        self._guard.close()
        self._log.close()

    def _sampling(self, params: SamplingParams, choice: int, eos_ids: Collection[int]) -> dict[str, Any]:
        told = {
            "max_new_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_k": params.top_k or -1,
            "top_p": params.top_p,
            "ignore_eos": params.ignore_eos,
            "stop_token_ids": sorted(eos_ids),
        }
        if self._config.enable_deterministic_inference:
            told["sampling_seed"] = seed_of(params, choice)
        return told


def seed_of(params: SamplingParams, choice: int) -> int:
    """Where an answer's chance begins; SGLang would give the same number to all that bring none."""
    if params.seed is None:
        return secrets.randbits(63)
    return (params.seed if choice == 0 else hash((params.seed, choice))) % 2**63


def heed_failures(failed: Callable[[], None]) -> Callable[[], None]:
    """Have `failed` called when one of SGLang's processes fails; returns what ends that.

    They tell it by SIGQUIT. Python lets only the main thread listen: in another one nothing is changed, and
    such a failure ends this process.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    before = signal.signal(signal.SIGQUIT, lambda *_: failed())

    def leave() -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGQUIT, signal.SIG_DFL if before is None else before)

    return leave


def _arguments(folder: Path, config: SGLangConfig) -> dict[str, Any]:
    given = config.arguments() | {"model_path": str(folder), "skip_tokenizer_init": True}
    if not (config.quantization and config.dtype == "auto"):
        given["dtype"] = choose_dtype(config.dtype, config.device or choose_device("auto"))
    if config.speculative_draft_model_path is not None:
        draft = find_checkpoint(config.speculative_draft_model_path, allow_download=config.allow_download)
        given["speculative_draft_model_path"] = str(draft)
    return given
