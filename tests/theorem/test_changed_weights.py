"""What holds of every attack that changes weights without training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from bitsandbytes_stand_in import stand_in_for_bitsandbytes
from expunge.attacks import make_attack, trials
from expunge.attacks.base import AttackResult
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.projections import attach
from expunge.models.scores import ItemScore, score_items
from expunge.progress import Progress
from expunge.request import Request
from expunge.unlearning.parametrizations.subspace import random_rows
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

Settings = dict[str, Any]

# Less, and more that has it in the middle.
CASES: dict[str, tuple[Settings, Settings]] = {
    "quantise": ({"bits": [3], "groups": [16], "nf4": []}, {"bits": [8, 3, 2], "groups": [32, 16], "nf4": [64]}),
    "quantise-bnb": ({"formats": ["int8"]}, {"formats": ["nf4", "int8"]}),
    "prune": ({"criteria": ["wanda"], "sparsities": [0.5]}, {"sparsities": [0.3, 0.5, 0.6]}),
    "mix": ({"shares": [0.5]}, {"shares": [0.9, 0.5, 0.2]}),
    "unproject": ({"alone": 0}, {"alone": 3}),
}
EXAMPLES = make_tiny_examples()
REQUEST = Request(EXAMPLES[:6], EXAMPLES[6:])
every_attack = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_bitsandbytes(monkeypatch)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder: Path = tmp_path_factory.mktemp("original")
    make_tiny_model(99, num_hidden_layers=3).save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def victim(seed: int = 0, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A model with projections at its blocks, and with everything that an attack has to put back."""
    model = make_tiny_model(seed, num_hidden_layers=3).to(dtype).train()
    attach(model, {block: random_rows(4, torch.zeros(0, 32), seed + block) for block in range(3)})
    model.lm_head.eval()
    model.model.norm.weight.requires_grad_(False)
    return model


def condition(model: LlamaForCausalLM) -> list[object]:
    """All that must be as it was, as plain values."""
    tensors = [*model.state_dict().items(), *model.named_buffers()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return [
        [(name, value.dtype, value.double().tolist()) for name, value in tensors],
        [(name, module.training) for name, module in model.named_modules()],
        [(name, parameter.requires_grad, parameter.grad) for name, parameter in model.named_parameters()],
        hooks,
    ]


def attacked(
    name: str, settings: Settings, model: LlamaForCausalLM, original: str, progress: Progress | None = None
) -> AttackResult:
    encoder = Encoder(make_tiny_tokenizer())
    return make_attack(name, settings).run(model, encoder, REQUEST, original=original, progress=progress).result


@every_attack
@pytest.mark.parametrize("seed", range(3))
def test_more_trials_never_find_less(name: str, seed: int, original: str) -> None:
    less, more = (attacked(name, settings, victim(seed), original) for settings in CASES[name])
    points = {point.variant: (point.item_log_odds, point.accuracy) for point in more.curve}
    assert {point.variant: (point.item_log_odds, point.accuracy) for point in less.curve}.items() < points.items()
    assert more.best.log_odds >= less.best.log_odds >= less.start.log_odds
    assert more.best_accuracy.accuracy >= less.best_accuracy.accuracy >= less.start.accuracy
    for result in (less, more):
        assert result.spent.variants == len(result.curve) - 1 == len({point.variant for point in result.curve}) - 1
        assert result.spent.within(result.allowed)
    assert less.allowed.within(more.allowed)


@every_attack
def test_the_same_again_gives_the_same_record(name: str, original: str) -> None:
    found = []
    for _ in range(2):
        stored = attacked(name, CASES[name][1], victim(), original).to_json()
        assert stored.pop("seconds") > 0
        found.append(json.dumps(stored, sort_keys=True))
    assert found[0] == found[1]


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_comes_back_bit_equal(name: str, dtype: torch.dtype, original: str) -> None:
    model = victim(dtype=dtype)
    before = condition(model)
    result = attacked(name, CASES[name][1], model, original)
    assert condition(model) == before
    assert len({point.item_log_odds for point in result.curve}) == len(result.curve), "some trial changed nothing"
    assert AttackResult.from_json(json.loads(json.dumps(result.to_json()))) == result


@every_attack
@pytest.mark.parametrize("place", ["inside a trial", "after a trial"])
def test_it_comes_back_bit_equal_from_an_attack_that_breaks_off(
    name: str, place: str, original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def breaking(*arguments: Any) -> tuple[ItemScore, ...]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return score_items(*arguments)

    class Breaking:
        def start(self, task: str, total: int) -> None: ...

        def finish(self, task: str) -> None: ...

        def advance(self, task: str, n: int = 1, **info: float) -> None:
            raise KeyboardInterrupt

    if place == "inside a trial":
        monkeypatch.setattr(trials, "score_items", breaking)
    model = victim(dtype=torch.bfloat16)
    before = condition(model)
    with pytest.raises(KeyboardInterrupt):
        attacked(name, CASES[name][1], model, original, Breaking() if place == "after a trial" else None)
    assert condition(model) == before


def test_a_trial_that_leaves_nothing_to_score_is_left_out_and_said(
    original: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = victim(), 0

    def poisoned(model: LlamaForCausalLM, encoder: Encoder, examples: Sequence[Example]) -> tuple[ItemScore, ...]:
        nonlocal calls
        calls += bool(examples)
        if calls == 2:
            with torch.no_grad():
                model.model.norm.weight.fill_(torch.nan)
        return score_items(model, encoder, examples)

    monkeypatch.setattr(trials, "score_items", poisoned)
    result = attacked("mix", {"shares": [0.9, 0.5]}, model, original)
    assert [point.variant for point in result.curve] == ["as it is", "50 % unlearned, 50 % original"]
    assert result.spent.variants == 2 and "90 % unlearned" in result.notes[-1]
    json.dumps(result.to_json(), allow_nan=False)
