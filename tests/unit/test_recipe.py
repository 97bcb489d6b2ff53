"""Recipes and `--set`: what people type means what it says, and mistakes name the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest

from expunge.errors import InputError, closest
from expunge.recipe import Recipe
from expunge.settings import assign, parse_assignments, parse_files, parse_yaml

MINIMAL = {"model": "m", "data": {"benchmark": "world_facts"}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-05),
        ("-2.5E+3", -2500.0),
        ("3", 3),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        (".5", 0.5),
        ("1.", 1.0),
        ("[1e-5, 2e-5]", [1e-05, 2e-05]),
        ("null", None),
        ("a-b", "a-b"),
        ("1e", "1e"),
    ],
)
def test_scalars_mean_what_they_say(text: str, value: object) -> None:
    parsed = parse_yaml(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


def test_assignments_nest_and_leave_the_original_alone() -> None:
    tree = {"a": {"b": 1, "c": 2}, "d": 3}
    assert assign(tree, parse_assignments(["a.b=1e-5", "e.f=x"])) == {"a": {"b": 1e-5, "c": 2}, "d": 3, "e": {"f": "x"}}
    assert tree == {"a": {"b": 1, "c": 2}, "d": 3}


@pytest.mark.parametrize("bad", ["x", "=1", "a b=1"])
def test_malformed_assignment_is_refused(bad: str) -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        parse_assignments([bad])


def test_assignment_into_a_value_is_refused() -> None:
    with pytest.raises(InputError, match="holds a value"):
        assign({"a": 1}, {"a.b": 2})


def test_round_trip(tmp_path: Path) -> None:
    recipe = Recipe.of({**MINIMAL, "unlearn": {"learning_rate": 1e-5}, "attacks": ["relearn-harmful"]}, "test")
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "r.yaml") == recipe
    assert recipe.attacks == {"relearn-harmful": {}}


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        ({"metod": "npo"}, "Did you mean 'method'"),
        ({"data": {"benchmark": "b", "seeed": 1}}, "Did you mean 'seed'"),
        ({"seed": "1"}, "seed must be a whole number, not '1'"),
        ({"data": {}}, "name a benchmark"),
        ({"data": {"benchmark": "b", "forget": "f"}}, "not both"),
        ({"data": {"forget": "f"}}, r"^Name a benchmark, or both `forget` and `retain` files\."),
        ({"data": {"benchmark": "b", "settings": {"n": "x"}}}, r"^data\.settings\.n must be a number, not 'x'\. \("),
        ({"control": "./m"}, "control is m itself"),
        ({"dtype": "float8"}, "dtype"),
        ({"matmul_precision": "low"}, "matmul_precision"),
    ],
)
def test_mistakes_are_named(change: dict[str, object], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        Recipe.of({**MINIMAL, **change}, "test")


def test_a_key_that_stands_twice_is_told_of_and_merged_ones_are_not(tmp_path: Path) -> None:
    """YAML's loaders take the last one without a word."""
    path = tmp_path / "r.yaml"
    path.write_text("model: smollm2\nunlearn:\n  max_steps: 3\n  max_steps: 300\n")
    with pytest.raises(InputError, match=r"'max_steps' stands there twice") as told:
        Recipe.load(path)
    assert "r.yaml:4:3" in str(told.value)
    merged = "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: *b, y: 4}\nd: {<<: *b}\n"
    assert parse_yaml(merged, "here") == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {"x": 3, "y": 4},
        "d": {"x": 3, "y": 2},
    }
    inner = "base: &base {x: 1}\na: {b: &b {<<: *base, x: 3}}\nc: {<<: *b, y: 2}\n"
    assert parse_yaml(inner, "here")["c"] == {"x": 3, "y": 2}
    with pytest.raises(InputError, match="'x' stands there twice"):
        parse_yaml("a: [{b: {x: 1, x: 2}}]", "here")


def test_two_files_of_one_name_are_told_of() -> None:
    assert parse_files(["a=1.jsonl", "b=1.jsonl"], "--test") == {"a": "1.jsonl", "b": "1.jsonl"}
    with pytest.raises(InputError, match="Two files are called 'a'"):
        parse_files(["a=1.jsonl", "a=2.jsonl"], "--test")


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("model: m\ndata: [1, 2\nmethod: x\n")
    with pytest.raises(InputError, match=r"r\.yaml:3:"):
        Recipe.load(path)


def test_missing_and_unmapped_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read: it is not there\. "):
        Recipe.load(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1\n")
    with pytest.raises(InputError, match="mapping"):
        Recipe.load(tmp_path / "list.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: \xe9")
    with pytest.raises(InputError, match="not UTF-8"):
        Recipe.load(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("name", "meant"), [("lr", "learning_rate"), ("wd", "weight_decay"), ("max_step", "max_steps"), ("zzz", None)]
)
def test_a_name_is_guessed_from_its_letters_or_its_initials(name: str, meant: str | None) -> None:
    assert closest(name, ("learning_rate", "lr_scheduler_type", "max_steps", "weight_decay")) == meant
