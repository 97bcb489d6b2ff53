"""Documentation is executed: generated pages are current, examples run, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.attacks.catalogue import make_attack
from expunge.bench.grid import Grid
from expunge.data.benchmarks import BENCHMARKS
from expunge.data.benchmarks.streams import STREAMS
from expunge.data.sources import read_examples
from expunge.recipe import Recipe
from expunge.settings import read_yaml
from expunge.source import chosen
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.methods import build_method
from expunge.unlearning.parts import build

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def test_generated_pages_are_current() -> None:
    told = subprocess.run(
        [sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_valid_and_say_how_to_run_them(path: Path) -> None:
    tree = read_yaml(path)
    recipes = [cell.recipe for cell in Grid.of(tree, path.name).cells()] if "methods" in tree else [Recipe.load(path)]
    for recipe in recipes:
        build_method(recipe.method, recipe.transform, recipe.settings)
        build(UnlearnArguments, recipe.unlearn)
        for name, settings in recipe.attacks.items():
            make_attack(name, settings)
        if recipe.data.benchmark:
            chosen(recipe.data, {**BENCHMARKS, **STREAMS})
    assert f"expunge run recipes/{path.name}" in path.read_text().splitlines()[0]


def test_examples_of_data_are_read_with_all_their_fields(tmp_path: Path) -> None:
    (block,) = re.findall(r"```jsonl\n(.*?)```", (ROOT / "docs" / "reference" / "data.md").read_text(), re.DOTALL)
    (tmp_path / "facts.jsonl").write_text(block)
    examples = read_examples(tmp_path / "facts.jsonl")
    assert all(example.options and example.subject in example.prompt for example in examples)
    assert any(example.paraphrases for example in examples)


def test_the_page_of_recipes_has_inherited_settings_and_nothing_that_is_none() -> None:
    sections = re.split(r"\n##+ ", (ROOT / "docs" / "reference" / "recipe.md").read_text())
    keys = {text.partition("\n")[0]: set(re.findall(r"^\* .*?`(\w+)`", text, re.MULTILINE)) for text in sections}
    shared = {"learning_rates", "seeds", "max_steps", "eval_every", "batch_size", "lora_rank"}
    assert keys["attacks: relearn-related"] == keys["attacks: relearn-syntactic"] == shared
    assert keys["attacks: relearn-benign"] == {*shared, "file"}
    assert {"restore", "hold_earlier", "hold"} <= keys["objective: counterfactual"]
    assert "InputError" not in set().union(*keys.values())


@pytest.mark.parametrize(
    ("page", "block"),
    [
        (page, block)
        for page in ("tutorial.md", "metrics.md")
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(encoding="utf-8"), re.DOTALL)
    ],
    ids=lambda value: value if value.endswith(".md") else "",
)
def test_python_examples_run(page: str, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, page, "exec"), {})  # our own pages
