"""Timing side by side, claims with their bars, and the stored result of one benchmark."""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from expunge.models.memory import keep_freed_memory

RESULTS = Path(__file__).parent / "results"
_FOUND = "FOUND"


@dataclass(frozen=True)
class Times:
    """Seconds of every repetition, by the clock and by the processor."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]

    def row(self) -> dict[str, float]:
        """Median and minimum of the clock, median of the processor."""
        numbers = {"median_s": median(self.wall), "min_s": min(self.wall), "cpu_median_s": median(self.cpu)}
        return {name: round(value, 5) for name, value in numbers.items()}


def weighted(*parts: tuple[Times, int]) -> Times:
    """What so many of each would take, repetition by repetition."""

    def total(kind: str) -> tuple[float, ...]:
        rows = zip(*([n * value for value in getattr(times, kind)] for times, n in parts), strict=True)
        return tuple(map(sum, rows))

    return Times(total("wall"), total("cpu"))


@dataclass(frozen=True)
class Claim:
    """A number, the bar that the issue sets for it, and on which side of it the number must be."""

    what: str
    value: float
    bar: float
    at_least: bool
    beside: Mapping[str, float] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        """Whether the number is on the right side of its bar."""
        return self.value >= self.bar if self.at_least else self.value <= self.bar


@dataclass
class Result:
    """What a benchmark found: rows by name, claims, and what a reader must know about them."""

    name: str
    rows: dict[str, dict[str, float]] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add_times(self, times: Mapping[str, Times]) -> None:
        """One row for each way."""
        self.rows |= {name: measured.row() for name, measured in times.items()}

    def claim_ratio(self, what: str, over: Times, under: Times, bar: float, *, at_least: bool) -> None:
        """Claim on the ratio of the medians by the clock; beside it those of the minima and of processor time."""
        self.claims.append(
            Claim(
                what,
                median(over.wall) / median(under.wall),
                bar,
                at_least,
                {"minima": min(over.wall) / min(under.wall), "cpu": median(over.cpu) / median(under.cpu)},
            )
        )


@dataclass(frozen=True)
class Settings:
    """What the command line gave."""

    quick: bool
    model: Path | None
    extra: tuple[str, ...]

    def repetitions(self, full: int) -> int:
        """Fewer of them when quick."""
        return max(3, full // 4) if self.quick else full


def side_by_side(ways: Mapping[str, Callable[[], object]], repetitions: int, warm_up: int = 2) -> dict[str, Times]:
    """Times of every way, interleaved: each repetition runs all of them once, starting with another one each time.

    What disturbs the machine for a while then disturbs all ways alike.
    """
    names = list(ways)
    wall: dict[str, list[float]] = {name: [] for name in names}
    cpu: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(warm_up):
        for name in names:
            ways[name]()
    gc.collect()
    gc.disable()
    try:
        for repetition in range(repetitions):
            shift = repetition % len(names)
            for name in names[shift:] + names[:shift]:
                clock, processor = time.perf_counter(), time.process_time()
                ways[name]()
                wall[name].append(time.perf_counter() - clock)
                cpu[name].append(time.process_time() - processor)
    finally:
        gc.enable()
    return {name: Times(tuple(wall[name]), tuple(cpu[name])) for name in names}


def tell(**found: Any) -> None:
    """Print what a `child` found, for `in_fresh_process`."""
    print(_FOUND, json.dumps(found))


def in_fresh_process(settings: Settings, *words: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the `child` of this benchmark tells of `words`, in a process of its own."""
    quick = ["--quick"] if settings.quick else []
    model = ["--model", str(settings.model)] if settings.model else []
    command = [sys.executable, sys.argv[0], *quick, *model, *words]
    done = subprocess.run(
        command, env={**os.environ, **(environment or {})}, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.split(_FOUND)[1])
    return found


def main(
    name: str, measure: Callable[[Settings, Result], None], child: Callable[[Settings], None] | None = None
) -> None:
    """The command line of one benchmark: measure, print the table, store the result; with more words, run `child`."""
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, where it is not to be fetched")
    parser.add_argument("--no-store", action="store_true", help="leave benchmarks/results alone")
    parser.add_argument("extra", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    settings = Settings(options.quick, options.model, tuple(options.extra))
    keep_freed_memory()  # as the command line does
    if child is not None and settings.extra:
        child(settings)
        return
    result = Result(name)
    measure(settings, result)
    print(table(result), flush=True)
    if not options.no_store:
        store(result, options.quick)


def table(result: Result) -> str:
    """The rows and claims as text."""
    lines = [f"\n{result.name}"]
    for name, row in result.rows.items():
        lines.append(f"  {name:<50}" + "  ".join(f"{key} {value:g}" for key, value in row.items()))
    for claim in result.claims:
        side, mark = (">=" if claim.at_least else "<="), ("met   " if claim.met else "MISSED")
        beside = "".join(f", of {name} {value:.3f}" for name, value in claim.beside.items())
        lines.append(f"  {mark} {claim.what}: {claim.value:.3g} {side} {claim.bar:g}{beside}")
    return "\n".join([*lines, *(f"  note: {note}" for note in result.notes)])


def store(result: Result, quick: bool) -> None:
    """Write results/NAME.json."""
    content = {
        "benchmark": result.name,
        "measured": datetime.now(UTC).date().isoformat(),
        "quick": quick,
        "machine": machine(),
        "rows": result.rows,
        "claims": [asdict(claim) | {"met": claim.met} for claim in result.claims],
        "notes": result.notes,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{result.name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int | float]:
    """Processor, threads and versions, and how busy the machine was."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count() or 0,
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "load_1_minute": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in ("expunge", "torch", "transformers")},
    }
