"""The counterfactual objective: down to what is said of invented subjects, which stays what it was."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import pytest
import torch

import towns
from expunge.data.collate import Encoded, collate
from expunge.data.example import Example
from expunge.data.twins import NAMES, held_twins, scored_twins
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import readout
from expunge.models.scores import score_items
from expunge.request import Request
from expunge.unlearning.anchors import Anchor, anchors
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import step_batches, unlearn
from expunge.unlearning.methods import build_method
from expunge.unlearning.objectives.base import Totals
from expunge.unlearning.objectives.counterfactual import SLACK, Counterfactual
from expunge.unlearning.processes import Processes
from expunge.unlearning.start import cache_start
from expunge.unlearning.step import Moment, Stepper
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, SMOOTH, Run, largest_difference, make_encoder, make_request, weights

FORGET, RETAIN = EXAMPLES[:5], EXAMPLES[5:]


def log_probs(model: torch.nn.Module, asked: list[tuple[str, str]]) -> np.ndarray:
    """Mean log P per answer token, one question at a time."""
    encoder, found = make_encoder(), []
    for prompt, answer in asked:
        said = answer_log_probs(model, collate([encoder.encode(prompt, answer)], 0))  # type: ignore[arg-type]
        found.append(float(said.sequence[0].detach() / said.counts[0]))
    return np.array(found)


@pytest.mark.parametrize(("names", "within", "options"), [(1, 0.0, 0), (3, 0.05, 0), (3, 9.0, 0), (3, 0.05, 2)])
def test_the_loss_of_a_step_is_its_formula(
    names: int, within: float, options: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second epoch of a run that stands still until then: the turn of the second twin or, where options are held,
    of the first option of every other item and the first twin of the others."""
    before, now = make_tiny_model().double(), make_tiny_model(seed=5).double()
    settings = {"names": names, "objective.within": within, "restore": 0.5, "hold": 0.25, "retain_weight": 0.0}
    settings["objective.options"] = options
    twins = held_twins(FORGET, RETAIN, names)

    def margins(model: torch.nn.Module, prompts: list[str]) -> np.ndarray:
        answers = log_probs(model, [(p, e.answer) for p, e in zip(prompts, FORGET, strict=True)])
        options = [log_probs(model, [(p, o) for o in e.options]) for p, e in zip(prompts, FORGET, strict=True)]
        return answers - np.array([math.log(fmean(np.exp(each))) for each in options])

    told = np.mean([margins(before, [own[k].prompt for own in twins]) for k in range(names)], axis=0)
    goals = told - told.mean() + np.clip(told.mean(), -within, within)
    beyond = margins(now, [e.prompt for e in FORGET]) - goals
    turn = [(own[1 % names].prompt, own[1 % names].answer) for own in twins]
    kept = log_probs(before, turn)
    for item in range(len(FORGET)) if options else ():
        asked, own = FORGET[item], twins[item]
        if item % 2 == 0:
            turn[item] = asked.prompt, asked.options[0]
            kept[item] = log_probs(before, [(one.prompt, one.options[0]) for one in own]).mean()
        else:
            turn[item] = own[0].prompt, own[0].answer
            kept[item] = log_probs(before, [turn[item]])[0]
    moved = log_probs(now, turn) - kept
    expected = np.maximum(beyond, 0) + 0.5 * np.maximum(-beyond, 0) + 0.25 * np.maximum(abs(moved) - SLACK, 0)

    take = Stepper.step

    def look(self: Stepper, number: int) -> object:
        if number == 1:
            self.model.load_state_dict(now.state_dict())
        return take(self, number)

    monkeypatch.setattr(Stepper, "step", look)
    method = build_method("counterfactual", settings=settings)
    arguments = UnlearnArguments(
        **{**SMOOTH, "learning_rate": 0.0, "max_steps": 2, "per_device_train_batch_size": 5, "eval_steps": 9}
    )
    result = unlearn(before, make_encoder(), make_request(), method, arguments)
    assert result.history[2].forget == pytest.approx(expected.mean(), abs=1e-7)


def test_goals_of_a_request_and_of_those_before_it_lie_around_0_each() -> None:
    """Else the mean of the request's own facts, by which the run ends, would be led astray by the others."""
    model, method = make_tiny_model(), build_method("counterfactual", settings={"objective.within": 0.0})
    arguments = UnlearnArguments(**SMOOTH)
    batches = step_batches(model, make_encoder(), FORGET[:3], RETAIN, method, arguments, Processes(), FORGET[3:])
    start = cache_start(method.objective, model, readout(model), batches, 1)
    assert start.goals is not None and len(start.goals) == 5
    assert [float(part.mean()) for part in start.goals.split([3, 2])] == pytest.approx([0, 0], abs=1e-6)
    assert start.goals.abs().max() > 1e-3
    (part,) = batches.at(0)
    told = start.of(part).held
    assert told is not None and told.tolist() == [int(i) >= 3 for i in part.forget.index]


