"""The thresholds, the page and the rows of verdict.py, from its records alone.

split     worlds in the order of permutation(WORLDS, "verdict/split"); the first half of them fixes the thresholds
search    every rule of `GRID` on the first half, with a gold control and without: those that call no HIDDEN model
          ERASED, of them those with the most models right, of them the one with the fewest thresholds other than
          before (`BEFORE`), of them the strictest for ERASED, then for HIDDEN
report    the product's rule, which must be the one found, on the second half; and on `FRESH` worlds, which were made
          after an error of the second half had changed the rule once more
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from expunge.audit.evidence import PROBE, Evidence
from expunge.audit.intervals import wilson
from expunge.audit.verdict import WORST_FIRST, Label, Rule, decide

RESULTS = Path(__file__).parent.parent / "docs" / "results"
RECORDS = RESULTS / "records" / "verdict"
ELAPSED = RESULTS / "records" / "verdict_elapsed.json"
"""How long a run took that found neither models nor records, trainings and all."""

WORLDS = 15
TUNING = (0, 1, 4, 8, 9)
FRESH = (10, 11, 12, 13, 14)

GRID: dict[str, tuple[float, ...]] = {
    "present": (0.2, 0.3),
    "accuracy_above": (0.1, 0.2),
    "hidden": (0.05, 0.1, 0.15, 0.2, 0.25),
    "erased": (0.2, 0.25, 0.3, 0.35, 0.4),
    "inverted": (1.0, 1.5, 2.0),
}
BEFORE = {"present": 0.2, "accuracy_above": 0.1, "hidden": 0.2, "erased": 0.25, "inverted": 1.0}
"""The thresholds that the rule had before any of these models was made."""

NO_TRACE = "the same, the rule without its `trace`"

Record = dict[str, Any]
_EVIDENCE: TypeAdapter[Evidence] = TypeAdapter(Evidence)


class Model:
    """One model: its truth, and its evidence against each control."""

    def __init__(self, record: Record) -> None:
        self.seed, self.name, self.truth = int(record["seed"]), str(record["name"]), str(record["truth"])
        self.facts = int(record["facts"])
        self.evidence = {kind: _EVIDENCE.validate_python(told) for kind, told in record["evidence"].items()}
        self.small = {kind: _EVIDENCE.validate_python(told) for kind, told in record.get("small", {}).items()}

    def label(self, rule: Rule, control: str = "gold") -> Label:
        """The rule's verdict."""
        return decide(self.evidence[control], rule).label

    def right(self, rule: Rule, control: str = "gold") -> bool:
        """Whether that is the truth."""
        return self.label(rule, control) == self.truth


