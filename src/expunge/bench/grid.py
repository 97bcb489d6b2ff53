"""A recipe repeated over methods and seeds: every record is kept, no weights are, and finished runs are not redone.

methods: {graddiff: , durable: {settings: {transform.mix: 0.5}}}
seeds: [0, 1, 2]
... and the keys of a recipe, which all runs share
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from expunge import pipeline
from expunge.errors import InputError, nearest
from expunge.measure import Measured
from expunge.models.checkpoint import atomic_write_text
from expunge.progress import Progress
from expunge.recipe import Recipe
from expunge.report.record import Record
from expunge.request import NAME
from expunge.settings import merge

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Cell:
    """One run of a grid: its name in the table, its seed, its recipe."""

    name: str
    seed: int
    recipe: Recipe

    @property
    def file(self) -> str:
        """Of its record."""
        return f"{self.name}-{self.seed}.json"


@dataclass(frozen=True)
class Grid:
    """Methods by their names in the table, each with what its recipe has beyond the shared one.

    Args:
        methods: name -> recipe keys laid over the shared ones; `method` is the name unless given.
        seeds: each of them splits the data, orders the loop, and draws new parameters.
        shared: recipe keys of all runs; `output` is the folder of the whole grid.
    """

    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    shared: Mapping[str, Any]

    @classmethod
    def of(cls, tree: Mapping[str, Any], where: str) -> Grid:
        """The grid that `tree` spells; InputError where methods or seeds are not what they should be."""
        shared = dict(tree)
        methods, seeds = shared.pop("methods"), shared.pop("seeds", [0])
        if isinstance(methods, list) and all(isinstance(name, str) for name in methods):
            methods = dict.fromkeys(methods)
        if not isinstance(methods, dict) or not methods:
            raise InputError("`methods` must name at least one method.", where, "As in `methods: {graddiff: , npo: }`.")
        for name, own in methods.items():
            if not isinstance(name, str) or not NAME.fullmatch(name):
                raise InputError(
                    "A method's name must be usable as a folder's name.", f"{where}, {name!r}", "Rename it."
                )
            if not isinstance(own, dict | None):
                raise InputError("A method of a grid has keys of a recipe, or nothing.", f"{where}, {name}: {own!r}")
        if not isinstance(shared.get("data", {}), dict):
            raise InputError("`data` must be a mapping.", where, "As in `data: {benchmark: people}`.")
        if not isinstance(shared.get("output", ""), str):
            raise InputError("`output` must be the name of a folder.", where)
        if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
            raise InputError("`seeds` must be a list of whole numbers.", where, "As in `seeds: [0, 1, 2]`.")
        grid = cls({name: own or {} for name, own in methods.items()}, tuple(seeds), shared)
        for cell in grid.cells(where):
            pipeline.check(cell.recipe)
        return grid

    def part(self, methods: Sequence[str] | None, seeds: Sequence[str] | None, where: str) -> Grid:
        """Those of the methods and of the seeds; all where None. InputError for one that the grid does not have."""
        for name in methods or ():
            if name not in self.methods:
                raise InputError(f"There is no method {name!r} in this grid.", where, nearest(name, self.methods))
        known = {str(seed): seed for seed in self.seeds}
        if wrong := [seed for seed in seeds or () if seed not in known]:
            raise InputError(f"There is no seed {wrong[0]} in this grid.", where, f"It has {', '.join(known)}.")
        chosen = {name: self.methods[name] for name in methods or self.methods}
        return replace(self, methods=chosen, seeds=tuple(known[seed] for seed in seeds or known))

    @property
    def output(self) -> Path:
        """The folder of the grid."""
        return Path(self.shared.get("output", "runs/grid"))

    def cells(self, where: str = "grid") -> Iterator[Cell]:
        """All runs, seed after seed; InputError where one of them is no recipe."""
        for seed in self.seeds:
            for name, own in self.methods.items():
                laid: dict[str, Any] = merge({"method": name, **self.shared}, own)
                laid |= {"seed": seed, "output": str(self.output / f"{name}-{seed}")}
                laid["data"] = {**laid.get("data", {}), "seed": seed}
                yield Cell(name, seed, Recipe.of(laid, f"{where}, {name}"))


def run_grid(grid: Grid, records: Path, progress: Progress | None = None) -> dict[str, list[Record]]:
    """The records of all runs by name, in the order of the seeds; those already in the folder `records` are kept."""
    found: dict[str, list[Record]] = {name: [] for name in grid.methods}
    for _, cells in groupby(grid.cells(), key=lambda cell: cell.seed):
        baselines: dict[str, Measured] = {}  # of one split: the next has another
        for cell in cells:
            _run(cell, records / cell.file, progress, baselines)
            found[cell.name].append(Record.load(records / cell.file))
    return found


def stored(grid: Grid, records: Path) -> dict[str, list[Record]]:
    """`kept` of runs."""
    return kept(grid, records, Record.load)


def kept(grid: Grid, records: Path, load: Callable[[Path], Kept]) -> dict[str, list[Kept]]:
    """Those of the records that are there already, in the order of the grid; names without any are left out.

    Args:
        load: reads one, as `Record.load` or `Course.load` does.
    """
    found: dict[str, list[Kept]] = {name: [] for name in grid.methods}
    for cell in grid.cells():
        if (file := records / cell.file).is_file():
            found[cell.name].append(load(file))
    return {name: own for name, own in found.items() if own}


def recorded(cell: Cell, record: Path) -> bool:
    """Whether the record is there; InputError where it is of another recipe.

    The recipe stands beside it, as the run's own folder may be gone; a record without one is taken for the cell's.
    """
    beside = record.with_suffix(".yaml")
    if record.is_file() and beside.is_file() and beside.read_text(encoding="utf-8") != _told(cell.recipe):
        raise InputError(
            "A record in the output folder is of another recipe.",
            str(record),
            "Name another folder with --output, or remove this file.",
        )
    return record.is_file()


def keep(cell: Cell, record: Path, text: str) -> None:
    """Write the record, the recipe beside it first."""
    atomic_write_text(record.with_suffix(".yaml"), _told(cell.recipe))
    atomic_write_text(record, text)


def _told(recipe: Recipe) -> str:
    """The recipe but for where its run is kept."""
    return recipe.model_copy(update={"output": ""}).to_yaml()


def _run(cell: Cell, target: Path, progress: Progress | None, baselines: dict[str, Measured]) -> None:
    if recorded(cell, target):
        pipeline.require_same(cell.recipe)
        return
    for record in pipeline.run_all([cell.recipe], progress, baselines):
        keep(cell, target, record.dumps())
        shutil.rmtree(Path(cell.recipe.output) / "model", ignore_errors=True)
