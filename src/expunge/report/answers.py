"""What the models say in their own words: the facts that leak most, then others; untrusted text made safe here."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from expunge.report import comeback
from expunge.report.figures import Labelled
from expunge.report.record import Item, ItemState, Record
from expunge.report.words import NONE, signed, visible

FORGET_ROWS, OTHER_ROWS = 12, 5


@dataclass(frozen=True)
class Answer:
    """One question with what the models say; each cell of `words` belongs to the column of the same place."""

    question: str
    answer: str
    words: tuple[Markup, ...]


@dataclass(frozen=True)
class Leak:
    """One fact that came back in one run; said: when, words and log-odds, before, after and under attack."""

    place: int
    run: str
    question: str
    answer: str
    said: tuple[tuple[str, Markup, str], ...]


def leak_rows(runs: Sequence[Labelled], most: int) -> list[Leak]:
    """At most `most` leaks of each run, worst first."""
    return [_leak(place, run, item) for place, run in enumerate(runs) for item in comeback.leaks(run.record, most)]


def _leak(place: int, run: Labelled, item: Item) -> Leak:
    moments = (("before", item.before), ("after", item.after), ("attacked", item.attacked))
    return Leak(
        place=place,
        run=run.label,
        question=question(item.prompt),
        answer=visible(item.answer, 80),
        said=tuple((when, marked(s.words, item.answer), signed(s.log_odds, 1)) for when, s in moments if s),
    )


@dataclass(frozen=True)
class Answers:
    """A table of answers under its columns; `shown` of `total` questions."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Answer, ...]
    total: int


def answer_tables(runs: Sequence[Labelled]) -> list[Answers]:
    """Answers to what had to go, then to what had to stay; runs share a row where they share the question.

    Facts that stand among the leaks of every run are left out, as is a set of which no words were kept.
    """
    if not runs:
        return []
    shown = set.intersection(*({item.id for item in comeback.leaks(run.record)} for run in runs))
    title = "What else had to go" if shown else "What had to go"
    tables = [
        _answers(title, runs, lambda i: i.split == "forget" and i.id not in shown, FORGET_ROWS, attacked=True),
        _answers("What had to stay", runs, lambda item: item.split != "forget", OTHER_ROWS, attacked=False),
    ]
    return [table for table in tables if any(any(row.words) for row in table.rows)]


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
