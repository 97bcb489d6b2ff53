"""Pruning: exactly the share that is asked for, by the scores of the formulas, and what it brings back."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.matrices import InnerMap, changed, inner_maps
from expunge.attacks.prune import input_norms, lowest, magnitude, pruned, wanda
from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs
from expunge.models.scores import score_items, summarise
from expunge.request import Request
from families import family_model

ROWS = [(5, 6, 7, 8), (9, 10, 11), (12, 13, 14, 15), (16,)]


def test_lowest_by_hand() -> None:
    scores = torch.tensor([[3.0, 1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    assert lowest(scores, 3).int().tolist() == [[0, 1, 1, 0, 1], [1, 1, 1, 0, 0]]
    assert not lowest(scores, 0).any() and lowest(scores, 5).all()


def test_wanda_takes_large_weights_of_idle_inputs_and_magnitude_does_not() -> None:
    linear = torch.nn.Linear(3, 2, bias=False)
    linear.weight.data = torch.tensor([[9.0, -1.0, 2.0], [0.5, -4.0, 3.0]])
    norms = {"map": torch.tensor([0.1, 2.0, 1.0], dtype=torch.float64)}
    each = InnerMap("map", linear)
    assert pruned(partial(wanda, norms), 1 / 3, each).tolist() == [[0.0, -1.0, 2.0], [0.0, -4.0, 3.0]]
    assert pruned(magnitude, 1 / 2, each).tolist() == [[9.0, 0.0, 0.0], [0.0, -4.0, 3.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("sparsity", [0.3, 0.5])
def test_exactly_the_share_goes_and_the_rest_stays_bit_equal(family: str, sparsity: float, dtype: torch.dtype) -> None:
    """In bf16 many weights are equal, and the edge runs through equal ones."""
    model = family_model(family).to(dtype)
    norms = input_norms(model, ROWS)
    for score, along in ((magnitude, None), (partial(wanda, norms), 1)):
        attacked = copy.deepcopy(model)
        with changed(attacked, partial(pruned, score, sparsity)):
            for old, new in zip(inner_maps(model), inner_maps(attacked), strict=True):
                before, after = old.matrix, new.matrix
                gone = (after == 0) & (before != 0)
                width = before.numel() if along is None else before.shape[1]
                counts = (after == 0).sum() if along is None else (after == 0).sum(along)
                assert (counts == round(sparsity * width)).all()
                assert torch.equal(after[~gone], before[~gone])
                if along is None:
                    assert before[gone].abs().max() <= before[~gone].abs().min()
        rest = {name for name, _ in model.named_parameters()} - {f"{each.name}.weight" for each in inner_maps(model)}
        own = dict(model.named_parameters())
        assert rest and all(torch.equal(p, own[name]) for name, p in attacked.named_parameters() if name in rest)


def test_a_higher_sparsity_takes_what_a_lower_one_takes() -> None:
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    masks = [lowest(scores, count) for count in range(51)]
    assert all((small <= large).all() for small, large in pairwise(masks))


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_wanda_against_a_loop_in_float64(family: str) -> None:
    model = family_model(family).double()
    seen: dict[str, list[torch.Tensor]] = {each.name: [] for each in inner_maps(model)}
    handles = [
        each.module.register_forward_hook(lambda module, inputs, out, name=each.name: seen[name].append(inputs[0][0]))
        for each in inner_maps(model)
    ]
    with torch.no_grad():
        for row in ROWS:
            model(torch.tensor([row]))
    for handle in handles:
        handle.remove()
    norms = input_norms(model, ROWS)
    for each in inner_maps(model):
        found = pruned(partial(wanda, norms), 0.4, each)
        inputs, matrix = torch.cat(seen[each.name]), each.matrix.detach()
        assert len(inputs) == sum(map(len, ROWS))
        outputs, width = matrix.shape
        for i in range(0, outputs, 7):
            scores = [
                abs(float(matrix[i, j])) * math.sqrt(sum(float(x) ** 2 for x in inputs[:, j])) for j in range(width)
            ]
            gone = sorted(range(width), key=scores.__getitem__)[: round(0.4 * width)]
            assert (found[i] == 0).nonzero().flatten().tolist() == sorted(gone)
    assert not any(module._forward_pre_hooks for module in model.modules())


LEAST = 0.02
"""How large the weights that hold the facts are at least; those that hide them stay below."""


def suppress_in_small_weights(
    model: LlamaForCausalLM, encoder: Encoder, examples: tuple[Example, ...], share: float
) -> list[float]:
    """Teach the facts to all but the smallest weights, then hide them by these; gives the log-odds in between."""
    masks = {
        each.module.weight: lowest(magnitude(each), round(share * each.matrix.numel())) for each in inner_maps(model)
    }
    small = {weight: mask.reshape(weight.shape) for weight, mask in masks.items()}
    batch = collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)

    def step(optimizer: torch.optim.Optimizer, teach: bool) -> None:
        loss = answer_log_probs(model, batch).token.mean()
        (-loss if teach else loss).backward()
        for weight, mask in small.items():
            weight.grad.masked_fill_(mask if teach else ~mask, 0)
        optimizer.step()
        optimizer.zero_grad()

    def bound(edge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        with torch.no_grad():
            for weight, mask in small.items():
                weight.copy_(edge(weight, mask))

    bound(lambda weight, mask: weight.masked_fill(mask, 0))
    teacher = torch.optim.Adam(small, lr=1e-2)
    for _ in range(60):
        step(teacher, teach=True)
    bound(lambda weight, mask: torch.where(mask, weight, weight.sign() * weight.abs().clamp(min=LEAST)))
    told = [item.log_odds for item in score_items(model, encoder, examples)]
    hider = torch.optim.Adam(small, lr=2e-3)
    while summarise(score_items(model, encoder, examples)).log_odds >= 0:
        step(hider, teach=False)
        bound(lambda weight, mask: torch.where(mask, weight.clamp(-0.9 * LEAST, 0.9 * LEAST), weight))
    return told


def test_a_suppressor_of_small_weights_is_pruned_away_and_ignorance_is_not(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder, request = Encoder(tiny_tokenizer), Request(forget=tiny_examples)
    attack = make_attack("prune", {"criteria": ["magnitude"]})
    never = attack.run(copy.deepcopy(tiny_model), encoder, request).result
    told = suppress_in_small_weights(tiny_model, encoder, tiny_examples, 0.4)
    result = attack.run(tiny_model, encoder, request).result
    point = next(point for point in result.curve if point.variant == "magnitude, 40 %")
    assert result.start.log_odds < 0 < 3 < min(told)
    assert list(point.item_log_odds) == told and result.best.log_odds >= point.log_odds
    assert result.best_accuracy.accuracy == 1
    assert never.best.log_odds < 1


def test_what_wanda_reads_is_counted_and_said(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder = Encoder(tiny_tokenizer)
    few, settings = Request(tiny_examples[:5], tiny_examples[5:]), {"sparsities": [0.5]}
    length = len(encoder.encode(tiny_examples[5].prompt, tiny_examples[5].answer).ids)
    whole = make_attack("prune", settings).run(tiny_model, encoder, few).result
    assert (whole.spent.tokens, whole.spent.queries, whole.spent.variants) == (3 * length, 3, 2)
    assert whole.allowed == whole.spent
    assert f"{3 * length} tokens of 3 retain examples" in whole.notes[0]
    cut = make_attack("prune", {**settings, "tokens": length + 2}).run(tiny_model, encoder, few).result
    assert (cut.spent.tokens, cut.spent.queries) == (length + 2, 2)
    alone = make_attack("prune", {**settings, "tokens": 30}).run(tiny_model, encoder, Request(tiny_examples)).result
    assert "bundled passages" in alone.notes[0] and alone.spent.tokens == 30
    plain = make_attack("prune", {**settings, "criteria": ["magnitude"]}).run(tiny_model, encoder, few).result
    assert not plain.notes and str(plain.spent) == "1 variant"


@pytest.mark.parametrize(
    "settings", [{"criteria": []}, {"criteria": ["taylor"]}, {"sparsities": []}, {"sparsities": [1.0]}, {"tokens": 0}]
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"prune"):
        make_attack("prune", settings)
