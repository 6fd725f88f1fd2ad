"""Starting and stopping vLLM: its settings, its processes, its counters, and its reason when it fails.

vLLM's engine is a process of its own, which tells its reasons to the terminal and outlives a parent that is
killed. So what it says while it starts goes into a file, from which an error quotes the reason; and a
guard (`servinglib.process_guard`) watches over its processes for as long as they live.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from collections.abc import AsyncGenerator
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO, Any

from servinglib.engines.capabilities import EngineCounters
from servinglib.engines.child_processes import end, environment, output_to, reason, started, watched
from servinglib.engines.vllm_arguments import arguments, variables
from servinglib.engines.vllm_config import VLLMConfig
from servinglib.engines.vllm_counters import Recorder
from servinglib.errors import EngineFailed
from servinglib.process_guard import Guard
from servinglib.request import Request

NAMED = "Engine"  # what vLLM's own processes have in their names
STOPPING = 10.0  # seconds that vLLM has to end by itself
POINTERS = ("Engine core initialization failed", "EngineCore encountered an issue", "EngineDeadError")
"""Of errors that only say that another one stands above."""


class VLLMProcess:
    """A started `AsyncLLM`; all but `counters` is for the event loop in which it was started.

    Attributes
    ----------
    context_length : int
        Most tokens of prompt and answer.
    died : type of Exception
        What `generate` raises when the engine's process is dead.
    """

    def __init__(
        self, llm: Any, guard: Guard, recorder: Recorder, log: IO[str], before: set[BaseProcess]
    ) -> None:
        self._llm: Any = llm
        self._guard, self._recorder = guard, recorder
        self._log, self._processes = log, started(before, NAMED)
        self.context_length = int(llm.model_config.max_model_len)
        self.died: type[Exception] = import_module("vllm.v1.engine.exceptions").EngineDeadError

    @classmethod
    async def start(cls, folder: Path, config: VLLMConfig) -> VLLMProcess:
        """Load the model; an `EngineFailed` quotes vLLM's own reason, and leaves no process behind."""
        given = arguments(folder, config)
        guard, recorder = Guard(), Recorder()
        before = set(multiprocessing.active_children())
        log = tempfile.TemporaryFile("a+", errors="replace")  # noqa: SIM115, its processes write to it for life
        try:
            with environment(variables(config)), output_to(log), watched(guard, before, NAMED):
                return cls(_start_llm(given, recorder), guard, recorder, log, before)
        except Exception as error:
            end(started(before, NAMED))
            guard.close()
            raise EngineFailed(reason(log, error, POINTERS), "did not start") from error

    @property
    def counters(self) -> EngineCounters:
        """As of the last step that the engine has told of."""
        return self._recorder.counters

    def generate(self, request: Request, prompt: list[int]) -> AsyncGenerator[Any]:
        """vLLM's outputs of one request, each with what is new; closing the generator aborts it."""
        sampling, params = import_module("vllm.sampling_params"), request.params
        theirs = sampling.SamplingParams(
            n=params.n,
            temperature=params.temperature,
            top_k=params.top_k,
            top_p=params.top_p,
            seed=params.seed,
            max_tokens=params.max_tokens,
            ignore_eos=params.ignore_eos,
            logprobs=params.logprobs,
            detokenize=False,
            output_kind=sampling.RequestOutputKind.DELTA,
        )
        return self._llm.generate({"prompt_token_ids": prompt}, theirs, request.request_id)

    def why_dead(self, error: Exception) -> Exception:
        """The reason that the engine's process gave before it died; `error` itself if it gave none."""
        return reason(self._log, error, POINTERS)

    def stop(self) -> None:
        """End all of vLLM's processes, by force if they need longer than `STOPPING` seconds."""
        self._llm.shutdown(timeout=STOPPING)
        self._llm = None
        gc.collect()  # forgotten at the very end of the program, its destructor would complain
        end(self._processes)
        self._guard.close()
        self._log.close()


def _start_llm(given: dict[str, Any], recorder: Recorder) -> Any:
    # By name: most machines have no such package to check types of.
    settings = import_module("vllm.engine.arg_utils").AsyncEngineArgs(**given)
    return import_module("vllm.v1.engine.async_llm").AsyncLLM.from_engine_args(
        settings, stat_loggers=[lambda *_: recorder]
    )
