"""RMU moves the states of one block: the loss against numpy, and a forward that goes no further than that block."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import LlamaForCausalLM, PreTrainedModel

from expunge.data.collate import Encoded, collate
from expunge.errors import InputError
from expunge.models.architecture import FAMILIES, describe, readout
from expunge.models.states import BlockStates, block_states, cache_states, read_states, read_states_pair
from expunge.progress import Progress, Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, train, unlearn
from expunge.unlearning.methods import Method
from expunge.unlearning.objectives.base import StartValues, Terms, Totals
from expunge.unlearning.objectives.rmu import RMU, control_vector
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from families import family_model
from tiny import make_tiny_model
from unlearning_runs import (
    EXAMPLES,
    SMOOTH,
    CutAfter,
    assert_same,
    history,
    largest_difference,
    make_encoder,
    make_request,
    weights,
)

Array = NDArray[np.float64]
LAYER, WIDTH = 1, 32
DOWN = Layers(("down",), (0, 1))
METHOD = Method(RMU(layer=LAYER, steering=5.0), parametrization=DOWN)


def make_model() -> LlamaForCausalLM:
    """Three blocks in float64, of which the second is read."""
    return make_tiny_model(num_hidden_layers=3).double()


def rows() -> tuple[list[Encoded], list[Encoded]]:
    """Forget and retain rows of unequal length."""
    encode = make_encoder().encode
    forget = [encode(EXAMPLES[0].prompt, "oslo"), encode("bob lives in", "the town lima"), encode("where ?", "rome")]
    return forget, [encode("dan lives in", "cairo"), encode(EXAMPLES[4].prompt, "the town delhi")]


def numpy_states(model: PreTrainedModel, encoded: list[Encoded]) -> list[Array]:
    """Row by row, without padding: the block's output as the model itself reports it."""
    with torch.no_grad():
        found = [model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states for row in encoded]
    return [states[LAYER + 1][0].numpy() for states in found]


def numpy_control(objective: RMU) -> Array:
    return objective.steering * control_vector(WIDTH, objective.vector_seed).numpy()


class Case:
    """A model that has moved from its start."""

    def __init__(self, pad: int = 0) -> None:
        self.model, self.pad = make_model(), pad
        self.arch = describe(self.model)
        self.forget, self.retain = rows()
        self.totals = Totals(5, 3, 4, *(sum(len(row.ids) for row in side) for side in (self.forget, self.retain)))
        self.start_states = numpy_states(self.model, self.retain)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)

    def terms(self, objective: RMU, forget: slice = slice(None), retain: slice = slice(None)) -> Terms:
        sides = collate(self.forget[forget], self.pad), collate(self.retain[retain], self.pad)
        read = read_states_pair(self.arch.backbone, self.arch.blocks[LAYER], *sides, self.pad)
        before = torch.tensor(np.concatenate(self.start_states[retain]))
        return objective(*read, self.totals, StartValues(None, None, self.arch.logits, retain_states=before))


def run(
    method: Method = METHOD, output: Path | None = None, progress: Progress | None = None, **arguments: Any
) -> tuple[UnlearnResult, LlamaForCausalLM]:
    model = make_model()
    return run_on(model, method, output, progress, **arguments), model


def run_on(
    model: LlamaForCausalLM,
    method: Method = METHOD,
    output: Path | None = None,
    progress: Progress | None = None,
    **arguments: Any,
) -> UnlearnResult:
    given = UnlearnArguments(**{**SMOOTH, "learning_rate": 1e-3, **arguments})
    return unlearn(model, make_encoder(), make_request(), method, given, output=output, progress=progress or Silent())


@contextmanager
def calls(model: PreTrainedModel) -> Iterator[Counter[str]]:
    """How often each block, the final norm and the head are called."""
    arch, counted = describe(model), Counter[str]()
    parts = {**{f"block {i}": block for i, block in enumerate(arch.blocks)}, "norm": arch.norm, "head": arch.head}
    with ExitStack() as hooks:
        for name, part in parts.items():
            count = lambda *_, name=name: counted.update([name])  # noqa: E731
            hooks.callback(part.register_forward_pre_hook(count).remove)
        yield counted


# The loss.


