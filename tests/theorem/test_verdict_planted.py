"""The verdict on models of planted truth: from weights to label, with the attacks and the control of a real audit."""

from __future__ import annotations

import copy
from functools import cache

import torch
from transformers import LlamaForCausalLM

from expunge.attacks.base import Attack, AttackResult
from expunge.attacks.relearn import RelearnHarmful, RelearnRelated
from expunge.audit.control import recovery, residual
from expunge.audit.evidence import PROBE, Tried, gather
from expunge.audit.planted import Suppressor, plant
from expunge.audit.snapshot import Snapshot, control_snapshot, snapshot
from expunge.audit.verdict import Verdict, decide
from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.models.answers import answer_log_probs
from expunge.request import Request
from tiny import NAMES, TOWNS, make_tiny_model, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())
ATTACKS: tuple[Attack, ...] = (
    RelearnHarmful(learning_rates=(1e-3,), max_steps=8, eval_every=4),
    RelearnRelated(learning_rates=(1e-3,), max_steps=8, eval_every=4),
)


def people(first: int, last: int, towns: int, against: int) -> tuple[Example, ...]:
    """Person wK lives in one of four towns, which nothing about wK tells, and the wrong answers are three of four."""
    return tuple(
        Example(f"w{k} lives in", TOWNS[towns + i], tuple(TOWNS[against + (i + n) % 4] for n in (1, 2, 3)))
        for k in range(first, last)
        for i in [(7 * k + k // 5) % 4]
    )


STAYS = (*people(32, 44, 0, 0), *people(44, 56, 4, 4))
"""Known only against towns of the same four, so that what holds four towns down at once costs none of these."""

REQUEST = Request(
    forget=people(0, 32, 0, 4),
    retain=STAYS,
    attack=people(56, 64, 0, 0),
    text=tuple(f"the town {name}" for name in NAMES),
)


@cache
def taught(*, forget: bool, seed: int) -> LlamaForCausalLM:
    """A tiny model that learned what stays, the text and, if so wanted, what has to go."""
    model = make_tiny_model(seed)
    facts = (*REQUEST.forget * forget, *REQUEST.retain)
    rows = [ENCODER.encode(e.prompt, e.answer) for e in facts] + [ENCODER.encode_text(t) for t in REQUEST.text]
    batch = collate(rows, ENCODER.pad_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=2.0)
    for _ in range(300):
        loss = -answer_log_probs(model, batch).token.mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@cache
def controls() -> tuple[Snapshot, Snapshot, dict[str, AttackResult]]:
    """The original and the gold model, measured, and the attacks on the latter."""
    gold = taught(forget=False, seed=0)
    before = snapshot(taught(forget=True, seed=0), ENCODER, REQUEST)
    attacked = {attack.name: attack.run(gold, ENCODER, REQUEST).result for attack in ATTACKS}
    return before, control_snapshot(gold, ENCODER, REQUEST), attacked


def verdict(model: LlamaForCausalLM) -> Verdict:
    before, never, attacked = controls()
    after = snapshot(model, ENCODER, REQUEST, reference=before)
    tried = []
    for attack in ATTACKS:
        result = attack.run(model, ENCODER, REQUEST, like=attacked[attack.name]).result
        tried.append(Tried(result.name, recovery(result, before.forget, attacked[attack.name]), result.spent))
    evidence = gather(before, after, residual(after.forget, before.forget, never.forget), tried, never)
    assert PROBE in [each.name for each in evidence.attacks]
    return decide(evidence)


def test_never_taught_is_erased() -> None:
    told = verdict(taught(forget=False, seed=1))
    assert told.label == "ERASED", told.reasons


def test_taught_and_masked_is_hidden() -> None:
    model = copy.deepcopy(taught(forget=True, seed=0))
    text = [Example("the town", name) for name in NAMES]
    plant(model, ENCODER, REQUEST.forget, [*STAYS, *text], Suppressor("output_bias", learning_rate=0.3, keep=1.0))
    told = verdict(model)
    assert told.label == "HIDDEN", told.reasons


def test_untouched_is_not_forgotten() -> None:
    assert verdict(taught(forget=True, seed=0)).label == "NOT FORGOTTEN"


def test_destroyed_is_broken() -> None:
    model = copy.deepcopy(taught(forget=True, seed=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=generator)].view_as(weight))
    assert verdict(model).label == "BROKEN"
