"""What the conformance suite as a whole claims: how rarely it cries wolf, and that no formula is left out."""

import inspect
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
from conformance import CONFIDENCE, FALSE_ALARM, Claim, Experiment, Relation

from simulations import theory

MODULES = {path.stem: path for path in Path(__file__).parent.glob("test_conformance_*.py")}
EXPERIMENTS = [e for name in sorted(MODULES) for e in getattr(import_module(name), "EXPERIMENTS", [])]
# Checks of arguments and parts of other formulas
NOT_FORMULAS = {"domain", "sizes"}


def closed_forms():
    for module in pkgutil.iter_modules(theory.__path__):
        if module.name not in NOT_FORMULAS:
            members = inspect.getmembers(import_module(f"simulations.theory.{module.name}"))
            for name, member in members:
                own = getattr(member, "__module__", "") == f"simulations.theory.{module.name}"
                if own and callable(member) and not name.startswith("_"):
                    yield name


def test_the_whole_suite_raises_a_false_alarm_less_often_than_once_in_ten_thousand():
    comparisons = sum(len(experiment.claims) for experiment in EXPERIMENTS)
    comparisons += 20  # test_planted_bugs.py makes fewer
    assert comparisons * (1 - CONFIDENCE) < FALSE_ALARM


def test_no_two_experiments_draw_the_same_customers():
    assert len({experiment.name for experiment in EXPERIMENTS}) == len(EXPERIMENTS)


@pytest.mark.parametrize("formula", sorted(set(closed_forms()) - {"WindowAccount", "poisson_pmf"}))
def test_every_closed_form_meets_a_simulation(formula):
    sources = "".join(path.read_text() for path in MODULES.values())
    assert re.search(rf"\b{formula}\(", sources), f"no test_conformance_*.py calls {formula}"


def coins(theory, relation: Relation = "equal"):
    return Experiment(
        "coins",
        20_000,
        lambda draw, size: draw["others"].random(size) < 0.5,
        (Claim("heads", theory, lambda run: run.mean(), relation),),
    )


def test_a_wrong_theory_is_caught_and_the_message_has_the_numbers():
    coins(0.5).check()
    with pytest.raises(AssertionError, match=r"coins, heads: theory 0\.505, simulation 0\.\d+ in \["):
        coins(0.505).check()


def test_a_bound_must_clear_the_whole_interval():
    coins(0.505, "below").check()
    with pytest.raises(AssertionError):
        coins(0.5, "below").check()
    with pytest.raises(AssertionError):
        coins(0.505, "above").check()


def test_a_wide_interval_is_no_proof():
    few = Experiment("few coins", 100, coins(0.5).simulate, coins(0.5).claims)
    with pytest.raises(AssertionError, match="half-width"):
        few.check()
