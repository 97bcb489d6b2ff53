"""The head on answer positions only is the plain computation: same values, same gradients, whatever the batch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from expunge.data.collate import Batch, Encoded, collate
from expunge.models import answers as answers_module
from expunge.models.answers import answer_log_probs, cache_reference, evaluating, forward_pair, length_sorted
from expunge.models.architecture import describe
from families import CONFIGS, family_model
from tiny import make_tiny_model

ITEMS = (
    Encoded((5, 9, 13, 40, 2, 7), 3),
    Encoded((8, 21, 33), 2),
    Encoded((11, 12, 14, 50, 61, 70, 71, 72, 73), 1),
    Encoded((90, 3, 4, 17), 2),
)


def plain(model: torch.nn.Module, item: Encoded) -> Tensor:
    """log P of one answer: full logits of one unpadded row, in float64."""
    ids = torch.tensor([item.ids])
    log_p = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum((log_p[t - 1, item.ids[t]] for t in range(item.answer_start, len(item.ids))), torch.zeros(()))


@pytest.mark.parametrize("family", CONFIGS)
def test_equals_the_full_logits_in_float64(family: str) -> None:
    model = family_model(family).double()
    answers = answer_log_probs(model, collate(ITEMS, 0))
    expected = torch.stack([plain(model, item) for item in ITEMS])
    assert answers.sequence.dtype == torch.float64
    assert torch.allclose(answers.sequence, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("family", CONFIGS)
def test_gradient_equals_the_full_logits_gradient(family: str) -> None:
    model = family_model(family).double()
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    (answer_log_probs(model, collate(ITEMS, 0)).sequence * weights).sum().backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    sum(w * plain(model, item) for w, item in zip(weights, ITEMS, strict=True)).backward()
    for name, parameter in model.named_parameters():
        assert torch.allclose(ours[name], parameter.grad, atol=1e-9), name


def test_softcap_is_not_small() -> None:
    """Guards the two tests above: without the cap of gemma2 the values would differ visibly."""
    model = family_model("gemma2").double()
    arch = describe(model)
    hidden = answer_log_probs(model, collate(ITEMS, 0)).hidden
    assert (arch.logits(hidden) - arch.head(hidden)).abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_softmax_is_fp32_whatever_the_models_dtype(dtype: torch.dtype) -> None:
    model = make_tiny_model().to(dtype)
    answers = answer_log_probs(model, collate(ITEMS, 0))
    logits = model.lm_head(answers.hidden).double()
    exact = logits.log_softmax(-1).gather(1, answers.targets[:, None])[:, 0]
    assert answers.hidden.dtype == dtype
    assert answers.token.dtype == answers.sequence.dtype == torch.float32
    assert torch.allclose(answers.token.double(), exact, atol=1e-5)


items = st.builds(
    lambda ids, start: Encoded(tuple(ids), 1 + start % (len(ids) - 1)),
    st.lists(st.integers(3, 95), min_size=2, max_size=12),
    st.integers(0, 10),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(items, min_size=2, max_size=6), st.integers(1, 5), st.integers(0, 9))
def test_independent_of_padding_and_company(rows: list[Encoded], size: int, extra: int) -> None:
    model = make_tiny_model()
    wide = Encoded(tuple(range(3, 3 + 12 + extra)), 1)
    with evaluating(model):
        together = answer_log_probs(model, collate([*rows, wide], 95)).sequence[:-1]
        alone = torch.cat([answer_log_probs(model, collate([row], 0)).sequence for row in rows])
        sorted_ = torch.zeros(len(rows))
        for batch in length_sorted(rows, 7, size):
            sorted_[batch.index] = answer_log_probs(model, batch).sequence
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(sorted_, alone, atol=1e-5)


def test_token_values_say_where_they_are_from() -> None:
    model = make_tiny_model().double()
    answers = answer_log_probs(model, collate(ITEMS, 0))
    assert answers.counts.tolist() == [3, 1, 8, 2]
    assert answers.rows.tolist() == [0] * 3 + [1] + [2] * 8 + [3] * 2
    assert answers.targets.tolist() == [i for item in ITEMS for i in item.ids[item.answer_start :]]
    sums = torch.zeros(4, dtype=torch.float64).index_add(0, answers.rows, answers.token)
    assert torch.equal(sums, answers.sequence)


def test_moving_the_answer_start_moves_exactly_those_tokens() -> None:
    """log P(y1 y2 | x) = log P(y1 | x) + log P(y2 | x y1)."""
    model = make_tiny_model().double()
    ids = ITEMS[0].ids
    whole = answer_log_probs(model, collate([Encoded(ids, 2)], 0)).sequence
    first = answer_log_probs(model, collate([Encoded(ids[:4], 2)], 0)).sequence
    second = answer_log_probs(model, collate([Encoded(ids, 4)], 0)).sequence
    assert torch.allclose(whole, first + second, atol=1e-12)


def test_a_row_without_answer_counts_nothing() -> None:
    batch = collate(ITEMS[:2], 0)
    empty = Batch(batch.input_ids, batch.attention_mask, torch.zeros_like(batch.answer_mask), batch.index)
    answers = answer_log_probs(make_tiny_model(), empty)
    assert answers.sequence.tolist() == [0.0, 0.0]
    answers.sequence.sum().backward()


def test_fused_pair_equals_two_forwards_in_values_and_gradient() -> None:
    model = make_tiny_model().double()
    forget, retain = collate(ITEMS[:3], 0), collate(ITEMS[3:], 0)
    a, b = forward_pair(model, forget, retain, 0)
    assert b is not None
    (a.sequence.sum() - 2 * b.token.mean()).backward()
    fused = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    c, d = answer_log_probs(model, forget), answer_log_probs(model, retain)
    (c.sequence.sum() - 2 * d.token.mean()).backward()
    for mine, plain_ in ((a, c), (b, d)):
        assert torch.equal(mine.rows, plain_.rows)
        assert torch.equal(mine.targets, plain_.targets)
        assert torch.equal(mine.counts, plain_.counts)
        for name in ("sequence", "token", "hidden"):
            assert torch.allclose(getattr(mine, name), getattr(plain_, name), atol=1e-10)
    for name, parameter in model.named_parameters():
        assert torch.allclose(fused[name], parameter.grad, atol=1e-10), name
    assert forward_pair(model, forget, None, 0)[1] is None


def test_the_forget_loss_reaches_the_weights_through_the_sequences() -> None:
    """The chain rule that the attribution penalty rides on: dL/dtheta = sum_i dL/ds_i ds_i/dtheta."""
    model = make_tiny_model().double()
    a, _ = forward_pair(model, collate(ITEMS[:2], 0), collate(ITEMS[2:], 0), 0)
    loss = (a.sequence**2).sum()
    (weights,) = torch.autograd.grad(loss, a.sequence, retain_graph=True)
    assert torch.allclose(weights, 2 * a.sequence)


def test_blocks_of_the_head_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_tiny_model().double()
    whole = answer_log_probs(model, collate(ITEMS, 0))
    whole.sequence.sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(answers_module, "LOGITS_BYTES", 4 * 96)
    split = answer_log_probs(model, collate(ITEMS, 0))
    split.sequence.sum().backward()
    assert torch.allclose(split.sequence, whole.sequence, atol=1e-12)
    for name, parameter in model.named_parameters():
        assert torch.allclose(gradient[name], parameter.grad, atol=1e-10), name


def test_reference_is_what_the_model_said_before() -> None:
    """Values, order and the whole distribution survive a change of the model; the reference holds only a head."""
    model = make_tiny_model()
    before = copy.deepcopy(model)
    reference = cache_reference(model, length_sorted(ITEMS, 0, 3), keep_hidden=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))
        batch = collate([ITEMS[2], ITEMS[0]], 0, [2, 0])
        expected = answer_log_probs(before, batch)
        assert torch.allclose(reference.sequence[batch.index], expected.sequence, atol=1e-5)
        assert torch.allclose(reference.states(batch.index), expected.hidden, atol=1e-5)
        logits = reference.logits(reference.states(batch.index))
        assert torch.allclose(logits, before.lm_head(expected.hidden), atol=1e-5)
    assert not any(p.requires_grad for p in reference.head.parameters())
    assert not reference.sequence.requires_grad


def test_reference_is_taken_without_dropout() -> None:
    model = make_tiny_model(attention_dropout=0.5).train()
    reference = cache_reference(model, [collate(ITEMS, 0)])
    assert torch.equal(reference.sequence, cache_reference(model, [collate(ITEMS, 0)]).sequence)
    assert model.training
    assert reference.hidden == ()
    assert reference.head is None
