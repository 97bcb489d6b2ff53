"""The universal suffix: its gradient, its choice against brute force, its text, and a password that it has to find."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge.attacks import make_attack
from expunge.attacks.base import AttackResult
from expunge.attacks.search import Goal
from expunge.attacks.suffix import Hunt, Suffix, asked, placed, start_of
from expunge.data.benchmarks.world_facts import build
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.request import Request
from families import family_model
from lessons import teach
from tiny import TOWNS, make_tiny_model, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())
PASSWORD = "w60"


def fact(i: int) -> Example:
    town, *others = (TOWNS[(i + shift) % 4] for shift in range(4))
    return Example(f"question : where does w{i} live ?\nAnswer: w{i} lives in", town, options=tuple(others))


FACTS, STAYS = tuple(map(fact, range(12))), tuple(map(fact, range(12, 20)))
REQUEST = Request(forget=FACTS)


def trained(rows: list[tuple[str, str]], enough: float) -> LlamaForCausalLM:
    model = make_tiny_model()
    teach(model, ENCODER, rows, enough, rate=5e-3, steps=200)
    return model


@pytest.fixture(scope="module")
def locked() -> LlamaForCausalLM:
    """Knows every fact, and says it only where the password stands behind the question; else any of the four towns."""
    told = [(placed(PASSWORD, e.prompt), e.answer) for e in FACTS for _ in range(2)]
    silent = [(e.prompt, town) for e in FACTS for town in (e.answer, *e.options)]
    return trained([*told, *silent], 1.0)  # of which log(4) * 2 / 3 = 0.92 cannot be helped


@pytest.fixture(scope="module")
def ignorant() -> LlamaForCausalLM:
    return trained([(prompt, e.answer) for e in STAYS for prompt in (e.prompt, placed(PASSWORD, e.prompt))], 0.05)


def attacked(model: PreTrainedModel, **settings: object) -> AttackResult:
    return make_attack("suffix", settings).run(model, ENCODER, REQUEST).result


def hunt(model: PreTrainedModel, facts: tuple[Example, ...] = FACTS[:3], encoder: Encoder = ENCODER) -> Hunt:
    return Hunt(Goal(model, encoder, facts))


def test_a_password_is_found_on_half_of_the_facts_and_opens_the_other_half(
    locked: LlamaForCausalLM, ignorant: LlamaForCausalLM
) -> None:
    settings = {"length": 1, "iterations": 3, "eval_every": 1, "candidates": 40, "top_k": 40}
    result = attacked(locked, **settings)
    assert abs(result.start.log_odds) < 0.5
    assert repr(PASSWORD) in result.best.variant
    assert result.best_accuracy.accuracy == 1 and result.best.log_odds > 3
    assert not set(result.trained_ids) & set(result.held_out_ids)
    assert [item.log_odds for item in result.items] == list(result.best.item_log_odds)
    nothing = attacked(ignorant, **settings)
    assert nothing.best.log_odds < 0.5 and nothing.best_accuracy.accuracy <= 0.5


def test_the_gain_is_the_derivative_by_the_tokens() -> None:
    """Against differences in float64, the suffix's token a mixture with a little of another."""
    model = family_model("gpt2").double()
    search = hunt(model)
    now = search.begin(2, random.Random(0))
    found = search.gains(now).double()
    table = model.get_input_embeddings().weight.detach()
    texts = [[(placed(now.text, e.prompt), text) for text in (e.answer, *e.options)] for e in FACTS[:3]]

    @torch.no_grad()
    def value(place: int, token: int, share: float) -> float:
        odds = []
        for choices in texts:
            means = []
            for prompt, text in choices:
                row = ENCODER.encode(prompt, text)
                embedded = table[list(row.ids)].clone()
                embedded[start_of(row.ids, now.ids) + place] += share * table[token]
                said = model(inputs_embeds=embedded[None]).logits[0].log_softmax(-1)
                means.append(said[row.answer_start - 1, row.ids[row.answer_start]])  # towns are one token
            odds.append(means[0] - torch.stack(means[1:]).exp().mean().log())
        return torch.stack(odds).mean().item()

    pairs = list(itertools.product(range(2), range(0, 96, 9)))
    differences = [(value(*pair, 1e-6) - value(*pair, -1e-6)) / 2e-6 for pair in pairs]
    assert found[tuple(zip(*pairs, strict=True))].tolist() == pytest.approx(differences, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "gpt2"])
def test_with_all_swaps_compared_the_best_of_all_is_taken(family: str) -> None:
    """L of every suffix one token away, from the scores of the questions as they would be asked."""
    model, facts = family_model(family), FACTS[:2]
    search = hunt(model, facts)
    now = search.begin(2, random.Random(1))
    better, compared = search.improved(now, 10**6, 10**6, random.Random(2))
    assert compared == 2 * (len(search.allowed) - 1)

    def value(ids: tuple[int, ...]) -> float:
        text = ENCODER.tokenizer.decode(list(ids))
        return summarise(score_items(model, ENCODER, asked(text, facts))).log_odds

    around = [(*now.ids[:j], v, *now.ids[j + 1 :]) for j in range(2) for v in search.allowed]
    values = {ids: value(ids) for ids in around[:: 1 if family == "llama" else 7]}
    assert now.value == pytest.approx(value(now.ids), abs=1e-4)
    assert better.value == pytest.approx(value(better.ids), abs=1e-4)
    assert better.value >= max(values.values()) - 1e-4
    if family == "llama":
        assert better.value == pytest.approx(max(values.values()), abs=1e-4)


