"""What both editions of the site share: `docs/zh/conf.py` and `docs/en/conf.py` only name the language.

It needs no network, to build or to read: lessons come as they were executed, and formulas become
MathML, which browsers draw themselves, so no script is fetched from anywhere.
"""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.utils.math import pick_math_environment
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import servinglib

DOCS = Path(__file__).parent
ROOT = DOCS.parent
OTHER = {"zh": "en", "en": "zh"}
TITLE = {"zh": "servinglib：LLM 服务架构课程", "en": "servinglib: a course on LLM serving"}
LOCALE = {"zh": "zh_CN", "en": "en"}
SWITCH = {"zh": "English", "en": "中文"}
GLOSSARY = {"zh": ("# 术语表", "中文", "英文"), "en": ("# Glossary", "Chinese", "English")}
NO_LESSONS = {"zh": "# 课程\n\n还没有课程。\n", "en": "# Lessons\n\nThere are no lessons yet.\n"}


def settings(lang: str) -> dict[str, Any]:
    """Sphinx's configuration for one language."""
    return {
        "project": "servinglib",
        "author": "the servinglib contributors",
        "copyright": "the servinglib contributors, Apache-2.0",
        "version": servinglib.__version__,
        "language": LOCALE[lang],
        "extensions": [
            "myst_nb",
            "sphinx.ext.autodoc",
            "sphinx.ext.autosummary",
            "sphinx.ext.napoleon",
            "site_settings",
        ],
        "html_math_renderer": "mathml",
        "html_theme": "sphinx_book_theme",
        "html_title": TITLE[lang],
        "html_theme_options": {
            "article_header_end": ["switch.html"],
            "show_navbar_depth": 1,
            "navbar_persistent": [],
        },
        "html_context": {"other_language": OTHER[lang], "switch_label": SWITCH[lang]},
        "html_show_sourcelink": False,
        "html_copy_source": False,
        "templates_path": ["../templates"],
        "exclude_patterns": ["_build"],
        "myst_enable_extensions": ["dollarmath", "amsmath"],
        "myst_update_mathjax": False,
        "nb_execution_mode": "off",
        "autosummary_generate": True,
        "autodoc_default_options": {"members": True, "ignore-module-all": True, "member-order": "bysource"},
        "autodoc_typehints": "none",  # the signature carries them; links to every type would drown it
        "napoleon_use_ivar": True,
        "napoleon_use_rtype": False,
        "default_role": "code",
        # Docstrings name types by their short names, which two modules may share.
        "suppress_warnings": ["config.cache", "ref.python"],
        "site_language": lang,
    }


def fetch(app: Sphinx, config: Any) -> None:
    """Bring the executed lessons and the glossary under the source folder, where Sphinx looks."""
    lang = config.site_language
    lessons = Path(app.srcdir) / "lessons"
    for made in (lessons, Path(app.srcdir) / "api"):  # pages of what no longer exists must go
        shutil.rmtree(made, ignore_errors=True)
    lessons.mkdir()
    for notebook in sorted((ROOT / "notebooks" / lang).glob("*.ipynb")):
        shutil.copy(notebook, lessons)
    if not any(lessons.iterdir()):
        (lessons / "none.md").write_text(NO_LESSONS[lang], encoding="utf-8")
    title, *columns = GLOSSARY[lang]
    terms = yaml.safe_load((ROOT / "glossary.yml").read_text(encoding="utf-8"))
    order = (lang, OTHER[lang])
    header = columns if lang == "zh" else columns[::-1]
    rows = [f"| {' | '.join(term[each] for each in order)} |" for term in terms]
    table = [f"| {' | '.join(header)} |", "| --- | --- |", *rows]
    (Path(app.srcdir) / "glossary.md").write_text("\n".join([title, "", *table, ""]), encoding="utf-8")


def keep_drawings(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Show an indented passage of a module's docstring as it stands: it is a drawing or a listing."""
    if what == "module":
        for row, line in enumerate(lines[:-2]):
            if line.endswith(":") and not line.startswith(" ") and lines[row + 2].startswith("    "):
                lines[row] = f"{line}:"


def visit_inline(translator: Any, node: nodes.math) -> None:
    """Write an inline formula as MathML."""
    translator.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_display(translator: Any, node: nodes.math_block) -> None:
    """Write a displayed formula as MathML, several lines as an alignment."""
    tex = node.astext()
    environment = pick_math_environment(tex)
    several_lines = environment.startswith("align") and not tex.lstrip().startswith(r"\begin")
    block = rf"\begin{{{environment}}}{tex}\end{{{environment}}}" if several_lines else tex
    anchor = "".join(f'<span id="{escape(each)}"></span>' for each in node["ids"])
    translator.body.append(f'<div class="math">{anchor}{tex2mathml(block, as_block=True)}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the formulas' renderer and the step that fetches the lessons."""
    app.add_config_value("site_language", "en", "env", str)
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_display, None))
    app.connect("config-inited", fetch)
    app.connect("autodoc-process-docstring", keep_drawings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
