from __future__ import annotations

import pytest

from servinglib.engines.registry import ENGINES, load_engine
from servinglib.engines.simulated_engine import SimulatedEngine
from servinglib.errors import UnknownName


def test_an_engine_is_loaded_by_name_with_its_options():
    engine = load_engine("simulated", "simulated", context_length=99)
    assert isinstance(engine, SimulatedEngine)
    assert engine.context_length == 99


def test_an_unknown_engine_is_answered_with_the_known_ones():
    with pytest.raises(
        UnknownName, match=r"engine 'transformer' \(did you mean 'transformers'\?\).*simulated"
    ):
        load_engine("transformer", "course-tiny")


@pytest.mark.parametrize("name", ENGINES)
def test_every_registered_engine_exists_and_refuses_unknown_options(name: str):
    model = "simulated" if name == "simulated" else "course-tiny"
    with pytest.raises(UnknownName, match="option 'colour'"):
        load_engine(name, model, colour="red")