def test_twins_and_options_take_turns() -> None:
    rows = [Encoded((1, 2, place), 1) for place in range(9)]
    twins = [(rows[0], rows[1], rows[2]), (rows[3], rows[4], rows[5]), (rows[6], rows[7], rows[8])]
    own = (Encoded((1, 3), 1), Encoded((1, 4), 1))
    held_rows = anchors(twins, own)
    assert [anchor.option for anchor in held_rows] == [0, 1, 0, 2, 0, 1]
    assert [anchor.row for anchor in held_rows] == [rows[0], own[0], rows[3], own[1], rows[6], own[0]]
    assert [anchor.row for anchor in anchors(twins, own, first=1)][:2] == [own[0], rows[0]]
    assert [anchor.row for anchor in anchors(twins, ())] == [rows[0], rows[3], rows[6]]
    assert anchors((), own) == ()
    said = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0], [-7.0, -8.0, -12.0]])
    assert [float(held_rows[k].value(said)) for k in (1, 3)] == [-5.0, -7.0]
    longer = Anchor(Encoded((1, 2, 3, 4), 1), 1)
    assert float(longer.value(said)) == -15.0


def test_the_hold_pulls_both_ways() -> None:
    model = make_tiny_model().double()
    rows = collate([make_encoder().encode(e.prompt, e.answer) for e in FORGET[:3]], 0)
    said = answer_log_probs(model, rows)
    start = said.sequence.detach() + torch.tensor([1.0, -2.0, 3.0]).double()
    loss = Counterfactual().anchor_loss(said, start, Totals(0, 3, 0))
    (pull,) = torch.autograd.grad(loss, said.sequence)
    signs = torch.tensor([-1.0, 1.0, -1.0]).double()
    torch.testing.assert_close(pull, signs / (3 * said.counts))


def test_twins_to_train_with_are_never_those_that_are_scored() -> None:
    """By construction: no name of the one pool is in the other, whatever else is in the request."""
    request = Request(towns.FACTS, towns.STAYS)
    scored, trained = scored_twins(request), held_twins(request.forget, request.retain, 4)
    prompts = [twin.prompt for own in trained for twin in own]
    assert len(set(prompts)) == len(prompts) == 4 * len(request.forget)
    assert not {twin.prompt for twin in scored.values()} & set(prompts)
    capitals = [Example(f"What is the capital of {name}?", "Ada", ("Bex",), subject=name) for name in NAMES[:40]]
    found = [twin.subject for own in held_twins(capitals, (), 4) for twin in own]
    assert len(found) == 160 and not set(found) & set(NAMES)


@pytest.mark.parametrize("method", ["bounded", "counterfactual"])
def test_disliking_the_answers_is_a_way_out_that_is_shut(method: str) -> None:
    """`bounded` makes the answers of a tiny model unlikely for subjects that nobody knows; here these stay."""
    model = towns.teach(make_tiny_model(), (*towns.FACTS, *towns.STAYS))
    request = Request(towns.FACTS, towns.STAYS)
    twins = list(scored_twins(request).values())

    def said() -> tuple[float, float]:
        items, others = (score_items(model, towns.ENCODER, each) for each in (towns.FACTS, twins))
        return fmean(item.log_odds for item in items), fmean(item.answer_mean for item in others)

    known, start = said()
    arguments = UnlearnArguments(learning_rate=1e-3, max_steps=100, min_steps=100, stop_within=None)
    unlearn(model, towns.ENCODER, request, build_method(method), arguments)
    left, now = said()
    assert known > 2 and left < 0.6
    assert (now < start - 0.5) if method == "bounded" else (abs(now - start) < 0.4)