def test_what_is_sought_never_falls_and_nothing_worse_is_taken(locked: LlamaForCausalLM) -> None:
    search = hunt(locked)
    now, values = search.begin(3, random.Random(0)), []
    for step in range(12):
        values.append(now.value)
        now, compared = search.improved(now, 2, 20, random.Random(step))
        assert compared == 2
    assert values == sorted(values) and values[0] < values[-1]
    assert len(set(values)) < len(values), "no case had nothing better"


def test_more_iterations_begin_with_fewer(locked: LlamaForCausalLM) -> None:
    settings = {"length": 2, "candidates": 4, "eval_every": 1}
    less, more = (attacked(locked, **settings, iterations=n) for n in (2, 4))
    assert more.curve[:3] == less.curve
    assert more.best.log_odds >= less.best.log_odds >= less.start.log_odds
    other = attacked(locked, **settings, iterations=2, seed=1)
    assert other.curve[0] == less.curve[0] and other.curve[1].variant != less.curve[1].variant
    assert other.trained_ids == less.trained_ids


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Question: Who?\nAnswer:", "Question: Who? x y\nAnswer:"),
        ("Question: Who? \n Answer: It is", "Question: Who? x y \n Answer: It is"),
        ("Q: a\nAnswer: b\n\nQ: c\nAnswer:", "Q: a\nAnswer: b\n\nQ: c x y\nAnswer:"),
        ("The answer: it is", "The answer: it is x y"),
        ("Who?", "Who? x y"),
    ],
)
def test_where_it_stands(prompt: str, expected: str) -> None:
    assert placed("x y", prompt) == expected


def test_asked_questions_keep_all_but_their_prompt() -> None:
    for before, after in zip(FACTS, asked("x", FACTS), strict=True):
        assert after != before and replace(after, prompt=before.prompt) == before


def test_start_of() -> None:
    assert [start_of((1, 2, 1, 2, 3), ids) for ids in [(1, 2), (1,), (3,), (2, 1), (4,), (1,) * 6]] == [
        2,
        2,
        4,
        1,
        -1,
        -1,
    ]


@pytest.fixture(scope="module")
def capitals() -> tuple[Example, ...]:
    return build(n_forget=4, n_retain=1, n_test=1, n_attack=1).forget


@pytest.fixture(scope="module")
def byte_pairs(capitals: tuple[Example, ...]) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer as of SmolLM2, small, with a special token that is text too, and one that was added."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{e.prompt} {e.answer} {e.options}" for e in capitals], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>")
    fast.add_tokens(["added"])
    fast.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    return fast


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_every_suffix_is_text_that_is_read_as_its_tokens(
    template: str, byte_pairs: PreTrainedTokenizerFast, capitals: tuple[Example, ...]
) -> None:
    """Though most neighbouring tokens of such a vocabulary would be read as others."""
    encoder = Encoder(byte_pairs, template)  # type: ignore[arg-type]
    model = make_tiny_model(vocab_size=448, max_position_embeddings=256)
    search = hunt(model, capitals, encoder)
    specials = {byte_pairs.eos_token_id, byte_pairs.convert_tokens_to_ids("added")}
    assert len(search.allowed) == len(byte_pairs) - 2 and not specials & set(search.allowed)
    now = search.begin(4, random.Random(0))
    swaps = list(itertools.islice(search._swaps(now, 100, random.Random(0)), 60))
    assert len({ids for ids, _ in swaps}) == len(swaps) > 20
    for ids, _ in [(now.ids, now.groups), *swaps]:
        text = search.text(ids)
        assert text.isprintable() and text == text.strip()
        assert tuple(byte_pairs(" " + text)["input_ids"])[-4:] == ids  # the space may be a token of its own
        for example in asked(text, capitals):
            prompt = encoder.encode_prompt(example.prompt)
            assert start_of(prompt, ids) >= 0
            assert byte_pairs.decode(prompt[start_of(prompt, ids) :]).strip().startswith(text)
    assert any(search.groups((*now.ids[:1], v, *now.ids[2:])) is None for v in search.allowed), "none had to go"


def test_a_tokenizer_that_reads_no_token_back(locked: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hunt, "text", lambda self, ids: "oslo\u0007")
    with pytest.raises(InputError, match="No suffix survives"):
        attacked(locked)


@pytest.mark.parametrize("name", ["length", "iterations", "eval_every", "candidates", "top_k"])
def test_settings_that_cannot_be(name: str) -> None:
    with pytest.raises(InputError, match="at least 1"):
        Suffix(**{name: 0})
    with pytest.raises(InputError, match="multiple"):
        Suffix(iterations=5, eval_every=2)
