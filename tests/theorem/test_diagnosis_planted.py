"""Planted truths: a suppressed fact is intact, a fact never trained is not, and what each diagnostic can know of it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from expunge.audit.patching import knowledge_recovery, unlearning_depth
from expunge.audit.planted import KINDS, Planted, Suppressor, plant
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.load import load_model
from expunge.models.scores import score_items, summarise
from lessons import teach, told
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())
FACTS, STAYS = make_tiny_examples()[:4], make_tiny_examples()[4:]
EDITED = {
    "neurons": {"gate_proj.weight", "up_proj.weight", "down_proj.weight"},
    "rank_one": {"down_proj.weight"},
    "steering": {"down_proj.bias"},
    "output_bias": {"lm_head.bias"},
}


def log_odds(model: LlamaForCausalLM, facts: tuple[Example, ...] = FACTS) -> float:
    return summarise(score_items(model, ENCODER, facts)).log_odds


def trained(examples: tuple[Example, ...]) -> LlamaForCausalLM:
    model = make_tiny_model()
    teach(model, ENCODER, told(examples), 0.05)
    return model


@pytest.fixture(scope="module")
def knowing() -> LlamaForCausalLM:
    return trained(FACTS + STAYS)


@pytest.fixture(scope="module")
def ignorant() -> LlamaForCausalLM:
    return trained(STAYS)


def hide(knowing: LlamaForCausalLM, kind: str, layer: int = -1) -> tuple[LlamaForCausalLM, Planted]:
    model = copy.deepcopy(knowing)
    return model, plant(model, ENCODER, FACTS, STAYS, Suppressor(kind, layer, neurons=4, learning_rate=0.05))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_the_fact_is_silent_and_intact(kind: str, layer: int, knowing: LlamaForCausalLM) -> None:
    """Silent: log-odds 0. Intact: without the few numbers of the edit, the first model is back, bit for bit."""
    assert log_odds(knowing) > 2
    model, planted = hide(knowing, kind, layer)
    assert log_odds(model) == pytest.approx(planted.log_odds) == pytest.approx(0, abs=0.05)
    before = dict(knowing.named_parameters())
    changed = {
        ".".join(name.split(".")[-2:])
        for name, p in model.named_parameters()
        if not (torch.equal(p, before[name]) if name in before else not p.any())
    }
    assert changed == EDITED[kind]
    planted.undo()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    assert log_odds(model) == pytest.approx(log_odds(knowing), abs=1e-4)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", ["neurons", "rank_one", "steering"])
def test_it_stays_in_a_saved_folder(kind: str, knowing: LlamaForCausalLM, tmp_path: Path) -> None:
    model, _ = hide(knowing, kind)
    model.save_pretrained(tmp_path)
    ENCODER.tokenizer.save_pretrained(tmp_path)
    assert log_odds(load_model(tmp_path).model) == pytest.approx(log_odds(model), abs=1e-5)


def test_a_rank_one_edit_is_of_rank_one_and_as_many_neurons_change_as_were_taken(knowing: LlamaForCausalLM) -> None:
    def change(kind: str, name: str) -> torch.Tensor:
        model, _ = hide(knowing, kind)
        module = f"model.layers.1.mlp.{name}.weight"
        return (model.get_parameter(module) - knowing.get_parameter(module)).detach()

    values = torch.linalg.svdvals(change("rank_one", "down_proj").double())
    assert values[0] > 1e4 * values[1]
    columns, *rows = (
        change("neurons", "down_proj").any(0),
        *(change("neurons", n).any(1) for n in ("gate_proj", "up_proj")),
    )
    assert int(columns.sum()) == 4
    assert all(torch.equal(columns, row) for row in rows)


def test_other_log_odds_can_be_asked_for(knowing: LlamaForCausalLM) -> None:
    model = copy.deepcopy(knowing)
    plant(model, ENCODER, FACTS, STAYS, Suppressor("rank_one", learning_rate=0.05), log_odds=-1.0, within=0.02)
    assert log_odds(model) == pytest.approx(-1, abs=0.02)


@pytest.mark.parametrize("kind", ["neurons", "rank_one"])
def test_training_ends_where_the_facts_are_silent(kind: str, knowing: LlamaForCausalLM) -> None:
    """So the scale only takes back what the last step did too much."""
    _, planted = hide(knowing, kind)
    assert 0.5 < planted.scale <= 1


def test_an_edit_that_cannot_hide_leaves_the_model_alone(knowing: LlamaForCausalLM) -> None:
    model = copy.deepcopy(knowing)
    with pytest.raises(InputError, match="cannot hide"):
        plant(model, ENCODER, FACTS, STAYS, Suppressor("rank_one", steps=3), log_odds=-1e3)
    before = dict(knowing.named_parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with pytest.raises(InputError, match="no suppressor"):
        plant(model, ENCODER, FACTS, STAYS, Suppressor("rank_two"))
    with pytest.raises(InputError, match="no options"):
        plant(model, ENCODER, [Example("where", "oslo")], STAYS, Suppressor())


def test_depth_tells_the_ignorant_from_a_bias_on_the_output(
    knowing: LlamaForCausalLM, ignorant: LlamaForCausalLM
) -> None:
    assert log_odds(ignorant) < 1 < log_odds(knowing)
    silenced, _ = hide(knowing, "output_bias")
    assert unlearning_depth(knowing, silenced, ignorant, ENCODER, FACTS).value == 0
    assert unlearning_depth(knowing, ignorant, ignorant, ENCODER, FACTS).value == pytest.approx(1)


@pytest.mark.parametrize("kind", ["neurons", "rank_one", "steering"])
def test_depth_finds_the_blocks_before_a_suppressor_intact(
    kind: str, knowing: LlamaForCausalLM, ignorant: LlamaForCausalLM
) -> None:
    """And the one that holds it erased, though nothing is: UDS is not 0 for a hidden fact."""
    model, _ = hide(knowing, kind, 1)
    found = unlearning_depth(knowing, model, ignorant, ENCODER, FACTS)
    assert [row[0] for row in found.from_unlearned] == pytest.approx([0] * len(FACTS), abs=1e-5)
    assert sum(row[1] for row in found.from_unlearned) > 1
    assert 0 < found.value < 1


def test_recovery_sees_a_suppressor_that_reads_and_not_one_that_only_writes(knowing: LlamaForCausalLM) -> None:
    """Neurons hide through what they compute, which the patch replaces; the other edits sit behind every patch."""
    scores = {}
    for kind in KINDS:
        model, _ = hide(knowing, kind, 1)
        scores[kind] = knowledge_recovery(knowing, model, ENCODER, FACTS, window=1, new_tokens=1).windows[1].krs
    assert scores["neurons"] > 0.5
    assert [scores[kind] for kind in ("steering", "output_bias")] == pytest.approx([0, 0], abs=1e-4)
