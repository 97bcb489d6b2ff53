"""Objectives that look at other answers to the forget prompts: bounded, dpo, idk."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import families
from expunge.data.collate import Encoded, collate
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.answers import Answers, answer_log_probs, forward_pair
from expunge.models.architecture import readout
from expunge.models.candidates import answers_after, prompt_cache
from expunge.models.scores import score_items
from expunge.unlearning.objectives.base import Companions, Objective, StartValues, Totals
from expunge.unlearning.objectives.bounded import Bounded, bounded_forget, margins
from expunge.unlearning.objectives.dpo import DPO, preference
from expunge.unlearning.objectives.idk import IdkNLL
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, Run, largest_difference, make_encoder, weights

TOTALS = Totals(3, 3, 6)


class Rows:
    """Three forget rows of a tiny model in float64 and, for each, what `objective` looks at beside it."""

    def __init__(self, objective: Objective) -> None:
        self.model, self.encoder = make_tiny_model().double(), make_encoder()
        texts = [(e, text) for e in EXAMPLES[:3] for text in objective.companions(e)]
        owner = torch.tensor([EXAMPLES.index(e) for e, _ in texts])
        self.forget = self._answers([(e, e.answer) for e in EXAMPLES[:3]])
        self.beside = Companions(self._answers(texts), owner)

    def _answers(self, asked: list[tuple[Example, str]]) -> Answers:
        encoded = [self.encoder.encode(e.prompt, text) for e, text in asked]
        return answer_log_probs(self.model, collate(encoded, 0))

    def start(self, **values: Any) -> StartValues:
        return StartValues(None, None, lambda hidden: hidden, self.beside, **values)


def test_margins_are_the_log_odds_of_the_audit() -> None:
    rows = Rows(Bounded())
    audited = [item.log_odds for item in score_items(rows.model, rows.encoder, EXAMPLES[:3])]
    assert margins(rows.forget, rows.beside).tolist() == pytest.approx(audited, abs=1e-8)


def test_the_hinge_is_its_formula_and_leaves_the_ignorant_alone() -> None:
    margin = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    for restore, lower in ((0.0, 0.0), (0.5, 0.5)):
        loss = bounded_forget(margin, 0.25, restore, 3)
        assert loss.item() == pytest.approx((1.75 + lower * 1.25 + 0.25) / 3, rel=1e-12)
        (pushed,) = torch.autograd.grad(loss, margin)
        assert pushed.tolist() == pytest.approx([1 / 3, -lower / 3, 1 / 3])


def test_bounded_pushes_answers_and_not_their_options() -> None:
    """The loop takes the options without a gradient; only the answer's log-probability carries one."""
    assert not Bounded.trains_companions
    rows = Rows(Bounded(margin=-50.0))
    loss = Bounded(margin=-50.0).forget_loss(rows.forget, TOTALS, rows.start())
    (pushed,) = torch.autograd.grad(loss, rows.forget.sequence)
    counts = rows.forget.counts.double()
    assert pushed.tolist() == pytest.approx((1 / (3 * counts)).tolist(), rel=1e-9)


def test_bounded_has_no_gradient_left_at_ignorance() -> None:
    """From a model that is already inverted on every item, a step moves nothing at all."""
    model = make_tiny_model()
    before = weights(model)
    Run("bounded", {"margin": 50.0, "retain_weight": 0.0}, {"max_steps": 2}).on(model)
    assert largest_difference(before, weights(model)) == 0
    Run("bounded", {"margin": -50.0, "retain_weight": 0.0}, {"max_steps": 1}).on(model)
    assert largest_difference(before, weights(model)) > 0


def test_ascent_runs_away_and_bounded_does_not() -> None:
    long = {"max_steps": 80, "stop_log_odds": None, "eval_steps": 80, "learning_rate": 1e-3}
    ends = {name: Run(name, arguments=long).make()[0].final.log_odds for name in ("bounded", "graddiff")}
    assert ends["bounded"] > -3.5
    assert ends["graddiff"] < -8


def test_bounded_needs_options() -> None:
    with pytest.raises(InputError, match="needs wrong options"):
        Bounded().companions(Example("Q?", "a"))


PROMPTS = [Encoded((5, 6, 7, 8), 3), Encoded((9, 10, 11, 12, 13, 14), 4), Encoded((20, 21), 1)]
AFTER = [
    (0, Encoded((5, 6, 7, 30, 31, 32), 3)),  # another answer
    (1, Encoded((9, 10, 11, 12, 13), 4)),  # the beginning of the row's own
    (1, Encoded((9, 10, 40, 12, 41), 4)),  # another prompt, as where a tokenizer melts it into the answer
    (1, Encoded((9, 10, 11, 12, 13, 14, 15, 16), 7)),  # goes on where the row ends
    (2, Encoded((20, 33, 34), 1)),  # a prompt of one token
    (0, Encoded((44, 45), 1)),  # nothing in common
]


