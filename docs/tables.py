"""Tables of the README and of how-to pages, from stored records and from the rows beside the pages of results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from expunge.bench.rows import Row, recovery_table
from expunge.bench.standings import leads, mean_standing, shares
from expunge.continual.record import HELD_OUT, RETAIN, Course

ROOT = Path(__file__).parent.parent
COURSES = ROOT / "docs" / "results" / "records" / "continual" / "world_facts_ten"


def claims() -> str:
    """One line per claim of speed and memory that a benchmark measured."""
    lines = ["| claim | measured | bar |", "|---|---|---|"]
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
            sign = ">=" if claim["at_least"] else "<="
            missed = "" if claim["met"] else " (missed)"
            lines.append(f"| {claim['what']} | {claim['value']:.3g}{missed} | {sign} {claim['bar']:g} |")
    return "\n".join(lines) + "\n"


HISTORY = ("two_folds", "constant_rate", "half_without_attacker", "durable_mrp_moving_sinks")
"""What durable and durable_mrp were, and half of a part: on the page of results only."""
VARIANTS = (
    "npo_sam",
    "npo_lau",
    "l2_previous",
    "npo_ssiuu",
    "ga_ssiuu",
    "klue_ssiuu",
    "bounded",
    "bounded_relearning",
    "mrp_counterfactual_searched",
)
"""Other forms of what the README has a row of: on the page of results only, too."""


def _rows(benchmark: str) -> dict[str, list[Row]]:
    """The rows of docs/results/erase_or_hide.json on one benchmark, by method."""
    found: dict[str, list[Row]] = {}
    for tree in json.loads((ROOT / "docs" / "results" / "erase_or_hide.json").read_text(encoding="utf-8")):
        if tree["benchmark"] == benchmark:
            found.setdefault(tree["method"], []).append(Row.from_json(tree))
    return found


def erase_or_hide(benchmark: str) -> str:
    """Recovery by method and attack on `benchmark`."""
    left_out = HISTORY + VARIANTS
    return recovery_table([row for name, own in _rows(benchmark).items() if name not in left_out for row in own]) + "\n"


CHOICES = {
    "durable": ("`durable`, the default", "down to what is said of made-up subjects, against simulated attackers"),
    "durable_mrp": ("`durable_mrp`", "the same, but only a few rows of a projection are trained"),
    "mrp_counterfactual": (
        "`mrp`, `objective=counterfactual`, `retain_weight=1.2`",
        "such rows with that objective, without an attacker",
    ),
    "repselect": ("`repselect`", "an edit along what only the forget facts use"),
    "ssiuu_best": ("`ssiuu_best`", "graddiff; the neurons' influence against the answers may not grow"),
    "graddiff": ("`graddiff`", "ascent on what must go, descent on what stays"),
    "npo": ("`npo`", "negative preference optimization"),
}
"""The methods that choose_a_method.md compares: how each is chosen, and what it does."""


def choices() -> str:
    """What each method costs, what comes back and what stays: 24 facts at once."""
    rows, attacks = _rows("world_facts"), ("harmful_0.3", "related", "quantise")
    lines = [
        "| method | what it does | seeds | seconds | GB | back: harmful | related | 4 bits | stays: held-out |",
        "|" + "---|" * 9,
    ]
    for method, (chosen, does) in CHOICES.items():
        found = {row.attack: row for row in rows[method]}
        some = found["harmful_0.3"]
        told = [chosen, does, str(len(some.seeds)), f"{some.seconds:.0f}", f"{some.peak_bytes / 1e9:.1f}"]
        told += [*(f"{found[attack].recovery:.2f}" for attack in attacks), f"{some.held_out_after:.2f}"]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


IN_REQUESTS = {
    "durable": "`durable`",
    "durable_mrp": "`durable_mrp`",
    "durable_mrp_few_blocks": "`durable_mrp`, `n_layers=10`",
    "graddiff": "`graddiff`",
    "npo": "`npo`",
}
"""The methods that choose_a_method.md compares over ten requests, and how each is chosen."""


def choices_in_requests() -> str:
    """The same for ten requests, one after another."""
    lines = [
        "| method | seeds | seconds a request | GB | back: same request | other requests | stays: retained | held-out "
        "| perplexity |",
        "|" + "---|" * 9,
    ]
    for method, chosen in IN_REQUESTS.items():
        courses = _courses(method)
        told = [
            chosen,
            str(len(courses)),
            f"{fmean(moment.seconds for course in courses for moment in course.after):.0f}",
            f"{fmean(course.after[-1].peak_bytes for course in courses) / 1e9:.1f}",
            *(f"{fmean(found):.2f}" for found in shares(courses, "merged")),
            *_stays(courses),
        ]
        lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def _courses(method: str) -> list[Course]:
    """The stored courses of ten requests by one method."""
    return [Course.load(path) for path in sorted(COURSES.glob(f"{method}-[0-9].json"))]


def _stays(courses: Sequence[Course]) -> list[str]:
    """Retained and held-out accuracy at the end, and perplexity."""
    last = [course.after[-1] for course in courses]
    kept = [f"{fmean(moment.sets[name].accuracy for moment in last):.2f}" for name in (RETAIN, HELD_OUT)]
    return [*kept, f"{fmean(moment.perplexity for moment in last):.0f}"]


def continual() -> str:
    """How ten requests end on world_facts, from their records, in the order of docs/results/continual.json."""
    rows = json.loads((ROOT / "docs" / "results" / "continual.json").read_text(encoding="utf-8"))
    own = [row for row in rows if row["benchmark"] == "world_facts_in_requests"]
    lines = [
        "| method | seeds | forgotten, log-odds | over made-up subjects | retained | held-out | perplexity "
        "| relearnt: same | others |",
        "|" + "---|" * 9,
    ]
    for method in dict.fromkeys(row["method"] for row in own):
        courses = _courses(method)
        told = [
            f"{fmean(map(mean_standing, courses)):+.2f}",
            f"{fmean(fmean(leads(course, course.after[-1])) for course in courses):+.2f}",
            *_stays(courses),
            *(f"{fmean(found):.2f}" if found else "" for found in shares(courses, "merged")),
        ]
        lines.append(f"| {method} | {len(courses)} | {' | '.join(told)} |")
    return "\n".join(lines) + "\n"


def verdict() -> str:
    """How often the verdict was right on models of known truth, from docs/results/verdict.json."""
    told = json.loads((ROOT / "docs" / "results" / "verdict.json").read_text(encoding="utf-8"))
    lines = ["| models of known truth | right | 95 % interval | HIDDEN called ERASED |", "|---|---|---|---|"]
    titles = {
        "tuning": "those that fixed the thresholds",
        "held_out": "held out",
        "fresh": "made after the rule's last change",
    }
    for part, title in titles.items():
        own = told[part]
        share = (
            f"{own['right']} of {own['models']} | {own['low']:.1%} to {own['high']:.1%} | {own['hidden_called_erased']}"
        )
        lines.append(f"| {title} | {share} |")
    return "\n".join(lines) + "\n"
