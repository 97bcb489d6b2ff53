"""Tables of the results pages: every method beside the recommended one, and right answers beside chance."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from expunge.audit.intervals import wilson
from expunge.bench.rows import interval
from expunge.report.record import Record
from synthetic_record import make_record

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from results_page import beside_chance, compared


def seen(seed: int, recovery: float = 0.2, accuracy: float = 0.5, n: int = 16, held_out: float = 1.0) -> Record:
    record = make_record("graddiff")
    (attack, *_), scores = record.attacks, record.scores
    attack = attack.model_copy(
        update={"recovery": recovery, "accuracy": accuracy, "start": attack.start.model_copy(update={"n": n})}
    )
    kept = scores.test.model_copy(update={"after": scores.test.after.model_copy(update={"accuracy": held_out})})
    return record.model_copy(
        update={
            "attacks": (attack,),
            "seeds": {**record.seeds, "data": seed},
            "scores": scores.model_copy(update={"test": kept}),
        }
    )


def cells(lines: list[str], method: str) -> list[str]:
    (line,) = [line for line in lines if line.startswith(f"| {method} |")]
    return line.strip("| ").split(" | ")


def test_every_method_is_told_beside_the_recommended_one_on_the_seeds_that_both_have() -> None:
    """Bold where the interval excludes 0, on either side."""
    chosen = [seen(seed, value, held_out=0.2 * seed) for seed, value in ((1, 0.1), (2, 0.5), (3, 0.9))]
    together = {
        "hides": [seen(seed, value, held_out=0.9) for seed, value in ((2, 1.4), (3, 1.81), (4, 9.0))],
        "chosen": chosen,
        "alike": [seen(seed, value) for seed, value in ((1, 0.3), (2, 0.4), (3, 0.9))],
        "better": [seen(seed, value) for seed, value in ((1, 0.0), (2, 0.39), (3, 0.81))],
        "once": [seen(2, 0.7)],
        "elsewhere": [seen(7, 0.7)],
    }
    lines = "\n".join(compared("chosen", together)).splitlines()
    assert not any("elsewhere" in line or line.startswith("| chosen") for line in lines)
    low, high = interval([0.9, 0.91])
    assert cells(lines, "hides") == ["hides", "2", f"**+0.91 [{low:+.2f}, {high:+.2f}]**", "0.90 instead of 0.50"]
    assert "**" not in cells(lines, "alike")[2]
    assert cells(lines, "better")[2].startswith("**-0.10 [")
    assert cells(lines, "once") == ["once", "1", "+0.20", "1.00 instead of 0.40"]


def test_right_answers_of_all_seeds_are_counted_together() -> None:
    """A seed with few questions counts for few; the methods with fewer seeds than others are left out."""
    together = {
        "many": [seen(1, accuracy=0.25, n=16), seen(2, accuracy=0.5, n=8)],
        "few": [seen(1)],
    }
    lines = "\n".join(beside_chance(together, "guessing", [seen(3, accuracy=0.375)])).splitlines()
    low, high = wilson(8 / 24, 24)
    assert cells(lines, "many")[3] == f"8 of 24: 0.33 [{low:.2f}, {high:.2f}]; [0.00, 1.00]"
    low, high = wilson(6 / 16, 16)
    assert cells(lines, "guessing")[3] == f"6 of 16: 0.38 [{low:.2f}, {high:.2f}]"
    assert not any(line.startswith("| few") for line in lines)
    after = seen(1).scores.forget.after
    assert cells(lines, "many")[2].startswith(f"{round(2 * after.accuracy * after.n)} of {2 * after.n}: ")


def test_an_attack_that_nobody_guessed_under_is_an_empty_cell() -> None:
    guess = seen(3)
    guess = guess.model_copy(update={"attacks": (guess.attacks[0].model_copy(update={"name": "quantise"}),)})
    (line,) = [line for line in beside_chance({"many": [seen(1)]}, "guessing", [guess]) if line.startswith("| guess")]
    assert line.endswith("] |  |")


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_intervals_of_shares_stay_shares(accuracy: float) -> None:
    together = {"many": [seen(1, accuracy=accuracy), seen(2, accuracy=1 - accuracy)]}
    (line,) = [line for line in beside_chance(together, "guessing", []) if line.startswith("| many")]
    assert "[0.00, 1.00]" in line and "-" not in line
