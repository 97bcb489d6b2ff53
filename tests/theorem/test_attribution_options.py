"""Every form of the attribution penalty is the gradient of its formula, by finite differences in float64."""

from __future__ import annotations

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from attribution_reference import (
    Fake,
    Tiny,
    Weights,
    bind,
    influence,
    make_batches,
    make_step,
    move,
    penalty,
    references,
    snapshot,
    split,
    third_step,
    total,
)
from expunge.errors import InputError
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.attribution_strength import Strength

FORMS = {
    "algorithm 1": AttributionPenalty(),
    "same examples": AttributionPenalty(compare="same"),
    "original": AttributionPenalty(anchor="original"),
    "hinge": AttributionPenalty(penalty="hinge", compare="same"),
    "each example": AttributionPenalty(products="example", compare="same"),
    "each example, original": AttributionPenalty(products="example", anchor="original"),
    "neuron": AttributionPenalty(level="neuron", compare="same"),
    "neuron, batches": AttributionPenalty(level="neuron"),
    "neuron, exact": AttributionPenalty(level="neuron", order="exact", anchor="original"),
    "neuron, each example, hinge": AttributionPenalty(
        level="neuron", products="example", anchor="original", penalty="hinge"
    ),
    "log P": AttributionPenalty(of="log_probability", anchor="original"),
    "log-odds": AttributionPenalty(of="log_odds", compare="same"),
    "margin": AttributionPenalty(of="margin"),
    "margin, neuron, hinge": AttributionPenalty(of="margin", level="neuron", penalty="hinge", anchor="original"),
    "margin, exact, each example": AttributionPenalty(of="margin", order="exact", products="example", compare="same"),
    "margin, neuron, exact": AttributionPenalty(of="margin", level="neuron", order="exact", compare="same"),
    "exact": AttributionPenalty(order="exact", compare="same"),
    "exact, log-odds": AttributionPenalty(order="exact", of="log_odds"),
    "everything else": AttributionPenalty(
        level="neuron", order="exact", of="log_odds", products="example", compare="same", modules=("q", "down")
    ),
    "some maps": AttributionPenalty(modules=("k", "down")),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_gradient_is_that_of_the_formula(name: str) -> None:
    form = replace(FORMS[name], strength=3.0)
    model, found, told, (original, previous) = third_step(form)
    here, batch = snapshot(model), make_batches()[2]
    before = references(form, make_batches(), original, previous)
    constant = None if form.order == "exact" else here
    value = penalty(here, batch, form, before, constant)
    assert told["attribution_penalty"] == pytest.approx(3.0 * value, rel=1e-9)
    size = float(torch.stack([g.norm() for g in found.values()]).norm())
    assert size > 1e-6
    draw, step = torch.Generator().manual_seed(1), 1e-5
    for _ in range(4):
        way = {n: torch.randn(w.shape, generator=draw, dtype=w.dtype) for n, w in here.items()}
        ends = [
            penalty({n: w + sign * step * way[n] for n, w in here.items()}, batch, form, before, constant)
            for sign in (1, -1)
        ]
        slope = sum(float((found[n] * way[n]).sum()) for n in here)
        assert slope == pytest.approx(3.0 * (ends[0] - ends[1]) / (2 * step), rel=1e-5, abs=1e-6 * size)


@pytest.mark.parametrize("name", FORMS)
def test_the_cut_into_micro_batches_changes_nothing(name: str) -> None:
    form = replace(FORMS[name], scale="relative", strength=2.0)
    _, whole, told, _ = third_step(form)
    for sizes in ((1, 3), (2, 1, 1)):
        _, parts, other, _ = third_step(form, sizes)
        for parameter, gradient in whole.items():
            torch.testing.assert_close(parts[parameter], gradient, rtol=1e-10, atol=1e-14)
        assert other == pytest.approx(told, rel=1e-9)


@pytest.mark.parametrize("name", ["algorithm 1", "exact", "neuron, each example, hinge"])
def test_relative_strength_is_the_ratio_of_the_norms(name: str) -> None:
    model, relative, told, _ = third_step(replace(FORMS[name], strength=0.3, scale="relative"))
    _, absolute, same, _ = third_step(replace(FORMS[name], strength=told["attribution_strength"]))
    assert same == pytest.approx(told, rel=1e-9)
    for parameter, gradient in absolute.items():
        torch.testing.assert_close(relative[parameter], gradient, rtol=1e-9, atol=1e-13)
    moved = [parameter for parameter, gradient in relative.items() if gradient.any()]
    loss = {n: p.grad - relative[n] for n, p in model.named_parameters()}
    norms = [torch.stack([tensors[n].norm() for n in moved]).norm() for tensors in (relative, loss)]
    assert float(norms[0] / norms[1]) == pytest.approx(0.3, rel=1e-9)
    assert told["attribution_gradient_ratio"] == pytest.approx(0.3, rel=1e-9)


def test_the_strength_follows_the_growth() -> None:
    strength = Strength(0.5, relative=False, target=0.1)
    for growth, factor in ((0.15, 1.5), (10.0, 2.0), (0.0, 0.5), (0.1, 1.0)):
        before = strength.factor(1.0, 1.0)
        strength.adapt(3 * growth, 3.0)
        assert strength.factor(1.0, 1.0) == pytest.approx(before * factor)
    strength.adapt(1.0, 0.0)
    assert strength.factor(1.0, 1.0) == pytest.approx(0.75)
    for _ in range(100):
        strength.adapt(0.0, 1.0)
    assert 0 < strength.factor(1.0, 1.0) < 1e-5


def test_the_growth_that_is_told_is_that_of_the_formula() -> None:
    form = FORMS["neuron"]
    model, _, told, (original, previous) = third_step(form)
    (before,) = references(form, make_batches(), original, previous)
    now = total([influence(snapshot(model), row, form) for row in split(make_batches()[2], [1] * 4)])
    more = sum(float((before[n] - a).clamp(min=0)[a < 0].sum()) for n, a in now.items())
    growth = more / sum(float(-a.clamp(max=0).sum()) for a in before.values())
    assert told["attribution_growth"] == pytest.approx(growth, rel=1e-9)
    adapted = third_step(replace(form, adapt_to=1e-9))[2]
    assert adapted["attribution_strength"] == pytest.approx(4 * form.strength), "twice too much growth, twice doubled"


def test_the_hinge_lets_negative_influence_shrink() -> None:
    form = FORMS["same examples"]
    model, symmetric, _, (original, previous) = third_step(form)
    _, hinged, _, _ = third_step(replace(form, penalty="hinge"))
    (before,) = references(form, make_batches(), original, previous)
    now = total([influence(snapshot(model), row, form) for row in split(make_batches()[2], [1] * 4)])
    seen = 0
    for name, a in now.items():
        one, other = (found[f"blocks.{name}.weight"] for found in (symmetric, hinged))
        shrinking = (a < 0) & (a > before[name])
        seen += int(shrinking.sum())
        assert one[shrinking].all()
        assert not other[shrinking].any()
        assert torch.equal(one[~shrinking], other[~shrinking])
    assert seen > 10


@pytest.mark.parametrize("name", ["original", "neuron, exact", "each example, original"])
def test_the_original_is_an_anchor_from_the_first_step_on(name: str) -> None:
    model, batch = Tiny(), make_batches(1)[0]
    bound = bind(model, FORMS[name])
    assert not any(g.any() for g in make_step(model, bound, 0, [batch])[0].values())
    moved = Tiny()
    bound = bind(moved, FORMS[name])
    move(moved, 0)
    assert any(g.any() for g in make_step(moved, bound, 0, [batch])[0].values())


@pytest.mark.parametrize("name", ["algorithm 1", "neuron", "each example"])
def test_two_processes_change_nothing(name: str) -> None:
    """Two threads stand for two processes, of which one has no row in the second step."""
    form = replace(FORMS[name], scale="relative", strength=2.0, adapt_to=0.1)
    batches = make_batches()
    alone = Tiny()
    bound, expected = bind(alone, form), []
    for number, batch in enumerate(batches):
        expected.append(make_step(alone, bound, number, [batch]))
        move(alone, number)
    meet, offered, found = threading.Barrier(2, timeout=30), [torch.empty(0)] * 2, [list[Weights](), list[Weights]()]

    def reduce(rank: int, x: Tensor) -> Tensor:
        offered[rank] = x
        meet.wait()
        both = offered[0] + offered[1]
        meet.wait()
        return x.copy_(both)

    models = [Tiny(), Tiny()]

    def work(rank: int) -> None:
        model = models[rank]
        mine = bind(model, form, partial(reduce, rank), world=2)
        for number, batch in enumerate(batches):
            parts = split(batch, [1, 3])[rank : rank + 1] if number != 1 else [batch][rank:]
            added, told = make_step(model, mine, number, parts)
            assert told == pytest.approx(expected[number][1], rel=1e-9)
            found[rank].append(added)
            move(model, number)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other, (whole, _) in zip(*found, expected, strict=True):
        for parameter, gradient in whole.items():
            torch.testing.assert_close(one[parameter] + other[parameter], gradient, rtol=1e-9, atol=1e-13)


def test_a_gradient_asked_for_twice_is_refused() -> None:
    model, batch = Tiny(), make_batches(1)[0]
    bound, step = bind(model, FORMS["neuron"]), Fake(model, 0, [batch])
    bound.gradient(step)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="Put the attribution penalty first"):
        bound.gradient(step)  # type: ignore[arg-type]


def test_unknown_maps_are_named() -> None:
    with pytest.raises(InputError, match=r"no linear map 'dwn'.*down"):
        bind(Tiny(), AttributionPenalty(modules=("dwn",)))
