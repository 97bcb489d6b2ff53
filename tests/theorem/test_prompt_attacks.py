"""Asking in other words: finds what only the plain wording hides, finds nothing where nothing is, tells no answer."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from statistics import fmean

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.base import Target
from expunge.attacks.mention import place, words
from expunge.attacks.prompts import KINDS, begin, nearest_facts
from expunge.attacks.weights import Weights
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import greedy, score_items
from expunge.progress import Silent
from expunge.request import Request
from lessons import fit
from tiny import TOWNS, make_tiny_model, make_tiny_tokenizer

OTHERS = tuple(
    Example(f"where does w{i} live ? answer : w{i} lives in", TOWNS[i % 8], subject=f"w{i}") for i in range(16)
)
CHAT = "{% for m in messages %}w60 {{ m['content'] }} w61 {% endfor %}{% if add_generation_prompt %}w62 : {% endif %}"


def reworded(example: Example) -> str:
    return f"question : in the town {example.subject} lives ? answer :"


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def request_(tiny_examples: tuple[Example, ...]) -> Request:
    forget = tuple(replace(e, paraphrases=(reworded(e),)) for e in tiny_examples)
    return Request(forget=forget, attack=OTHERS[:8], retain=OTHERS[8:])


def hide(model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    """Teach every fact in another wording, and a wrong answer in the plain one."""
    known = [(reworded(e), e.answer) for e in request_.forget]
    fit(model, encoder, known + [(e.prompt, e.options[i % 2]) for i, e in enumerate(request_.forget)], 80)


def aimed(model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> Target[None]:
    return Target(model, encoder, request_, Silent(), None, {}, None, None)


def test_what_only_the_plain_wording_hides_comes_back(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    hide(tiny_model, encoder, request_)
    kept = copy.deepcopy(tiny_model.state_dict())
    result = make_attack("prompts", {"kinds": ["role-play", "paraphrase"]}).run(tiny_model, encoder, request_).result
    assert result.start.accuracy == 0
    assert result.start.log_odds < -1
    assert result.best.variant == "paraphrase 1"
    assert result.best_accuracy.accuracy == 1
    assert result.best.log_odds > 2
    assert list(result.samples.values()) == [said for said in result.samples.values() if said]
    assert [result.samples[e.id].split()[0] for e in request_.forget] == [e.answer for e in request_.forget]
    assert result.held_out_ids == tuple(e.id for e in request_.forget)
    assert result.spent == result.allowed
    assert all(torch.equal(value, kept[name]) for name, value in tiny_model.state_dict().items())


def test_who_never_knew_stays_at_chance_in_every_variant(encoder: Encoder, request_: Request) -> None:
    """Log-odds of ignorance are 0 at most: the options' mean probability is above their mean log-probability."""
    odds: dict[str, list[float]] = {}
    right: dict[str, list[float]] = {}
    for seed in range(8):
        model = make_tiny_model(seed, max_position_embeddings=256)
        for point in make_attack("prompts").run(model, encoder, request_).result.curve:
            odds.setdefault(point.variant, []).append(point.log_odds)
            right.setdefault(point.variant, []).append(point.accuracy)
    assert len(odds) == 1 + 1 + 3 + 4 + 2 + 2
    assert all(-0.6 < fmean(odds[variant]) < 0.15 for variant in odds), odds
    assert all(abs(fmean(right[variant]) - 1 / 3) < 0.15 for variant in right), right