def test_the_control_vector_is_a_unit_vector_fixed_by_its_seed() -> None:
    before = torch.get_rng_state()
    u, same, other = (control_vector(64, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert u.norm().item() == pytest.approx(1, rel=1e-12)
    assert torch.equal(u, same)
    assert (u >= 0).all()
    assert 0.5 < float(u @ other) < 0.99


def test_both_terms_are_means_over_all_tokens_of_their_rows() -> None:
    case, objective = Case(), RMU(retain_weight=3.0, forget_weight=0.5, layer=LAYER, steering=5.0, vector_seed=2)
    now = np.concatenate(numpy_states(case.model, case.forget))
    moved = np.concatenate(numpy_states(case.model, case.retain)) - np.concatenate(case.start_states)
    up, held = (np.square(x).sum() / len(x) for x in (now - numpy_control(objective), moved))
    terms = case.terms(objective)
    assert terms.forget.item() == pytest.approx(up, rel=1e-9)
    assert terms.retain.item() == pytest.approx(held, rel=1e-9)
    assert terms.loss.item() == pytest.approx(0.5 * up + 3.0 * held, rel=1e-9)


@pytest.mark.parametrize("pad", [1, 17, 95])
def test_padding_does_not_count_whatever_it_is(pad: int) -> None:
    objective = RMU(layer=LAYER)
    one, other = Case().terms(objective), Case(pad).terms(objective)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-12)


def test_parts_of_a_batch_add_up() -> None:
    case, objective = Case(), RMU(layer=LAYER)
    together = case.terms(objective)
    parts = [case.terms(objective, slice(0, 1), slice(0, 1)), case.terms(objective, slice(1, 3), slice(1, 2))]
    for term in ("loss", "forget", "retain"):
        total = sum(getattr(part, term).item() for part in parts)
        assert total == pytest.approx(getattr(together, term).item(), rel=1e-12)


def test_the_gradient_is_that_of_the_formula_and_stops_at_the_block() -> None:
    case, objective = Case(), RMU(layer=LAYER)
    case.terms(objective).loss.backward()
    for i, maps in enumerate(case.arch.linears):
        for linear in maps.values():
            assert (linear.weight.grad is not None and linear.weight.grad.abs().max() > 0) == (i <= LAYER)
    weight = case.model.get_submodule(f"model.layers.{LAYER}.mlp.down_proj").weight
    for place in ((0, 0), (7, 40), (31, 63)):
        values = []
        for change in (1e-5, -1e-5):
            with torch.no_grad():
                weight[place] += change
                values.append(case.terms(objective).loss.item())
                weight[place] -= change
        assert weight.grad[place].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def test_states_at_their_goals_are_at_rest() -> None:
    objective = RMU(layer=LAYER)
    goal = torch.tensor(numpy_control(objective)).expand(4, -1).clone().requires_grad_()
    held = torch.randn(3, WIDTH, dtype=torch.float64, requires_grad=True)
    sides = block_states(goal, torch.tensor([1, 3])), block_states(held, torch.tensor([3]))
    start = StartValues(None, None, torch.nn.Identity(), retain_states=held.detach())
    terms = objective(*sides, Totals(0, 2, 0, 4, 3), start)
    terms.loss.backward()
    assert terms.loss.item() == 0
    assert goal.grad is not None and not goal.grad.any()
    assert held.grad is not None and not held.grad.any()


# The forward.


@pytest.mark.parametrize("family", sorted(FAMILIES))
@torch.no_grad()
def test_the_states_are_those_that_the_model_reports(family: str) -> None:
    """Block 0 of two: the last entry of `hidden_states` is normed, and is another thing."""
    model, (forget, _) = family_model(family), rows()
    arch = describe(model)
    read = read_states(arch.backbone, arch.blocks[0], collate(forget, 0))
    reported = [model(torch.tensor([row.ids]), output_hidden_states=True).hidden_states[1][0] for row in forget]
    assert read.lengths.tolist() == [len(row.ids) for row in forget]
    assert torch.allclose(read.states, torch.cat(reported), atol=1e-5)


def test_the_forward_ends_at_the_block_and_leaves_no_hook() -> None:
    model, (forget, retain) = make_model(), rows()
    arch, ids = describe(model), torch.arange(3, 9)[None]
    before = model(ids).logits
    with calls(model) as counted:
        read_states_pair(arch.backbone, arch.blocks[LAYER], collate(forget, 0), collate(retain, 0), 0)
    assert counted == {"block 0": 1, "block 1": 1}
    assert torch.equal(model(ids).logits, before)
    assert not any(block._forward_hooks for block in arch.blocks)


def test_the_two_sides_of_a_fused_forward_are_those_of_two() -> None:
    model, (forget, retain) = make_model(), [collate(side, 0) for side in rows()]
    arch = describe(model)
    fused = read_states_pair(arch.backbone, arch.blocks[LAYER], forget, retain, 0)
    apart = [read_states_pair(arch.backbone, arch.blocks[LAYER], *side, 0) for side in ((forget, None), (None, retain))]
    assert apart[0][1] is None and apart[1][0] is None
    for one, other in zip(fused, (apart[0][0], apart[1][1]), strict=True):
        assert one is not None and other is not None
        assert torch.allclose(one.states, other.states, rtol=1e-12)
        assert torch.equal(one.lengths, other.lengths)


def test_what_was_read_is_freed_with_its_last_holder() -> None:
    """The exception that ends the forward must not keep the graph alive in a cycle."""
    model, (forget, _) = make_model(), rows()
    arch = describe(model)
    gc.collect()
    gc.disable()
    try:
        read: BlockStates | None = read_states(arch.backbone, arch.blocks[LAYER], collate(forget, 0))
        assert read is not None
        alive = weakref.ref(read.states)
        read = None
        assert alive() is None
    finally:
        gc.enable()


def test_the_start_is_cached_without_a_graph_and_in_the_order_of_the_items() -> None:
    model, (forget, _) = make_model(), rows()
    arch = describe(model)
    batches = [collate([forget[2], forget[0]], 0, (2, 0)), collate([forget[1]], 0, (1,))]
    cached = cache_states(model, readout(model).backbone, arch.blocks[LAYER], batches)
    assert not any(states.requires_grad for states in cached)
    for ours, theirs in zip(cached, numpy_states(model, forget), strict=True):
        assert ours.numpy() == pytest.approx(theirs, rel=1e-9)


def test_a_loss_on_states_has_no_gradient_on_log_probabilities() -> None:
    """So a transform that would ride on them hears None, and refuses, instead of doing nothing."""
    case = Case()
    forget = read_states(case.arch.backbone, case.arch.blocks[LAYER], collate(case.forget, 0))
    loss = RMU(layer=LAYER).forget_loss(forget, case.totals, StartValues(None, None, case.arch.logits))
    assert torch.autograd.grad(loss, forget.sequence, allow_unused=True) == (None,)
    assert forget.sequence.tolist() == [0, 0, 0]
    assert forget.counts.tolist() == [0, 0, 0]


# In the loop.


def test_a_run_moves_the_chosen_maps_towards_the_goal_and_holds_the_rest() -> None:
    before = weights(make_model())
    result, model = run(max_steps=20)
    moved = {name for name, w in weights(model).items() if not torch.equal(w, before[name])}
    assert moved == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}
    first, last = result.history[1], result.history[-1]
    assert first.retain == pytest.approx(0, abs=1e-20)
    assert last.step == 20
    assert last.forget < 0.95 * first.forget  # type: ignore[operator]
    assert 0 < last.retain < 0.01 * (first.forget - last.forget)  # type: ignore[operator]


