"""Every form of the attribution penalty in the real loop: cut, resumed, on any host, on adapters, among transforms."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from expunge.errors import InputError
from expunge.models import answers
from expunge.models.answers import Answers
from expunge.unlearning.objectives.base import Objective, StartValues, Totals
from expunge.unlearning.objectives.dpo import DPO
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.objectives.rmu import RMU
from expunge.unlearning.objectives.undial import UNDIAL
from expunge.unlearning.objectives.wga import WGA
from expunge.unlearning.parametrizations.base import Parametrization
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.sam import SAM
from transform_runs import assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import assert_same, history, largest_difference, make_request

FORMS: dict[str, dict[str, Any]] = {
    "original": {"anchor": "original"},
    "same": {"compare": "same"},
    "adapted": {"compare": "same", "adapt_to": 0.01},
    "example": {"products": "example", "compare": "same"},
    "neuron": {"level": "neuron"},
    "log P": {"of": "log_probability"},
    "margin": {"of": "margin", "level": "neuron", "anchor": "original"},
    "exact": {"order": "exact", "modules": ("q", "down")},
    "all at once": {
        "level": "neuron",
        "anchor": "original",
        "penalty": "hinge",
        "products": "example",
        "of": "log_odds",
        "order": "exact",
    },
}
RIDING: dict[str, dict[str, Any]] = {
    "algorithm 1": {"strength": 1e3},
    "hinge": {"strength": 1e3, "penalty": "hinge"},
    "log P": {"strength": 0.01, "of": "log_probability"},
    "log-odds, some maps": {"strength": 0.01, "of": "log_odds", "modules": ("q", "down")},
}


def relative(name: str) -> AttributionPenalty:
    """Of a strength that matters as much in every form."""
    return AttributionPenalty(strength=0.5, scale="relative", measure_every=1, **FORMS[name])


@pytest.mark.parametrize("name", FORMS)
def test_resumed_is_straight(name: str, tmp_path: Path) -> None:
    assert_resumed_is_straight(relative(name), tmp_path, per_device_train_batch_size=4)


@pytest.mark.parametrize("name", ["adapted", "example", "neuron", "margin", "exact"])
def test_the_cut_of_a_step_changes_nothing(name: str) -> None:
    # Llama's norms and softmaxes compute in float32, whatever the rest does, and the kernels sum in another order.
    assert_cut_changes_nothing(relative(name), tolerance=1e-5, max_steps=3)


@pytest.mark.parametrize("name", RIDING)
def test_a_ride_is_the_same_as_passes_of_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    form = AttributionPenalty(measure_every=1, **RIDING[name])
    ridden, one = transformed(form)
    monkeypatch.setattr(AttributionPenalty, "rides", property(lambda self: False))
    separate, other = transformed(form)
    _, plain = transformed()
    moved = largest_difference(one, plain)
    assert moved > 1e-4, "the penalty must matter, or this test shows nothing"
    assert largest_difference(one, other) < 1e-4 * moved
    for a, b in zip(ridden.history[1:], separate.history[1:], strict=True):
        for key, value in a.transform.items():
            assert b.transform[key] == pytest.approx(value, rel=1e-4)


@dataclass(frozen=True, slots=True)
class TwoWays(GradDiff):
    """Uses the sequence log-probability, and the tokens beside it: found out in the middle of the first backward."""

    def forget_loss(self, forget: Answers, totals: Totals, start: StartValues) -> Tensor:
        return GradDiff.forget_loss(self, forget, totals, start) + 0.5 * forget.token.exp().sum() / totals.forget_tokens


HOSTS = [UNDIAL(), WGA(), RMU(layer=0), TwoWays(), DPO()]


@pytest.mark.parametrize("host", HOSTS, ids=lambda host: type(host).__name__)
def test_any_host_will_do(host: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not carry the penalty is found out in the first step, which then is made as if from the start."""
    form = AttributionPenalty(strength=1e3, measure_every=1)
    result, found = transformed(form, objective=host, max_steps=3)
    assert result.history[-1].transform["attribution_gradient_ratio"] > 0
    monkeypatch.setattr(AttributionPenalty, "rides", property(lambda self: False))
    separate, expected = transformed(form, objective=host, max_steps=3)
    if isinstance(host, DPO):
        assert largest_difference(found, expected) < 1e-6
    else:
        assert_same(found, expected)
        assert history(result) == history(separate)


def test_a_run_that_has_left_the_ride_resumes_where_it_was(tmp_path: Path) -> None:
    assert_resumed_is_straight(AttributionPenalty(strength=1e3), tmp_path, objective=WGA())


TRAINED = [
    *((trained, name) for trained in (LoRA(rank=2), Layers()) for name in ("same", "neuron", "all at once")),
    *((Projection(rank=2), name) for name in ("neuron", "all at once")),
]


@pytest.mark.parametrize(("trained", "name"), TRAINED, ids=lambda x: x if isinstance(x, str) else type(x).__name__)
def test_any_parametrization_will_do(trained: Parametrization, name: str) -> None:
    result, _ = transformed(relative(name), parametrization=trained, max_steps=3)
    assert result.history[-1].transform["attribution_gradient_ratio"] == pytest.approx(0.5, rel=1e-6)


def test_the_margin_is_over_the_options_of_each_item() -> None:
    """Other options give another penalty; items without any are refused before anything is trained."""
    form = AttributionPenalty(strength=0.5, scale="relative", of="margin", anchor="original", measure_every=1)
    request = make_request()
    turned = tuple(replace(e, options=e.options[:1]) for e in request.forget)
    (first, one), (_, other), (_, again) = (
        transformed(form, request=replace(request, forget=forget), max_steps=3)
        for forget in (request.forget, turned, request.forget)
    )
    assert first.history[-1].transform["attribution_gradient_ratio"] == pytest.approx(0.5, rel=1e-6)
    assert largest_difference(one, again) == 0 < 1e-4 < largest_difference(one, other)
    bare = (*request.forget[1:], replace(request.forget[0], options=()))
    with pytest.raises(InputError, match="no wrong options"):
        transformed(form, request=replace(request, forget=bare), max_steps=1)


def test_a_head_worked_in_blocks_can_be_differentiated_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = transformed(relative("exact"), max_steps=3)
    monkeypatch.setattr(answers, "LOGITS_BYTES", 96)
    _, blocks = transformed(relative("exact"), max_steps=3)
    assert largest_difference(whole, blocks) < 1e-5


def test_it_stands_before_transforms_that_take_several_gradients() -> None:
    result, _ = transformed(relative("neuron"), SAM(), max_steps=3)
    assert result.history[-1].transform["attribution_gradient_ratio"] == pytest.approx(0.5)
    with pytest.raises(InputError, match="Put the attribution penalty first"):
        transformed(SAM(), relative("neuron"), max_steps=3)
