"""Transforms that take the forget gradient somewhere else: SAM and simulated relearning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from expunge.data.collate import collate
from expunge.data.order import PairedOrder
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.progress import Progress
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import Method
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.step import Moment, Stepper
from expunge.unlearning.transforms.base import GradientTransform, Site
from expunge.unlearning.transforms.relearning import BoundSimulatedRelearning, SimulatedRelearning
from expunge.unlearning.transforms.sam import SAM
from tiny import make_tiny_model
from unlearning_runs import (
    EXAMPLES,
    SMOOTH,
    CutAfter,
    assert_same,
    largest_difference,
    make_encoder,
    make_request,
    weights,
)

Weights = dict[str, Tensor]
RATE = 1e-3


Transforms = GradientTransform | tuple[GradientTransform, ...]


def first_step(transform: Transforms, monkeypatch: pytest.MonkeyPatch, **arguments: int) -> Weights:
    """The gradient of the first step, before clipping, on a tiny model in float64."""
    found: Weights = {}

    def caught(self: Stepper, number: int) -> float:
        if not found:
            found.update({name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None})
        return 1.0

    monkeypatch.setattr(Stepper, "_clip", caught)
    run(make_tiny_model().double(), transform, max_steps=1, **arguments)
    return found


def run(
    model: LlamaForCausalLM,
    transform: Transforms,
    output: Path | None = None,
    progress: Progress | None = None,
    **arguments: object,
) -> UnlearnResult:
    """Six facts forgotten by GradDiff with `transform`."""
    transforms = transform if isinstance(transform, tuple) else (transform,)
    method, merged = Method(GradDiff(), transforms), {**SMOOTH, **arguments}
    chosen = UnlearnArguments(**merged)  # type: ignore[arg-type]
    return unlearn(model, make_encoder(), make_request(6), method, chosen, output=output, progress=progress)


def gradient_of(loss: Callable[[torch.nn.Module], Tensor], model: torch.nn.Module) -> Weights:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss(model), parameters), strict=True))


def nll(numbers: tuple[int, ...], first: int) -> Callable[[torch.nn.Module], Tensor]:
    """Mean NLL per answer token of examples `first + number`."""
    chosen = [EXAMPLES[first + i] for i in numbers]
    batch = collate([make_encoder().encode(e.prompt, e.answer) for e in chosen], 0)

    def loss(model: torch.nn.Module) -> Tensor:
        answers = answer_log_probs(model, batch)  # type: ignore[arg-type]
        return -answers.sequence.sum() / answers.counts.sum()

    return loss


def moved(model: torch.nn.Module, by: Weights) -> torch.nn.Module:
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(by[name])
    return model


def order() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    pairs = PairedOrder(6, len(EXAMPLES) - 6, 3, 0)
    return [pairs.at(step) for step in range(pairs.steps_per_epoch)]


TWO = {"per_device_train_batch_size": 3}


def test_sam_is_its_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    (forget, retain), _ = order()
    up, held = nll(forget, 0), nll(retain, 6)
    g = gradient_of(up, make_tiny_model().double())
    norm = torch.sqrt(sum((x.square().sum() for x in g.values()), torch.zeros(())))
    climbed = moved(make_tiny_model().double(), {name: -0.05 * x / norm for name, x in g.items()})  # L_f = -NLL
    there, here = gradient_of(up, climbed), gradient_of(held, make_tiny_model().double())
    ours = first_step(SAM(rho=0.05), monkeypatch, **TWO)
    assert largest_difference(ours, {name: here[name] - there[name] for name in ours}) < 1e-10
    assert largest_difference(ours, {name: here[name] - g[name] for name in ours}) > 1e-4


@pytest.mark.parametrize(("share", "steps"), [(1.0, 1), (0.0, 1), (1.0, 3)])
def test_relearning_is_its_formula(share: float, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget rows are those of the other step of the epoch; retain rows are those of later steps; Adam is torch's."""
    pairs = order()
    (forget, retain), (others, _) = pairs
    attacked = make_tiny_model().double()
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    schedule = PairedOrder(6, len(EXAMPLES) - 6, 3, 0)
    for k in range(steps):
        adam.zero_grad()
        loss = nll(schedule.at(1 + k)[1], 6) if share else nll(others, 0)
        loss(attacked).backward()  # type: ignore[no-untyped-call]
        adam.step()
    there = gradient_of(nll(forget, 0), attacked)
    start = make_tiny_model().double()
    here, held = gradient_of(nll(forget, 0), start), gradient_of(nll(retain, 6), start)
    transform = SimulatedRelearning(mix=0.25, learning_rate=RATE, steps=steps, period=1, retain_share=share)
    ours = first_step(transform, monkeypatch, **TWO)
    expected = {name: held[name] - 0.75 * here[name] - 0.25 * there[name] for name in ours}
    assert largest_difference(ours, expected) < 1e-6
    assert largest_difference(ours, {name: held[name] - here[name] for name in ours}) > 1e-5


