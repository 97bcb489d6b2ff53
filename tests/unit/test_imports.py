"""The tree is the pipeline: imports only run backwards along it, and light doors stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import expunge

ROOT = Path(expunge.__file__).parent
STEPS = ["errors", "progress", "request", "stream", "data", "models", "unlearning", "attacks", "audit", "report"]
FRONT = {
    "settings",
    "recipe",
    "folder",
    "source",
    "pipeline",
    "measure",
    "assemble",
    "attacking",
    "basis",
    "comparison",
    "console",
    "cli",
    "cli_audit",
    "cli_request",
    "continual",
    "demo",
    "catalogue",
    "bench",
    "api",
}
# A request is made of examples, and examples know nothing of requests.
ALLOWED = {("request", "data.example"), ("request", "data.sources"), ("stream", "data.example")}


def imported(path: Path) -> set[str]:
    """Dotted names below `expunge` that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "expunge":
            inner = node.module.removeprefix("expunge").lstrip(".")
            names |= {inner} if inner else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.removeprefix("expunge.") for a in node.names if a.name.startswith("expunge.")}
    return names


def step_of(dotted: str) -> str:
    return dotted.split(".")[0]


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_backwards(path: Path) -> None:
    here = step_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    if here in FRONT or here.startswith("__"):
        return
    for name in imported(path) - {"__version__"}:
        target = step_of(name)
        assert target not in FRONT, f"{path.name} imports {name}, which stands in front"
        if (here, name) not in ALLOWED:
            assert STEPS.index(target) <= STEPS.index(here), f"{here} imports {name}: the wrong way"


def test_every_top_level_name_has_a_place() -> None:
    names = {step_of(".".join(p.relative_to(ROOT).with_suffix("").parts)) for p in ROOT.rglob("*.py")}
    assert {n for n in names if not n.startswith("__")} <= set(STEPS) | FRONT


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_file_outgrows_its_idea(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


@pytest.mark.parametrize(
    "module", ["expunge", "expunge.cli", "expunge.errors", "expunge.data.example", "expunge.recipe"]
)
def test_light_doors_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