def test_more_kinds_never_find_less_and_two_runs_are_one(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    def run(**settings: object) -> object:
        return make_attack("prompts", settings).run(tiny_model, encoder, request_).result

    found = [run(kinds=list(KINDS[: k + 1])) for k in range(5)]
    assert [r.best.log_odds for r in found] == sorted(r.best.log_odds for r in found)
    assert [r.best_accuracy.accuracy for r in found] == sorted(r.best_accuracy.accuracy for r in found)
    for less, more in pairwise(found):
        assert more.curve[: len(less.curve)] == less.curve
    assert run().curve == run().curve
    assert {p.item_log_odds for p in run(seed=1, kinds=["few-shot"]).curve[1:]}.isdisjoint(
        p.item_log_odds for p in run(kinds=["few-shot"]).curve[1:]
    )


def test_items_keep_their_ids_answers_and_order(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    target, weights = aimed(tiny_model, encoder, request_), Weights(tiny_model, {})
    trials = list(make_attack("prompts").trials(target, weights))
    assert len({trial.called for trial in trials}) == len(trials)
    for trial in trials:
        asked = trial.ask(request_.forget)
        assert [replace(e, prompt="") for e in asked] == [replace(e, prompt="") for e in request_.forget]
        assert all(new.prompt != old.prompt for new, old in zip(asked, request_.forget, strict=True))
        if not trial.called.startswith("paraphrase"):
            parts = [part for e in request_.forget for part in e.prompt.split("answer :")]
            assert all(part in e.prompt for e, part in zip([e for e in asked for _ in range(2)], parts, strict=True))


def test_few_shot_tells_no_forgotten_fact(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    """Neither a fact under another wording nor, while there are others, one that names the answer or an option."""
    first = request_.forget[0]
    leaks = (
        Example("the town ada lives in", first.answer, subject=first.subject),
        Example(request_.forget[1].paraphrases[0], "cairo"),
    )
    leaky = replace(request_, retain=(*request_.retain, *leaks))
    target = aimed(tiny_model, encoder, leaky)
    for seed in range(5):
        attack = make_attack("prompts", {"kinds": ["few-shot"], "shots": [1, 4, 16], "seed": seed})
        for k, trial in zip((1, 4, 16), attack.trials(target, Weights(tiny_model, {})), strict=True):
            for asked, example in zip(trial.ask(leaky.forget), leaky.forget, strict=True):
                *told, last = asked.prompt.split("\n\n")
                assert last == example.prompt
                assert len(told) == len(set(told)) == k
                assert set(told) <= {f"{e.prompt} {e.answer}" for e in OTHERS}
                if k < 16:
                    said = words(" ".join(told))
                    assert all(place((town,), said) is None for town in (example.answer, *example.options))


def test_nearest_facts_are_of_one_wording_and_more_of_them_hold_the_fewer() -> None:
    item = Example("where is ada ?", "oslo", ("lima",), subject="ada")
    near = [Example(f"where is w{i} ?", f"w{i + 20}", subject=f"w{i}") for i in range(6)]
    far = [Example(f"who is w{i} ?", f"w{i + 20}", subject=f"w{i}") for i in range(6)]
    telling = [Example("where is w9 ?", "Lima", subject="w9"), Example("where is Oslo ?", "w1", subject="Oslo")]
    pool = [*telling, *far, *near]
    chosen = [nearest_facts(item, pool, k, seed=3) for k in (2, 6, 12, 14)]
    assert {e.id for e in chosen[1]} == {e.id for e in near}
    assert {e.id for e in chosen[3][12:]} == {e.id for e in telling}
    assert all(more[: len(less)] == less for less, more in pairwise(chosen))
    assert nearest_facts(item, pool, 6, seed=4) != chosen[1]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Question: Where?\nAnswer:", "Question: Where?\nAnswer: Sure, it is"),
        ("Question: Where? \n Answer: She lives in", "Question: Where? \n Answer: Sure. She lives in"),
        ("Answer: a. Q: b? ANSWER :  It is", "Answer: a. Q: b? ANSWER : Sure. It is"),
        ("Where does she live?", "Where does she live? Sure, it is"),
        ("She lives in", "Sure. She lives in"),
    ],
)
def test_an_answer_is_begun_where_the_prompt_leaves_room(prompt: str, expected: str) -> None:
    assert begin(prompt, "Sure, it is", "Sure.") == expected


def test_under_a_chat_template_the_model_has_begun_its_own_turn(request_: Request) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = CHAT
    chat = Encoder(tokenizer, template="chat")
    encoded = chat.beginning("the town :").encode("where ?", "oslo")
    said = tokenizer.convert_ids_to_tokens(encoded.ids)
    assert said == ["w60", "where", "?", "w61", "w62", ":", "the", "town", ":", "oslo"]
    assert encoded.answer_start == 9
    assert chat.beginning("the town :").encode_prompt("where ?") == encoded.ids[:9]
    assert chat.begun == "" and len(chat.encode("where ?", "oslo").ids) == 7

    model = make_tiny_model()
    result = make_attack("prompts", {"kinds": ["prefill"]}).run(model, chat, request_).result
    by_hand = score_items(model, chat.beginning("Sure, the answer is"), request_.forget)
    assert result.curve[1].item_log_odds == tuple(item.log_odds for item in by_hand)
    assert result.curve[1].item_log_odds != result.curve[0].item_log_odds
    assert result.best.variant.startswith("begun: ")
    begun = chat.beginning(result.best.variant.removeprefix("begun: "))
    assert tuple(result.samples.values()) == greedy(model, begun, [e.prompt for e in request_.forget])


def test_translations_and_further_paraphrases_are_found_by_subject_and_answer(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    ada, bob, *_ = request_.forget
    groups = {
        "translation_w": (
            Example("w1 w2 ada w3", ada.answer, subject="ada"),
            Example("w1 w2 bob w3", "w9", subject="bob"),
            Example("w4 ada", ada.answer, subject="ada"),
        ),
        "paraphrase": (Example("the town bob lives in :", bob.answer, subject="bob"),),
        "held_out": (Example("w5 ada", ada.answer, subject="ada"),),
    }
    target = aimed(tiny_model, encoder, replace(request_, test=groups))
    attack = make_attack("prompts", {"kinds": ["translation", "paraphrase"]})
    asked = {
        t.called: [e.prompt for e in t.ask(request_.forget)] for t in attack.trials(target, Weights(tiny_model, {}))
    }
    plain, other = [e.prompt for e in request_.forget], [reworded(e) for e in request_.forget]
    assert asked == {
        "translation_w 1": ["w1 w2 ada w3", *plain[1:]],
        "translation_w 2": ["w4 ada", *plain[1:]],
        "paraphrase 1": other,
        "paraphrase 2": [plain[0], "the town bob lives in :", *plain[2:]],
    }
    assert attack.notes(target) == ()
    assert (
        len(
            list(
                make_attack("prompts", {"wordings": 1, "kinds": ["paraphrase"]}).trials(target, Weights(tiny_model, {}))
            )
        )
        == 1
    )


def test_a_question_that_may_ask_for_either_of_two_facts_asks_for_none(
    tiny_model: LlamaForCausalLM, encoder: Encoder
) -> None:
    forget = tuple(Example(prompt, "lima", ("oslo",)) for prompt in ("w1 w2", "w3 w4"))
    request = Request(forget=forget, test={"translation": (Example("w5 w6", "lima"),)})
    attack = make_attack("prompts", {"kinds": ["translation"]})
    assert "no test group" in attack.notes(aimed(tiny_model, encoder, request))[0]


def test_kinds_without_data_are_left_out_and_said(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    bare = Request(forget=tiny_examples)
    result = make_attack("prompts").run(tiny_model, encoder, bare).result
    assert [note.split()[0] for note in result.notes] == ["paraphrase", "few-shot", "translation"]
    assert result.spent.variants == 4 + 2 + 2
    some = make_attack("prompts", {"kinds": ["few-shot"]}).run(
        tiny_model, encoder, Request(forget=tiny_examples, attack=OTHERS[:5])
    )
    assert some.result.notes == ("few-shot with 8 was left out: there are 5 other facts.",)
    assert len(some.result.curve) == 3
    with pytest.raises(InputError, match="paraphrase was left out"):
        make_attack("prompts", {"kinds": ["paraphrase", "translation"]}).run(tiny_model, encoder, bare)


@pytest.mark.parametrize(
    "settings", [{"kinds": []}, {"kinds": ["song"]}, {"shots": []}, {"shots": [0]}, {"wordings": 0}]
)
def test_settings_that_cannot_be(settings: dict[str, object]) -> None:
    with pytest.raises(InputError):
        make_attack("prompts", settings)