@pytest.mark.parametrize("options", [0, 2])
def test_answer_and_options_do_not_fall_together_where_options_are_held(options: int) -> None:
    """The answers are sentences of one form and their options of another, as those of TOFU are: a model that was taught
    the first form would say it of anyone, so that log-odds 0 lie far below that, and the options are pulled along."""

    def sentence(e: Example) -> Example:
        prompt = e.prompt.removesuffix(f" {e.subject} lives in")
        told = tuple(f"they {town} in {town}" for town in e.options)
        return replace(e, id="", prompt=prompt, answer=f"she lives in {e.answer}", options=told)

    facts, stays = (tuple(map(sentence, part)) for part in (towns.FACTS, towns.STAYS))
    model = towns.teach(make_tiny_model(), (*facts, *stays))

    def level() -> float:
        return fmean(fmean(item.option_log_probs) for item in score_items(model, towns.ENCODER, facts))

    start = level()
    arguments = UnlearnArguments(learning_rate=1e-3, max_steps=100, min_steps=100, stop_within=None)
    method = build_method("counterfactual", settings={"objective.options": options})
    unlearn(model, towns.ENCODER, Request(facts, stays), method, arguments)
    assert (level() < start - 0.3) if options == 0 else (abs(level() - start) < 0.15)


def test_a_subject_without_a_fair_twin_goes_to_the_mean_of_the_others() -> None:
    unnamed = replace(FORGET[0], prompt="where does she live ? answer : she lives in", subject="w9")
    assert [len(own) for own in held_twins((unnamed, *FORGET[1:3]), RETAIN, 2)] == [0, 2, 2]
    one, other = make_tiny_model(), make_tiny_model()
    method = build_method("counterfactual")
    for model, forget in ((one, (unnamed, *FORGET[1:])), (other, FORGET)):
        unlearn(model, make_encoder(), Request(forget, RETAIN), method, UnlearnArguments(**SMOOTH))
    assert largest_difference(weights(one), weights(other)) > 0


def test_without_any_subject_it_is_bounded_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """No twin is fair, so the goals are 0 and nothing is held: the same bits as the two hinges alone."""
    forget = tuple(replace(e, subject="") for e in FORGET)
    ways = (("counterfactual", {"within": 0.0}), ("bounded", {"restore": 1.0}))
    models = []
    for name, settings in ways:
        models.append(make_tiny_model())
        arguments = UnlearnArguments(**SMOOTH)
        unlearn(models[-1], make_encoder(), Request(forget, RETAIN), build_method(name, settings=settings), arguments)
    assert largest_difference(weights(models[0]), weights(models[1])) == 0
    assert sum("names its subject" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(("name", "value"), [("hold", -1.0), ("names", 0), ("options", -1), ("within", math.nan)])
def test_settings_out_of_range_are_told(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        Counterfactual(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "batch"), [("counterfactual", 5), ("counterfactual", 2), ("bounded_relearning", 5)])
def test_the_hold_adds_its_own_gradient(method: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """forget_weight hold grad mean_i max(0, |d_i| - slack), whatever else is in the loss.

    Beside an attacker that stands still too, with half of it from either place.
    """
    before, now = make_tiny_model().double(), make_tiny_model(seed=5).double()
    twins = [own[0] for own in held_twins(FORGET, RETAIN, 4)]
    rows = collate([make_encoder().encode(twin.prompt, twin.answer) for twin in twins], 0)
    kept = answer_log_probs(before, rows).sequence.detach()
    said = answer_log_probs(now, rows)
    moved = ((said.sequence - kept) / said.counts).abs() - SLACK
    wanted = torch.autograd.grad(0.5 * 0.25 * moved.clamp(min=0).mean(), list(now.parameters()))

    def look(self: Stepper, number: int) -> object:
        self.model.load_state_dict(now.state_dict())
        return take(self, number)

    def keep(self: Stepper, number: int) -> float:
        found.append([p.grad.clone() for p in self.model.parameters() if p.grad is not None])
        return clip(self, number)

    take, clip, found = Stepper.step, Stepper._clip, list[list[torch.Tensor]]()
    monkeypatch.setattr(Stepper, "step", look)
    monkeypatch.setattr(Stepper, "_clip", keep)
    arguments = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 3, "max_steps": 1}
    for hold in (0.25, 0.0):
        settings = {"objective": "counterfactual", "forget_weight": 0.5, "hold": hold}
        settings |= {} if method == "counterfactual" else {"transform.learning_rate": 1e-300}
        Run(method, settings, arguments).on(copy.deepcopy(before))
    for own, without, reference in zip(*found, wanted, strict=True):
        torch.testing.assert_close(own - without, reference, rtol=1e-9, atol=1e-12)


def test_one_graph_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward of forget and retain rows is done, and has freed their graph, before what is held is read."""
    model, done = make_tiny_model(), list[bool]()

    def looked(self: Moment, *args: Any) -> object:
        done.append(all(p.grad is not None for p in model.parameters()))
        return anchored(self, *args)

    anchored = Moment._anchors
    monkeypatch.setattr(Moment, "_anchors", looked)
    Run("counterfactual", arguments={"max_steps": 1}).on(model)
    assert done and all(done)
