"""Scores are the definitions, whatever the batch; greedy text is what one would say token by token."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models import scores
from expunge.models.candidates import candidate_log_probs
from expunge.models.quiet import quiet
from expunge.models.scores import ItemScore, greedy, log_odds, numbers, score_items, summarise
from families import CONFIGS, family_model
from tiny import make_tiny_model

LONG = Example("where does w1 w2 w3 w4 w5 w6 w7 live ?", "w8 w9 w10", ("w8 w9", "w8 w11 w12 w13", "oslo"))
BARE = Example("ada lives in", "the town")
FREE = Example("", "the town lives in oslo", ("w1 w2 w3",))


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@torch.no_grad()
def plain(model: PreTrainedModel, encoder: Encoder, prompt: str, text: str) -> tuple[float, int]:
    """log P of one text and its length, from the full logits of one row."""
    encoded = encoder.encode(prompt, text)
    log_p = model(torch.tensor([encoded.ids])).logits[0].double().log_softmax(-1)
    values = [log_p[t - 1, encoded.ids[t]].item() for t in range(encoded.answer_start, len(encoded.ids))]
    return sum(values), len(values)


def check(model: PreTrainedModel, encoder: Encoder, example: Example, item: ItemScore) -> None:
    total, tokens = plain(model, encoder, example.prompt, example.answer)
    others = [value / n for value, n in (plain(model, encoder, example.prompt, o) for o in example.options)]
    assert item.id == example.id
    assert item.tokens == tokens
    assert item.log_prob == pytest.approx(total, abs=2e-5)
    assert item.answer_mean == pytest.approx(total / tokens, abs=1e-5)
    assert item.option_log_probs == pytest.approx(others, abs=1e-5)
    assert item.probability == pytest.approx(math.exp(total), rel=1e-4)
    assert item.correct == all(total / tokens > other for other in others)
    assert item.chance == 1 / (1 + len(others))


@pytest.mark.parametrize("family", CONFIGS)
def test_scores_are_the_plain_log_probabilities(
    family: str, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    model, examples = family_model(family), (*tiny_examples, LONG, BARE)
    for example, item in zip(examples, score_items(model, encoder, examples), strict=True):
        check(model, encoder, example, item)


@pytest.mark.parametrize("examples", [(FREE,), (LONG, FREE)])
def test_examples_without_a_common_beginning_are_read_in_full(examples: tuple[Example, ...], encoder: Encoder) -> None:
    model = family_model("gpt2")  # its absolute positions notice a wrong start
    for example, item in zip(examples, score_items(model, encoder, examples), strict=True):
        check(model, encoder, example, item)


def test_families_without_an_ordinary_cache_are_read_in_full(
    encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    torch.manual_seed(0)
    config = MambaConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, state_size=4, initializer_range=0.2)
    with quiet():
        model, examples = MambaForCausalLM(config).eval(), (LONG, *tiny_examples)
        for example, item in zip(examples, score_items(model, encoder, examples), strict=True):
            check(model, encoder, example, item)


def test_batch_size_and_order_change_nothing(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    model, examples = make_tiny_model(), (*tiny_examples, LONG, BARE)
    whole = score_items(model, encoder, examples)
    for size in (1, 3, 7):
        for a, b in zip(whole, score_items(model, encoder, examples, batch_size=size), strict=True):
            assert a.log_prob == pytest.approx(b.log_prob, abs=1e-5)
            assert a.option_log_probs == pytest.approx(b.option_log_probs, abs=1e-5)
    backwards = score_items(model, encoder, examples[::-1])[::-1]
    assert [item.id for item in backwards] == [item.id for item in whole]


def test_each_prompt_is_read_once(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    model, read = make_tiny_model(), list[int]()
    model.model.layers[0].register_forward_hook(lambda module, args, out: read.append(args[0].shape[:2].numel()))
    score_items(model, encoder, tiny_examples)
    prompts = [len(encoder.encode(e.prompt, e.answer).ids) - 1 for e in tiny_examples]
    assert sum(read) == len(prompts) * max(prompts)


def test_scoring_leaves_the_model_as_it_was(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    model = make_tiny_model(attention_dropout=0.5).train()
    model.model.layers[1].eval()
    first = score_items(model, encoder, tiny_examples)
    assert first == score_items(model, encoder, tiny_examples)
    assert model.training
    assert model.model.layers[0].self_attn.training
    assert not model.model.layers[1].training
    assert torch.is_grad_enabled()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("n", [1, 2, 5])
def test_log_odds_are_zero_for_ignorance_and_shift_with_knowledge(n: int) -> None:
    assert log_odds(-3.0, [-3.0] * n) == pytest.approx(0.0)
    assert log_odds(-1.0, [-3.0] * n) == pytest.approx(2.0)


def test_log_odds_by_hand() -> None:
    assert log_odds(math.log(0.5), [math.log(0.2), math.log(0.4)]) == pytest.approx(math.log(0.5 / 0.3))
    assert log_odds(-2000.0, [-1000.0, -3000.0]) == pytest.approx(-1000 + math.log(2))
    assert math.isnan(log_odds(-1.0, []))


def test_summary_by_hand() -> None:
    def item(correct: bool, odds: float, probability: float, options: int) -> ItemScore:
        return ItemScore("x", -1.0, 1, (-2.0,) * options, -1.0, odds, correct, probability, 1 / (1 + options))

    found = summarise([item(True, 2.0, 0.5, 1), item(False, -1.0, 0.25, 3), item(True, math.nan, 0.75, 0)])
    assert found.n == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.log_odds == pytest.approx(0.5)
    assert found.probability == pytest.approx(0.5)
    assert found.chance == pytest.approx((0.5 + 0.25 + 1) / 3)
    assert math.isnan(summarise([item(True, math.nan, 0.75, 0)]).log_odds)
    with pytest.raises(InputError, match="no items"):
        summarise([])


def by_hand(model: PreTrainedModel, encoder: Encoder, prompt: str, length: int) -> str:
    """The likeliest token, over and over, without cache or padding."""
    ids = list(encoder.encode_prompt(prompt))
    start = len(ids)
    with torch.no_grad():
        while len(ids) - start < length and (len(ids) == start or ids[-1] != 1):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return str(encoder.tokenizer.decode(ids[start:], skip_special_tokens=True)).strip()


PROMPTS = ("ada lives in", "where does bob live ? the town question", "w1", "question : w5 w6 w7 w8 w9 answer :")


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_greedy_is_the_likeliest_token_over_and_over(family: str, batch_size: int, encoder: Encoder) -> None:
    model = family_model(family)
    model.config.use_cache = False
    expected = tuple(by_hand(model, encoder, prompt, 6) for prompt in PROMPTS)
    assert greedy(model, encoder, PROMPTS, max_new_tokens=6, batch_size=batch_size) == expected
    assert any(expected)


def test_greedy_stops_at_the_end_of_sequence(encoder: Encoder) -> None:
    model = make_tiny_model(tie_word_embeddings=False)
    with torch.no_grad():
        states = model.model(torch.tensor([encoder.encode_prompt(p) for p in PROMPTS[2:3]])).last_hidden_state
        model.lm_head.weight[1] = 100 * states[0, -1]
    steps = list[object]()
    hook = model.model.layers[0].register_forward_hook(lambda *_: steps.append(None))
    assert greedy(model, encoder, (PROMPTS[2],), max_new_tokens=5) == ("",)
    assert len(steps) == 1
    hook.remove()
    ends, goes_on = greedy(model, encoder, (PROMPTS[2], PROMPTS[0]), max_new_tokens=5)
    assert ends == ""
    assert goes_on == by_hand(model, encoder, PROMPTS[0], 5)


def test_greedy_ignores_and_restores_the_models_own_settings(encoder: Encoder) -> None:
    model = make_tiny_model().train()
    expected = greedy(model, encoder, PROMPTS)
    own = GenerationConfig(
        do_sample=True, temperature=9.0, top_k=5, repetition_penalty=7.0, num_beams=3, eos_token_id=1
    )
    model.generation_config = own
    assert greedy(model, encoder, PROMPTS) == expected
    assert model.generation_config is own
    assert model.training
    assert model.config.use_cache is False
    assert greedy(model, encoder, ()) == ()


def test_a_damaged_model_is_told(encoder: Encoder, tiny_examples: tuple[Example, ...]) -> None:
    model = make_tiny_model()
    model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(InputError, match="not a number"):
        numbers(score_items(model, encoder, tiny_examples))
    found = score_items(make_tiny_model(), encoder, tiny_examples)
    assert numbers(found) == found


def test_a_batch_holds_so_many_candidates(
    encoder: Encoder, tiny_examples: tuple[Example, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds the keys and values of its prompt, so that many options must not multiply the memory."""
    model, sizes = family_model("llama"), []

    def counted(model: object, read: object, groups: list[list[object]], pad_id: int) -> object:
        sizes.append(sum(map(len, groups)))
        return candidate_log_probs(model, read, groups, pad_id)

    monkeypatch.setattr(scores, "candidate_log_probs", counted)
    whole = score_items(model, encoder, tiny_examples)
    assert sizes == [3 * len(tiny_examples)]
    monkeypatch.setattr(scores, "MOST_CANDIDATES", 7)
    for few, all_ in zip(score_items(model, encoder, tiny_examples), whole, strict=True):
        assert few.log_odds == pytest.approx(all_.log_odds, abs=1e-5)
    assert sizes[1:] == [6] * 4
    monkeypatch.setattr(scores, "MOST_CANDIDATES", 2)
    score_items(model, encoder, tiny_examples)
    assert sizes[5:] == [3] * 8, "one alone may be larger"
