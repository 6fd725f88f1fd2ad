"""The repository keeps its own promises: one lock, two equal READMEs, light imports, no stray paths."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from servinglib.cli import app

ROOT = Path(__file__).parents[1]
SOURCES = ("servinglib", "simulations", "tests", "docs", "notebooks", "deploy", "tools", ".ci")
TEXT = {".py", ".md", ".yml", ".yaml", ".toml", ".html", ".ipynb", ".json", ".sh", ".rst", ".cfg", ""}
GENERATED = re.compile(r"^docs/(_build|\w+/(api|lessons))/|__pycache__|\.ipynb_checkpoints")
HEAVY = ("torch", "transformers", "matplotlib", "scipy.stats", "IPython", "jupytext", "nbformat", "fastapi")


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def texts() -> Iterator[tuple[str, str]]:
    """Path and text of every file that people wrote or that the repository keeps."""
    folders = (path for name in SOURCES for path in (ROOT / name).rglob("*"))
    for path in [*ROOT.glob("*"), *folders]:
        name = path.relative_to(ROOT).as_posix()
        if path.is_file() and path.suffix in TEXT and not GENERATED.search(name):
            yield name, path.read_text(encoding="utf-8")


def pinned() -> set[str]:
    return {
        line.partition("==")[0].lower() for line in read("requirements.lock").splitlines() if "==" in line
    }


def test_conda_users_get_the_versions_of_the_lock():
    *others, pip = yaml.safe_load(read("environment.yml"))["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert others == ["python=3.11", "pip"]  # no other version can contradict the lock


def test_the_lock_pins_every_dependency_exactly():
    project = tomllib.loads(read("pyproject.toml"))["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    names = {re.split(r"[<>=!~\[; ]", each)[0].lower() for each in wanted}
    assert names - pinned() == set()
    lines = [line for line in read("requirements.lock").splitlines() if line and not line.startswith("#")]
    assert [
        line for line in lines if not re.match(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==[\w.+!]+( ;.*)?$", line)
    ] == []


def outline(markdown: str) -> list[str]:
    """Heading levels, and "code" for a code block, in order."""
    parts = re.findall(r"^(#{1,6}) |^(```)\w", markdown, re.MULTILINE)
    return [level or "code" for level, _ in parts]


def test_both_readmes_have_the_same_structure_and_name_each_other():
    zh, en = read("README.md"), read("README_EN.md")
    assert outline(zh) == outline(en)
    assert "(README_EN.md)" in zh
    assert "(README.md)" in en


def test_the_first_screen_shows_a_picture_and_then_the_two_commands():
    for name in ("README.md", "README_EN.md"):
        first_screen = "\n".join(read(name).splitlines()[:40])
        picture, demo, test = (first_screen.find(each) for each in ("![", "make demo", "make test"))
        assert -1 < picture < demo < test, name


def test_readme_links_lead_somewhere():
    for name in ("README.md", "README_EN.md", "CONTRIBUTING.md"):
        links = re.findall(r"\]\(([^)#\s]+)", read(name))
        missing = [each for each in links if "://" not in each and not (ROOT / each).exists()]
        assert missing == [], name


def test_no_file_names_a_path_of_somebodys_machine():
    pattern = re.compile(r"(?<![\w.}])/(?:home|Users|root|work)/\w[\w./-]*")
    found = {name: pattern.findall(text) for name, text in texts() if pattern.search(text)}
    assert found == {}


def test_no_file_holds_an_emoji():
    pattern = re.compile("[\U0001f000-\U0001faff\u2600-\u26ff\u2705\u274c\u2728\ufe0f]")
    written = [(name, text) for name, text in texts() if not name.startswith("tests/")]  # there it is data
    assert {name: pattern.findall(text) for name, text in written if pattern.search(text)} == {}


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(run.stdout.split())


@pytest.mark.parametrize("package", ["servinglib", "simulations.serving", "servinglib.course"])
def test_importing_a_package_loads_nothing_heavy(package):
    assert loaded_after(f"import {package}") & set(HEAVY) == set()


def test_no_module_of_the_simulations_needs_torch():
    files = (ROOT / "simulations").rglob("*.py")
    names = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files]
    names = [name.removesuffix(".__init__") for name in names]
    assert "simulations.serving" in names
    assert loaded_after(f"import {', '.join(names)}") & {"torch", "transformers"} == set()


def commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")


def test_every_command_and_every_option_has_help():
    found = dict(commands(typer.main.get_command(app), "servinglib"))
    assert "servinglib demo" in found
    assert [name for name, command in found.items() if not command.help] == []
    silent = [
        f"{name} {option.name}"
        for name, command in found.items()
        for option in command.params
        if not option.help
    ]
    assert silent == []


def test_hooks_run_the_projects_own_tools_and_need_no_network():
    repositories = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert all(hook["entry"].startswith(".venv/bin/") for hook in hooks)


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    lines = [line for line in read(".ci/run").splitlines() if line and not line.startswith("#")]
    assert lines == ["set -euo pipefail", 'cd "$(dirname "$0")/.."', "make test"]
