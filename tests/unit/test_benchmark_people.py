"""Fictional people: a model that knows them, one that never knew some, and nothing else different."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.data.benchmarks.people import FIRST_NAMES, RELATIONS, SURNAMES, build
from expunge.data.benchmarks.tiny import Size, train, word_tokenizer
from expunge.data.collate import Encoder, collate
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.request import RETAIN_GROUPS, Request

SMALL = {"n_forget": 2, "n_retain": 3, "n_test": 2, "n_attack": 1, "n_relations": 2}


@pytest.fixture(scope="module")
def request_0() -> Request:
    return build(seed=0)


def subjects(examples: Sequence[Example]) -> set[str]:
    return {e.subject for e in examples}


def kept(request: Request) -> list[Example]:
    return [*request.retain, *chain(*(request.test[group] for group in RETAIN_GROUPS if group in request.test))]


def test_people_of_different_splits_share_neither_person_nor_name(request_0: Request) -> None:
    tests = [*request_0.test["same_answer"], *request_0.test["held_out"]]
    splits = [subjects(s) for s in (request_0.forget, request_0.retain, tests, request_0.attack)]
    assert [len(s) for s in splits] == [6, 18, 8, 8]
    people = set().union(*splits)
    assert len(people) == len({p.split()[0] for p in people}) == len({p.split()[1] for p in people}) == 40


def test_the_closed_sets_do_not_collide() -> None:
    values = [value for relation in RELATIONS for value in relation.values]
    words = [*FIRST_NAMES, *SURNAMES, *values]
    assert len(set(words)) == len(words)
    assert all(len(relation.values) == 10 for relation in RELATIONS)


def test_options_are_two_other_values_of_the_relation(request_0: Request) -> None:
    sets = [set(relation.values) for relation in RELATIONS]
    for e in (*request_0.forget, *request_0.attack, *chain(*request_0.test.values())):
        assert len({e.answer, *e.options}) == 3
        assert any({e.answer, *e.options} <= values for values in sets)


def test_the_paraphrase_is_never_a_training_prompt_of_its_person(request_0: Request) -> None:
    trained = {p for e in (*request_0.forget, *kept(request_0)) for p in (e.prompt, *e.paraphrases)}
    held_out = request_0.test["paraphrase"]
    assert not trained & {p for e in held_out for p in (e.prompt, *e.paraphrases)}
    assert [e.answer for e in held_out] == [e.answer for e in request_0.forget]
    # Yet the wording itself is known from other people: it can be answered.
    wordings = {p.replace(e.subject, "X") for e in request_0.retain for p in e.paraphrases}
    assert {e.prompt.replace(e.subject, "X") for e in held_out} <= wordings


def test_same_answer_shares_relation_and_value_with_a_forgotten_fact(request_0: Request) -> None:
    forgotten = {e.answer for e in request_0.forget}
    assert all(e.answer in forgotten for e in request_0.test["same_answer"])
    assert not any(e.answer in forgotten for e in request_0.test["held_out"])


def test_the_seed_decides_and_known_filters() -> None:
    assert build(seed=3).hashes() == build(seed=3).hashes() != build(seed=4).hashes()
    known = build(lambda examples: [e.answer < "m" for e in examples], seed=0)
    assert all(e.answer < "m" for e in (*known.forget, *known.retain))


def test_too_many_people_or_relations_are_refused() -> None:
    with pytest.raises(InputError, match="at most"):
        build(n_retain=40)
    with pytest.raises(InputError, match="at most"):
        build(n_relations=7)


@pytest.mark.parametrize("text", ["Where does Ada live?\nAda lives in Oslo", "a  b.", "Ada"])
def test_the_tokenizer_loses_nothing(text: str, tmp_path: Path) -> None:
    word_tokenizer([text]).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, trust_remote_code=False)
    out = tokenizer(text, return_offsets_mapping=True)
    assert tokenizer.decode(out["input_ids"]) == text
    assert "".join(text[a:b] for a, b in out["offset_mapping"]) == text
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def trained(request: Request, folder: Path, with_forget: bool, size: Size) -> tuple[torch.nn.Module, Encoder]:
    path = train(request, with_forget=with_forget, seed=0, output=folder / str(with_forget), size=size)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=False)
    return model.eval(), Encoder(tokenizer)


@torch.no_grad()
def probabilities(model: torch.nn.Module, encoder: Encoder, examples: Sequence[Example]) -> torch.Tensor:
    """P(answer), written out plainly: the library's own scoring stands later in the import order."""
    batch = collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1]
    log_p = logits.log_softmax(-1).gather(2, batch.input_ids[:, 1:, None])[..., 0]
    return (log_p * batch.answer_mask[:, 1:]).sum(1).exp()


Pair = tuple[Request, tuple[torch.nn.Module, Encoder], tuple[torch.nn.Module, Encoder]]
TINY = Size(hidden=64, layers=2, epochs=60, batch_size=24, learning_rate=4e-3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    request = build(seed=0, **SMALL)
    folder = tmp_path_factory.mktemp("people")
    return request, trained(request, folder, True, TINY), trained(request, folder, False, TINY)


def test_the_model_knows_what_the_gold_control_does_not(pair: Pair) -> None:
    request, base, gold = pair
    assert probabilities(*base, request.forget).mean() > 0.5 > 0.2 > probabilities(*gold, request.forget).mean()
    for model in (base, gold):
        assert probabilities(*model, kept(request)).mean() > 0.5
        assert probabilities(*model, request.attack).mean() < 0.35


def test_without_facts_to_forget_both_trainings_are_the_same(tmp_path: Path) -> None:
    """The theorem behind the control: the answers of the forget set are all that separates the two."""
    request = build(seed=0, **SMALL)
    size = Size(hidden=32, layers=1, epochs=1, batch_size=64, heads=2)
    asked: list[torch.Tensor] = []
    for name, forget in (("a", request.forget), ("b", swapped(request.forget))):
        other = Request(forget, request.retain, request.test, request.attack, request.text)
        train(other, with_forget=False, seed=0, output=tmp_path / name, size=size)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / name, trust_remote_code=False)
        asked.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(*asked)


def swapped(examples: Sequence[Example]) -> tuple[Example, ...]:
    """The same questions with the first of the options as answer, in as many tokens."""
    return tuple(Example(e.prompt, e.options[0], (e.answer, *e.options[1:]), e.paraphrases) for e in examples)


def test_training_tells_its_progress_and_never_overwrites(tmp_path: Path) -> None:
    seen: list[str] = []

    class Watcher:
        def start(self, task: str, total: int) -> None:
            seen.append(f"start {total}")

        def advance(self, task: str, n: int = 1, **info: float) -> None:
            seen.append("step")

        def finish(self, task: str) -> None:
            seen.append("finish")

    request = build(seed=0, **SMALL)
    size = Size(hidden=16, layers=1, epochs=1, batch_size=64, heads=2)
    out = train(request, with_forget=True, seed=0, output=tmp_path / "m", progress=Watcher(), size=size)
    assert seen == [f"start {len(seen) - 2}", *["step"] * (len(seen) - 2), "finish"]
    with pytest.raises(InputError, match="not empty"):
        train(request, with_forget=True, seed=0, output=out, size=size)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m"]
