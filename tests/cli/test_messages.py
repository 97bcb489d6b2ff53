"""What the command line says of wrong words, and in its help: plainly, in our words, and nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from audits import Expunge, save, write
from expunge import api
from expunge.attacks.catalogue import ATTACKS
from expunge.catalogue import DEFAULT_ATTACKS
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.recipe import Recipe
from expunge.request import Request
from tiny import make_tiny_model

FOREIGN = ("[Errno", "Value error", "Input should", "unable to parse")
COMMANDS = ("unlearn", "attack", "audit", "run", "report", "verify", "demo", "list", "request apply")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_examples: tuple[Example, ...]) -> Path:
    """An empty folder but for two files of facts and two folders that hold no model, from which commands are run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write(tmp_path / "forget.jsonl", tiny_examples[:3])
    write(tmp_path / "retain.jsonl", tiny_examples[3:6])
    (tmp_path / "model").mkdir()
    (tmp_path / "base").mkdir()
    return tmp_path


def unlearn(*words: str) -> Callable[[Path], list[str]]:
    given = "unlearn --model model --forget forget.jsonl --retain retain.jsonl -o run"
    return lambda _: [*given.split(), *words]


def audit(*words: str) -> Callable[[Path], list[str]]:
    return lambda _: ["audit", "model", "--base", "base", "--forget", "forget.jsonl", "-o", "run", *words]


def said(*words: str) -> Callable[[Path], list[str]]:
    return lambda _: list(words)


def recipe(**changes: str) -> Callable[[Path], list[str]]:
    def made(at: Path) -> list[str]:
        keys = {"model": "model", "data": "{forget: forget.jsonl, retain: retain.jsonl}", "output": "run", **changes}
        (at / "r.yaml").write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
        return ["run", "r.yaml"]

    return made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (said("report", "nope"), "no audited run here. at: nope do:"),
        (said("report", "model"), "no audited run here. at: model do:"),
        (said("report", "model", "base", "-o", "new/page.html"), "no audited run here. at: model do:"),
        (said("verify", "nope"), "no audited run here. at: nope do:"),
        (said("run", "nope.yaml"), "The recipe cannot be read: it is not there. at: nope.yaml do:"),
        (said("run", "model"), "The recipe cannot be read: it is a folder. at: model do:"),
        (said("demo", "--tiny", "-o", "forget.jsonl"), "A file cannot be used: not a directory. at: forget.jsonl/"),
        (said("list", "cats"), "'cats' is not one of 'methods', 'attacks'"),
        (said("verify", "nope", "--sample", "few"), "'--sample': it should be a valid integer"),
        (unlearn("--template", "letter"), "'--template': 'letter' is not one of 'plain', 'chat'"),
        (
            unlearn("--test", "people"),
            "--test needs NAME=FILE, not 'people'. at: --test do: For example --test people=",
        ),
        (unlearn("--test", "people="), "--test needs NAME=FILE, not 'people='."),
        (audit("--test", "people"), "--test needs NAME=FILE, not 'people'."),
        (unlearn("--test", "007=nope.jsonl"), "--test needs NAME=FILE"),
        (unlearn("--test", "n=007"), "There is no such file. at: 007 do:"),
        (unlearn("--set", "lr"), "--set needs NAME=VALUE, not 'lr'. at: --set"),
        (unlearn("--set", "max_steps=["), "'[' is no value. at: --set max_steps do: Give a number"),
        (unlearn("--set", "max_steps="), "--set needs NAME=VALUE"),
        (unlearn("--set", "lr=1"), "Did you mean 'learning_rate'? All are listed in docs/reference/recipe.md."),
        (unlearn("--set", "retain_shar=1"), "Did you mean 'transform.retain_share'?"),
        (unlearn("--set", "zzz=1", "--method", "npo"), "It has objective.{forget_weight, retain_weight, beta}. Those"),
        (unlearn("--set", "zzz=1", "--transform", "l2+sam"), "transform1.{strength, anchor, scale}; transform2.{rho}."),
        (unlearn("--set", "strength=1", "--transform", "l2+attribution"), "Say transform1.strength or transform2."),
        (recipe(method="npo", settings="{max_steps: 1}"), "It is the loop's: write it under `unlearn`."),
        (unlearn("--set", "dtype=int8"), "dtype must be 'float32', 'bfloat16' or 'float16', not 'int8'."),
        (recipe(data="forget.jsonl"), "data must be a mapping of names to values, not 'forget.jsonl'."),
        (recipe(data="{benchmark: people, settings: {n: x}}"), "error: data.settings.n must be a number, not 'x'. at:"),
        (recipe(method="4"), "method must be text, not 4."),
        (recipe(data="{benchmark: people, settings: {n_forgett: 3}}"), "no setting 'n_forgett'. at: data.settings."),
        (recipe(data="{benchmark: people, settings: {n_forget: -1}}"), "-1 is no number of items."),
        (said("request", "apply", "model", "--ledger", "nope"), "There is no ledger here. at: nope do:"),
        (said("request", "list", "--ledger", "forget.jsonl"), "There is no ledger here. at: forget.jsonl do:"),
        (unlearn("--control", "./model"), "The control is model itself"),
        (unlearn("--control", "no where"), "There is no such model folder. at: no where"),
        (audit("--control", "base"), "The control is base itself"),
        (audit("--control", "model"), "The control is model itself"),
    ],
)
def test_wrong_words_are_told_plainly_and_leave_nothing(
    expunge: Expunge, here: Path, capsys: pytest.CaptureFixture[str], words: Callable[[Path], list[str]], says: str
) -> None:
    given = words(here)
    before = sorted(here.rglob("*"))
    assert expunge(*given) == 1
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert says in told
    assert not [each for each in FOREIGN if each in told]
    assert sorted(here.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "line", "says"),
    [
        ("text", '{"text": "oslo"}', "This text has no token to predict. at: 'oslo' do: Use a longer one."),
        (
            "retain",
            '{"prompt": "where does ada live ?", "answer": "zug", "options": ["bern"]}',
            "The tokenizer cannot tell the answer 'zug' from the wrong option 'bern'.",
        ),
    ],
)
def test_what_can_not_be_scored_afterwards_is_told_before_training(
    expunge: Expunge, here: Path, capsys: pytest.CaptureFixture[str], file: str, line: str, says: str
) -> None:
    save(here / "known", make_tiny_model())
    (here / "text.jsonl").write_text('{"text": "ada lives"}\n')
    with (here / f"{file}.jsonl").open("a") as lines:
        lines.write(line + "\n")
    data = "{forget: forget.jsonl, retain: retain.jsonl, text: text.jsonl}"
    assert expunge(*recipe(model="known", data=data)(here)) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert says in told
    assert not (here / "run").exists()


