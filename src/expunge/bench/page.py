"""What a grid leaves beside its records: its table as Markdown and JSON, and a page comparing the first seed's runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.bench.grid import Grid
from expunge.bench.rows import dump_json, markdown, rows
from expunge.models.checkpoint import atomic_write_text
from expunge.report.record import Record


def write_page(grid: Grid, records: Mapping[str, Sequence[Record]]) -> tuple[Path, ...]:
    """Write table.md, table.json and report.html into the grid's folder, and say where they are."""
    from expunge.report.html import render

    found = rows(records)
    first = [_called(own[0], name) for name, own in records.items() if own]
    texts = {"table.md": markdown(found) + "\n", "table.json": dump_json(found), "report.html": render(first)}
    grid.output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        atomic_write_text(grid.output / name, text)
    return tuple(grid.output / name for name in texts)


def _called(record: Record, name: str) -> Record:
    """The record under its name in the table, as one method may stand there in several forms."""
    return record.model_copy(update={"recipe": record.recipe.model_copy(update={"method": name})})
