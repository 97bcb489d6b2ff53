"""The page's tables as rows of words: key numbers, attacks, answers, utility, cost, provenance."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from expunge.report import comeback
from expunge.report.figures import Labelled
from expunge.report.record import Attack, Change, Record, Score
from expunge.report.view import interval
from expunge.report.words import NONE, count, duration, fixed, number, percent, plain, signed, size, visible

SCORE_ROWS: tuple[tuple[str, Callable[[Score], str]], ...] = (
    ("accuracy", lambda s: percent(s.accuracy)),
    ("log-odds", lambda s: signed(s.log_odds)),
    ("P(answer)", lambda s: fixed(s.probability)),
    ("ROUGE-L recall", lambda s: fixed(s.rouge_l)),
)


@dataclass(frozen=True)
class Row:
    """A table row: its name and its cells, of which each spans `span` columns; a head has no cells."""

    name: str
    cells: tuple[str, ...] = ()
    span: int = 1


def key_rows(runs: Sequence[Labelled]) -> list[Row]:
    """The key numbers: two cells a run (before, after), or one that spans both."""
    if not runs:
        return []
    scores = [run.record.scores for run in runs]
    rows = [
        *_score_rows("To forget", [s.forget for s in scores]),
        *_score_rows("To retain", [s.retain for s in scores]),
        *_score_rows("Test, never trained on", [s.test for s in scores]),
    ]
    strongest = [run.record.strongest for run in runs]
    rows += [
        Row("Strongest attack"),
        Row("name", tuple(plain(a.name) if a else NONE for a in strongest), 2),
        Row("accuracy", tuple(percent(a.accuracy) if a else NONE for a in strongest), 2),
        Row("recovery (95 % interval)", tuple(_recovery(a) if a else NONE for a in strongest), 2),
    ]
    return [*rows, *_probe_rows(runs)]


def _probe_rows(runs: Sequence[Labelled]) -> list[Row]:
    """What a linear probe reads in its best layer. Of what looks inside a model it alone tells hidden facts from erased
    ones (docs/results/diagnosis.md); D+, D-, the maps and the logit lens are pictures further down."""
    probes = [run.record.probe for run in runs]
    if not any(probes):
        return []
    pairs = [(signed(max(p.before)), signed(max(p.after))) if p else (NONE, NONE) for p in probes]
    read = tuple(told for pair in pairs for told in pair)
    return [Row("Linear probe, best layer"), Row("log-odds", read)]


def _score_rows(title: str, changes: Sequence[Change]) -> list[Row]:
    """One set's head and its measures; nothing where no run measured it."""
    n = max(c.before.n for c in changes)
    if not n:
        return []
    rows = [Row(f"{title}: {n} facts, chance {percent(changes[0].before.chance)}")]
    for name, show in SCORE_ROWS:
        cells = tuple(show(score) for c in changes for score in (c.before, c.after))
        rows += [Row(name, cells)] if set(cells) != {NONE} else []
    return rows


def score_rows(record: Record) -> list[Row]:
    """One row per set of facts that was measured: number, chance, accuracy and log-odds before and after."""
    scores = record.scores
    sets = {"to forget": scores.forget, "to retain": scores.retain, "test": scores.test, **scores.groups}
    return [Row(plain(name), _score_cells(change)) for name, change in sets.items() if change.before.n]


def _score_cells(change: Change) -> tuple[str, ...]:
    """Cells of `score_rows`."""
    before, after = change.before, change.after
    guess = (str(before.n), percent(before.chance))
    return (*guess, percent(before.accuracy), percent(after.accuracy), signed(before.log_odds), signed(after.log_odds))


def _recovery(attack: Attack) -> str:
    """`62 % (43 to 81 %)`; nothing where it means nothing."""
    return f"{percent(attack.recovery)} ({interval(attack)})" if attack.known else NONE


@dataclass(frozen=True)
class AttackRow:
    """One attack in words."""

    run: str
    name: str
    recovery: str
    accuracy: str
    log_odds: str
    facts: str
    best: str
    half: str
    rho: str
    seconds: str
    budget: str
    place: int
    sort: dict[str, float | str]


def attack_rows(runs: Sequence[Labelled]) -> list[AttackRow]:
    """All attacks of all runs, run by run, the one that brought back most first."""
    return [_attack_row(place, run, attack) for place, run in enumerate(runs) for attack in run.record.ranked]


