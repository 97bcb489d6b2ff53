"""Transforms one upon another, and what each of them is asked for more than once in a step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from expunge.data.collate import collate
from expunge.models.architecture import describe
from expunge.unlearning.objectives.bounded import Bounded
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.session import Session
from expunge.unlearning.stopping import StopReason, StopRule
from expunge.unlearning.transforms.base import BoundTransform, GradientTransform, Site
from expunge.unlearning.transforms.dual import DualAscent
from expunge.unlearning.transforms.l2 import pull
from expunge.unlearning.transforms.mismatch import all_answers
from expunge.unlearning.transforms.relearning import SimulatedRelearning
from expunge.unlearning.transforms.sam import SAM
from expunge.unlearning.transforms.sparse import SparsityMask
from tiny import make_tiny_model
from transform_runs import transformed
from unlearning_runs import EXAMPLES, make_encoder

STILL = {"learning_rate": 1e-9, "max_steps": 3, "eval_steps": 9}
ATTACKER = SimulatedRelearning(mix=0.5, learning_rate=1e-2, steps=2)


@pytest.mark.parametrize("above", [(), (SAM(rho=0.1),), (ATTACKER,)])
def test_a_dual_weight_moves_once_a_step_whatever_stands_above(above: tuple[GradientTransform, ...]) -> None:
    alone, under = (
        [
            step.transform["dual_weight"]
            for step in transformed(*each, DualAscent(step_size=0.1), **STILL)[0].history[1:]
        ]
        for each in ((), above)
    )
    assert under == pytest.approx(alone, rel=1e-6)
    assert len(set(alone)) == 3


@pytest.mark.parametrize("order", [0, 1])
def test_a_mask_is_found_where_the_run_stands_not_where_an_attacker_does(order: int) -> None:
    """What is 0 is spared in either order: at the attacked weights nothing is 0."""
    model = make_tiny_model()
    pruned = model.model.layers[0].mlp.down_proj.weight
    with torch.no_grad():
        pruned[:, :8] = 0
    both = (SparsityMask(), ATTACKER)
    transformed(*(both if order == 0 else both[::-1]), model=model, learning_rate=1e-2, max_steps=3)
    assert not pruned[:, :8].any() and pruned[:, 8:].any()


def test_what_is_told_of_a_step_is_measured_where_it_began() -> None:
    plain, attacked = ([m.forget for m in transformed(*own, **STILL)[0].history[1:]] for own in ((), (ATTACKER,)))
    assert attacked == pytest.approx(plain, rel=1e-6)


def test_the_first_step_of_a_projection_reads_answer_and_options_alike() -> None:
    """Options are read without a graph; before, the first step read them without the projection."""
    rows = Projection(site="mlp", layers=(0, 1), rank=4, energy=0.5)
    run, _ = transformed(objective=Bounded(), parametrization=rows, **STILL)
    first, second, third = (step.forget for step in run.history[1:4])
    assert first == pytest.approx(second, abs=1e-4) and second == pytest.approx(third, abs=1e-4)


def test_a_retain_term_that_no_one_asked_for_is_none_and_not_zero() -> None:
    """A dual weight may begin at 0, and grow; the rise that ends a run is counted from the first term measured."""
    run, _ = transformed(DualAscent(initial=0.0, step_size=0.5), max_steps=2)
    first, second = run.history[1:]
    assert first.retain is None and second.retain is not None and second.retain > 0
    rule = StopRule(None, 0.0, None, 0, 99, None, max_rise=0.1)
    assert rule.reason([*run.history]) is None
    assert rule.reason([*run.history, replace(second, retain=second.retain + 0.2)]) is StopReason.DIVERGED


def test_a_pull_on_a_gradient_of_zero_is_a_number() -> None:
    """A bounded loss that is met everywhere has none."""
    gradient, offset = torch.zeros(3), torch.ones(3)
    distance, ratio = pull([gradient], [offset], 1.0, "relative")
    assert (distance, ratio) == (pytest.approx(3**0.5), 0.0) and not gradient.any()


def test_an_item_that_two_processes_hold_has_one_answer() -> None:
    model, encoder = make_tiny_model(), make_encoder()
    rows = collate([encoder.encode(e.prompt, e.answer) for e in EXAMPLES[:3]], 0, [4, 0, 2])
    parameters = dict(model.named_parameters())
    alone = all_answers([rows], Site(model, describe(model), parameters, lambda t: t))
    twice = all_answers([rows], Site(model, describe(model), parameters, lambda t: t.mul_(2)))
    assert twice[: len(alone)] == alone and not any(twice[len(alone) :])


class Stored(BoundTransform):
    """Keeps what it was given."""

    got: dict[str, torch.Tensor]

    def state(self) -> dict[str, torch.Tensor]:
        return {"kept": torch.ones(2)}

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.got = state


def test_a_run_that_goes_on_finds_its_state_where_its_weights_are() -> None:
    """A checkpoint is read into main memory; the device `meta` stands for an accelerator."""
    parameters = {"w": torch.nn.Parameter(torch.zeros(2, device="meta"))}
    stored = Stored()
    session = Session(parameters, torch.optim.AdamW(parameters.values()), (stored,), None)
    session._load({"parameter/w": torch.zeros(2), "transform0/kept": torch.ones(2)})
    assert stored.got["kept"].device.type == "meta"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sam_tells_that_bfloat16_has_too_few_digits_for_it(
    dtype: torch.dtype, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_tiny_model().to(dtype)
    SAM().bind(Site(model, describe(model), dict(model.named_parameters()), lambda t: t))
    assert ("less than the digits" in caplog.text) == (dtype == torch.bfloat16)