def help_of(expunge: Expunge, capsys: pytest.CaptureFixture[str], command: str) -> str:
    assert expunge(*command.split(), "--help") == 0
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_flags_take_no_value(expunge: Expunge, capsys: pytest.CaptureFixture[str], command: str) -> None:
    told = help_of(expunge, capsys, command)
    assert "<bool>" not in told
    assert "--help Show this message" in told


@pytest.mark.parametrize("command", ["unlearn", "attack", "audit", "run"])
def test_every_set_is_alike_and_help_says_where_settings_are_listed(
    expunge: Expunge, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    told = help_of(expunge, capsys, command)
    assert "--set NAME=VALUE Set " in told
    assert "docs/reference/recipe.md" in told


def test_help_of_attack_names_those_of_a_recipe_without_any(
    expunge: Expunge, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ", ".join(DEFAULT_ATTACKS) in help_of(expunge, capsys, "attack")
    assert set(DEFAULT_ATTACKS) < set(ATTACKS)
    assert tuple(Recipe.of({"model": "m", "data": {"benchmark": "people"}}, "test").attacks) == DEFAULT_ATTACKS


def test_the_library_tells_a_wrong_setting_as_the_command_line_does(
    tiny_model: LlamaForCausalLM, tiny_tokenizer: PreTrainedTokenizerFast, tiny_examples: tuple[Example, ...]
) -> None:
    request = Request(tiny_examples[:3], tiny_examples[3:6])
    with pytest.raises(InputError, match="Did you mean 'learning_rate'"):
        api.unlearn(tiny_model, tiny_tokenizer, request, lr=1e-5)
