"""Latent adversarial unlearning: what is found for an item, where the gradient is taken, and that nothing else is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.collate import Batch, collate
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import FAMILIES, describe
from expunge.unlearning.objectives.bounded import Bounded
from expunge.unlearning.objectives.dpo import DPO
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.objectives.idk import IdkNLL
from expunge.unlearning.objectives.rmu import RMU
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.transforms.base import Site
from expunge.unlearning.transforms.latent import BoundLatentAdversary, LatentAdversary
from families import family_model
from tiny import make_tiny_model
from transform_runs import PLAIN_DESCENT, assert_cut_changes_nothing, assert_resumed_is_straight, transformed
from unlearning_runs import EXAMPLES, assert_same, largest_difference, make_encoder, weights

FIELDS = ("input_ids", "attention_mask", "answer_mask", "index")
ADVERSARY = LatentAdversary(radius=2.0, steps=3, layer=0)


def rows_of(n: int = 3) -> Batch:
    """Items of different lengths, with indices that are not their places."""
    encoder = make_encoder()
    encoded = [encoder.encode("where " * (3 * k % 5) + e.prompt, e.answer) for k, e in enumerate(EXAMPLES[:n])]
    return collate(encoded, 0, [4, 0, 2][:n])


class Asked:
    """A step of one micro-batch, whose objective is the sum of log P(answer)."""

    def __init__(self, model: PreTrainedModel, rows: Batch, bound: BoundLatentAdversary) -> None:
        self.model, self._rows, self.bound = model, rows, bound
        self.said: Tensor | None = None

    def answers(self, rows: Batch) -> Any:
        return answer_log_probs(self.model, rows)

    def add(self, share: object) -> None:
        self.bound.before_forward(self._rows)
        with self.bound.watch(len(self._rows)):
            answers = self.answers(self._rows)
        loss = answers.sequence.sum()
        self.bound.before_backward(loss, answers, last=True)
        loss.backward()
        self.said = answers.sequence.detach()


def bind(model: PreTrainedModel, adversary: LatentAdversary = ADVERSARY) -> BoundLatentAdversary:
    return adversary.bind(Site(model, describe(model), dict(model.named_parameters()), lambda t: t))


def log_prob(model: PreTrainedModel, layer: int, ids: Tensor, answer: Tensor, push: Tensor) -> Tensor:
    """log P of the answer tokens of one row without padding, with `push` added behind block `layer`."""

    def hook(module: object, args: object, out: Any) -> Any:
        return (out[0] + push, *out[1:]) if isinstance(out, tuple) else out + push

    handle = describe(model).blocks[layer].register_forward_hook(hook)
    scores = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    handle.remove()
    places = answer.nonzero()[:, 0]
    return scores[places - 1, ids[places]].sum()


def by_hand(model: PreTrainedModel, rows: Batch, adversary: LatentAdversary) -> tuple[Tensor, dict[str, Tensor]]:
    """log P of each answer under its own delta, and the gradient of their sum: item after item, without our hooks."""
    said = []
    model.zero_grad()
    for n, row, where in zip(rows.attention_mask.sum(1).tolist(), rows.input_ids, rows.answer_mask, strict=True):
        ids, answer = row[:n], where[:n]
        delta = torch.zeros(n, model.config.hidden_size, dtype=torch.float64)
        for _ in range(adversary.steps):
            free = delta.clone().requires_grad_()
            (slope,) = torch.autograd.grad(log_prob(model, adversary.layer, ids, answer, free), free)
            delta = delta + adversary.radius / adversary.steps * slope / slope.norm()
            delta = delta * min(1.0, adversary.radius / float(delta.norm()))
        value = log_prob(model, adversary.layer, ids, answer, delta)
        value.backward()
        said.append(value.detach())
    return torch.stack(said), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_that_at_the_states_that_each_item_s_own_adversary_finds(family: str) -> None:
    model = family_model(family).double().eval()
    rows = rows_of()
    said, expected = by_hand(model, rows, ADVERSARY)
    model.zero_grad()
    step = Asked(model, rows, bind(model))
    told = step.bound.gradient(step)  # type: ignore[arg-type]
    assert step.said is not None
    torch.testing.assert_close(step.said, said, rtol=1e-6, atol=1e-6)
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-6)  # gemma norms in float32
    assert all(p.requires_grad for p in model.parameters())
    assert 0 < told["latent_gain"] < float((said - plain(model, rows)).mean())


@torch.no_grad()
def plain(model: PreTrainedModel, rows: Batch) -> Tensor:
    return answer_log_probs(model, rows).sequence


def test_afterwards_nothing_is_pushed_and_retain_rows_never_are() -> None:
    model = make_tiny_model().double().eval()
    rows = rows_of()
    before, states = plain(model, rows), model(rows.input_ids).logits
    step = Asked(model, rows, bind(model))
    step.bound.gradient(step)  # type: ignore[arg-type]
    assert torch.equal(plain(model, rows), before)
    with step.bound.watch(2):
        assert torch.equal(model(rows.input_ids).logits, states), "a delta serves one forward"
    step.bound.before_forward(replace(rows, **{name: getattr(rows, name)[:2] for name in FIELDS}))
    with step.bound.watch(2):
        pushed = model(rows.input_ids).logits
    assert torch.equal(pushed[2], states[2]) and not torch.equal(pushed[:2], states[:2])


@pytest.mark.parametrize(("objective", "told"), [(IdkNLL(), True), (DPO(), False)])
def test_where_the_answer_is_not_looked_at_that_is_told(
    objective: Any, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """All that idk trains is the refusal, which nothing pushes."""
    transformed(ADVERSARY, objective=objective, max_steps=2)
    assert caplog.text.count("does not change with what the latent adversary") == told


def test_without_a_radius_it_is_not_there() -> None:
    _, plain_weights = transformed(max_steps=3)
    _, still = transformed(LatentAdversary(radius=0.0, layer=0), max_steps=3)
    assert_same(plain_weights, still)


def test_it_moves_the_weights_elsewhere_and_the_answer_further_down() -> None:
    """Ascent that is met at pushed states goes on where plain ascent has nothing left to gain."""
    plain_run, plain_weights = transformed(objective=GradientAscent(), **PLAIN_DESCENT, max_steps=1)
    run, pushed = transformed(ADVERSARY, objective=GradientAscent(), **PLAIN_DESCENT, max_steps=1)
    assert largest_difference(plain_weights, pushed) > 0
    assert run.history[1].transform["latent_gain"] > 0
    assert run.history[1].forget is not None and plain_run.history[1].forget is not None
    assert run.history[1].forget > plain_run.history[1].forget, "log P is higher where it is pushed up"


def test_the_cut_of_a_step_changes_nothing() -> None:
    assert_cut_changes_nothing(ADVERSARY, tolerance=1e-9)


def test_resumed_is_straight(tmp_path: Path) -> None:
    assert_resumed_is_straight(ADVERSARY, tmp_path)


@pytest.mark.parametrize("objective", [Bounded(), RMU(layer=1)])
def test_beside_other_objectives(objective: Any) -> None:
    run, _ = transformed(ADVERSARY, objective=objective, max_steps=2)
    assert run.history[-1].transform["latent_gain"] > 0


def test_on_adapters_the_model_is_ordinary_again() -> None:
    model = make_tiny_model()
    names = set(weights(model))
    transformed(ADVERSARY, model=model, parametrization=LoRA(rank=2), double=False, max_steps=2)
    assert set(weights(model)) == names


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="radius=-1"):
        LatentAdversary(radius=-1.0)
    with pytest.raises(InputError, match="steps=0"):
        LatentAdversary(steps=0)
    with pytest.raises(InputError, match="7"):
        transformed(LatentAdversary(layer=7))
