"""Metrics read from models: the definitions in float64, planted truths, and what is left out where data are missing."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.audit.memorization import Measure
from expunge.audit.metrics import Metrics, language, metrics
from expunge.audit.reading import non_members
from expunge.audit.snapshot import Caps, Snapshot, control_snapshot, snapshot
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models import tokens as tokens_module
from expunge.models.scores import score_items
from expunge.models.tokens import token_scores
from expunge.request import Request
from lessons import fit, told
from tiny import NAMES, TOWNS, make_tiny_model

TEXT = ("ada lives in the town oslo", "where does the town live ?", "bob lives in lima w1 w2 w3")


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


def person(i: int, answer: str, **more: object) -> Example:
    """Somebody with an answer of several tokens."""
    name = f"w{i}"
    options = tuple(f"{TOWNS[(i + k) % 8]} the town in {TOWNS[(i + k) % 8]}" for k in (1, 2))
    return Example(f"where does {name} live ? answer :", answer, options, subject=name, **more)  # type: ignore[arg-type]


PEOPLE = tuple(person(i, f"{TOWNS[i % 8]} the town in {NAMES[(3 * i) % 8]}") for i in range(24))
REQUEST = Request(forget=PEOPLE[:8], retain=PEOPLE[8:16], attack=PEOPLE[16:], text=TEXT)


@pytest.fixture(scope="module")
def original(encoder: Encoder) -> LlamaForCausalLM:
    model = make_tiny_model(1)
    fit(model, encoder, told(PEOPLE[:16]), 60, decay=0.01)
    return model


@pytest.fixture(scope="module")
def retrained(encoder: Encoder) -> LlamaForCausalLM:
    model = make_tiny_model(2)
    fit(model, encoder, told(PEOPLE[8:16]), 60, decay=0.01)
    return model


@pytest.fixture(scope="module")
def knowing(original: LlamaForCausalLM, encoder: Encoder) -> Snapshot:
    return snapshot(original, encoder, REQUEST)


def found(told: Metrics, name: str, when: str = "after") -> Measure:
    """One metric of one model."""
    (row,) = [row for row in told.rows if row.name == name]
    measure = getattr(row, when)
    assert isinstance(measure, Measure)
    return measure


def of(before: Snapshot, after: Snapshot) -> Metrics:
    assert before.reading is not None and after.reading is not None
    return metrics(before.reading, after.reading, None, (before.text, after.text))


@pytest.mark.parametrize("budget", [16 * 96, 64 << 20])
def test_token_scores_equal_their_definitions(
    encoder: Encoder, original: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, budget: int
) -> None:
    monkeypatch.setattr(tokens_module, "LOGITS_BYTES", budget)
    told = token_scores(original, encoder, PEOPLE[:5], batch_size=2)
    for example, item in zip(PEOPLE[:5], told, strict=True):
        encoded = encoder.encode(example.prompt, example.answer)
        start, ids = encoded.answer_start, torch.tensor([encoded.ids])
        with torch.no_grad():
            logs = original(ids).logits[0, start - 1 : -1].double().log_softmax(-1)
        said = ids[0, start:]
        mean = (logs.exp() * logs).sum(-1)
        variance = (logs.exp() * logs**2).sum(-1) - mean**2
        assert item.id == example.id and len(item.hits) == len(said) == 5
        assert item.log_probs == pytest.approx(logs.gather(1, said[:, None])[:, 0].tolist(), abs=1e-4)
        assert list(item.hits) == (logs.argmax(-1) == said).tolist()
        assert item.means == pytest.approx(mean.tolist(), abs=1e-4)
        assert item.variances == pytest.approx(variance.tolist(), abs=1e-3)


def test_what_was_learnt_by_heart_is_seen_as_such(knowing: Snapshot) -> None:
    told = of(knowing, knowing)
    for name in ("forget_accuracy", "exact_memorization", "extraction_strength", "forget_Q_A_ROUGE"):
        assert found(told, name).value == 1, name
    assert found(told, "forget_Q_A_Prob").value > 0.95
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        assert found(told, name).value > 0.95, name
    assert found(told, "privleak").value < -90
    assert found(told, "model_utility").value > 0.9
    assert found(told, "kl").value == pytest.approx(0, abs=1e-6) if knowing.text and knowing.text.kl else True


def test_who_never_learnt_is_at_chance(
    knowing: Snapshot, original: LlamaForCausalLM, retrained: LlamaForCausalLM, encoder: Encoder
) -> None:
    after = snapshot(retrained, encoder, REQUEST, reference=knowing)
    told = of(knowing, after)
    # Three tokens of five are the same in all answers; the last one is not.
    assert found(told, "exact_memorization").value < 0.8
    assert found(told, "extraction_strength").value < 0.5
    for name in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):
        low, high = found(told, name).low, found(told, name).high
        assert low < 0.5 < high, name
    assert found(told, "kl").value > 0.1


def test_a_control_gives_forget_quality_and_its_own_column(
    knowing: Snapshot, retrained: LlamaForCausalLM, encoder: Encoder
) -> None:
    control = control_snapshot(retrained, encoder, REQUEST).reading
    assert knowing.reading is not None and control is not None
    told = metrics(knowing.reading, control, control)
    assert found(told, "forget_quality", "before").value < 0.01
    assert found(told, "forget_quality").value == 1 == found(told, "forget_quality", "control").value
    assert found(told, "privleak").value == 0
    assert found(told, "mia_reference").value == 0.5  # compared with itself
    assert found(told, "mia_reference", "before").value > 0.9
    assert told.reference == "control" and told.non_members == "attack"
    row = next(row for row in told.rows if row.name == "model_utility")
    assert row.before is not None and row.control is None


def test_values_belong_to_items(knowing: Snapshot) -> None:
    told = of(knowing, knowing)
    assert told.forget == tuple(example.id for example in REQUEST.forget)
    assert told.others == tuple(example.id for example in REQUEST.attack)
    for row in told.rows:
        assert row.after is not None
        if row.name.startswith("forget_") or row.name in ("exact_memorization", "extraction_strength"):
            assert len(row.after.values) == 8, row.name
        elif row.name.startswith("mia_"):
            assert len(row.after.values) == 16, row.name
        if row.after.values and not row.name.startswith(("mia_", "perplexity")):
            assert sum(row.after.values) / len(row.after.values) == pytest.approx(row.after.value, abs=0.5), row.name
        low, high = row.after.low, row.after.high
        assert math.isnan(low) or low <= row.after.value <= high, row.name


def test_a_paraphrase_of_the_answer_takes_its_place_in_the_truth_ratio(
    original: LlamaForCausalLM, encoder: Encoder
) -> None:
    other = "the town in delhi"
    forget = (replace(PEOPLE[0], answer_paraphrases=(other,)), PEOPLE[1])
    request = Request(forget=forget)
    reading = snapshot(original, encoder, request).reading
    assert reading is not None
    wording = score_items(original, encoder, [replace(PEOPLE[0], answer=other), PEOPLE[1]])
    expected = [sum(item.option_log_probs) / len(item.option_log_probs) - item.answer_mean for item in wording]
    assert reading.forget.log_truth == pytest.approx(expected, abs=1e-4)


def test_what_cannot_be_measured_is_left_out(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    only = Request(forget=(Example("where does ada live ?", "oslo"),))
    bare = snapshot(tiny_model, encoder, only)
    names = {row.name for row in of(bare, bare).rows}
    assert names == {"forget_Q_A_Prob", "forget_Q_A_ROUGE", "exact_memorization", "extraction_strength"}
    mixed = Request(forget=(Example("where does ada live ?", "oslo"), PEOPLE[0]))
    ratio = found(of(*[snapshot(tiny_model, encoder, mixed)] * 2), "forget_Truth_Ratio")
    assert math.isnan(ratio.values[0]) and ratio.value == ratio.values[1]


def test_a_model_alone_has_its_own_column(knowing: Snapshot) -> None:
    assert knowing.reading is not None
    told = metrics(None, knowing.reading, None, (None, knowing.text))
    assert found(told, "mia_loss").value > 0.95 and found(told, "perplexity").value > 1
    assert all(row.before is None and row.control is None for row in told.rows)
    assert told.reference == "" and "mia_reference" not in [row.name for row in told.rows]


def test_non_members_are_facts_for_attacks_or_else_held_out_ones() -> None:
    held_out = {"held_out": PEOPLE[16:20]}
    assert non_members(REQUEST)[0] == "attack"
    assert non_members(Request(forget=PEOPLE[:2], test=held_out)) == ("held_out", PEOPLE[16:20])
    assert non_members(Request(forget=PEOPLE[:2])) == ("", ())


def test_tofus_other_sets_join_the_utility(original: LlamaForCausalLM, encoder: Encoder) -> None:
    request = replace(REQUEST, test={"real_authors": PEOPLE[8:10], "world_facts": PEOPLE[10:12]})
    taken = snapshot(original, encoder, request)
    told = of(taken, taken)
    names = [row.name for row in told.rows]
    assert [name for name in names if name.startswith(("retain", "ra_", "wf_"))] == [
        *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
        *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
        *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
    ]
    share = found(told, "ra_Q_A_Prob_normalised")
    item = score_items(original, encoder, PEOPLE[8:9])[0]
    right, wrong = math.exp(item.answer_mean), sum(map(math.exp, item.option_log_probs))
    assert share.values[0] == pytest.approx(right / (right + wrong), rel=1e-3)
    assert share.chance == pytest.approx(1 / 3)


def test_who_is_not_spoken_to_is_scored_all_the_same(original: LlamaForCausalLM, encoder: Encoder) -> None:
    taken = snapshot(original, encoder, REQUEST, caps=Caps(spoken=3))
    told = of(taken, taken)
    spoken = [not math.isnan(value) for value in found(told, "retain_Q_A_ROUGE").values]
    assert len(spoken) == 8 and sum(spoken) == 3
    assert not any(map(math.isnan, found(told, "retain_Q_A_Prob").values))
    utility = found(told, "model_utility")
    assert utility.low <= utility.value <= utility.high


def test_language_is_that_of_its_passages(knowing: Snapshot, retrained: LlamaForCausalLM, encoder: Encoder) -> None:
    text = snapshot(retrained, encoder, REQUEST, reference=knowing).text
    assert text is not None and len(text.passages) == 3
    told = language(text, 96)
    assert told["perplexity"].value == text.perplexity and told["kl"].value == text.kl
    tokens = [count for _, _, count in text.passages]
    logs = [math.log(value) * count for value, count in zip(told["perplexity"].values, tokens, strict=True)]
    assert math.exp(sum(logs) / sum(tokens)) == pytest.approx(text.perplexity)
    assert told["perplexity"].chance == 96
    assert language(None, 96) == {}


def test_words_are_as_long_as_the_longest_answer(tiny_model: LlamaForCausalLM, encoder: Encoder) -> None:
    long = Example("where does ada live ?", " ".join(["oslo"] * 24))
    for most, length in ((64, 24), (20, 20)):
        caps = Caps(new_tokens=2, most_new_tokens=most)
        (words,) = snapshot(tiny_model, encoder, Request(forget=(long,)), caps=caps).samples.values()
        assert len(encoder.tokenizer(words)["input_ids"]) <= length