def _attack_row(place: int, run: Labelled, attack: Attack) -> AttackRow:
    """One attack; `best` is the cell of the grid that reached most, `half` the examples that brought half of it back.

    sort: the numbers by which its columns are sorted, "" where there is none.
    """
    best, half = attack.best, comeback.needed(run.record, attack)
    numbers = {
        "recovery": attack.recovery if attack.known else None,
        "accuracy": attack.accuracy,
        "log_odds": attack.log_odds,
        "facts": attack.start.n,
        "half": half,
        "rho": attack.rho,
        "seconds": attack.seconds,
    }
    return AttackRow(
        run=run.label,
        name=plain(attack.name) + ("" if attack.counts else " (does not count)"),
        recovery=_recovery(attack),
        accuracy=f"{percent(attack.start.accuracy)} → {percent(attack.accuracy)}",
        log_odds=f"{signed(attack.start.log_odds)} → {signed(attack.log_odds)}",
        facts=str(attack.start.n),
        best=visible(best.place, 60) if best else NONE,
        half=NONE if half is None else f"{half}",
        rho=number(attack.rho, 2),
        seconds=duration(attack.seconds),
        budget=visible(". ".join(filter(None, (attack.budget, " ".join(attack.notes))))),
        place=place,
        sort={name: "" if value is None else value for name, value in numbers.items()},
    )


def utility_rows(runs: Sequence[Labelled]) -> list[Row]:
    """What the change cost in general ability."""
    texts = [run.record.text for run in runs]
    pairs = [f"{number(t.perplexity_before)} → {number(t.perplexity_after)}" for t in texts]
    keeps = [run.record.scores for run in runs]
    rows = [
        Row("perplexity of plain text", tuple(pairs)),
        Row("KL to the original, nats per token", tuple(number(t.kl) for t in texts)),
        Row("accuracy, retain", tuple(_moved(s.retain) for s in keeps)),
        Row("accuracy, test", tuple(_moved(s.test) for s in keeps)),
    ]
    return [row for row in rows if set(row.cells) - {NONE, f"{NONE} → {NONE}"}]


def _moved(change: Change) -> str:
    """Accuracy before and after."""
    if not change.before.n:
        return NONE
    return f"{percent(change.before.accuracy)} → {percent(change.after.accuracy)}"


@dataclass(frozen=True)
class Stage:
    """A stage's time in words and as a share (0 to 100) of the longest stage on the page."""

    name: str
    seconds: str
    width: float


@dataclass(frozen=True)
class Price:
    """What one run cost."""

    label: str
    total: str
    memory: str
    steps: str
    stages: tuple[Stage, ...]


def prices(runs: Sequence[Labelled]) -> list[Price]:
    """Time per stage (the longest first), memory and steps of each run; bars share one scale."""
    costs = [run.record.cost for run in runs]
    longest = max((s for cost in costs for s in cost.stages.values()), default=0.0) or 1.0
    return [
        Price(
            label=run.label,
            total=duration(cost.seconds),
            memory=size(cost.peak_bytes),
            steps=str(cost.steps),
            stages=tuple(
                Stage(plain(name), duration(seconds), round(100 * seconds / longest, 1))
                for name, seconds in sorted(cost.stages.items(), key=lambda stage: (-stage[1], stage[0]))
            ),
        )
        for run, cost in zip(runs, costs, strict=True)
    ]


def provenance(record: Record) -> list[tuple[str, list[tuple[str, str]]]]:
    """Titled lists of name and value: all that is needed to make the run again."""
    recipe, model, versions, hashes = record.recipe, record.model, record.versions, record.hashes
    parts: list[tuple[str, dict[str, object]]] = [
        ("Recipe", {**recipe.model_dump(exclude={"arguments"}), **recipe.arguments}),
        ("Model", {**model.model_dump(), "parameters": count(model.parameters)}),
        ("Attacks", {a.name: a.settings for a in record.attacks}),
        ("Stopped because", {"training": record.training.stop_reason}),
        ("Seeds", dict(record.seeds)),
        ("Versions", {**versions.model_dump(), "created": record.created}),
        ("Data, sha256", dict(hashes.data)),
        ("Model, sha256", hashes.model_dump(exclude={"data"})),
    ]
    return [(t, [(plain(k), _value(v)) for k, v in part.items() if v not in ("", {}, None)]) for t, part in parts]


def _value(value: object) -> str:
    """A setting as text: words as they are, anything else as JSON."""
    return visible(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
