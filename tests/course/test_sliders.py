"""The slider draws what it stands at, and leaves words where it can't be shown."""

from __future__ import annotations

import importlib.util

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from servinglib.course.sliders import LoadSlider
from servinglib.plots import figure

WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture
def slider(monkeypatch) -> tuple[LoadSlider, list[float]]:
    monkeypatch.setitem(mpl.rcParams, "backend", "agg")
    drawn: list[float] = []

    def draw(load):
        drawn.append(load)
        fig, ax = figure(f"load {load}", "x", "y")
        ax.axvline(load)
        return fig

    return LoadSlider(draw, start=0.5), drawn


def test_moving_the_slider_draws_the_new_load_and_leaves_no_figure_open(slider):
    open_before = plt.get_fignums()
    box, drawn = slider[0].widget(), slider[1]
    handle, picture = box.children
    first = bytes(picture.value)
    handle.value = 0.9
    assert drawn == [0.5, 0.9]
    assert first.startswith(b"\x89PNG")
    assert bytes(picture.value) not in (b"", first)
    assert plt.get_fignums() == open_before


def test_a_page_that_shows_no_widgets_says_so_without_an_address_in_memory(slider):
    bundle = slider[0]._repr_mimebundle_()
    assert WIDGET in bundle
    assert bundle["text/plain"].startswith("a slider for the load, from 0.05 to 0.97")


def test_without_ipywidgets_only_the_words_are_left(slider, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert list(slider[0]._repr_mimebundle_()) == ["text/plain"]
    assert slider[1] == []
