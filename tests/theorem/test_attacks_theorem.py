"""What must hold of any relearning attack: more budget never helps the defender, and hidden knowledge comes back."""

from __future__ import annotations

import copy
from statistics import fmean

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.base import Attack, AttackResult
from expunge.attacks.cells import FolderCells
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.scores import score_items, summarise
from expunge.progress import Silent
from expunge.request import Request
from lessons import fit, told

HARMFUL = {"pool": "all", "fraction": 0.4, "batch_size": 2, "eval_every": 1}


def hide(model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    """Teach the facts, then push them down by plain ascent until half are answered wrongly."""
    fit(model, encoder, told(request_.forget), 60, 1e-2)
    while summarise(score_items(model, encoder, request_.forget)).accuracy > 0.5:
        fit(model, encoder, told(request_.forget), 1, -2e-3)


def randomise(model: LlamaForCausalLM, seed: int) -> None:
    """Fresh matrices."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def request_(tiny_examples: tuple[Example, ...]) -> Request:
    return Request(forget=tiny_examples)


@pytest.fixture
def hiding(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> LlamaForCausalLM:
    """A model that hides the facts."""
    hide(tiny_model, encoder, request_)
    return tiny_model


def attacked(attack: Attack, model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> AttackResult:
    return attack.run(model, encoder, request_).result


@pytest.mark.parametrize("name", ["relearn-harmful", "relearn-benign"])
def test_a_longer_run_begins_with_the_shorter_one(
    name: str, hiding: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    settings = HARMFUL if name == "relearn-harmful" else {"batch_size": 2, "eval_every": 1}
    results = [
        attacked(make_attack(name, {**settings, "learning_rates": [3e-3], "max_steps": n}), hiding, encoder, request_)
        for n in (3, 8)
    ]
    shorter, longer = results
    assert longer.curve[: len(shorter.curve)] == shorter.curve
    assert longer.best.log_odds >= shorter.best.log_odds >= shorter.start.log_odds
    assert longer.best_accuracy.accuracy >= shorter.best_accuracy.accuracy >= shorter.start.accuracy


def test_a_larger_grid_holds_the_smaller(hiding: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    small = {**HARMFUL, "learning_rates": [1e-3], "seeds": [0], "max_steps": 3}
    large = {**small, "learning_rates": [5e-3, 1e-3], "seeds": [1, 0]}
    less, more = (attacked(make_attack("relearn-harmful", s), hiding, encoder, request_) for s in (small, large))
    cell = tuple(p for p in more.curve if (p.learning_rate, p.seed) == (1e-3, 0))
    assert cell == less.curve
    assert more.best.log_odds >= less.best.log_odds
    assert len({p.item_log_odds for p in more.curve if p.step == 0}) == 1
    assert len({p.item_log_odds for p in more.curve if p.step == 3}) == 4


def test_the_score_never_falls_below_the_start(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    """A fine-tuning that only does harm leaves the start as the best point."""
    fit(tiny_model, encoder, told(request_.forget), 60, 1e-2)
    attack = make_attack("relearn-benign", {"learning_rates": [0.5], "max_steps": 3, "eval_every": 1})
    result = attacked(attack, tiny_model, encoder, request_)
    assert result.curve[-1].log_odds < result.start.log_odds == result.best.log_odds
    assert result.best.step == 0 and result.best_accuracy.accuracy == 1
    assert [item.log_odds for item in result.items] == list(result.curve[0].item_log_odds)


def test_items_are_those_of_the_best_point(hiding: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    attack = make_attack("relearn-harmful", {**HARMFUL, "learning_rates": [1e-3, 2e-2], "max_steps": 10})
    result = attacked(attack, hiding, encoder, request_)
    assert result.best == max(result.curve, key=lambda p: p.log_odds)
    assert result.best.step not in (0, 10), "the case must have its best point in the middle"
    assert tuple(item.log_odds for item in result.items) == result.best.item_log_odds
    assert summarise(result.items).log_odds == result.best.log_odds


def test_accuracy_has_its_own_best_point(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    attack = make_attack("relearn-harmful", {**HARMFUL, "learning_rates": [1e-3, 5e-3], "max_steps": 6})
    found = []
    for seed in range(6):
        randomise(tiny_model, seed)
        found.append(attacked(attack, tiny_model, encoder, request_))
    assert all(result.best_accuracy == max(result.curve, key=lambda p: p.accuracy) for result in found)
    assert any(result.best_accuracy.accuracy > result.best.accuracy for result in found), "no case tells them apart"


def test_hidden_knowledge_comes_back_and_absent_knowledge_does_not(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    """Over three pairs of models, one that hides the facts and one that never saw them."""
    attack = make_attack("relearn-harmful", {**HARMFUL, "batch_size": 8, "learning_rates": [1e-3, 3e-3]})
    hidden, absent = [], []
    for seed in range(3):
        randomise(tiny_model, seed)
        ignorant = copy.deepcopy(tiny_model)
        hide(tiny_model, encoder, request_)
        hidden.append(attacked(attack, tiny_model, encoder, request_))
        absent.append(attack.run(ignorant, encoder, request_, like=hidden[-1]).result)
    gains = [fmean(r.best.log_odds - r.start.log_odds for r in results) for results in (hidden, absent)]
    assert gains[0] > 1 > 0.3 > gains[1]
    assert fmean(r.best.log_odds for r in hidden) > fmean(r.best.log_odds for r in absent) + 1


class Interrupt(Silent):
    """Interrupts after so many steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.left -= n
        if self.left < 0:
            raise KeyboardInterrupt


def test_an_interrupted_attack_goes_on_to_the_same_result(
    hiding: LlamaForCausalLM, encoder: Encoder, request_: Request, tmp_path
) -> None:
    attack = make_attack(
        "relearn-harmful", {**HARMFUL, "learning_rates": [1e-3, 3e-3], "seeds": [0, 1], "max_steps": 4}
    )

    def probe(model: torch.nn.Module) -> float:
        return sum(float(p.detach().double().sum()) for p in model.parameters())

    straight = attack.run(hiding, encoder, request_, probe=probe)
    with pytest.raises(KeyboardInterrupt):
        attack.run(hiding, encoder, request_, cells=tmp_path, progress=Interrupt(10))
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 2
    for _ in range(2):  # the second time every cell comes out of the store, and the best is trained for the probe
        resumed = attack.run(hiding, encoder, request_, cells=tmp_path, probe=probe)
        assert resumed.result.curve == straight.result.curve
        assert resumed.result.items == straight.result.items
        assert resumed.result.samples == straight.result.samples
        assert resumed.result.spent == straight.result.spent
        assert resumed.probed == straight.probed
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    again = [attack.run(hiding, encoder, request_, cells=tmp_path).result for _ in range(2)]
    assert again[0] == again[1] == resumed.result
    assert len(FolderCells(tmp_path)) == 4


def test_stored_cells_belong_to_one_model_and_one_setting(
    hiding: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    cells: dict[str, dict[str, object]] = {}
    settings = {**HARMFUL, "learning_rates": [1e-3], "max_steps": 2}
    make_attack("relearn-harmful", settings).run(hiding, encoder, request_, cells=cells)
    make_attack("relearn-harmful", {**settings, "max_steps": 3}).run(hiding, encoder, request_, cells=cells)
    with torch.no_grad():
        next(hiding.parameters())[0, 0] += 1e-3
    make_attack("relearn-harmful", settings).run(hiding, encoder, request_, cells=cells)
    assert len(cells) == 3
    make_attack("relearn-harmful", {**settings, "learning_rates": [1e-3, 2e-3]}).run(
        hiding, encoder, request_, cells=cells
    )
    assert len(cells) == 4
    damaged = next(iter(cells))
    cells[damaged] = {"curve": []}
    with torch.no_grad():
        next(hiding.parameters())[0, 0] -= 1e-3
    make_attack("relearn-harmful", settings).run(hiding, encoder, request_, cells=cells)
    assert cells[damaged]["curve"]


def test_adapters_bring_it_back_too_and_leave_no_trace(
    hiding: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    """Through LoRA only the linear maps move while it runs; afterwards the model is the same object, bit for bit."""
    before = {name: p.detach().clone() for name, p in hiding.named_parameters()}
    moved: list[set[str]] = []

    def look(model: LlamaForCausalLM) -> None:
        moved.append({name for name, p in model.named_parameters() if not torch.equal(p, before[name])})

    settings = {**HARMFUL, "batch_size": 8, "learning_rates": [1e-3, 5e-3], "max_steps": 12, "lora_rank": 4}
    result = make_attack("relearn-harmful", settings).run(hiding, encoder, request_, probe=look).result
    assert result.best.log_odds > result.start.log_odds + 1
    assert moved[0]
    assert all("_proj" in name for name in moved[0])
    after = dict(hiding.named_parameters())
    assert after.keys() == before.keys()
    assert all(torch.equal(before[name], p) for name, p in after.items())
    plain = make_attack("relearn-harmful", {**settings, "lora_rank": 0}).run(hiding, encoder, request_).result
    assert plain.curve != result.curve
