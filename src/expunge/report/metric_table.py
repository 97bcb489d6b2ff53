"""The page's table of metrics: one row per metric, three columns a run, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from expunge.report.figures import Labelled
from expunge.report.parts import Metric, Metrics, MetricState
from expunge.report.words import NONE, number, visible

SECTIONS: Final = {
    "Memorisation of what had to go": (
        *("forget_accuracy", "forget_Q_A_Prob", "forget_Q_A_ROUGE", "exact_memorization", "extraction_strength"),
        *("forget_Truth_Ratio", "forget_quality"),
    ),
    "Membership: forgotten items against items never trained on (AUC)": (
        *("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference", "privleak"),
    ),
    "Utility": (
        *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
        *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
        *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
        *("model_utility", "perplexity", "kl"),
    ),
}
WORDS: Final = {
    "forget_accuracy": "accuracy over options",
    "forget_Q_A_Prob": "probability per token",
    "forget_Q_A_ROUGE": "ROUGE-L recall",
    "exact_memorization": "exact memorisation",
    "extraction_strength": "extraction strength",
    "forget_Truth_Ratio": "truth ratio",
    "forget_quality": "forget quality (p-value)",
    "mia_loss": "by loss",
    "mia_zlib": "by loss per compressed byte",
    "mia_min_k": "by min-k",
    "mia_min_k_plus_plus": "by min-k++",
    "mia_reference": "by loss against a reference",
    "privleak": "privleak, %",
    "model_utility": "model utility",
    "perplexity": "perplexity of plain text",
    "kl": "KL to the original, nats per token",
}
SETS: Final = {"retain": "to retain", "ra": "real authors", "wf": "world facts"}
KINDS: Final = {
    "Q_A_Prob": "probability per token",
    "Q_A_Prob_normalised": "probability among options",
    "Q_A_ROUGE": "ROUGE-L recall",
    "Truth_Ratio": "truth ratio",
}


@dataclass(frozen=True)
class MetricRow:
    """A metric in words; `cells` are its value before, after and in the control of each run. A head has no cells."""

    title: str
    name: str = ""
    cells: tuple[str, ...] = ()
    chance: str = ""


def metric_rows(runs: Sequence[Labelled]) -> list[MetricRow]:
    """Heads and rows of what was measured in any run; nothing without metrics."""
    found = [{row.name: row for row in _part(run).rows} for run in runs]
    rows = []
    for title, names in SECTIONS.items():
        there = [name for name in names if any(name in table for table in found)]
        rows += [MetricRow(title)] if there else []
        rows += [_row(name, [table.get(name) for table in found]) for name in there]
    return rows


def metric_notes(runs: Sequence[Labelled]) -> list[str]:
    """What the non-members and the reference are, and where lm-eval's answers lie, in sentences."""
    notes = []
    for run in runs:
        part = _part(run)
        if part.non_members:
            reference = f"; the reference is the {visible(part.reference, 40)}" if part.reference else ""
            notes.append(
                f"{run.label}: the {len(part.others)} items never trained on are the request's "
                f"{visible(part.non_members, 40)} facts{reference}."
            )
        if part.lm_eval:
            tasks = ", ".join(visible(task, 60) for task in part.lm_eval.tasks)
            notes.append(f"{run.label}: lm-eval was asked {tasks}; see {visible(part.lm_eval.file, 60)}.")
    return notes


def _part(run: Labelled) -> Metrics:
    return run.record.metrics or Metrics()


def _row(name: str, metrics: Sequence[Metric | None]) -> MetricRow:
    cells = tuple(_cell(state) for m in metrics for state in ((m.before, m.after, m.control) if m else (None,) * 3))
    chance = next((metric.chance for metric in metrics if metric), None)
    prefix, _, kind = name.partition("_")
    title = f"{SETS[prefix]}: {KINDS[kind]}" if prefix in SETS else WORDS[name]
    return MetricRow(title, name, cells, _value(chance, 2))


def _cell(state: MetricState | None) -> str:
    """`0.417 (0.31 to 0.55)`; bounds that are the value itself are left out."""
    if state is None:
        return NONE
    low, high = (_value(bound, 2) for bound in (state.low, state.high))
    return _value(state.value) + (f" ({low} to {high})" if NONE not in (low, high) and low != high else "")


def _value(value: float | None, digits: int = 3) -> str:
    """Two significant digits of what is small."""
    return number(value, 2 if value is not None and abs(value) < 0.1 else digits)
