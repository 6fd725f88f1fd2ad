"""Runs that were recorded: a lesson may show figures of a machine that its reader doesn't have.

A jar of preserves is worth something while its label is on it and its lid has not been lifted. The
label says what is inside, where and when it was made (`provenance`); the seal is a checksum over all
of it. A file without a label, of an unknown kind or with a broken seal is not opened.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servinglib.errors import InvalidSetting

SCHEMA = "servinglib.recorded/1"
LABEL = ("schema", "kind", "birth", "parts", "sha256")


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded run.

    Attributes
    ----------
    kind : str
        Which benchmark it is of, such as "gpu".
    birth : mapping
        Machine, versions, command, seed and date, as `provenance.birth_certificate` gives them.
    settings : mapping
        What the benchmark was told.
    parts : mapping of str to mapping
        Of each part its `status`, `seconds` and `results`, and its `error` if it failed.
    """

    kind: str
    birth: Mapping[str, Any]
    settings: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]]

    @property
    def label(self) -> str:
        """One line for the caption of a figure: the device, the date and the version of torch."""
        machine = self.birth["machine"]
        device = machine.get("gpu", {}).get("name") or machine["cpu"]
        return f"{device}, {self.birth['date'][:10]}, torch {self.birth['versions']['torch']}"

    def results(self, part: str) -> Mapping[str, Any]:
        """What a part found.

        Raises
        ------
        InvalidSetting
            If it was not run, or did not come to its end.
        """
        done = [name for name, each in self.parts.items() if each["status"] == "done"]
        if part not in done:
            raise InvalidSetting(f"the recorded run has no results of {part!r}; it has those of {done}")
        return self.parts[part]["results"]


def write(path: Path, record: Mapping[str, Any]) -> None:
    """Seal a record and put it in its place by one rename, so that a reader never meets half of it."""
    unfinished = path.with_name(path.name + ".unfinished")
    content = {"schema": SCHEMA, **record}
    unfinished.write_text(json.dumps({**content, "sha256": checksum(content)}, indent=1) + "\n")
    os.replace(unfinished, path)


def load(path: Path) -> Recorded:
    """Open a recorded run.

    Raises
    ------
    InvalidSetting
        If the file is none, was changed since, or is of a schema that this version doesn't know.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidSetting(f"{path.name} can't be read as a recorded run: {error}") from error
    missing = [key for key in LABEL if not isinstance(content, dict) or key not in content]
    if missing:
        raise InvalidSetting(f"{path.name} lacks {missing}, so it is no recorded run")
    if content["schema"] != SCHEMA:
        raise InvalidSetting(
            f"{path.name} has the schema {content['schema']!r}, and this version reads {SCHEMA!r}"
        )
    if (found := checksum(content)) != content["sha256"]:
        raise InvalidSetting(
            f"{path.name} was changed after it was recorded: its SHA-256 is {found}, and it says "
            f"{content['sha256']}; take the original, or record it anew"
        )
    return Recorded(content["kind"], content["birth"], content.get("settings", {}), content["parts"])


def checksum(content: Mapping[str, Any]) -> str:
    """SHA-256 of everything but the checksum itself, however the file is laid out."""
    rest = {key: value for key, value in content.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
