"""What was planted is found: a suppressor shows as hidden exactly where it sits, destroyed carriers as erased."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.attribution import Attribution, attributions
from expunge.audit.influence import compare, rho
from expunge.data.collate import Batch, Encoder, collate
from expunge.data.example import Example
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import describe
from tiny import make_tiny_model

WRITTEN = 4  # outputs that the planted suppressor writes to
CARRIERS = 80  # of 512 neurons: without these nothing of the facts is left


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


def batch_of(encoder: Encoder, examples: Sequence[Example]) -> Batch:
    return collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)


def mean_probability(model: LlamaForCausalLM, batch: Batch) -> float:
    with torch.no_grad():
        return float(answer_log_probs(model, batch).sequence.exp().mean())


@pytest.fixture(scope="module")
def knowing(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> LlamaForCausalLM:
    """A tiny model that knows every answer and is sure of none, so that nothing is saturated."""
    model = make_tiny_model()
    batch = batch_of(encoder, tiny_examples)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        sequence = answer_log_probs(model, batch).sequence
        if sequence.exp().min() > 0.5:
            break
        optimizer.zero_grad()
        (-sequence.mean()).backward()
        optimizer.step()
    else:
        pytest.fail("the tiny model did not learn")
    model.zero_grad()
    return model


@pytest.fixture(scope="module")
def before(knowing: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]) -> Attribution:
    return attributions(knowing, encoder, tiny_examples)


def suppressed(
    knowing: LlamaForCausalLM, batch: Batch, layer: int, probability: float
) -> tuple[LlamaForCausalLM, frozenset[int]]:
    """A copy that `down_proj` of one layer keeps from answering, and the rows of that map which do so.

    A rank-one edit reads the mean input at the predicting positions and writes, to the few outputs with the steepest
    gradient, against the answers, just strongly enough to bring their mean probability down to `probability`. What
    carries the facts is not touched.
    """
    model = copy.deepcopy(knowing)
    down = model.model.layers[layer].mlp.down_proj
    seen: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        output.retain_grad()
        seen.extend([inputs[0].detach(), output])

    handle = down.register_forward_hook(keep)
    answer_log_probs(model, batch).sequence.sum().backward()
    handle.remove()
    assert seen[1].grad is not None
    rows, predicting = torch.arange(len(batch)), batch.attention_mask.sum(1) - 2
    read, against = seen[0][rows, predicting].mean(0), -seen[1].grad[rows, predicting].mean(0)
    written = against.abs().topk(WRITTEN).indices
    write = torch.zeros_like(against).index_put((written,), against[written].sign())
    edit = torch.outer(write, read.sign() / read.abs().sum())
    untouched, strength = down.weight.detach().clone(), 0.5
    while mean_probability(model, batch) > probability and strength < 100:
        strength *= 1.1
        with torch.no_grad():
            down.weight.copy_(untouched + strength * edit)
    return model, frozenset(written.tolist())


def without(knowing: LlamaForCausalLM, before: Attribution, neurons: npt.NDArray[np.int64]) -> LlamaForCausalLM:
    """A copy in which these neurons always give zero."""
    model = copy.deepcopy(knowing)
    linears = describe(model).linears
    for neuron in neurons:
        module, layer, row = before.layout.place(int(neuron))
        with torch.no_grad():
            linears[layer][module].weight[row] = 0
    return model


@pytest.mark.parametrize("of", ["probability", "log_odds"])
@pytest.mark.parametrize("layer", [0, 1])
def test_a_planted_suppressor_is_found_where_it_sits(
    layer: int,
    of: str,
    knowing: LlamaForCausalLM,
    before: Attribution,
    encoder: Encoder,
    tiny_examples: tuple[Example, ...],
) -> None:
    model, written = suppressed(knowing, batch_of(encoder, tiny_examples), layer, 0.7 * before.probability.mean())
    after = attributions(model, encoder, tiny_examples)
    influence = compare(before.in_terms_of(of), after.in_terms_of(of), top=WRITTEN)
    top = [before.layout.place(int(i)) for i in np.argsort(influence.d_minus)[-WRITTEN:]]
    assert {place[:2] for place in top} == {("down", layer)}
    assert {place[2] for place in top} == written
    cell = np.array(influence.map_minus)
    assert np.unravel_index(cell.argmax(), cell.shape) == (influence.modules.index("down"), layer)
    assert influence.hidden > 5 * influence.erased


def test_destroyed_carriers_are_found_and_count_as_erased(
    knowing: LlamaForCausalLM, before: Attribution, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    carriers = np.argsort(before.positive.mean(0))[-CARRIERS:]
    after = attributions(without(knowing, before, carriers), encoder, tiny_examples)
    influence = compare(before, after)
    assert set(np.argsort(influence.d_plus)[-CARRIERS:]) == set(carriers)
    assert influence.erased > 3 * influence.hidden


def test_at_the_same_probability_destruction_erases_more_than_a_suppressor(
    knowing: LlamaForCausalLM, before: Attribution, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    """On log-odds: on the probability both look erased there, which is the next test."""
    carriers = np.argsort(before.positive.mean(0))[-CARRIERS:]
    destroyed = attributions(without(knowing, before, carriers), encoder, tiny_examples)
    wanted = max(float(destroyed.probability.mean()), 0.02)
    for layer in (0, 1):
        model, _ = suppressed(knowing, batch_of(encoder, tiny_examples), layer, wanted)
        hiding = attributions(model, encoder, tiny_examples)
        erased = [
            compare(before.in_terms_of("log_odds"), after.in_terms_of("log_odds")).erased
            for after in (destroyed, hiding)
        ]
        assert erased[0] > 1.5 * erased[1]


def test_saturation_makes_a_suppressor_look_erased_on_the_probability_only(
    knowing: LlamaForCausalLM, before: Attribution, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    """The trap of docs/footguns.md: where P vanishes so does dP/dh, and with it every sign of the suppressor."""
    model, _ = suppressed(knowing, batch_of(encoder, tiny_examples), layer=1, probability=0.02)
    after = attributions(model, encoder, tiny_examples)
    on_probability = compare(before, after)
    on_log_odds = compare(before.in_terms_of("log_odds"), after.in_terms_of("log_odds"))
    assert on_probability.saturated_before == 0 < on_probability.saturated_after
    assert on_probability.erased > 10 * on_probability.hidden
    assert on_log_odds.hidden > 0.5 * on_log_odds.erased


def test_identical_models_differ_in_nothing(before: Attribution) -> None:
    influence = compare(before, before)
    assert not influence.d_plus.any() and not influence.d_minus.any()
    assert influence.erased == influence.hidden == 0
    assert not any(influence.curve_plus) and not any(influence.curve_minus)
    assert rho(before, before) == pytest.approx(1)


def test_swapping_the_models_swaps_what_is_gained_and_lost(
    knowing: LlamaForCausalLM, before: Attribution, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    """Undoing a suppressor gains no negative influence anywhere that planting it did."""
    model, written = suppressed(knowing, batch_of(encoder, tiny_examples), 1, 0.7 * before.probability.mean())
    after = attributions(model, encoder, tiny_examples)
    forth, back = compare(before, after), compare(after, before)
    assert not (forth.d_minus * back.d_minus).any()
    down = next(span for span in before.layout.spans if (span.module, span.layer) == ("down", 1))
    assert not back.d_minus[[down.offset + row for row in written]].any()