@pytest.mark.parametrize("family", families.CONFIGS)
def test_answers_after_a_prompt_are_those_of_the_whole_rows(family: str) -> None:
    model = families.family_model(family).double()
    forget, retain = collate(PROMPTS, 0), collate([Encoded(tuple(range(50, 57)), 4)], 0)
    owner, rows = torch.tensor([row for row, _ in AFTER]), collate([encoded for _, encoded in AFTER], 0)
    cache = prompt_cache(model, 15)
    if getattr(model.config, "sliding_window", None):
        assert cache is None  # the window of 8 is shorter than the rows
        return
    assert cache is not None
    said, _ = forward_pair(model, forget, retain, 0, cache=cache)
    after = answers_after(readout(model), rows, forget, owner, cache)
    whole = answer_log_probs(model, rows)
    torch.testing.assert_close(after.token, whole.token.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(after.sequence, whole.sequence.detach(), rtol=1e-9, atol=1e-10)
    assert (after.counts.tolist(), after.targets.tolist()) == (whole.counts.tolist(), whole.targets.tolist())
    assert not after.token.requires_grad
    said.sequence.sum().backward()
    kept = {name: p.grad for name, p in model.named_parameters()}
    model.zero_grad()
    forward_pair(model, forget, retain, 0)[0].sequence.sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(kept[name], p.grad, rtol=1e-9, atol=1e-10)


def test_a_step_reads_options_after_the_prompts_that_it_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, from far fewer tokens."""
    runs = {}
    for way in ("cached", "in full"):
        model = make_tiny_model()
        tokens: list[int] = []
        embedding = model.get_input_embeddings()
        embedding.register_forward_hook(lambda module, ids, out, to=tokens: to.append(ids[0].numel()))
        if way == "in full":
            monkeypatch.setattr("expunge.unlearning.step.prompt_cache", lambda *_: None)
        Run("bounded", arguments={"max_steps": 3, "stop_log_odds": None, "eval_steps": 3}).on(model)
        runs[way] = sum(tokens), weights(model)
    assert runs["cached"][0] < 0.8 * runs["in full"][0]
    assert largest_difference(runs["cached"][1], runs["in full"][1]) < 1e-6


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_dpo_is_its_formula(beta: float) -> None:
    random = np.random.default_rng(1)
    refused, refused_start, answered, answered_start = -5 * random.random((4, 6))
    reward = (refused - refused_start) - (answered - answered_start)
    expected = -2 / beta * np.mean(np.log(1 / (1 + np.exp(-beta * reward))))
    assert preference(torch.tensor(reward), beta, 6).item() == pytest.approx(expected, rel=1e-12)


def test_dpo_starts_at_its_constant_and_pulls_both_ways() -> None:
    rows = Rows(DPO())
    start = rows.start(companions_start=rows.beside.answers.sequence.detach())
    start = StartValues(rows.forget.sequence.detach(), None, start.logits, rows.beside, start.companions_start)
    loss = DPO(beta=0.3).forget_loss(rows.forget, TOTALS, start)
    assert loss.item() == pytest.approx(2 / 0.3 * math.log(2), rel=1e-9)
    down, up = torch.autograd.grad(loss, [rows.forget.sequence, rows.beside.answers.sequence])
    assert down.tolist() == pytest.approx([1 / 3] * 3)
    assert up.tolist() == pytest.approx([-1 / 3] * 3)


def test_idk_is_the_mean_nll_of_the_refusals() -> None:
    rows = Rows(IdkNLL())
    answers = rows.beside.answers
    expected = -np.mean((answers.sequence.detach() / answers.counts).numpy())
    assert IdkNLL().forget_loss(rows.forget, TOTALS, rows.start()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("bounded", {"margin": -5.0}),
        ("counterfactual", {}),
        ("counterfactual", {"objective.options": 2}),
        ("counterfactual", {"transform": "attribution", "strength": 10.0}),
        ("dpo", {}),
        ("idk", {}),
    ],
)
def test_the_cut_of_a_step_changes_nothing(method: str, settings: dict[str, float]) -> None:
    whole, parts = (
        Run(method, settings, {"per_device_train_batch_size": n, "gradient_accumulation_steps": 4 // n}, double=True)
        for n in (4, 1)
    )
    (one, first), (other, second) = whole.make(), parts.make()
    assert largest_difference(weights(first), weights(second)) < 1e-10
    assert one.history[-1].loss == pytest.approx(other.history[-1].loss, rel=1e-9)
