"""Documentation is executed: generated pages are current, examples run, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.attacks.catalogue import make_attack
from expunge.bench.grid import Grid
from expunge.recipe import Recipe
from expunge.settings import read_yaml
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
    assert f"expunge run recipes/{path.name}" in path.read_text().splitlines()[0]


@pytest.mark.parametrize(
    "block",
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8"), re.DOTALL),
)
def test_python_examples_run(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "tutorial.md", "exec"), {})  # our own page
