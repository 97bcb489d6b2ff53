"""The page's tables as rows of words: key numbers, attacks, answers, utility, cost, provenance."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from expunge.report.figures import Labelled
from expunge.report.record import Attack, Change, Item, ItemState, Record, Score
from expunge.report.view import interval
from expunge.report.words import NONE, count, duration, fixed, number, percent, plain, quantity, signed, size, visible

FORGET_ROWS, OTHER_ROWS = 12, 5
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
    return [*rows, *_influence_rows(runs)]


def _influence_rows(runs: Sequence[Labelled]) -> list[Row]:
    """D+ and D- at m = 100 of the probability and of the log-odds, of what was measured."""
    rows = []
    for found in zip(*(run.record.influences for run in runs), strict=True):
        if any(found):
            of = next(quantity(i.of) for i in found if i)
            rows += [
                Row(f"erased, D+ of the {of}", tuple(number(i.erased) if i else NONE for i in found), 2),
                Row(f"hidden, D− of the {of}", tuple(number(i.hidden) if i else NONE for i in found), 2),
            ]
    return [Row("Inside"), *rows] if rows else []


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
    """`62 % (43 to 81 %)`."""
    bounds = interval(attack)
    return percent(attack.recovery) + (f" ({bounds})" if bounds else "")


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
    rho: str
    seconds: str
    budget: str


def attack_rows(runs: Sequence[Labelled]) -> list[AttackRow]:
    """All attacks of all runs, in order."""
    return [_attack_row(run.label, attack) for run in runs for attack in run.record.attacks]


def _attack_row(label: str, attack: Attack) -> AttackRow:
    """One attack; `best` is the cell of the grid that reached most."""
    best = attack.best
    return AttackRow(
        run=label,
        name=plain(attack.name),
        recovery=_recovery(attack),
        accuracy=f"{percent(attack.start.accuracy)} → {percent(attack.accuracy)}",
        log_odds=f"{signed(attack.start.log_odds)} → {signed(attack.log_odds)}",
        facts=str(attack.start.n),
        best=visible(best.place) if best else NONE,
        rho=number(attack.rho, 2),
        seconds=duration(attack.seconds),
        budget=visible(attack.budget),
    )


@dataclass(frozen=True)
class Answer:
    """One question with what the models say; each cell of `words` belongs to the column of the same place."""

    question: str
    answer: str
    words: tuple[Markup, ...]


@dataclass(frozen=True)
class Answers:
    """A table of answers under its columns; `shown` of `total` questions."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Answer, ...]
    total: int


def answer_tables(runs: Sequence[Labelled]) -> list[Answers]:
    """Answers to what had to go, then to what had to stay; runs share a row where they share the question."""
    tables = [
        _answers("What had to go", runs, lambda item: item.split == "forget", FORGET_ROWS, attacked=True),
        _answers("What had to stay", runs, lambda item: item.split != "forget", OTHER_ROWS, attacked=False),
    ]
    return [table for table in tables if table.rows]


def _answers(
    title: str, runs: Sequence[Labelled], wanted: Callable[[Item], bool], limit: int, attacked: bool
) -> Answers:
    """One table; questions that the attack was not shown come first, in the first record's order."""
    found = [{item.id: item for item in run.record.items if wanted(item)} for run in runs]
    known: dict[str, Item] = {key: item for table in reversed(found) for key, item in table.items()}
    order = {key: place for place, key in enumerate(dict.fromkeys(key for table in found for key in table))}
    keys = sorted(order, key=lambda k: (all(k not in t or t[k].attacked is None for t in found), order[k]))
    same_start = len({run.record.hashes.weights_before for run in runs}) == 1
    columns: list[str] = ["before"] if same_start else []
    for run in runs:
        mine = [*([] if same_start else ["before"]), "after", *(["attacked"] if attacked else [])]
        columns += [f"{run.label}: {moment}" for moment in mine]
    rows = []
    for key in keys[:limit]:
        states: list[ItemState | None] = [known[key].before] if same_start else []
        for run, table in zip(runs, found, strict=True):
            item = table.get(key)
            mine_states = [item.after, _after_attack(run.record, item)] if item else [None, None]
            states += [item.before if item else None] if not same_start else []
            states += mine_states if attacked else mine_states[:1]
        words = tuple(marked(s.words if s else NONE, known[key].answer) for s in states)
        rows.append(Answer(question(known[key].prompt), visible(known[key].answer, 80), words))
    return Answers(title, tuple(columns), tuple(rows), len(keys))


def _after_attack(record: Record, item: Item) -> ItemState | None:
    """The item at the strongest attack's best; its words alone where only a sample was kept."""
    samples = record.strongest.samples if record.strongest else {}
    return item.attacked or (ItemState(words=samples[item.id]) if item.id in samples else None)


def question(prompt: str) -> str:
    """The question in a prompt of the form `Question: ... Answer:`, else the prompt."""
    found = re.search(r"(?s).*Question:\s*(.*?)\s*Answer:", prompt)
    return visible(found[1] if found else prompt.strip(), 160)


def marked(words: str, answer: str, limit: int = 120) -> Markup:
    """`words`, safe for the page, with every whole-word occurrence of `answer` in a <mark>."""
    shown, sought = visible(words.strip(), limit), visible(answer.strip(), 80)
    if not sought:
        return escape(shown)
    pieces = re.split(rf"(?i)(?<!\w)({re.escape(sought)})(?!\w)", shown)
    return Markup("").join(Markup("<mark>{}</mark>").format(p) if i % 2 else escape(p) for i, p in enumerate(pieces))


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