def test_a_step_stops_at_the_block_and_the_start_is_read_once() -> None:
    """One forward reads the start of the few retain items; each of three steps takes one."""
    model = make_model()
    with calls(model) as scored:
        run_on(model, max_steps=0)
    model = make_model()
    with calls(model) as counted:
        run_on(model, max_steps=3, eval_steps=99)
    seen = {name: counted[name] - scored[name] for name in counted}
    once_more = seen["head"]  # the last step is scored
    assert seen["block 0"] == seen["block 1"] == once_more + 1 + 3
    assert seen["block 2"] == seen["norm"] == once_more


@pytest.mark.parametrize("parametrization", [DOWN, LoRA(rank=2)], ids=["layers", "lora"])
def test_the_cut_of_a_step_changes_nothing(parametrization: Layers | LoRA) -> None:
    method = Method(METHOD.objective, parametrization=parametrization)
    cuts = ({"per_device_train_batch_size": n, "gradient_accumulation_steps": 4 // n} for n in (4, 2, 1))
    (whole, model), *others = [run(method, **cut) for cut in cuts]
    for result, other in others:
        assert largest_difference(weights(model), weights(other)) < 1e-10
        for a, b in zip(history(whole), history(result), strict=True):
            assert a == pytest.approx(b, rel=1e-9, abs=1e-20)
    assert largest_difference(weights(model), weights(make_model())) > 1e-3


@pytest.mark.parametrize("cut", [1, 3])
def test_resumed_is_straight(cut: int, tmp_path: Path) -> None:
    straight, model = run(max_steps=4)
    with pytest.raises(KeyboardInterrupt):
        run(METHOD, tmp_path, CutAfter(cut), max_steps=4)
    resumed, again = run(METHOD, tmp_path, max_steps=4)
    assert_same(weights(model), weights(again))
    assert history(straight) == history(resumed)


def test_nothing_to_forget_leaves_every_bit() -> None:
    model, arguments = make_model(), UnlearnArguments(**SMOOTH)
    train(model, make_encoder(), (), EXAMPLES[3:], METHOD, arguments, output=None, progress=Silent())
    assert_same(weights(model), weights(make_model()))


def test_without_retain_items_only_the_forget_states_move() -> None:
    model = make_model()
    result = unlearn(model, make_encoder(), Request(EXAMPLES[:3], ()), METHOD, UnlearnArguments(**SMOOTH))
    assert all(metrics.retain == 0 for metrics in result.history[1:])
    assert largest_difference(weights(model), weights(make_model())) > 1e-3


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (Method(RMU(), parametrization=DOWN), "no block 7"),
        (Method(RMU(layer=-4), parametrization=DOWN), "no block -4"),
        (Method(RMU(layer=0), parametrization=Layers(("down",), (1, 2))), "Nothing up to block 0 is trained"),
    ],
)
def test_a_block_that_is_not_there_or_cannot_move_is_refused(method: Method, what: str) -> None:
    with pytest.raises(InputError, match=what):
        run(method)


def test_settings_out_of_range_are_refused() -> None:
    for settings in ({"steering": -1.0}, {"steering": float("inf")}, {"retain_weight": -1.0}):
        with pytest.raises(InputError, match=next(iter(settings))):
            RMU(**settings)
