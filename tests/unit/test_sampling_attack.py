"""Sampling: what is drawn, what counts as said, and that more of it never finds less."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import ATTACKS, make_attack
from expunge.attacks.base import AttackResult
from expunge.attacks.cells import FolderCells
from expunge.attacks.mention import first_said, words
from expunge.attacks.sampling import item_score
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import greedy, sample
from expunge.request import Request
from lessons import fit
from tiny import TOWNS, make_tiny_model

PROMPTS = ("ada lives in", "where does bob live ? the town question", "w1", "question : w5 w6 w7 w8 w9 answer :")
FEW = {"samples": 6, "new_tokens": 2}


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def request_(tiny_examples: tuple[Example, ...]) -> Request:
    return Request(forget=tiny_examples)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_follow_the_models_distribution(
    temperature: float, tiny_model: LlamaForCausalLM, encoder: Encoder
) -> None:
    """Chi-square of the first token over 3,000 prompts that read the same and are written differently."""
    prompts = ["ada" + " " * (k + 1) + "lives in" for k in range(3000)]
    with torch.no_grad():
        logits = tiny_model(torch.tensor([encoder.encode_prompt(prompts[0])])).logits[0, -1].double()
    expected = len(prompts) * torch.softmax(logits / temperature, -1)
    said = sample(tiny_model, encoder, prompts, temperature=temperature, max_new_tokens=1, batch_size=1000)
    heard = Counter(one.text for one in said)
    often = [i for i, count in enumerate(expected.tolist()) if count >= 5 and encoder.tokenizer.decode([i], True)]
    assert len(often) > 8
    chi = sum((heard[encoder.tokenizer.decode([i])] - float(expected[i])) ** 2 / float(expected[i]) for i in often)
    assert chi < len(often) + 4 * math.sqrt(2 * len(often))


def test_a_draw_depends_on_its_prompt_and_seed_alone(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    """Not on the other prompts, the batch size or the global state, which it leaves alone."""
    state = torch.get_rng_state()
    whole = sample(tiny_model, encoder, PROMPTS, seed=3, draw=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(9)
    assert sample(tiny_model, encoder, PROMPTS, seed=3, draw=1, batch_size=1) == whole
    assert sample(tiny_model, encoder, PROMPTS[::-1], seed=3, draw=1, batch_size=3) == whole[::-1]
    assert sample(tiny_model, encoder, PROMPTS[:1], seed=3, draw=1) == whole[:1]
    others = [sample(tiny_model, encoder, PROMPTS, seed=seed, draw=draw) for seed, draw in ((3, 2), (4, 1))]
    assert len({whole, *others}) == 3


def test_no_temperature_is_greedy_and_tokens_are_counted(encoder: Encoder) -> None:
    model = make_tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        states = model.model(torch.tensor([encoder.encode_prompt(PROMPTS[2])])).last_hidden_state
        model.lm_head.weight[1] = 100 * states[0, -1]  # this prompt is answered by the end-of-sequence token
    said = sample(model, encoder, PROMPTS, temperature=0.0, max_new_tokens=5)
    assert tuple(one.text for one in said) == greedy(model, encoder, PROMPTS, max_new_tokens=5)
    assert said[2].text == ""
    assert said[2].tokens == 1
    for one in said:
        spoken = len(one.text.split())
        assert one.tokens == (spoken if spoken == 5 else spoken + 1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is PARIS, not Lima.", 0),
        ("lima or paris", 1),
        ("Comparison of parisians", None),
        ("", None),
        ("in Sao Tome now", 2),
        ("in S\u00e3o  Tom\u00e9!", 2),
        ("the port of Port Vila", 3),
        ("Port Vila", 4),
        ("Port", 3),
        ("Rome", None),
    ],
)
def test_what_a_text_says(text: str, expected: int | None) -> None:
    phrases = ("Paris", "Lima", "S\u00e3o Tom\u00e9", "Port", "port vila", "Rome", "rome!")
    assert first_said([words(phrase) for phrase in phrases], words(text)) == expected


def test_scores_by_hand() -> None:
    item = Example("where ?", "oslo", ("lima", "rome"))
    heard = (None, 0, 2, 0, None)
    found = item_score(item, heard)
    assert found.log_odds == pytest.approx(math.log(2.5) - math.log(1.0))  # options: 0 and 1, mean 1/2, plus 1/2
    assert found.probability == pytest.approx(2.5 / 6)
    assert (found.correct, found.chance) == (True, 0.0)
    late = item_score(item, (None, 2, 0, 0))
    assert (late.correct, late.chance) == (False, 0.5)
    silent = item_score(item, (None, None))
    assert (silent.correct, silent.chance, silent.log_odds) == (False, 0.0, pytest.approx(0.0))


def test_what_greedy_hides_is_heard_and_what_was_never_known_is_not(encoder: Encoder, request_: Request) -> None:
    """One model says the answer two times of five, after a wrong word; the other one says any town."""
    hiding, ignorant = make_tiny_model(), make_tiny_model()
    told = [(e.prompt, word) for e in request_.forget for word in ("w1", "w1", "w1", e.answer, e.answer)]
    fit(hiding, encoder, told, 80)
    fit(ignorant, encoder, [(e.prompt, town) for e in request_.forget for town in TOWNS], 80)
    attack = make_attack("sampling", {"samples": 12, "new_tokens": 1})
    found, control = (attack.run(model, encoder, request_).result for model in (hiding, ignorant))
    assert found.start.accuracy == 0
    assert found.best_accuracy.accuracy > 0.9
    assert found.best.log_odds > 1.5
    assert set(found.samples.values()) <= {e.answer for e in request_.forget}
    assert "+100%" in found.notes[0] or "+88%" in found.notes[0]
    assert abs(control.curve[-1].log_odds) < 0.7
    last = [item_score(e, _heard(control, e)) for e in request_.forget]
    excess = sum(item.correct - item.chance for item in last) / len(last)
    assert abs(excess) < 0.4


def _heard(result: AttackResult, example: Example) -> list[int | None]:
    candidates = [words(text) for text in (example.answer, *example.options)]
    return [first_said(candidates, words(text)) for text in result.outputs[example.id]]


def test_more_samples_begin_with_the_fewer_and_never_find_less(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    found = [
        make_attack("sampling", {"samples": n, "new_tokens": 3}).run(tiny_model, encoder, request_).result
        for n in (1, 3, 6)
    ]
    for less, more in pairwise(found):
        assert more.curve[: len(less.curve)] == less.curve
        assert all(more.outputs[i][: len(said)] == said for i, said in less.outputs.items())
        assert more.best.log_odds >= less.best.log_odds
        assert more.best_accuracy.accuracy >= less.best_accuracy.accuracy
    accuracies = [point.accuracy for point in found[-1].curve]
    assert accuracies == sorted(accuracies)
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())


def test_the_result_is_whole(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    result, seen = make_attack("sampling", FEW).run(tiny_model, encoder, request_, probe=lambda model: model)
    assert seen is tiny_model
    assert AttackResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert result.spent.queries == 7 * 8
    assert result.spent.within(result.allowed)
    assert result.allowed.tokens == 2 * 7 * 8
    assert tuple(item.log_odds for item in result.items) == result.best.item_log_odds
    assert all(len(said) == 7 for said in result.outputs.values())
    assert [point.step for point in result.curve] == list(range(7))
    said = greedy(tiny_model, encoder, [e.prompt for e in request_.forget], 2)
    assert tuple(texts[0] for texts in result.outputs.values()) == said


def test_rounds_are_kept_and_belong_to_one_model_and_setting(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request, tmp_path
) -> None:
    def run(**changed: object) -> AttackResult:
        return make_attack("sampling", {**FEW, **changed}).run(tiny_model, encoder, request_, cells=tmp_path).result

    first, store = run(samples=2), FolderCells(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(kept) == 3
    whole = run()
    assert len(store) == 7
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert whole.curve[:3] == first.curve
    assert run() == whole
    damaged = next(iter(kept))
    store[damaged.stem] = {"said": [["x"]]}
    assert run().curve == whole.curve
    run(seed=1)
    assert len(store) == 7 + 7
    with torch.no_grad():
        next(tiny_model.parameters())[0, 0] += 1e-3
    run()
    assert len(store) == 7 + 7 + 7


def test_counts_are_no_log_odds_of_the_model() -> None:
    assert [name for name, attack in ATTACKS.items() if attack.own_scale] == ["sampling"]


def test_what_cannot_be_listened_for(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    first, *rest = request_.forget
    for broken, message in ((replace(first, answer="?"), "no word"), (replace(first, options=()), "no wrong options")):
        with pytest.raises(InputError, match=message):
            make_attack("sampling", FEW).run(tiny_model, encoder, Request(forget=(broken, *rest)))


@pytest.mark.parametrize("settings", [{"samples": 0}, {"new_tokens": 0}, {"temperature": 0.0}, {"temperature": -1.0}])
def test_settings_that_cannot_be(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match="at least 1"):
        make_attack("sampling", settings)
