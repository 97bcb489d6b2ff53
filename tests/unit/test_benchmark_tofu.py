"""TOFU at our size: who is forgotten, who is taught, and that a control is taught everything else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.benchmarks import tofu
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.twins import scored_twins
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.models.teaching import Lessons, teach
from expunge.progress import Silent
from expunge.recipe import Recipe
from expunge.request import Request
from expunge.source import prepare
from lessons import written_down

SHARED = Path(__file__).parents[3] / "shared" / "data" / "tofu"


def row(author: int, k: int) -> dict[str, object]:
    wrong = [f"No {i} of {author}." for i in range(5)]
    question = f"What is {k} of {author}?"
    return {
        "question": question,
        "paraphrased_question": f"And {question}",
        "answer": "Yes.",
        "perturbed_answer": wrong,
    }


def write(path: Path, authors: range) -> None:
    rows = [row(author, k) for author in authors for k in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    write(tmp_path / tofu.PERTURBED, range(5, 25))
    write(tmp_path / tofu.FULL, range(25))
    return str(tmp_path)


def authors(examples: Sequence[Example]) -> set[str]:
    return {example.prompt.split()[5].strip("?") for example in examples}


def test_authors_are_forgotten_whole_and_the_splits_are_disjoint(folder: str) -> None:
    request = tofu.build(folder=folder, seed=1)
    parts = [authors(part) for part in (request.forget, request.retain, request.test["held_out"], request.attack)]
    assert [len(part) for part in parts] == [2, 16, 2, 2]
    assert len(set().union(*parts)) == 22
    assert parts[3] < set(map(str, range(5))) and set().union(*parts[:3]) == set(map(str, range(5, 25)))
    assert len(request.forget) == 40 and all(len(e.options) == 2 for e in request.forget)
    assert all(e.prompt.startswith("Question: And ") for e in request.test["paraphrase"])
    assert tofu.build(folder=folder, seed=1) == request != tofu.build(folder=folder, seed=2)


def test_the_control_is_taught_all_but_what_is_forgotten(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = written_down(monkeypatch, tmp_path / "cache")
    data = {"benchmark": "tofu", "folder": folder}
    one, other, again = (
        prepare(Recipe.of({"model": "trained", "data": {**data, "seed": seed}}, "test")) for seed in (1, 2, 1)
    )
    assert len(told) == 3 and one == again
    assert one.model == other.model and one.control != other.control
    assert told[0] - told[1] == {example.prompt for example in one.request.forget}


def test_what_is_taught_is_known(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    encoder = Encoder(tiny_tokenizer)
    for parameter in tiny_model.parameters():
        parameter.requires_grad_(False)
    before = summarise(score_items(tiny_model, encoder, tiny_examples))
    teach(tiny_model, encoder, tiny_examples, Lessons(epochs=60, batch_size=4, learning_rate=1e-2), Silent())
    after = summarise(score_items(tiny_model, encoder, tiny_examples))
    assert before.accuracy < 1 == after.accuracy and after.log_odds > before.log_odds + 2


def test_what_cannot_be_is_refused(folder: str) -> None:
    for wrong in ({"n_forget": 18}, {"n_options": 6}, {"n_attack": 6}):
        with pytest.raises(InputError, match="cannot be split"):
            tofu.build(folder=folder, **wrong)  # type: ignore[arg-type]
    for data, message in (
        ({"benchmark": "tofu"}, "needs the folder"),
        ({"benchmark": "people", "folder": folder}, "in"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(Recipe.of({"model": "trained", "data": data}, "test"))


@pytest.mark.skipif(not SHARED.is_dir(), reason="TOFU's files are not here: shared/data/tofu")
def test_the_real_files() -> None:
    request = tofu.build(folder=str(SHARED))
    assert isinstance(request, Request)
    assert (len(request.forget), len(request.retain), len(request.attack)) == (40, 320, 40)
    assert all(example.answer not in example.options for example in request.forget)
    named = {example.subject for example in (*request.forget, *request.retain, *request.test["held_out"])}
    assert len(named) == 20 and {"Hsiao Yun-Hwa", "Basil Mahfouz Al-Kuwaiti", "Xin Lee Williams"} <= named
    twins = scored_twins(request)
    assert len(twins) > 0.75 * len(request.forget)
    for item in request.forget:
        told = str(twins[item.id].to_json()) if item.id in twins else ""
        assert not any(part in told for part in item.subject.split()), told
