"""A page of results out of stored records: its grids, its tables, and what a person wrote about them."""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from shutil import copyfile
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from expunge.audit.intervals import wilson
from expunge.bench.grid import Grid, run_grid, stored
from expunge.bench.rows import Row, attacked, dump_json, interval, markdown, recovery_table, rows, with_interval
from expunge.console import Bars
from expunge.report.record import Record
from results_figures import draw
from search import SPACES

FEW = 12
"""Rows that a reader can take in at once."""

RESULTS = Path(__file__).parent.parent / "docs" / "results"


@dataclass(frozen=True)
class Page:
    """One results page.

    Args:
        name: of the page, its JSON and its folder of records.
        head: the text above the tables.
        grids: by name, each a tree that `Grid.of` takes.
        drawn: part -> the method that its pictures are about; parts without pictures are left out.
        parts: grid -> the part whose table it adds to, where that is not one of its own.
        recommended: part -> the method that all others of its table are compared with.
        guessed: part -> the part whose model cannot know, which says what guessing gives under the same attacks.
    """

    name: str
    head: str
    grids: Mapping[str, Mapping[str, Any]]
    drawn: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    recommended: Mapping[str, str] = field(default_factory=dict)
    guessed: Mapping[str, str] = field(default_factory=dict)

    @property
    def records(self) -> Path:
        """Where the records are kept."""
        return RESULTS / "records" / self.name

    def grid(self, name: str, runs: Path) -> Grid:
        """The grid of that name, its runs below `runs`."""
        return Grid.of({**self.grids[name], "output": str(runs / name)}, f"{self.name}, {name}")

    def run(self, name: str, runs: Path) -> None:
        """Make what is not stored yet of one grid."""
        grid = self.grid(name, runs)
        with Bars().shown() as progress:
            run_grid(grid, self.records / name, progress)
        for cell in grid.cells():
            metrics = Path(cell.recipe.output) / "metrics.jsonl"
            if metrics.is_file():
                copyfile(metrics, self.records / name / cell.file.replace(".json", ".metrics.jsonl"))

    def tables(self) -> None:
        """Write the page and its JSON from the stored records."""
        parts: dict[str, dict[str, list[Record]]] = {}
        for name in self.grids:
            into = parts.setdefault(self.parts.get(name, name), {})
            for method, records in stored(self.grid(name, Path("runs")), self.records / name).items():
                into.setdefault(method, []).extend(records)
        found: list[Row] = []
        lines = [self.head]
        for part, together in parts.items():
            if not together:
                continue
            own = [replace(row, benchmark=part) for row in rows(together)]
            found += own
            lines += [f"\n## {part}\n", _about(own[0]), *_told(own)]
            if part in self.recommended:
                lines += compared(self.recommended[part], together)
            if guess := parts.get(self.guessed.get(part, ""), {}):
                lines += beside_chance(together, self.guessed[part], next(iter(guess.values())))
            lines += _penalties(self.records / part)
            if part in self.drawn:
                lines += ["", *draw(RESULTS, f"{self.name}-{part}", own, together, self.drawn[part])]
        lines += [
            *_tuning(self.records / "tuning.json"),
            *_tuning_twins(self.records / "tuning_twins.json"),
            *(line for name in self.grids for line in _trials(self.records / f"tuning_rates_{name}.json", name)),
            *_searched(self.records / "tuning_search.json"),
        ]
        write_results(self.name, lines, dump_json(found))


def write_results(name: str, lines: Sequence[str], rows: str) -> None:
    """Leave docs/results/NAME.md, which ends with the notes that were written by hand, and NAME.json."""
    notes = RESULTS / f"{name}.notes.md"
    text = "\n".join(lines) + "\n" + ("\n" + notes.read_text("utf-8") if notes.is_file() else "")
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    (RESULTS / f"{name}.json").write_text(rows, encoding="utf-8")


def _told(own: Sequence[Row]) -> Iterator[str]:
    """The table of one part; of a long one recovery alone, by method and attack, and the whole on a click."""
    if len(own) <= FEW:
        yield markdown(own)
        return
    yield f"Recovery:\n\n{recovery_table(own)}\n"
    yield f"<details><summary>All numbers</summary>\n\n{markdown(own)}\n\n</details>"


