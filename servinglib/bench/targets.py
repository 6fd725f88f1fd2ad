"""A figure beside the target that it should meet: what every benchmark of this library ends with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Target:
    """One figure beside its target.

    Attributes
    ----------
    name, unit : str
    value, target : float
    at_least : bool
        Whether `target` is a lower bound; else it is an upper one.
    """

    name: str
    value: float
    target: float
    at_least: bool
    unit: str = ""

    @property
    def met(self) -> bool:
        """Whether the figure is as good as it should be."""
        return self.value >= self.target if self.at_least else self.value <= self.target

    def to_json(self) -> dict[str, Any]:
        """All of it, and whether it was met."""
        return {**asdict(self), "met": self.met}


def verdict_table(targets: Iterable[Target]) -> Table:
    """Each figure beside its target, for a terminal."""
    table = Table("figure", "value", "target", "", title="targets", title_justify="left")
    for t in targets:
        bound = f"{'>=' if t.at_least else '<='} {t.target:,.10g} {t.unit}"
        value = f"{t.value:,.0f}" if abs(t.value) >= 1000 else f"{t.value:.3g}"
        table.add_row(t.name, f"{value} {t.unit}", bound, "met" if t.met else "[bold red]missed[/]")
    return table
