"""Attacks: what they train on, what they leave behind, and how they are named and set."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.attacks import ATTACKS, make_attack
from expunge.attacks.base import AttackResult
from expunge.attacks.budget import Budget
from expunge.attacks.catalogue import kind_of
from expunge.attacks.cells import FolderCells
from expunge.attacks.material import Material, split
from expunge.attacks.relearn import RelearnHarmful
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.sources import instructions, read_examples
from expunge.errors import InputError
from expunge.models.scores import score_items
from expunge.request import Request

SHORT = {"learning_rates": [1e-3], "max_steps": 2, "eval_every": 1, "batch_size": 2}


@pytest.fixture
def encoder(tiny_tokenizer: PreTrainedTokenizerFast) -> Encoder:
    return Encoder(tiny_tokenizer)


@pytest.fixture
def request_(tiny_examples: tuple[Example, ...]) -> Request:
    others = tuple(replace(e, prompt=f"w{i} {e.prompt}", id="") for i, e in enumerate(tiny_examples[:3]))
    return Request(forget=tiny_examples, attack=others)


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_harmful_trains_on_its_fraction_of_the_wrong_items_and_scores_the_rest(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    scores = score_items(tiny_model, encoder, request_.forget)
    wrong = {item.id for item in scores if not item.correct}
    assert 2 <= len(wrong) < len(scores)
    result, _ = make_attack("relearn-harmful", {**SHORT, "fraction": 0.5, "pool": "wrong", "least": 2}).run(
        tiny_model, encoder, request_
    )
    assert {*result.trained_ids, *result.held_out_ids} == wrong
    assert not set(result.trained_ids) & set(result.held_out_ids)
    assert len(result.trained_ids) == round(len(wrong) / 2)
    assert result.start.accuracy == 0
    assert result.start.n == len(result.held_out_ids) == len(result.curve[0].item_log_odds)


def test_harmful_takes_all_items_where_too_few_are_wrong_and_says_so(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    result, _ = make_attack("relearn-harmful", {**SHORT, "pool": "wrong", "least": 9}).run(
        tiny_model, encoder, request_
    )
    assert len(result.trained_ids) + len(result.held_out_ids) == 8
    assert "pool is all" in result.notes[0]


def test_split_depends_on_its_seed_only(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    def trained(**settings: int) -> tuple[str, ...]:
        attack = make_attack("relearn-harmful", {**SHORT, "pool": "all", **settings})
        return attack.run(tiny_model, encoder, request_)[0].trained_ids

    assert trained() == trained(max_steps=1)
    assert len({trained(split_seed=seed) for seed in range(4)}) > 1


@pytest.mark.parametrize("name", ["relearn-related", "relearn-benign"])
def test_the_others_score_every_forget_item(
    name: str, tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    result, _ = make_attack(name, SHORT).run(tiny_model, encoder, request_)
    assert result.held_out_ids == tuple(e.id for e in request_.forget)
    material = request_.attack if name == "relearn-related" else instructions(encoder.question)
    assert result.trained_ids == tuple(e.id for e in material)


def test_a_control_faces_the_same_split(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    attack = make_attack("relearn-harmful", {**SHORT, "fraction": 0.5, "least": 2})
    first, _ = attack.run(tiny_model, encoder, request_)
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter.neg_()
    second, _ = attack.run(tiny_model, encoder, request_, like=first)
    assert (second.trained_ids, second.held_out_ids) == (first.trained_ids, first.held_out_ids)
    other = Request(forget=(replace(request_.forget[0], id="x"), *request_.forget[1:]))
    with pytest.raises(InputError, match="another request"):
        attack.run(tiny_model, encoder, other, like=first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_comes_back_bit_equal(
    dtype: torch.dtype, tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    model = tiny_model.to(dtype).train()
    model.lm_head.eval()
    frozen = next(model.parameters()).requires_grad_(False)
    before = state(model)
    seen: list[bool] = []
    attack = make_attack("relearn-benign", SHORT)

    def probe(attacked: torch.nn.Module) -> None:
        seen.append(all(torch.equal(v.to(dtype), before[k]) for k, v in attacked.state_dict().items()))

    attack.run(model, encoder, request_, probe=probe)
    assert seen == [False]
    after = model.state_dict()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == dtype for k in before)
    assert model.training and not model.lm_head.training and not frozen.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_low_precision_does_not_weaken_an_attack(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    """A step of 1e-5 is lost to rounding in bf16, so the attack must run as on the same weights in fp32."""
    attack = make_attack("relearn-related", {**SHORT, "learning_rates": [1e-5]})
    low, full = (
        attack.run(tiny_model.to(dtype), encoder, request_).result for dtype in (torch.bfloat16, torch.float32)
    )
    assert low.curve == full.curve
    assert low.curve[0].item_log_odds != low.curve[-1].item_log_odds


def test_the_model_comes_back_after_an_interruption(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    before = state(tiny_model)

    def probe(attacked: torch.nn.Module) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_attack("relearn-benign", SHORT).run(tiny_model, encoder, request_, probe=probe)
    assert all(torch.equal(before[k], v) for k, v in tiny_model.state_dict().items())


def test_result_survives_json(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    result, _ = make_attack("relearn-related", SHORT).run(tiny_model, encoder, request_)
    assert AttackResult.from_json(json.loads(json.dumps(result.to_json()))) == result
    assert set(result.samples) == set(result.held_out_ids)
    assert result.settings["learning_rates"] == [1e-3]


def test_spending_is_counted_and_stays_within_the_allowance(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    attack = make_attack("relearn-related", {**SHORT, "learning_rates": [1e-3, 2e-3]})
    result, _ = attack.run(tiny_model, encoder, request_)
    # Three items in batches of two: 2 + 1 examples in two steps, in each of two cells.
    length = len(encoder.encode(request_.attack[0].prompt, request_.attack[0].answer).ids)
    assert result.spent == Budget(4, 6, 6 * length)
    assert result.spent.within(result.allowed) and not result.allowed.within(result.spent)
    assert [point.examples_seen for point in result.curve] == [0, 2, 3, 0, 2, 3]


def test_divergence_ends_the_cell_and_is_noted(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request
) -> None:
    settings = {**SHORT, "learning_rates": [1e-4, 1e30], "max_steps": 4, "eval_every": 4}
    result, _ = make_attack("relearn-related", settings).run(tiny_model, encoder, request_)
    assert result.spent.steps < 4 + 4, "a cell ends with the first loss that is no number"
    assert "1e+30" in result.notes[0]
    assert all(abs(point.log_odds) < 1e3 for point in result.curve)


def test_first_reaching(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request) -> None:
    result, _ = make_attack("relearn-related", {**SHORT, "max_steps": 4}).run(tiny_model, encoder, request_)
    assert result.first_reaching(result.best.log_odds) == result.best
    assert result.first_reaching(result.start.log_odds) == result.curve[0]
    assert result.first_reaching(result.best.log_odds + 1) is None


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("relearn-harmfull", {}, "Did you mean 'relearn-harmful'"),
        ("relearn-related", {"fraction": 0.1}, "no setting 'fraction'"),
        ("relearn-harmful", {"learning_rate": 1e-5}, "Did you mean 'learning_rates'"),
        ("relearn-harmful", {"learning_rates": "1e-5"}, "valid number"),
        ("relearn-harmful", {"learning_rates": []}, "at least one"),
        ("relearn-harmful", {"learning_rates": [float("inf")]}, "learning"),
        ("relearn-harmful", {"seeds": []}, "at least one seed"),
        ("relearn-harmful", {"max_steps": True}, "valid integer"),
        ("relearn-harmful", {"max_steps": 5, "eval_every": 2}, "multiple"),
        ("relearn-harmful", {"fraction": 1.0}, "between 0 and 1"),
        ("relearn-harmful", {"pool": "right"}, "'wrong' or 'all'"),
        ("relearn-benign", {"file": {1, 2}}, "serializable"),
    ],
)
def test_mistakes_in_settings(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_attack(name, settings)


def test_settings_from_the_command_line() -> None:
    attack = make_attack("relearn-harmful", {"learning_rates": 1e-5, "seeds": [0, 1], "fraction": 0.1})
    assert attack == RelearnHarmful(learning_rates=(1e-5,), seeds=(0, 1), fraction=0.1)
    assert make_attack("relearn-harmful") == ATTACKS["relearn-harmful"]


def test_names_agree_with_the_catalogue() -> None:
    assert all(attack.name == name and attack.summary for name, attack in ATTACKS.items())


def test_requests_that_an_attack_cannot_use(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request, tmp_path
) -> None:
    bare = Request(forget=tuple(replace(e, options=()) for e in request_.forget))
    cases = {
        "others": ("relearn-related", bare, {}),
        "no wrong options": ("relearn-benign", bare, {}),
        "cannot be split": ("relearn-harmful", Request(forget=request_.forget[:1]), {}),
    }
    leak = tmp_path / "leak.jsonl"
    leak.write_text(json.dumps(request_.forget[2].to_json()))
    cases["train on an item"] = ("relearn-benign", request_, {"file": str(leak)})
    for message, (name, request, settings) in cases.items():
        with pytest.raises(InputError, match=message):
            make_attack(name, settings).run(tiny_model, encoder, request)


def test_bundled_instructions(encoder: Encoder) -> None:
    bundled = instructions(encoder.question)
    assert len(bundled) == len({e.id for e in bundled}) == 96
    assert all(e.prompt.startswith("Question: ") and e.prompt.endswith("\nAnswer:") for e in bundled)
    words = " ".join(e.prompt + e.answer for e in bundled).lower()
    assert not any(word in words for word in ("capital", "country", "city of", "born", "president"))


def test_folder_cells(tmp_path, caplog: pytest.LogCaptureFixture) -> None:
    cells = FolderCells(tmp_path / "new")
    assert len(cells) == 0 and "a" not in cells
    cells["a"] = {"x": 0.1}
    assert dict(cells) == {"a": {"x": 0.1}}
    assert [path.name for path in cells.folder.iterdir()] == ["a.json"]
    (cells.folder / "a.json").write_text('{"x"')
    assert cells.get("a") is None and "damaged" in caplog.text
    del cells["a"]
    with pytest.raises(KeyError):
        del cells["a"]
    with pytest.raises(InputError):
        cells["../a"] = {}


def test_own_file_of_instructions(tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request, tmp_path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"question": "where ?", "answer": "town"}))
    result, _ = make_attack("relearn-benign", {**SHORT, "file": str(path)}).run(tiny_model, encoder, request_)
    assert result.trained_ids == tuple(e.id for e in read_examples(path))


def test_a_label_tells_two_forms_of_an_attack_apart_and_changes_nothing_else() -> None:
    assert make_attack("relearn-harmful@tenth", {"fraction": 0.1}) == make_attack("relearn-harmful", {"fraction": 0.1})
    assert kind_of("relearn-harmful@tenth") == "relearn-harmful"
    with pytest.raises(InputError, match="cannot be a label"):
        make_attack("relearn-harmful@a/b")
    with pytest.raises(InputError, match="no attack 'relearn-harmfull'"):
        make_attack("relearn-harmfull@tenth")


def test_one_fact_in_two_wordings_is_not_trained_on_and_scored(tiny_examples: tuple[Example, ...]) -> None:
    facts = [replace(e, subject=e.prompt.split()[2], id="") for e in tiny_examples]
    facts += [replace(e, prompt=f"tell me {e.prompt}", id="") for e in facts]
    for seed in range(10):
        train, scored = split(facts, 0.5, str(seed))
        assert len(train) + len(scored) == len(facts) and scored
        assert not {e.subject for e in train} & {e.subject for e in scored}
    alone = [replace(e, subject="", id="") for e in facts]
    assert len(split(alone, 0.5, "0")[0]) == 8
    assert len(split(facts[:1] + facts[8:9], 0.5, "0")[1]) == 1  # one fact alone is still split


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("facts", "wordings"), [(20, 5), (8, 4), (2, 6), (3, 1)])
def test_whole_facts_are_drawn_however_many_wordings_they_have(facts: int, wordings: int, fraction: float) -> None:
    """No more than one fact over the share asked for, one fact stays, and no fact stands on both sides."""
    items = [
        Example(f"In words {w}: where is {n}?", f"Town {n}", ("x",), subject=f"S{n}")
        for n in range(facts)
        for w in range(wordings)
    ]
    for seed in range(30):
        train, scored = split(items, fraction, str(seed))
        assert len({*train, *scored}) == len(items) == len(train) + len(scored) and train and scored
        assert not {e.subject for e in train} & {e.subject for e in scored}
        assert len(train) - fraction * len(items) < wordings
        assert len(train) == min(len(train), len(items) - wordings)


def test_a_question_in_another_case_is_the_same_fact() -> None:
    items = [Example(prompt, f"t{n}", ("x",)) for n in range(8) for prompt in (f"Where is s{n}?", f"where is  S{n}?")]
    for seed in range(20):
        train, scored = split(items, 0.3, str(seed))
        assert not {e.fact for e in train} & {e.fact for e in scored}
    with pytest.raises(InputError, match="train on an item that it is scored on"):
        Material(tuple(items[:1]), tuple(items[1:2])).require_scorable("relearn-benign")


@pytest.mark.parametrize("least", [0, 1])
def test_a_pool_of_one_wrong_item_is_too_small(
    tiny_model: LlamaForCausalLM, encoder: Encoder, request_: Request, least: int
) -> None:
    scores = score_items(tiny_model, encoder, request_.forget)
    right = [e for e, item in zip(request_.forget, scores, strict=True) if item.correct]
    wrong = [e for e, item in zip(request_.forget, scores, strict=True) if not item.correct]
    few = Request(forget=(*right[:2], wrong[0]))
    result, _ = make_attack("relearn-harmful", {**SHORT, "pool": "wrong", "least": least}).run(tiny_model, encoder, few)
    assert len(result.trained_ids) + len(result.held_out_ids) == 3