@pytest.mark.parametrize("sam_first", [True, False])
def test_sam_and_simulated_relearning_make_up_one_formula(sam_first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM of the loss that relearning mixes, or relearning's mixture of two gradients of SAM; the retain side once."""
    (forget, retain), _ = order()
    mix, rho = 0.25, 0.05
    start, attacked = make_tiny_model().double(), make_tiny_model().double()
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    nll(PairedOrder(6, len(EXAMPLES) - 6, 3, 0).at(1)[1], 6)(attacked).backward()  # type: ignore[no-untyped-call]
    adam.step()
    delta = {name: p - weights(start)[name] for name, p in weights(attacked).items()}

    def loss_at(by: Weights) -> Weights:
        found = gradient_of(nll(forget, 0), moved(make_tiny_model().double(), by))
        return {name: -x for name, x in found.items()}

    def climb(g: Weights, by: Weights) -> Weights:
        norm = torch.sqrt(sum((x.square().sum() for x in g.values()), torch.zeros(())))
        return {name: by[name] + rho * x / norm for name, x in g.items()}

    def mixed(one: Weights, other: Weights) -> Weights:
        return {name: mix * one[name] + (1 - mix) * other[name] for name in one}

    nowhere = {name: torch.zeros_like(x) for name, x in delta.items()}
    if sam_first:
        e = climb(mixed(loss_at(delta), loss_at(nowhere)), nowhere)
        up = mixed(loss_at({name: e[name] + delta[name] for name in e}), loss_at(e))
    else:
        up = mixed(*(loss_at(climb(loss_at(by), by)) for by in (delta, nowhere)))
    held = gradient_of(nll(retain, 6), start)
    sam, relearning = SAM(rho), SimulatedRelearning(mix=mix, learning_rate=RATE, period=1)
    ours = first_step((sam, relearning) if sam_first else (relearning, sam), monkeypatch, **TWO)
    assert largest_difference(ours, {name: up[name] + held[name] for name in ours}) < 1e-6


def test_an_attacker_without_anything_to_relearn_is_refused() -> None:
    method = Method(GradientAscent(), (SimulatedRelearning(retain_share=0.0),))
    model, whole = make_tiny_model(), {**SMOOTH, "max_steps": 2, "per_device_train_batch_size": 6}
    before = weights(model)
    with pytest.raises(InputError, match="nothing to relearn"):
        unlearn(model, make_encoder(), make_request(6), method, UnlearnArguments(**whole))
    assert_same(before, weights(model))


def test_an_attacker_without_retain_rows_relearns_forget_rows() -> None:
    method = Method(GradientAscent(), (SimulatedRelearning(retain_share=1.0),))
    arguments = UnlearnArguments(**{**SMOOTH, "max_steps": 1, **TWO})
    done = unlearn(make_tiny_model(), make_encoder(), make_request(6), method, arguments)
    assert done.history[1].transform["attacker_nll"] > 1.0


def test_an_attacker_of_all_weights_is_met_by_what_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """One MLP map is trained; the attacker moves everything, and g of the map is taken there."""
    (forget, retain), _ = order()
    attacked, name = make_tiny_model().double(), "model.layers.1.mlp.down_proj.weight"
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    nll(PairedOrder(6, len(EXAMPLES) - 6, 3, 0).at(1)[1], 6)(attacked).backward()  # type: ignore[no-untyped-call]
    adam.step()
    held = gradient_of(nll(retain, 6), make_tiny_model().double())[name]
    found: list[Weights] = []

    def caught(self: Stepper, number: int) -> float:
        found.append({name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None})
        return 1.0

    monkeypatch.setattr(Stepper, "_clip", caught)
    model, arguments = make_tiny_model().double(), UnlearnArguments(**{**SMOOTH, "max_steps": 1, **TWO})
    before = weights(model)
    for moves in ("all", "trained"):
        transform = SimulatedRelearning(mix=1.0, learning_rate=RATE, period=1, moves=moves)
        method = Method(GradDiff(), (transform,), Layers(("down",), (1,)))
        unlearn(model, make_encoder(), make_request(6), method, arguments)
        model.load_state_dict(before, strict=False)
    expected = held - gradient_of(nll(forget, 0), attacked)[name]
    assert found[0].keys() == found[1].keys() == {name}
    assert (found[0][name] - expected).abs().max() < 1e-6
    assert (found[1][name] - expected).abs().max() > 1e-5


def test_a_projection_is_trained_against_an_attacker_of_the_weights_it_stands_in(tmp_path: Path) -> None:
    """The weights keep their bits but for what is folded in; resumed is straight."""
    transform = SimulatedRelearning(mix=1.0, every=2, period=4, learning_rate=RATE, moves="all")
    method = Method(GradDiff(), (transform,), Projection(layers=(1,), rank=2, energy=0.5))
    arguments = UnlearnArguments(**{**SMOOTH, "max_steps": 5, **TWO})
    straight, resumed = make_tiny_model(), make_tiny_model()
    before = weights(straight)
    result = unlearn(straight, make_encoder(), make_request(6), method, arguments)
    assert ["attacker_nll" in m.transform for m in result.history[1:]] == [True, False, True, False, True]
    after = weights(straight)
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"model.layers.1.mlp.down_proj.weight"}
    assert not any(p.grad is not None for p in straight.parameters())
    with pytest.raises(KeyboardInterrupt):
        unlearn(
            make_tiny_model(), make_encoder(), make_request(6), method, arguments, output=tmp_path, progress=CutAfter(2)
        )
    unlearn(resumed, make_encoder(), make_request(6), method, arguments, output=tmp_path)
    assert_same(after, weights(resumed))
    plain = make_tiny_model()
    unlearn(plain, make_encoder(), make_request(6), replace(method, transforms=()), arguments)
    assert largest_difference(after, weights(plain)) > 1e-6


