"""Steps on SmolLM2 where the C library keeps what is freed, against ones where it gives it back to the system.

Each way has processes of its own, in turn; the demo's shapes, two steps of graddiff or durable at a time.
"""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

from expunge.models.memory import peak_bytes
from measure import Claim, Result, Settings, Times, in_fresh_process, main, side_by_side, tell
from ours import OurStep
from shapes import demo_facts, smollm2

BATCH, PAIR = 8, range(2, 4)
METHODS = ("graddiff", "durable")
WAYS: dict[str, dict[str, str]] = {"kept": {}, "given back": {"MALLOC_ARENA_TEST": "8"}}
"""Whoever sets anything of the allocator, here what it has anyway, is left alone by `keep_freed_memory`."""


def child(settings: Settings) -> None:
    """Print the times of some pairs of steps, and the peak."""
    model, encoder = smollm2(settings)
    step = OurStep(model, encoder, settings.extra[0], demo_facts(), BATCH, PAIR.stop)
    times = side_by_side({"": partial(step.walk, PAIR)}, settings.repetitions(12))[""]
    tell(wall=times.wall, cpu=times.cpu, peak=peak_bytes())


def measure(settings: Settings, result: Result) -> None:
    """Bars: a durable step 1.1 times faster, one of graddiff no slower, and a peak at most 1.05 times as high."""
    runs = 1 if settings.quick else 2
    for method, bar in zip(METHODS, (1.0, 1.1), strict=True):
        told: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(runs):
            for way, environment in WAYS.items():
                told[way].append(in_fresh_process(settings, method, environment=environment))
        times = {
            way: Times(*(tuple(value for run in own for value in run[kind]) for kind in ("wall", "cpu")))
            for way, own in told.items()
        }
        peak = {way: median(run["peak"] for run in own) for way, own in told.items()}
        result.rows |= {f"{method}, {way}": {**times[way].row(), "peak_MB": round(peak[way] / 1e6)} for way in WAYS}
        result.claim_ratio(
            f"{method}, freed memory given back / kept", times["given back"], times["kept"], bar, at_least=True
        )
        ratio = peak["kept"] / peak["given back"]
        result.claims.append(Claim(f"{method}, peak with it kept / given back", ratio, 1.05, at_least=False))
    result.notes.append("two steps in the middle of an attacker's life; fresh processes in turn")


if __name__ == "__main__":
    main("freed_memory", measure, child)
