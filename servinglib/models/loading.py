"""Loading a checkpoint: weights and tokenizer in, and nothing else.

A checkpoint is a parcel from a stranger. We take out the numbers (safetensors: a table of names,
sizes and bytes) and leave everything that would act by itself: pickle files run code when they are
opened, and a config may name Python files to import. The first kind is always refused, the second
unless the caller asks for it. Nor is anything ordered by post unasked: a hub id is looked up in the
local cache, and fetched only with `allow_download=True` or SERVINGLIB_ALLOW_DOWNLOAD=1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from servinglib.errors import ModelUnavailable, UnknownName
from servinglib.models.zoo import known_models, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DataType = Literal["float32", "bfloat16", "float16", "auto"]
DOWNLOAD_SWITCH = "SERVINGLIB_ALLOW_DOWNLOAD"
DATA_FILES = [
    "*.json",
    "*.safetensors",
    "*.txt",
    "*.jinja",
    "*.model",
]  # what a download takes: no pickles, no code
PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def load_model(
    name: str,
    *,
    device: str = "cpu",
    dtype: DataType = "float32",
    trust_remote_code: bool = False,
    allow_download: bool | None = None,
    progress: bool = True,
) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a causal language model and its tokenizer, ready to generate batches.

    Parameters
    ----------
    name : str
        As in `zoo.resolve`: a known name, a folder or a hub id.
    device : str
        Where the weights go, as torch names it: "cpu", "cuda", "cuda:1", ...
    dtype : {"float32", "bfloat16", "float16", "auto"}
        Type of the weights in memory; "auto" keeps that of the checkpoint.
    trust_remote_code : bool
        Run Python files that come with the checkpoint. Only for checkpoints whose code you have read.
    allow_download : bool, optional
        Fetch a hub model that is not in the local cache. None asks the environment: yes if
        SERVINGLIB_ALLOW_DOWNLOAD is "1".
    progress : bool
        Show a progress bar while a bench model is built.

    Returns
    -------
    model : transformers.PreTrainedModel
        In evaluation mode. (Typed Any: its class says `generate` is a tensor to a type checker.)
    tokenizer : transformers.PreTrainedTokenizerBase
        Padding on the left; where the checkpoint names no padding token, end-of-text serves as one.

    Raises
    ------
    UnknownName
        `name` or `dtype` is none that is known.
    ModelUnavailable
        The files are not here, or can't be loaded safely; the message says what to do.
    """
    if dtype not in get_args(DataType):
        raise UnknownName("dtype", dtype, get_args(DataType))
    folder = find_checkpoint(
        name, trust_remote_code=trust_remote_code, allow_download=allow_download, progress=progress
    )
    return _load_weights(folder, device, dtype, trust_remote_code), load_tokenizer(folder, trust_remote_code)


def find_checkpoint(
    name: str,
    *,
    trust_remote_code: bool = False,
    allow_download: bool | None = None,
    progress: bool = True,
) -> Path:
    """The folder of a model that can be loaded safely; parameters and errors are those of `load_model`."""
    found = resolve(name, progress=progress)
    folder = found if isinstance(found, Path) else _hub_folder(found, allow_download, trust_remote_code)
    _require_safe(name, folder, trust_remote_code)
    return folder


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint's folder, as `load_model` gives it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(
        folder, padding_side="left", trust_remote_code=trust_remote_code, local_files_only=True
    )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def checkpoint_eos_ids(folder: Path) -> int | list[int] | None:
    """The token ids that end an answer, as a checkpoint's settings tell; None if they tell none."""
    from transformers import GenerationConfig

    try:
        return GenerationConfig.from_pretrained(folder, local_files_only=True).eos_token_id
    except OSError:  # it has none
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("eos_token_id")


def _load_weights(folder: Path, device: str, dtype: DataType, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM

    with _no_loading_bar():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
        )
    return model.to(device).eval()


@contextmanager
def _no_loading_bar() -> Iterator[None]:
    """Silence the bar of transformers, which belongs to a terminal and not into a server's log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _hub_folder(hub_id: str, allow_download: bool | None, code: bool) -> Path:
    """The hub model's folder in the local cache; downloads it first where that is allowed."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    allowed = os.environ.get(DOWNLOAD_SWITCH) == "1" if allow_download is None else allow_download
    files = [*DATA_FILES, "*.py"] if code else DATA_FILES
    try:
        return Path(snapshot_download(hub_id, allow_patterns=files, local_files_only=not allowed))
    except (LocalEntryNotFoundError, HfHubHTTPError) as error:
        raise ModelUnavailable(_how_to_get(hub_id, allowed, error)) from error


def _how_to_get(hub_id: str, allowed: bool, error: Exception) -> str:
    reason = f"could not be downloaded ({error})" if allowed else "is not in the local Hugging Face cache"
    ask = "" if allowed else f"set {DOWNLOAD_SWITCH}=1 (or pass allow_download=True), or "
    return (
        f"the model {hub_id!r} {reason}. Nothing is downloaded unless you say so: {ask}run "
        f"`hf download {hub_id}` on a machine with a network, or give the path of a local folder, "
        f"or use one that needs no network: {', '.join(known_models())}"
    )


def _require_safe(name: str, folder: Path, trust_remote_code: bool) -> None:
    """Refuse a folder without whole safetensors weights, or one that wants to run its own code."""
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelUnavailable(f"{folder} holds no config.json, so it is no model; check the path")
    missing = _missing_weights(folder)
    if missing:
        raise ModelUnavailable(f"the model {name!r} is incomplete: {folder} lacks {missing}; fetch it again")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in folder.glob(pattern))
        if pickles:
            raise ModelUnavailable(
                f"{folder} has its weights only as pickle files ({', '.join(pickles)}), which can run any code "
                "when opened; convert them to safetensors (`model.save_pretrained(folder)` in a place where "
                "you trust the file), or use a checkpoint that has them"
            )
        raise ModelUnavailable(f"{folder} holds no *.safetensors file, so it has no weights; fetch it again")
    config = json.loads(config_file.read_text(encoding="utf-8"))
    if config.get("auto_map") and not trust_remote_code and not _is_built_in(config):
        raise ModelUnavailable(
            f"the model {name!r} ({config.get('model_type', 'of no named type')}) needs Python code that comes "
            "with the checkpoint, which is not run unless you say so; read that code, then pass "
            "trust_remote_code=True"
        )


def _missing_weights(folder: Path) -> str:
    """Names of the files that the checkpoint's index promises and the folder lacks."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ""
    promised = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    return ", ".join(sorted(file for file in promised if not (folder / file).is_file()))


def _is_built_in(config: dict[str, object]) -> bool:
    """Whether transformers itself knows this architecture, so that the checkpoint's code is not needed."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return config.get("model_type") in CONFIG_MAPPING