def load() -> tuple[list[Record], list[Record]]:
    """Records of the models that were made, and of those that could not be, by world."""
    paths = sorted(RECORDS.glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return [each for each in found if "evidence" in each], [each for each in found if "not_made" in each]


def parts(models: Sequence[Model]) -> dict[str, list[Model]]:
    """Those of the worlds that are reported, of those that fix the thresholds, and of those that came after."""
    told: dict[str, list[Model]] = {"held_out": [], "tuning": [], "fresh": []}
    for model in models:
        told["tuning" if model.seed in TUNING else "fresh" if model.seed in FRESH else "held_out"].append(model)
    return told


def search(models: Sequence[Model]) -> tuple[Rule, list[dict[str, Any]]]:
    """The rule that the module's search finds on `models`, and how many are right under each rule."""
    tried = []
    for values in product(*GRID.values()):
        settings = dict(zip(GRID, values, strict=True))
        rule = Rule(**settings)  # type: ignore[arg-type]
        labels = [(m.truth, m.label(rule, control)) for m in models for control in ("gold", "none")]
        wrong = sum(pair == ("HIDDEN", "ERASED") for pair in labels)
        right = sum(truth == label for truth, label in labels)
        tried.append({**settings, "hidden_called_erased": wrong, "right": right, "of": len(labels)})

    def rank(row: dict[str, Any]) -> tuple[float, ...]:
        moved = sum(abs(row[name] / value - 1) for name, value in BEFORE.items())
        return *_merit(row), round(moved, 6), row["erased"]

    best = min(tried, key=rank)
    return Rule(**{name: best[name] for name in GRID}), tried


def _merit(row: dict[str, Any]) -> tuple[int, int]:
    """Smaller is better: first no HIDDEN model called ERASED, then as many right as can be."""
    return row["hidden_called_erased"], -row["right"]


def _share(right: int, n: int) -> dict[str, Any]:
    low, high = wilson(right / n, n) if n else (0.0, 1.0)
    return {"models": n, "right": right, "low": round(low, 3), "high": round(high, 3)}


def summary(models: Sequence[Model], rule: Rule, control: str = "gold") -> dict[str, Any]:
    """How many are right, and the two kinds of wrong that matter."""
    labels = [(m.truth, m.label(rule, control)) for m in models]
    return {
        **_share(sum(truth == label for truth, label in labels), len(labels)),
        "hidden_called_erased": sum(pair == ("HIDDEN", "ERASED") for pair in labels),
        "inconclusive": sum(label == "INCONCLUSIVE" for _, label in labels),
        "worlds": len({m.seed for m in models}),
    }


def by_kind(models: Sequence[Model], rule: Rule, control: str = "gold") -> list[dict[str, Any]]:
    """One row per kind of model."""
    rows = []
    for name, truth in dict.fromkeys((m.name, m.truth) for m in sorted(models, key=_order)):
        labels = Counter(m.label(rule, control) for m in models if m.name == name)
        told = {label: labels[label] for label in reversed(WORST_FIRST)}
        rows.append({"kind": name, "truth": truth, **_share(labels[truth], labels.total()), "labels": told})  # type: ignore[index]
    return rows


def _order(model: Model) -> tuple[int, str]:
    return -WORST_FIRST.index(model.truth), model.name  # type: ignore[arg-type]


def _without(models: Sequence[Model], drop: Callable[[str], bool]) -> list[Model]:
    """The same models, with the attacks for which `drop` holds taken out of the evidence."""
    found = []
    for model in models:
        other = object.__new__(Model)
        other.__dict__ |= model.__dict__
        other.evidence = {
            kind: replace(told, attacks=tuple(t for t in told.attacks if not drop(t.name)))
            for kind, told in model.evidence.items()
        }
        found.append(other)
    return found


def ablations(models: Sequence[Model], rule: Rule) -> list[dict[str, Any]]:
    """The same models with less to go by."""
    blind = _without(models, lambda name: name == PROBE)
    rows = [
        ("everything", models, "gold", rule),
        ("made-up subjects as control", models, "twins", rule),
        ("ignorance as control", models, "none", rule),
        ("gold control, no linear probe", blind, "gold", rule),
        ("made-up subjects, no linear probe", blind, "twins", rule),
        (NO_TRACE, blind, "twins", replace(rule, trace=math.inf)),
        ("ignorance, no linear probe", blind, "none", rule),
    ]
    return [{"evidence": told, **summary(these, own, control)} for told, these, control, own in rows]


def small(models: Sequence[Model], rule: Rule) -> dict[str, int]:
    """Labels of the same models asked about too few facts."""
    return dict(Counter(decide(m.small[control], rule).label for m in models for control in m.small))


def recoveries(models: Sequence[Model]) -> list[dict[str, Any]]:
    """Mean R of each attack, by kind, against the gold model."""
    rows = []
    for name, truth in dict.fromkeys((m.name, m.truth) for m in sorted(models, key=_order)):
        these = [m.evidence["gold"] for m in models if m.name == name]
        cells: dict[str, list[float]] = {"no attack": [e.residual.value for e in these]}
        for tried in (t for e in these for t in e.attacks):
            cells.setdefault(tried.name, []).append(tried.recovery.value)
        means = {key: [round(f(values), 2) for f in (min, _mean, max)] for key, values in cells.items()}
        rows.append({"kind": name, "truth": truth, "n": len(these), "recovery": means})
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def wrong(models: Sequence[Model], rule: Rule) -> list[dict[str, Any]]:
    """Each model that is not called what it is."""
    return [
        {"world": m.seed, "kind": m.name, "truth": m.truth, "label": told.label, "why": told.reasons[0]}
        for m in models
        if (told := decide(m.evidence["gold"], rule)).label != m.truth
    ]


def told(records: Sequence[Record], not_made: Sequence[Record]) -> dict[str, Any]:
    """Everything that the page shows."""
    models = [Model(record) for record in records]
    by_part = parts(models)
    found, tried = search(by_part["tuning"])
    rule = Rule()
    return {
        **{part: summary(these, rule) for part, these in by_part.items()},
        "rule": {name: getattr(rule, name) for name in asdict(rule)},
        "search": {
            "found": {name: getattr(found, name) for name in GRID},
            "grid": GRID,
            "as_good": sum(_merit(row) == _merit(min(tried, key=_merit)) for row in tried),
            "rules": len(tried),
        },
        "kinds": {part: by_kind(these, rule) for part, these in by_part.items()},
        "ablations": {part: ablations(these, rule) for part, these in {**by_part, "all": models}.items()},
        "small": small(models, rule),
        "recoveries": recoveries(models),
        "wrong": [{"half": part, **row} for part, these in by_part.items() for row in wrong(these, rule)],
        "not_made": [{"world": r["seed"], "kind": r["name"], "why": r["not_made"]} for r in not_made],
        "worlds": {part: sorted({m.seed for m in these}) for part, these in by_part.items()},
        "attacks": records[0]["attacks"],
        "versions": records[0]["versions"],
        "data": {str(r["seed"]): r["data"] for r in records},
        "weights": {f"{r['seed']:02d}-{r['name']}": r["weights"] for r in records},
        "seconds": round(sum(r["seconds"] for r in (*records, *not_made))),
        "elapsed": json.loads(ELAPSED.read_text(encoding="utf-8")) if ELAPSED.is_file() else None,
    }


def tables() -> None:
    """Write docs/results/verdict.md and .json."""
    from verdict_page import page

    records, not_made = load()
    if not records:
        return
    found = told(records, not_made)
    notes = RESULTS / "verdict.notes.md"
    end = "\n" + notes.read_text(encoding="utf-8") if notes.is_file() else ""
    (RESULTS / "verdict.md").write_text(page(found) + end, encoding="utf-8")
    (RESULTS / "verdict.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
