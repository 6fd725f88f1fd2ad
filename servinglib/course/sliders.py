"""A slider over the load, for whoever runs the notebook.

A curve shows where the trouble begins; to feel how suddenly it begins, one has to push the load up by
hand and watch. A slider needs a running notebook, so a lesson that has one shows a plain picture of
some positions too: readers on a web page, and those without ipywidgets, miss the toy and no fact.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class LoadSlider:
    """Shows `draw(load)`, and draws it again wherever the reader moves the slider to.

    Attributes
    ----------
    draw : callable
        Takes a load, returns a figure.
    start, low, high : float
        The load shown first, and the ends of the slider.
    """

    draw: Callable[[float], Figure]
    start: float = 0.9
    low: float = 0.05
    high: float = 0.97

    def widget(self) -> Any:
        """The slider above its picture, as an ipywidgets `VBox`."""
        import ipywidgets

        slider = ipywidgets.FloatSlider(
            value=self.start, min=self.low, max=self.high, step=0.01, description="load"
        )
        picture = ipywidgets.Image(value=self._png(self.start), format="png")

        def redraw(change: dict[str, Any]) -> None:
            picture.value = self._png(change["new"])

        slider.observe(redraw, names="value")
        return ipywidgets.VBox([slider, picture])

    def _png(self, load: float) -> bytes:
        import matplotlib.pyplot as plt

        figure, image = self.draw(load), io.BytesIO()
        figure.savefig(image, format="png")
        plt.close(figure)  # or the notebook would show it once more, below the cell
        return image.getvalue()

    def __repr__(self) -> str:
        return (
            f"a slider for the load, from {self.low:g} to {self.high:g}: it needs a running notebook "
            f"with ipywidgets; the picture shows some of its positions"
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        bundle: dict[str, Any] = {}
        if importlib.util.find_spec("ipywidgets") is not None:
            bundle = self.widget()._repr_mimebundle_()
        return {**bundle, "text/plain": repr(self)}
