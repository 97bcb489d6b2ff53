"""The catalogue, and settings laid over its parts."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import EntryPoint

import pytest

from expunge.errors import InputError
from expunge.unlearning import methods
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.methods import METHODS, Method, build_method, known_parts, split_settings
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.objectives.npo import NPO
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.parts import build
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.sam import SAM


def test_the_catalogue() -> None:
    assert set(METHODS) >= {"ga", "graddiff", "kl", "npo", "ssiuu"}
    assert METHODS["ssiuu"] == Method(GradDiff(), (AttributionPenalty(strength=1e-3),), Full())
    assert all(method.summary for method in METHODS.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_name_alone_is_the_catalogue_s_method(name: str) -> None:
    assert build_method(name) == METHODS[name]
    assert build_method(name).summary == METHODS[name].summary


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("npo", "attribution"), Method(NPO(), (AttributionPenalty(),))),
        (("npo", None, {"objective.beta": 0.5, "retain_weight": 2}), Method(NPO(beta=0.5, retain_weight=2.0))),
        (("ssiuu", None, {"strength": 1}), Method(GradDiff(), (AttributionPenalty(strength=1.0),))),
        (("ssiuu", None, {"transform.strength": 0.5}), Method(GradDiff(), (AttributionPenalty(strength=0.5),))),
        (("ssiuu", "attribution", {"measure_every": 2}), Method(GradDiff(), (AttributionPenalty(1e-3, 2),))),
        (
            ("graddiff", None, {"parametrization": "lora", "parametrization.rank": 2, "alpha": 4}),
            Method(GradDiff(), (), LoRA(rank=2, alpha=4.0)),
        ),
        (
            ("graddiff", None, {"parametrization": "layers", "layers": [1, -1], "modules": ["down", "o"]}),
            Method(GradDiff(), (), Layers(("down", "o"), (1, -1))),
        ),
        (("ga", None, {"objective": "npo", "beta": 0.2}), Method(NPO(beta=0.2))),
        (("ga", None, {"transform": "attribution"}), Method(METHODS["ga"].objective, (AttributionPenalty(),))),
    ],
)
def test_settings_reach_the_part_they_name(arguments: tuple[object, ...], expected: Method) -> None:
    assert build_method(*arguments) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("grad_diff",), "Unknown method 'grad_diff'.*Did you mean 'graddiff'"),
        (("npo", "atribution"), "Unknown transform 'atribution'.*Did you mean 'attribution'"),
        (("npo", None, {"parametrization": "lorra"}), "Unknown parametrization 'lorra'.*'lora'"),
        (("npo", None, {"parametrization": 3}), "Unknown parametrization 3"),
        (("npo", None, {"objective.betta": 0.1}), "NPO has no setting 'betta'.*Did you mean 'beta'"),
        (("npo", None, {"betta": 0.1}), "no setting 'betta'.*Did you mean 'objective.beta'"),
        (("npo", None, {"learning_rat": 0.1}), "Did you mean 'learning_rate'"),
        (("npo", None, {"transform.strength": 1.0}), "no part 'transform'"),
        (("npo", None, {"objectiv.beta": 1.0}), "no part 'objectiv'.*Did you mean 'objective'"),
        (("npo", None, {"objective.beta": "much"}), re.escape("wrong type: 'much' is not float. (objective.beta)")),
        (("npo", None, {"objective.beta": True}), "True is not float"),
        (("npo", None, {"objective.beta": None}), "None is not float"),
        (("npo", None, {"objective.beta": -1}), "beta must be"),
        (("npo", None, {"objective.beta": float("nan")}), "beta must be"),
        (("npo", None, {"retain_weight": -1}), "retain_weight=-1"),
        (("npo", None, {"parametrization": "lora", "rank": 2.5}), "2.5 is not int"),
        (("npo", None, {"parametrization": "lora", "rank": 0}), "at least 1"),
        (("npo", None, {"parametrization": "layers", "layers": "1"}), "'1' is not tuple"),
        (("npo", None, {"parametrization": "layers", "layers": [1.5]}), "is not tuple"),
        (("npo", None, {"parametrization": "layers", "layers": {1}}), "is not tuple"),
    ],
)
def test_mistakes_say_where_and_what(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_method(*arguments)  # type: ignore[arg-type]


def test_a_setting_of_two_parts_must_be_dotted(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Beta(AttributionPenalty):
        beta: float = 1.0

    monkeypatch.setitem(methods.TRANSFORMS, "beta", Beta)
    with pytest.raises(InputError, match=re.escape("objective.beta or transform.beta")):
        build_method("npo", "beta", {"beta": 0.5})
    made = build_method("npo", "beta", {"transform.beta": 0.5})
    assert (made.objective, made.transforms) == (NPO(), (Beta(beta=0.5),))


def test_two_transforms_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    two = Method(GradDiff(), (AttributionPenalty(), AttributionPenalty()))
    monkeypatch.setitem(methods.METHODS, "two", two)
    assert build_method("two") == two
    changed = build_method("two", settings={"transform2.strength": 2})
    assert [t.strength for t in changed.transforms] == [1e-3, 2.0]  # type: ignore[attr-defined]
    assert build_method("two", "attribution", {"strength": 3}).transforms == (AttributionPenalty(3.0),)
    assert build_method("two", "none") == build_method("two", settings={"transform": "none"})
    assert build_method("two", "none").transforms == ()
    with pytest.raises(InputError, match=re.escape("transform1.strength or transform2.strength")):
        build_method("two", settings={"strength": 2})


def test_transforms_are_chosen_in_order() -> None:
    made = build_method("ga", "sam+attribution", {"rho": 0.5, "transform2.strength": 2})
    assert made.transforms == (SAM(0.5), AttributionPenalty(2.0))
    with pytest.raises(InputError, match="Unknown transform 'sma'"):
        build_method("ga", "attribution+sma")


def test_other_packages_add_parts_by_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*, group: str) -> list[EntryPoint]:
        there = {
            "expunge.objectives": [EntryPoint("strange", "expunge.unlearning.objectives.npo:NPO", group)],
            "expunge.parametrizations": [
                EntryPoint("full", "expunge.unlearning.parametrizations.lora:LoRA", group),
                EntryPoint("odd", "expunge.unlearning.stopping:StopReason", group),
            ],
        }
        return there.get(group, [])

    monkeypatch.setattr(methods, "entry_points", points)
    assert build_method("ga", settings={"objective": "strange", "beta": 0.3}).objective == NPO(beta=0.3)
    assert known_parts("parametrization")["full"] is Full  # a name of ours stays ours
    with pytest.raises(InputError, match="not a dataclass"):
        build_method("ga", settings={"parametrization": "odd"})


def test_split_settings() -> None:
    settings = {"learning_rate": 1e-4, "objective.beta": 1, "rank": 2, "max_steps": 3}
    assert split_settings(settings) == ({"learning_rate": 1e-4, "max_steps": 3}, {"objective.beta": 1, "rank": 2})


def test_arguments_are_built_from_settings() -> None:
    made = build(UnlearnArguments, {"learning_rate": 1, "stop_accuracy": None, "lr_scheduler_type": "linear"})
    assert made == UnlearnArguments(learning_rate=1.0, lr_scheduler_type="linear")
    assert isinstance(made.learning_rate, float)
    for wrong in ({"learning_rate": "1e-5"}, {"max_steps": 2.0}, {"lr_scheduler_type": "sometimes"}, {"seed": True}):
        with pytest.raises(InputError, match="wrong type"):
            build(UnlearnArguments, wrong)
    with pytest.raises(InputError, match="Did you mean 'max_steps'"):
        build(UnlearnArguments, {"max_step": 2})


def test_a_part_that_needs_more_says_so() -> None:
    @dataclass(frozen=True)
    class Needy:
        depth: int

    with pytest.raises(InputError, match="Needy needs more settings"):
        build(Needy, {})
