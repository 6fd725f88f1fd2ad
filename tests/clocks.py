"""A clock that only counts, and a sleep that moves it."""

from __future__ import annotations


class VirtualClock:
    def __init__(self) -> None:
        self.time = 100.0
        self.sleeps: list[float] = []

    def __call__(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.sleeps.append(seconds)
        self.time += seconds
