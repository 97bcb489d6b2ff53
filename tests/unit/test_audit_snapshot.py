"""Snapshot: what it holds, that it is the same for the same model, and what it does where it cannot measure."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from expunge.audit.attribution import attributions
from expunge.audit.influence import compare
from expunge.audit.probe import linear_probe
from expunge.audit.snapshot import Caps, control_snapshot, snapshot
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.answers import text_statistics
from expunge.models.scores import greedy, score_items
from expunge.request import Request
from tiny import make_tiny_model

TEXT = ("ada lives in the town oslo", "where does the town live ?", "bob lives in lima w1 w2 w3")


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture(scope="module")
def request_to_forget(tiny_examples: tuple[Example, ...]) -> Request:
    return Request(
        forget=tiny_examples[:3],
        retain=tiny_examples[3:6],
        test={"paraphrase": tiny_examples[6:7], "held_out": tiny_examples[7:]},
        text=TEXT,
    )


class Counting:
    """A watcher that notes what it was told."""

    def __init__(self) -> None:
        self.total, self.done, self.finished = 0, 0, 0

    def start(self, task: str, total: int) -> None:
        self.total += total

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.done += n

    def finish(self, task: str) -> None:
        self.finished += 1


def test_every_part_is_what_its_own_measure_says(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    found = snapshot(tiny_model, encoder, request_to_forget)
    forget = request_to_forget.forget
    assert [item.id for item in found.forget] == [example.id for example in forget]
    assert found.retain[1].log_odds == pytest.approx(
        score_items(tiny_model, encoder, request_to_forget.retain)[1].log_odds
    )
    assert {name: [item.id for item in items] for name, items in found.test.items()} == {
        name: [example.id for example in examples] for name, examples in request_to_forget.test.items()
    }
    said = greedy(tiny_model, encoder, [example.prompt for example in forget], 16)
    assert dict(found.samples) == {example.id: words for example, words in zip(forget, said, strict=True)}
    assert found.text is not None and found.text.kl is None
    assert found.text.perplexity == pytest.approx(text_statistics(tiny_model, encoder, TEXT).perplexity)
    assert found.attribution is not None
    assert not compare(found.attribution, attributions(tiny_model, encoder, forget)).d_plus.any()
    assert len(found.lens) == 2
    assert found.probe is None  # the answers of these retain items are not among those of the forget items


def test_the_probe_learns_from_what_stays_and_asks_what_had_to_go(
    tiny_model: LlamaForCausalLM, encoder: Encoder
) -> None:
    stays = (Example("w1 lives in", "oslo"), Example("w2 lives in", "lima"), Example("w3 lives in", "oslo"))
    forget = (Example("ada lives in", "oslo", options=("lima",)),)
    found = snapshot(tiny_model, encoder, Request(forget=forget, retain=stays)).probe
    assert found == linear_probe(tiny_model, encoder, stays, forget)
    assert found.n == 1 and len(found.log_odds) == 2 and found.chance == 0.5


def test_rouge_is_the_recall_of_the_answer_in_the_models_words(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    prompt = request_to_forget.forget[0].prompt
    (said,) = greedy(tiny_model, encoder, [prompt], 4)
    word = next(word for word in said.split() if word.isalnum())
    told = Request(forget=(Example(prompt, word), Example(prompt, "unsaid")))
    found = snapshot(tiny_model, encoder, told, caps=Caps(new_tokens=4))
    assert [found.rouge_l[example.id] for example in told.forget] == [1, 0]


def test_the_same_model_differs_in_nothing_from_its_reference(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    base = snapshot(tiny_model, encoder, request_to_forget)
    again = snapshot(make_tiny_model(), encoder, request_to_forget, reference=base)
    assert base.text_reference is not None and again.text_reference is None
    assert again.text is not None and base.text is not None
    assert again.text.kl == pytest.approx(0, abs=1e-6)
    assert again.text.perplexity == pytest.approx(base.text.perplexity)
    assert (again.forget, again.retain, again.test) == (base.forget, base.retain, base.test)
    assert (again.samples, again.lens) == (base.samples, base.lens)
    assert again.attribution is not None and base.attribution is not None
    assert compare(base.attribution, again.attribution).hidden == 0
    other = snapshot(make_tiny_model(seed=1), encoder, request_to_forget, reference=base)
    assert other.text is not None and other.text.kl is not None and other.text.kl > 0.1


def test_a_control_is_asked_the_same_of_what_had_to_go_and_nothing_else(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    reworded = replace(request_to_forget, test={**request_to_forget.test, "paraphrase": request_to_forget.forget[:2]})
    control, full = control_snapshot(tiny_model, encoder, reworded), snapshot(tiny_model, encoder, reworded)
    assert control.forget == full.forget
    assert control.test == {"paraphrase": full.test["paraphrase"]}
    assert control.probe == full.probe
    assert control.reading is not None and full.reading is not None
    assert control.reading.forget == full.reading.forget
    assert (control.text, control.text_reference, control.attribution, control.retain) == (None, None, None, ())
    assert not control.samples and not control.rouge_l and not control.lens


def test_caps_draw_the_same_items_for_every_model(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    caps = Caps(retain=2, attribution=2)
    first, second = (snapshot(m, encoder, request_to_forget, caps=caps) for m in (tiny_model, make_tiny_model(1)))
    for found in (first, second):
        assert len(found.retain) == 2 and len(found.forget) == 3
        assert found.attribution is not None and len(found.attribution.ids) == 2
    assert [item.id for item in first.retain] == [item.id for item in second.retain]
    whole = list(range(100))
    assert caps.draw(whole, 10) == tuple(sorted(caps.draw(whole, 10))) == caps.draw(whole, 10)
    assert caps.draw(whole, 10) != replace(caps, seed=1).draw(whole, 10)
    assert caps.draw(whole, 100) == tuple(whole)


def test_plain_text_is_cut_to_whole_passages(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    lengths = {text: len(encoder.encode_text(text).ids) for text in TEXT}
    assert sorted(lengths.values()) == [6, 6, 7]
    for most, number in ((1, 1), (11, 1), (13, 2), (18, 2), (19, 3)):
        drawn = Caps(text_tokens=most).draw_texts(encoder, TEXT)
        assert len(drawn) == number and list(drawn) == [text for text in TEXT if text in drawn]
    assert len({Caps(text_tokens=1, seed=seed).draw_texts(encoder, TEXT) for seed in range(9)}) == 3
    found = snapshot(tiny_model, encoder, request_to_forget, caps=Caps(text_tokens=1))
    (only,) = Caps(text_tokens=1).draw_texts(encoder, TEXT)
    assert found.text is not None and found.text.tokens == lengths[only] - 1


def test_progress_adds_up(tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request) -> None:
    watcher = Counting()
    snapshot(tiny_model, encoder, request_to_forget, progress=watcher)
    assert watcher.done == watcher.total > 0
    assert watcher.finished == 1


def test_the_model_comes_back_as_it_was(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request
) -> None:
    tiny_model.train()
    weights = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    snapshot(tiny_model, encoder, request_to_forget)
    assert tiny_model.training and all(p.requires_grad and p.grad is None for p in tiny_model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in tiny_model.state_dict().items())
    assert not tiny_model.config.use_cache


def test_a_request_without_options_or_text_gives_plain_json(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    found = snapshot(tiny_model, encoder, Request(forget=(Example("where does ada live ?", "oslo"),)))
    assert (found.text, found.lens, found.retain) == (None, (), ())
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["forget"]["log_odds"] is None and told["perplexity"] is None
    assert 0 < told["forget"]["probability"] < 1


def test_json_holds_the_means(tiny_model: LlamaForCausalLM, encoder: Encoder, request_to_forget: Request) -> None:
    told = snapshot(tiny_model, encoder, request_to_forget).to_json()
    json.dumps(told, allow_nan=False)
    assert told["retain"]["n"] == 3 and set(told["test"]) == {"paraphrase", "held_out"}
    assert told["kl"] is None and told["perplexity"] > 1


def test_an_unknown_family_is_measured_from_outside(
    encoder: Encoder, request_to_forget: Request, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    with caplog.at_level(logging.WARNING):
        found = snapshot(OPTForCausalLM(config).eval(), encoder, request_to_forget)
    assert "'opt' is not known" in caplog.text
    assert found.attribution is None and found.lens == ()
    assert len(found.samples) == 3 and found.text is not None


def test_records_of_two_sets_may_share_an_id(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    """As where each file numbers its own."""

    def numbered(examples: tuple[Example, ...], first: int) -> tuple[Example, ...]:
        worded = [replace(e, answer_paraphrases=(f"lives in {e.answer}",)) for e in examples]
        return tuple(replace(e, id=str(first + n)) for n, e in enumerate(worded))

    forget = numbered(tiny_examples[:3], 0)
    own, shared = (
        snapshot(tiny_model, encoder, Request(forget, numbered(tiny_examples[3:6], first))) for first in (100, 0)
    )
    assert (own.samples, own.rouge_l) == (shared.samples, shared.rouge_l)
    assert own.reading and shared.reading and own.reading.forget == shared.reading.forget
    assert own.reading.stays["retain"].log_truth == shared.reading.stays["retain"].log_truth


def test_plain_text_among_what_stays_is_scored_and_not_asked(
    tiny_model: LlamaForCausalLM, encoder: Encoder, tiny_examples: tuple[Example, ...]
) -> None:
    passage = Example("", " ".join(e.answer for e in tiny_examples[:3]))
    found = snapshot(tiny_model, encoder, Request(tiny_examples[:3], (*tiny_examples[3:6], passage)))
    assert (
        len(found.retain) == 4
        and found.probe == snapshot(tiny_model, encoder, Request(tiny_examples[:3], tiny_examples[3:6])).probe
    )
