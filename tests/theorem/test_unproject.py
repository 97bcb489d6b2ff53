"""A projection that stands at a block hides, and is taken away; one inside the weights is not."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.base import AttackResult
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.checkpoint import save_pretrained_atomic
from expunge.models.load import load_model
from expunge.models.projections import attach, attached, lifted
from expunge.models.scores import score_items, summarise
from expunge.request import Request
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parametrizations.subspace import random_rows
from projection_runs import IDS, D, disturb
from tiny import make_tiny_model


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


def project(model: LlamaForCausalLM, *blocks: int, rank: int = 6) -> LlamaForCausalLM:
    attach(model, {block: random_rows(rank, torch.zeros(0, D), block) for block in blocks})
    return model


@torch.no_grad()
def test_lifted_is_as_if_deleted() -> None:
    plain, model = make_tiny_model(), project(make_tiny_model(), 0, 1)
    hidden, first = model(IDS).logits, project(make_tiny_model(), 0)
    with lifted(model, {0, 1}):
        assert torch.equal(model(IDS).logits, plain(IDS).logits)
    with pytest.raises(KeyboardInterrupt), lifted(model, [1]):
        assert torch.equal(model(IDS).logits, first(IDS).logits)
        raise KeyboardInterrupt
    assert torch.equal(model(IDS).logits, hidden) and not torch.equal(hidden, plain(IDS).logits)


def test_what_the_projections_hid_comes_back_exactly(
    encoder: Encoder, tiny_examples: tuple[Example, ...], tmp_path: Path
) -> None:
    """As unlearned at site "block", saved and loaded: all deleted together is the model as it was before."""
    original = make_tiny_model(3, num_hidden_layers=5)
    knew = score_items(original, encoder, tiny_examples)
    trained = Projection(rank=5, layers=(0, 1, 3, 4), site="block", init="random").bind(original, 0)
    disturb(trained)
    trained.fold()
    save_pretrained_atomic(original, encoder.tokenizer, tmp_path / "model")
    model = load_model(tmp_path / "model").model
    rows = {block: value.clone() for block, value in attached(model).items()}
    result = make_attack("unproject", {"alone": 2}).run(model, encoder, Request(tiny_examples)).result
    points = {point.variant: point for point in result.curve}
    assert list(points) == [
        *("as it is", "all 4 projections deleted", "the first 2 deleted", "the last 2 deleted"),
        *("that of block 4 deleted", "that of block 3 deleted"),
    ]
    assert points["all 4 projections deleted"].item_log_odds == tuple(item.log_odds for item in knew)
    for called, left in (("the first 2 deleted", (3, 4)), ("that of block 4 deleted", (0, 1, 3))):
        other = load_model(tmp_path / "model").model
        with lifted(other, {0, 1, 3, 4} - set(left)):
            alone = tuple(item.log_odds for item in score_items(other, encoder, tiny_examples))
        assert points[called].item_log_odds == alone
    assert len({point.item_log_odds for point in result.curve}) == len(points)
    assert attached(model).keys() == rows.keys()
    assert all(torch.equal(value, rows[block]) for block, value in attached(model).items())
    assert result.notes == ("Projections stand at the blocks 0, 1, 3, 4.",)


@pytest.mark.parametrize(("blocks", "variants"), [((1,), 1), ((0, 1), 3), ((0, 1, 2), 5), ((0, 1, 2, 3), 7)])
def test_no_set_of_projections_is_tried_twice(
    blocks: tuple[int, ...], variants: int, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    """One projection: all are it. Two: each half is one. Three: the first half is one."""
    model = project(make_tiny_model(num_hidden_layers=4), *blocks)
    result = make_attack("unproject").run(model, encoder, Request(tiny_examples)).result
    assert result.spent.variants == result.allowed.variants == len(result.curve) - 1
    assert result.spent.variants == variants


def test_where_nothing_can_be_deleted_it_says_so_and_a_control_is_scored_as_it_is(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    attack, request = make_attack("unproject"), Request(tiny_examples)
    folded = copy.deepcopy(tiny_model)
    trained = Projection(rank=2, init="random").bind(folded, 0)
    disturb(trained)
    trained.fold()
    for model in (tiny_model, folded):
        with pytest.raises(InputError, match=r"nothing can be deleted[\s\S]*relearning"):
            attack.run(model, encoder, request)
    like: AttackResult = attack.run(project(make_tiny_model(), 0, 1), encoder, request).result
    control = attack.run(tiny_model, encoder, request, like=like).result
    assert (
        control.best.log_odds
        == control.start.log_odds
        == summarise(score_items(tiny_model, encoder, tiny_examples)).log_odds
    )
    assert len(control.curve) == 1 and "no projection" in control.notes[0]


def test_settings_that_cannot_be() -> None:
    with pytest.raises(InputError, match="alone"):
        make_attack("unproject", {"alone": -1})