def compared(name: str, together: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """How much more every other method gives back than `name`, on the seeds that they share, and what each keeps."""
    found = rows({name: together[name], **together})
    attacks = list(dict.fromkeys(row.attack for row in found))
    yield f"\nWhat comes back more than from {name} (R, paired, on the seeds that both have; bold where the 95 %"
    yield "interval excludes 0), and what stays of the held-out facts on these seeds:\n"
    yield f"| | seeds | {' | '.join(attacks)} | held-out |\n|" + "---|" * (3 + len(attacks))
    kept = {method: {r.seeds["data"]: r.scores.test.after.accuracy for r in own} for method, own in together.items()}
    for other in together:
        shared = kept[other].keys() & kept[name].keys()
        if other == name or not shared:
            continue
        own = {row.attack: row for row in found if row.method == other}
        cells = [_apart(own[attack]) if attack in own else "" for attack in attacks]
        stays = " instead of ".join(f"{fmean(kept[each][seed] for seed in shared):.2f}" for each in (other, name))
        yield f"| {' | '.join([other, str(len(shared)), *cells, stays])} |"


def _apart(row: Row) -> str:
    """The paired difference, bold where its interval excludes 0; nothing where no seed is shared."""
    told = "" if math.isnan(row.against) else with_interval(row.against, row.against_low, row.against_high, "+")
    return f"**{told}**" if row.against_low > 0 or row.against_high < 0 else told


def beside_chance(together: Mapping[str, Sequence[Record]], name: str, guess: Sequence[Record]) -> Iterator[str]:
    """Accuracy after and under attack, the questions of all seeds taken together, for the methods with most seeds.

    Args:
        name: what the last line is called.
        guess: runs of a model that cannot know the answers, under the same attacks.
    """
    most = max(map(len, together.values()))
    chosen = {method: own for method, own in together.items() if len(own) == most}
    attacks = list(dict.fromkeys(row.attack for row in rows(chosen)))
    chance = fmean(attack.chance for own in chosen.values() for record in own for attack in record.attacks)
    yield f"\nRight answers of all seeds together (chance {chance:.2f}): their share with Wilson's interval over the"
    yield "questions, as if none of them came back in another seed, and after the semicolon Student's over seeds. Under"
    yield f"attack it is the highest of all moments. {name}: what guessing gives, about subjects that do not exist.\n"
    yield f"| | seeds | before any attack | {' | '.join(attacks)} |\n|" + "---|" * (3 + len(attacks))
    for method, own in {**chosen, name: guess}.items():
        after = [(record.scores.forget.after.accuracy, record.scores.forget.after.n) for record in own]
        under = [
            [(fmean(a.accuracy for a in draws), draws[0].start.n) for _, draws in attacked(own, attack)]
            for attack in attacks
        ]
        yield f"| {' | '.join([method, str(len(own)), *map(_pooled, [after, *under])])} |"


def _pooled(scored: Sequence[tuple[float, int]]) -> str:
    """`41 of 85: 0.48 [0.38, 0.59]; [0.32, 0.64]` of accuracies and their numbers of questions; nothing of none."""
    if not scored:
        return ""
    right, n = round(sum(share * n for share, n in scored)), sum(n for _, n in scored)
    low, high = interval([share for share, _ in scored])
    seeds = "" if math.isnan(low) else f"; [{max(low, 0):.2f}, {min(high, 1):.2f}]"
    return f"{right} of {n}: {with_interval(right / n, *wilson(right / n, n))}{seeds}"


def _about(row: Row) -> str:
    return (
        f"Model: {row.model}. Before: accuracy {row.forget_before:.2f}, log-odds {row.forget_before_log_odds:+.1f}; "
        f"chance {row.chance:.2f}; control: {row.control}.\n"
    )


def _penalties(records: Path) -> Iterator[str]:
    """The norm of the attribution penalty's gradient over that of the loss's, where it was first measured."""
    shares: dict[str, list[str]] = {}
    for path in sorted(records.glob("*.metrics.jsonl")):
        measured = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        ratios = [line["attribution_gradient_ratio"] for line in measured if "attribution_gradient_ratio" in line]
        if ratios:
            method = path.name.rsplit("-", 1)[0]
            shares.setdefault(method, []).append(f"{100 * ratios[0]:.2g} %")
    for method, found in shares.items():
        yield f"\n{method}: the penalty's gradient is {', '.join(found)} of the loss's (norms, step 2, by seed)."


def _tuning(path: Path) -> Iterator[str]:
    """What was tried on the tuning seeds, as it was written down then."""
    if not path.is_file():
        return
    yield "\n## Tuning\n"
    yield "Tried on world_facts, on seeds that no table above has; log-odds / accuracy; attacks of 16 steps at 5e-5.\n"
    yield "| tried | seed | steps | after | held-out | harmful_0.3_wrong | related |\n|---|---|---|---|---|---|---|"
    for row in json.loads(path.read_text("utf-8")):
        levels = [f"{row[f'{k}_log_odds']:+.2f} / {row[f'{k}_accuracy']:.2f}" for k in ("after", "harmful", "related")]
        told = [row["what"], row["seed"], row["steps"], levels[0], f"{row['held_out_accuracy']:.2f}", *levels[1:]]
        yield f"| {' | '.join(map(str, told))} |"


def _tuning_twins(path: Path) -> Iterator[str]:
    """What was tried on the tuning seeds once made-up subjects were the control, as it was written down then."""
    if not path.is_file():
        return
    tried = json.loads(path.read_text("utf-8"))
    attacks = list(dict.fromkeys(attack for row in tried for attack in row["attacks"]))
    yield "\nTried on world_facts against made-up subjects (their log-odds in brackets): recovery, and the attacked"
    yield "accuracy. Rate: of unlearning; attacks of 16 steps at 5e-5, of 32 where they are at 1e-4. Draws:"
    yield "mean recovery under harmful tuning, five draws of the facts it tunes on; relearn-harmful is the first.\n"
    head = f"| tried | seed | steps | after | held-out | {' | '.join(attacks)} | draws |"
    yield head + "\n|" + "---|" * (6 + len(attacks))
    for row in tried:
        after = f"{row['after_log_odds']:+.2f} ({row['after_twins']:+.2f}) / {row['after_accuracy']:.2f}"
        kept = "" if row["held_out_accuracy"] is None else f"{row['held_out_accuracy']:.2f}"
        found = [row["attacks"].get(attack) for attack in attacks]
        cells = ["" if each is None else f"{each['recovery']:.2f} / {each['accuracy']:.2f}" for each in found]
        draws = [*row.get("more_draws", ()), row["attacks"]["relearn-harmful"]["recovery"]]
        cells.append(f"{fmean(draws):.2f}" if len(draws) > 1 else "")
        yield f"| {' | '.join([row['what'], str(row['seed']), str(row['steps']), after, kept, *cells])} |"


def _trials(path: Path, grid: str) -> Iterator[str]:
    """The same number of trials for every method, as benchmarks/tune.py kept them; the one taken is bold."""
    if not path.is_file():
        return
    found: dict[str, list[str]] = {}
    for trial in json.loads(path.read_text("utf-8")):
        told = f"{trial['learning_rate']:g}: {' / '.join(_came_of(trial))}"
        found.setdefault(trial["method"], []).append(f"**{told}**" if trial["chosen"] else told)
    yield f"\nTried on {grid}, on seed 0, the same number of trials for every method named (the rule is in"
    yield "`benchmarks/tune.py`); learning rate: log-odds after / retain and held-out accuracy / mean recovery."
    yield "Bold is what won.\n"
    yield "| method | trials |\n|---|---|"
    for method, trials in found.items():
        yield f"| {method} | {'; '.join(trials)} |"


def _searched(path: Path) -> Iterator[str]:
    """What benchmarks/search.py tried; the trial taken is bold."""
    if not path.is_file():
        return
    drawn: dict[str, list[dict[str, Any]]] = {}
    for trial in json.loads(path.read_text("utf-8")):
        drawn.setdefault(trial["method"], []).append(trial)
    for method, trials in drawn.items():
        names = [(part, key) for part in ("unlearn", "settings") for key in trials[0].get(part, {})]
        if method in SPACES:
            yield f"\nAs many trials for {method} as durable had, seed 0: {len(trials)} draws beside its rates above"
            yield "(their space is in `benchmarks/search.py`)."
        else:
            yield f"\nHow many blocks and rows {method} takes, seed 0 (n_layers 0: all blocks but the first)."
        yield "\n<details><summary>All trials</summary>\n"
        heads = [*(key.rpartition(".")[2] for _, key in names), "steps", "log-odds", "kept", "recovery"]
        yield f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}"
        for trial in trials:
            cells = [*(str(trial[part][key]) for part, key in names), str(trial["steps"]), *_came_of(trial)]
            yield f"| {' | '.join(f'**{cell}**' if trial['chosen'] else cell for cell in cells)} |"
        yield "\n</details>"


def _came_of(trial: Mapping[str, Any]) -> tuple[str, str, str]:
    """Log-odds after, the mean of retain and held-out accuracy, and mean recovery."""
    kept = (trial["retain"] + trial["held_out"]) / 2
    return f"{trial['log_odds']:+.2f}", f"{kept:.2f}", f"{trial['recovery']:.2f}"


def main(page: Page, about: str | None) -> None:
    """Run, then write the tables."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs") / page.name, help="where the runs are kept")
    parser.add_argument("--grid", choices=list(page.grids), action="append", help="all by default")
    parser.add_argument("--tables", action="store_true", help="only write the tables")
    options = parser.parse_args()
    for name in [] if options.tables else options.grid or page.grids:
        page.run(name, options.runs)
    page.tables()
