"""Figures: the course's style, and no trace of it outside."""

from __future__ import annotations

import matplotlib as mpl
import nbformat
import pytest
from matplotlib.text import Annotation
from nbclient import NotebookClient

from servinglib.plots import COLOURS, figure, label, style

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


def test_a_figure_has_its_labels_plain_ticks_and_opaque_white_paper():
    fig, ax = figure("Batching pays", "batch size", "time (s)", xscale="log", xticks=[1, 2, 64])
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title(loc="left")) == (
        "batch size",
        "time (s)",
        "Batching pays",
    )
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "2", "64"]
    assert len(ax.get_xticks(minor=True)) == 0
    assert fig.get_facecolor() == (1.0, 1.0, 1.0, 1.0)


def test_a_line_is_labelled_at_its_end_in_its_colour():
    _, ax = figure("t", "x", "y")
    [line] = ax.plot([1, 2], [3, 4], color=COLOURS["blue"])
    label(ax, line, "measured")
    [text] = ax.texts
    assert isinstance(text, Annotation)
    assert (text.get_text(), text.xy, text.get_color()) == ("measured", (2, 4), COLOURS["blue"])


def test_the_style_ends_with_its_context():
    before = mpl.rcParams["axes.spines.top"]
    with style():
        assert mpl.rcParams["axes.spines.top"] is False
    assert mpl.rcParams["axes.spines.top"] == before


def test_a_notebook_shows_the_second_figure_as_well_as_the_first():
    cell = "from servinglib.plots import figure\nfigure('t', 'x', 'y')[1].plot([1, 2]);"
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for _ in range(2)])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [["image/png" in o.get("data", {}) for o in c.outputs] for c in notebook.cells]
    assert shown == [[True], [True]]
