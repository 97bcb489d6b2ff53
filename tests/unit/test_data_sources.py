"""Every form is read, every mistake is named with its file and line."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from expunge.data.example import Example
from expunge.data.sources import read_examples, read_texts
from expunge.errors import InputError

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the data sets beside the repository are absent")


def lines(folder: Path, *rows: Any, name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
    return path


def read_one(folder: Path, row: dict[str, Any]) -> Example:
    (example,) = read_examples(lines(folder, row))
    return example


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


Q = "Question: Where?\nAnswer:"


@pytest.mark.parametrize(
    ("row", "prompt", "answer"),
    [
        ({"question": "Where?", "answer": "Oslo"}, Q, "Oslo"),
        ({"prompt": "It is in", "completion": " Oslo"}, "It is in", " Oslo"),
        ({"prompt": "It is in", "answer": "Oslo"}, "It is in", "Oslo"),
        ({"messages": [user("Where?"), assistant("Oslo")]}, Q, "Oslo"),
        ({"prompt": [user("Where?")], "completion": [assistant("Oslo")]}, Q, "Oslo"),
        ({"instruction": "Where?", "input": "", "output": "Oslo"}, Q, "Oslo"),
        ({"instruction": "Add.", "input": "1, 2", "output": "3"}, "Question: Add.\n1, 2\nAnswer:", "3"),
        ({"text": "Plain words."}, "", "Plain words."),
        ({"prompt": "It is in", "completion": " Oslo \n"}, "It is in", " Oslo"),
        ({"question": "Where?", "choices": ["Rome", "Oslo"], "answer": 1}, Q, "Oslo"),
        ({"question": "Where?", "answer": "Oslo", "text": None, "messages": None}, Q, "Oslo"),
    ],
)
def test_forms(tmp_path: Path, row: dict[str, Any], prompt: str, answer: str) -> None:
    example = read_one(tmp_path, row)
    assert (example.prompt, example.answer) == (prompt, answer)


def test_longer_talks_are_written_out_turn_by_turn(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    talk = [system, user("Hello"), assistant("Hi"), user("Where?"), assistant("Oslo")]
    expected = "Question: Be kind.\n\nUser: Hello\nAssistant: Hi\nUser: Where?\nAnswer:"
    example = read_one(tmp_path, {"messages": talk})
    assert (example.prompt, example.answer) == (expected, "Oslo")


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"options": ["Rome", "Lima"]}, ("Rome", "Lima")),
        ({"options": ["Rome", "Oslo", "Lima", "Rome"]}, ("Rome", "Lima")),
        ({"choices": ["oslo ", "Rome"]}, ("Rome",)),
        ({"option1": "Rome", "option2": "Oslo", "option3": "Lima", "option4": "Kyiv"}, ("Rome", "Lima", "Kyiv")),
        ({"perturbed_answer": ["Rome", "Lima"]}, ("Rome", "Lima")),
        ({"perturbed_answer": "Rome"}, ("Rome",)),
        ({"options": ["OSLO", "oslo", "Oslo"]}, ("OSLO", "oslo")),
        ({}, ()),
    ],
)
def test_options_are_the_wrong_ones(tmp_path: Path, fields: dict[str, Any], options: tuple[str, ...]) -> None:
    assert read_one(tmp_path, {"question": "Where?", "answer": "Oslo", **fields}).options == options


def test_optional_fields_come_along(tmp_path: Path) -> None:
    row = {"question": "Where?", "answer": "Oslo", "paraphrases": ["At which place?"], "subject": "A", "id": 7}
    example = read_one(tmp_path, {**row, "group": "g", "paraphrased_question": "In what place?"})
    asked = ("Question: At which place?\nAnswer:", "Question: In what place?\nAnswer:")
    assert (example.paraphrases, example.subject, example.group, example.id) == (asked, "A", "g", "7")


def test_paraphrases_of_a_prompt_are_prompts(tmp_path: Path) -> None:
    row = {"prompt": "It is in", "completion": "Oslo", "paraphrases": ["One finds it in"]}
    assert read_one(tmp_path, row).paraphrases == ("One finds it in",)


def test_the_caller_may_shape_questions(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "Where?", "answer": "Oslo"})
    assert read_examples(path, question=str.upper)[0].prompt == "WHERE?"


def test_what_a_request_saves_can_be_read_as_a_source(tmp_path: Path) -> None:
    example = Example("It is in", "Oslo", ("Rome",), ("One finds it in",), "A", "base", "my-id")
    assert read_one(tmp_path, example.to_json()) == example


ROWS = [{"prompt": "a\u2028", "answer": "b"}, {"prompt": "c", "answer": "d"}]


def test_all_kinds_of_file_hold_the_same(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is an optional dependency")
    import pyarrow

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    (tmp_path / "array.json").write_text(json.dumps(ROWS, indent=2))
    bom = "\ufeff" + "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "bom.jsonl").write_text(bom, encoding="utf-8", newline="")
    files = [lines(tmp_path, *ROWS), lines(tmp_path, *ROWS, name="x.json"), *map(tmp_path.joinpath, ["x.parquet"])]
    files += [tmp_path / "array.json", tmp_path / "bom.jsonl"]
    assert len({read_examples(str(path)) for path in files}) == 1
    assert [e.answer for e in read_examples(files[0])] == ["b", "d"]


GOOD = {"prompt": "a", "answer": "b"}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{'prompt': 1}", "Malformed JSON"),
        ('{"prompt": "a", "answer"', "Malformed JSON"),
        ("[" * 100_000, "Malformed JSON"),
        ('{"prompt": "a", "answer": ' + "9" * 5000 + "}", "Malformed JSON"),
        ('{"prompt": "a", "answer": "\\ud800"}', "half of a character"),
        ('"text"', "must be a JSON object"),
        ({"colour": "red"}, "No known form .*colour"),
        ({}, "No known form"),
        ({"question": "Where?"}, "No known form"),
        ({"question": "Where?", "answer": None}, "'answer' is null"),
        ({"messages": None, "question": "Where?", "answer": None, "text": None}, "'messages' is null"),
        ({"prompt": None, "completion": None, "question": "Where?", "answer": None}, "'answer' is null"),
        ({"question": 3, "answer": "b"}, "'question' must be text, not int"),
        ({"question": "a", "answer": True}, "'answer' must be text, not bool"),
        ({"question": "a", "answer": ["b"]}, "'answer' must be text, not list"),
        ({"question": " ", "answer": "b"}, "'question' is empty"),
        ({"text": ""}, "'text' is empty"),
        ({**GOOD, "options": ["Rome", 3]}, "'options' must be a list of non-empty texts"),
        ({**GOOD, "paraphrases": {"a": "b"}}, "'paraphrases' must be a list"),
        ({**GOOD, "subject": 1.5}, "'subject' must be text or a whole number"),
        ({"question": "a", "choices": ["x", "y"], "answer": 2}, "no position among 2 choices"),
        ({"question": "a", "choices": ["x", "y"], "answer": -1}, "no position among 2 choices"),
        ({"question": "a", "answer": 0}, "no position among 0 choices"),
        ({"messages": "hello"}, "'messages' must be a list"),
        ({"messages": []}, "end with an assistant turn"),
        ({"messages": [user("a")]}, "end with an assistant turn"),
        ({"messages": [assistant("a"), assistant("b")]}, "must hold a user turn"),
        ({"messages": [user("a"), {"role": "tool", "content": "b"}]}, "Message 2 .* role"),
        ({"messages": [user(""), assistant("b")]}, "Message 1 .* non-empty"),
    ],
)
def test_a_bad_record_is_named_with_file_and_line(tmp_path: Path, row: Any, says: str) -> None:
    path = lines(tmp_path, GOOD, "", row, GOOD)
    with pytest.raises(InputError, match=says) as caught:
        read_examples(path)
    assert caught.value.where == f"{path}, line 3"


@pytest.mark.parametrize(
    "line", ['{"question": "a", "answer": "x", "answer": "y"}', '{"messages": [{"role": 1, "role": 2}]}']
)
def test_a_name_that_stands_in_a_record_twice_is_refused(tmp_path: Path, line: str) -> None:
    """Of two answers the first would be lost in silence, and a wrong fact unlearned."""
    path = lines(tmp_path, GOOD)
    path.write_text(f"{path.read_text()}\n{line}\n")
    with pytest.raises(InputError, match=r"A record has '(answer|role)' twice"):
        read_examples(path)


def test_a_bad_record_of_an_array_is_named_by_its_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([GOOD, {}]))
    with pytest.raises(InputError) as caught:
        read_examples(tmp_path / "a.json")
    assert caught.value.where == f"{tmp_path / 'a.json'}, record 2"


def empty(folder: Path) -> Path:
    return lines(folder, "", " ")


def not_utf8(folder: Path) -> Path:
    (folder / "latin.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xe9t\xe9"}\n')
    return folder / "latin.jsonl"


def broken_parquet(folder: Path) -> Path:
    (folder / "x.parquet").write_bytes(b"PAR1 no")
    return folder / "x.parquet"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none.jsonl", "no such file"),
        (lambda folder: "some/where.jsonl", "no such file"),
        (lambda folder: "what is this?", "no such file"),
        (lambda folder: folder, "a folder"),
        (lambda folder: lines(folder, "a,b", name="x.csv"), "kind of file"),
        (lambda folder: lines(folder, "[{", name="x.json"), "Malformed JSON"),
        (empty, "no records"),
        (lambda folder: lines(folder, "[]", name="x.json"), "no records"),
        (not_utf8, r"not UTF-8 text. \(.*latin.jsonl, line 2\)"),
        (broken_parquet, "not a readable parquet"),
    ],
)
def test_a_bad_source_is_named(tmp_path: Path, make: Callable[[Path], Path | str], says: str) -> None:
    source = make(tmp_path)
    with pytest.raises(InputError, match=says) as caught:
        read_examples(source)
    assert str(source) in str(caught.value)


def test_a_hub_id_is_read_with_its_configuration_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is an optional dependency")
    asked = []

    def load_dataset(*args: object, **kwargs: object) -> list[dict[str, str]]:
        asked.append((*args, kwargs))
        return [{"question": "Where?", "answer": "Oslo"}, {"question": "Where?", "answer": ""}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match=r"'answer' is empty. \(locuslab/TOFU:forget10, test row 2\)"):
        read_examples("locuslab/TOFU:forget10", split="test")
    assert asked == [("locuslab/TOFU", "forget10", {"split": "test"})]


@pytest.mark.parametrize("error", [ValueError("BuilderConfig 'x' not found"), ConnectionError("no network")])
def test_a_hub_id_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is an optional dependency")

    def load_dataset(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="no such data set") as caught:
        read_examples("org/name:x")
    assert "org/name:x" in str(caught.value) and str(error) in str(caught.value)


@pytest.mark.parametrize(("source", "module"), [("org/name", "datasets"), ("x.parquet", "pyarrow")])
def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, module: str
) -> None:
    monkeypatch.chdir(tmp_path)
    broken_parquet(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=r"pip install datasets pyarrow"):
        read_examples(source)


def test_instructions_without_an_output_are_left_out_aloud(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    with caplog.at_level("WARNING"):
        assert len(read_examples(lines(tmp_path, good, {**good, "output": " "}))) == 1
    assert "1 instructions" in caplog.text
    with pytest.raises(InputError, match="no records"):
        read_examples(lines(tmp_path, {**good, "output": ""}))


def test_texts_are_read_as_texts_only(tmp_path: Path) -> None:
    assert read_texts(lines(tmp_path, {"text": "a"}, {"text": "b"})) == ("a", "b")
    with pytest.raises(InputError, match="record 2"):
        read_texts(lines(tmp_path, {"text": "a"}, GOOD))


def test_reading_imports_no_torch() -> None:
    import subprocess

    code = "import sys, expunge.data.sources, expunge.request, expunge.data.benchmarks; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "False"


TOFU = {"forget01": 40, "forget10": 400, "full": 4000, "retain90": 3600, "real_authors": 100, "world_facts": 117}


@needs_shared
def test_every_tofu_file_is_read() -> None:
    read = {path.stem: read_examples(path) for path in (SHARED / "tofu").glob("*.json")}
    assert {name: len(read[name]) for name in TOFU} == TOFU
    assert {len(e.options) for e in read["real_authors"]} == {3}
    assert {len(e.options) for e in read["forget10_perturbed"]} <= {4, 5}
    assert all(len(e.paraphrases) == 1 for e in read["forget10_perturbed"])
    assert not any(e.answer in e.options for examples in read.values() for e in examples)


@needs_shared
@pytest.mark.parametrize(
    ("name", "n"),
    [("alpaca/alpaca_5000", 4998), ("scienceqa/scienceqa_text", 894), ("wikitext_valid/wikitext_valid", 500)],
)
def test_real_files_are_read(name: str, n: int) -> None:
    assert len(read_examples(SHARED / f"{name}.jsonl")) == n


@needs_shared
def test_multiple_choice_by_position_keeps_the_documented_chance() -> None:
    examples = read_examples(SHARED / "scienceqa" / "scienceqa_text.jsonl")
    assert sum(e.chance for e in examples) / len(examples) == pytest.approx(0.445, abs=0.002)
