"""Text that the shipped models have never seen, and that lies on every reader's disk.

A teacher who sets the homework as the exam learns nothing about the class. The course's models
learnt from the standard library of Python, and one module in twenty was kept from them; a hash of its
path decides, so it is the same modules on every machine. Of another Python version the modules
differ a little in their text, and so does what is measured on them.
"""

from __future__ import annotations

import hashlib
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servinglib.errors import ModelUnavailable
from servinglib.models.shapes import END_OF_TEXT_ID

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tests are repetitive, tables are no language, and the build configuration holds paths of this machine.
SKIPPED_DIRECTORIES = {
    *("site-packages", "test", "tests", "idle_test", "idlelib", "turtledemo", "encodings", "pydoc_data"),
    *("lib2to3", "__pycache__", "ensurepip", "lib-dynload"),
}
SKIPPED_PREFIXES = ("_sysconfigdata", "config-")


def standard_library() -> dict[str, str]:
    """Source text by relative path, in a stable order."""
    root = Path(sysconfig.get_path("stdlib"))
    texts = {}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_DIRECTORIES.isdisjoint(relative.parts) and not relative.parts[0].startswith(
            SKIPPED_PREFIXES
        ):
            texts[relative.as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return texts


def is_held_out(relative_path: str) -> bool:
    """One module in twenty, chosen by a hash of its path: the same on every machine, whatever the order."""
    return hashlib.sha256(relative_path.encode()).digest()[0] < 256 / 20


def held_out_texts() -> dict[str, str]:
    """The modules that no shipped model has seen, by relative path.

    Raises
    ------
    ModelUnavailable
        Where Python comes without the sources of its standard library.
    """
    texts = {path: text for path, text in standard_library().items() if is_held_out(path)}
    if not texts:
        raise ModelUnavailable(
            f"no held-out text: {sysconfig.get_path('stdlib')} holds no sources of the standard library; "
            f"use a Python that comes with them"
        )
    return texts


def token_stream(tokenizer: PreTrainedTokenizerBase, texts: dict[str, str]) -> list[int]:
    """All texts in one row of ids, each followed by the end-of-text token."""
    backend: Any = tokenizer.backend_tokenizer  # which doesn't warn that a text is longer than a context
    encoded = backend.encode_batch(list(texts.values()))
    return [token for document in encoded for token in (*document.ids, END_OF_TEXT_ID)]
