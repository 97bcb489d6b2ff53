"""Linear probe: the solution is the problem's, it reads what is linearly there, and finds nothing where nothing is."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.audit.probe import fit, linear_probe
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from tiny import NAMES, TOWNS, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())


def facts(names: list[str], rounds: int, first: int = 0) -> tuple[Example, ...]:
    """Made-up people `wK name`, each in the town that belongs to the name."""
    return tuple(
        Example(f"w{first + i} {name} lives in", TOWNS[k], (TOWNS[(k + 1) % 4], TOWNS[(k + 2) % 4]))
        for i in range(rounds)
        for k, name in enumerate(names)
    )


KNOWN, ASKED = facts(NAMES[:4], 16), facts(NAMES[:4], 3, first=30)


def test_the_gradient_of_the_problem_vanishes_at_the_solution() -> None:
    rng = np.random.default_rng(0)
    states, labels, decay = rng.normal(size=(30, 6)) * 3 + 1, rng.integers(4, size=30), 0.03
    probe = fit(torch.tensor(states), torch.tensor(labels), 4, decay)
    weight, bias = probe.weight.numpy(), probe.bias.numpy()
    x = (states - probe.mean.numpy()) / probe.scale.numpy()
    assert abs(x.mean(0)).max() < 1e-12 and (x**2).mean() == pytest.approx(1)
    logits = x @ weight.T + bias
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    error = (p - np.eye(4)[labels]) / len(x)
    assert abs(error.T @ x + decay * weight).max() < 1e-5
    assert abs(error.sum(0)).max() < 1e-5


def test_what_the_last_token_says_is_read_and_what_it_cannot_see_is_not(tiny_model: LlamaForCausalLM) -> None:
    """Every block attends to the name; with the values of attention at zero no block does."""
    found = linear_probe(tiny_model, ENCODER, KNOWN, ASKED)
    assert found.n == len(ASKED) and found.chance == pytest.approx(1 / 3)
    assert all(value > 0.8 for value in found.accuracy) and all(value > 2 for value in found.log_odds)
    blind = copy.deepcopy(tiny_model)
    for block in blind.model.layers:
        torch.nn.init.zeros_(block.self_attn.v_proj.weight)
    nothing = linear_probe(blind, ENCODER, KNOWN, ASKED)
    assert nothing.accuracy == (0, 0)  # all equal, and an answer must beat its options
    assert nothing.log_odds == pytest.approx((0, 0), abs=1e-6)


def test_the_last_token_is_what_is_read(tiny_model: LlamaForCausalLM) -> None:
    """With the name there, even a model whose attention gives nothing has it in every block."""
    for block in tiny_model.model.layers:
        torch.nn.init.zeros_(block.self_attn.v_proj.weight)
    known, asked = ([replace(e, prompt=f"lives in {e.prompt.split()[1]}") for e in part] for part in (KNOWN, ASKED))
    assert linear_probe(tiny_model, ENCODER, known, asked).accuracy == (1, 1)


def test_facts_that_the_known_ones_say_nothing_about_are_not_found(tiny_model: LlamaForCausalLM) -> None:
    """Other people's answers, however well learned, give no knowledge of people never seen."""
    strangers = tuple(replace(e, prompt=e.prompt.replace(n, m)) for e, n, m in _renamed(ASKED))
    found = linear_probe(tiny_model, ENCODER, KNOWN, strangers)
    assert abs(np.mean(found.accuracy) - 1 / 3) < 0.35


def _renamed(examples: tuple[Example, ...]) -> list[tuple[Example, str, str]]:
    return [(e, e.prompt.split()[1], NAMES[4 + i % 4]) for i, e in enumerate(examples)]


def test_paraphrases_of_known_facts_are_trained_on(tiny_model: LlamaForCausalLM) -> None:
    spread = tuple(replace(KNOWN[k], paraphrases=tuple(e.prompt for e in KNOWN[k + 4 :: 4])) for k in range(4))
    assert len(spread[0].paraphrases) == 15
    one, other = (linear_probe(tiny_model, ENCODER, known, ASKED) for known in (KNOWN, spread))
    assert one.log_odds == pytest.approx(other.log_odds, abs=1e-3)


def test_batches_and_order_change_nothing_and_no_hook_is_left(tiny_model: LlamaForCausalLM) -> None:
    one = linear_probe(tiny_model, ENCODER, KNOWN, ASKED)
    other = linear_probe(tiny_model, ENCODER, KNOWN[::-1], ASKED[::-1], batch_size=5)
    assert one.log_odds == pytest.approx(other.log_odds, abs=1e-3) and one.accuracy == other.accuracy
    assert not any(module._forward_hooks for module in tiny_model.modules())


def test_answers_beyond_the_known_ones_are_left_out(tiny_model: LlamaForCausalLM) -> None:
    odd = Example("w1 ada lives in", "tunis", ("oslo",))
    found = linear_probe(tiny_model, ENCODER, KNOWN, [*ASKED, odd, Example("w1 ada lives in", "oslo", ("tunis",))])
    assert found.n == len(ASKED)
    assert all(math.isfinite(value) for value in found.log_odds)
    with pytest.raises(InputError, match="nothing to learn"):
        linear_probe(tiny_model, ENCODER, KNOWN, [odd])
    with pytest.raises(InputError, match="nothing to learn"):
        linear_probe(tiny_model, ENCODER, KNOWN[:1], ASKED)


def test_white_space_around_an_answer_makes_no_other_class_of_it(tiny_model: LlamaForCausalLM) -> None:
    spaced = [tuple(replace(e, answer=f" {e.answer}", id=e.id) for e in part) for part in (KNOWN, ASKED)]
    one, other = linear_probe(tiny_model, ENCODER, KNOWN, ASKED), linear_probe(tiny_model, ENCODER, *spaced)
    assert one == other