def test_weights_that_swallow_the_steps_of_an_attacker_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """A projection is trained in float32; the bfloat16 weights around it are moved by its attacker only."""
    transform = SimulatedRelearning(learning_rate=RATE, moves="all")
    method = Method(GradDiff(), (transform,), Projection(layers=(1,), rank=2, energy=0.5))
    arguments = UnlearnArguments(**{**SMOOTH, "max_steps": 1, **TWO})
    for attacked in (method, replace(method, transforms=())):
        caplog.clear()
        unlearn(make_tiny_model().bfloat16(), make_encoder(), make_request(6), attacked, arguments)
        assert ("simulated attacker moves are bfloat16" in caplog.text) == bool(attacked.transforms)


@pytest.mark.parametrize("turn", [0, 1])
def test_what_an_attacker_was_shown_is_not_what_is_defended(turn: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts 0, 2, 4 are the first attacker's, 1, 3, 5 the second's; grad L_f(phi) is of the others in the step."""
    forget, retain = PairedOrder(6, len(EXAMPLES) - 6, 6, 0).at(turn)
    shown = tuple(item for item in forget if item % 2 == turn)
    attacked = make_tiny_model().double()
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    nll(shown, 0)(attacked).backward()  # type: ignore[no-untyped-call]
    adam.step()
    there = gradient_of(nll(tuple(item for item in forget if item % 2 != turn), 0), attacked)
    held = gradient_of(nll(retain, 6), make_tiny_model().double())

    found: list[Weights] = []

    def caught(self: Stepper, number: int) -> float:
        found.append({name: p.grad.clone() for name, p in self.parameters.items() if p.grad is not None})
        return 1.0

    monkeypatch.setattr(Stepper, "_clip", caught)
    transform = SimulatedRelearning(mix=1.0, learning_rate=RATE, period=1, retain_share=0.0, folds=2)
    run(make_tiny_model().double(), transform, max_steps=1 + turn, learning_rate=0.0, per_device_train_batch_size=6)
    expected = {name: held[name] - there[name] for name in held}
    assert largest_difference(found[turn], expected) < 1e-6
    all_of_them = gradient_of(nll(tuple(forget), 0), attacked)
    assert largest_difference(found[turn], {name: held[name] - all_of_them[name] for name in held}) > 1e-4


def test_between_its_steps_the_attacker_rests() -> None:
    """With `every=2` step 1 is attacked, step 2 is the plain one, and step 3 goes on with the same attacker."""
    still = {"learning_rate": 0.0, "max_steps": 4, "eval_steps": 9}
    resting = SimulatedRelearning(learning_rate=RATE, every=2, period=4)
    steps = run(make_tiny_model().double(), resting, **still).history[1:]
    attacked = ["attacker_nll" in step.transform for step in steps]
    assert attacked == [True, False, True, False]
    plain = run(make_tiny_model().double(), SimulatedRelearning(mix=0.0), **still).history[1:]
    assert [step.forget for step in steps] == [step.forget for step in plain], "told of where the step began"
    assert steps[1].grad_norm == plain[1].grad_norm and steps[0].grad_norm != plain[0].grad_norm
    short = SimulatedRelearning(learning_rate=RATE, every=2, period=2)
    alone = run(make_tiny_model().double(), short, **still).history[1:]
    assert alone[0].transform == steps[0].transform and alone[2].grad_norm != steps[2].grad_norm, "a new one each time"


def test_an_attacker_lives_on_over_its_period() -> None:
    """With a learning rate of 0 the model stands still, so only the attacker's own steps are seen."""
    still = {"learning_rate": 0.0, "max_steps": 3, "eval_steps": 9}
    lasting = SimulatedRelearning(learning_rate=RATE, period=3, retain_share=1.0)
    result = run(make_tiny_model().double(), lasting, **still)
    seen = [m.transform["attacker_nll"] for m in result.history[1:]]
    attacked = make_tiny_model().double()
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    for step, told in enumerate(seen):
        rows = PairedOrder(6, len(EXAMPLES) - 6, 6, 0).at(step + 1 + step)[1]
        adam.zero_grad()
        loss = nll(rows, 6)(attacked)
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
        assert told == pytest.approx(loss.item(), abs=1e-5)


def test_moments_in_half_of_the_bits_lead_an_attacker_to_the_same_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thirty steps of torch's Adam in float32, whose place is missed by a hundredth of the way."""
    bound: list[BoundSimulatedRelearning] = []

    def kept(self: SimulatedRelearning, site: Site) -> BoundSimulatedRelearning:
        bound.append(BoundSimulatedRelearning(self, site))
        return bound[0]

    monkeypatch.setattr(SimulatedRelearning, "bind", kept)
    steps, start, attacked = 30, make_tiny_model(), make_tiny_model()
    lasting = SimulatedRelearning(learning_rate=RATE, period=steps)
    run(make_tiny_model(), lasting, learning_rate=0.0, max_steps=steps, eval_steps=steps)
    adam = torch.optim.Adam(attacked.parameters(), lr=RATE)
    for step in range(steps):
        adam.zero_grad()
        nll(PairedOrder(6, len(EXAMPLES) - 6, 6, 0).at(step + 1 + step)[1], 6)(attacked).backward()  # type: ignore[no-untyped-call]
        adam.step()
    state, before = bound[0].state(), weights(start)
    way = {name: p - before[name] for name, p in weights(attacked).items()}
    missed = {name: state[f"{name}/delta"] - by for name, by in way.items()}
    length, error = (torch.cat([x.flatten() for x in by.values()]).norm() for by in (way, missed))
    assert 0 < error < 0.01 * length
    moments = [value for name, value in state.items() if name.endswith(("exp_avg", "exp_avg_sq"))]
    assert len(moments) == 2 * len(way) and {value.dtype for value in moments} == {torch.bfloat16}


@pytest.mark.parametrize(
    "transform",
    [
        SAM(rho=0.1),
        SimulatedRelearning(every=2, period=4, learning_rate=RATE),
        SimulatedRelearning(mix=1.0, period=2, learning_rate=RATE, retain_share=0.5, folds=3),
    ],
    ids=repr,
)
def test_resumed_is_straight_and_the_cut_of_a_step_changes_nothing(
    transform: GradientTransform, tmp_path: Path
) -> None:
    straight, resumed = make_tiny_model(), make_tiny_model()
    method, arguments = Method(GradDiff(), (transform,)), UnlearnArguments(**{**SMOOTH, "max_steps": 5, **TWO})
    unlearn(straight, make_encoder(), make_request(6), method, arguments)
    with pytest.raises(KeyboardInterrupt):
        unlearn(
            make_tiny_model(), make_encoder(), make_request(6), method, arguments, output=tmp_path, progress=CutAfter(2)
        )
    unlearn(resumed, make_encoder(), make_request(6), method, arguments, output=tmp_path)
    assert_same(weights(straight), weights(resumed))
    whole, parts = make_tiny_model().double(), make_tiny_model().double()
    run(whole, transform, **TWO)
    run(parts, transform, per_device_train_batch_size=1, gradient_accumulation_steps=3)
    assert largest_difference(weights(whole), weights(parts)) < 1e-7


@pytest.mark.parametrize("transform", [SAM(rho=0.0), SimulatedRelearning(mix=0.0)], ids=repr)
def test_nothing_displaced_is_the_host(transform: GradientTransform, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = order()[0]
    start = make_tiny_model().double()
    up, held = gradient_of(nll(pairs[0], 0), start), gradient_of(nll(pairs[1], 6), start)
    ours = first_step(transform, monkeypatch, **TWO)
    assert largest_difference(ours, {name: held[name] - up[name] for name in ours}) < 1e-10


def test_an_error_on_the_way_leaves_the_weights_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for transform in (SAM(rho=0.1), SimulatedRelearning(learning_rate=1.0)):
        model = make_tiny_model()
        before, calls = weights(model), iter(range(9))
        monkeypatch.setattr(Moment, "_objective", lambda *a: 1 / 0 if next(calls) else None)  # noqa: B023
        with pytest.raises((ZeroDivisionError, RuntimeError)):
            run(model, transform)
        monkeypatch.undo()
        assert largest_difference(before, weights(model)) < 1e-6


@pytest.mark.parametrize("transform", [SAM(rho=0.1), SimulatedRelearning(learning_rate=RATE)], ids=repr)
def test_without_retain_items_only_the_forget_side_is_displaced(transform: GradientTransform) -> None:
    model = make_tiny_model()
    before = weights(model)
    request = Request(make_request(6).forget)
    arguments = UnlearnArguments(**{**SMOOTH, "max_steps": 2, **TWO})
    result = unlearn(model, make_encoder(), request, Method(GradDiff(), (transform,)), arguments)
    assert result.steps == 2
    assert largest_difference(before, weights(model)) > 0
