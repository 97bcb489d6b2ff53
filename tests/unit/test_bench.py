"""Grids of runs and the rows of their tables."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import pytest

from expunge import pipeline
from expunge.bench.grid import Grid, run_grid, stored
from expunge.bench.rows import STUDENT, Row, attack_name, interval, markdown, recovery_table, rows, share_interval
from expunge.errors import InputError
from expunge.report.record import Record
from synthetic_record import make_record

TREE = {
    "methods": {"graddiff": None, "harder": {"method": "npo", "unlearn": {"max_steps": 9}}},
    "seeds": [3, 5],
    "model": "trained",
    "data": {"benchmark": "people"},
    "unlearn": {"learning_rate": 5e-4},
}


def with_recovery(method: str, seed: int, recovery: float) -> Record:
    record = make_record(method)
    attack = record.attacks[0].model_copy(update={"recovery": recovery})
    return record.model_copy(update={"attacks": (attack,), "seeds": {**record.seeds, "data": seed}})


def test_cells_are_recipes_seed_after_seed() -> None:
    cells = list(Grid.of(TREE, "here").cells())
    assert [cell.file for cell in cells] == ["graddiff-3.json", "harder-3.json", "graddiff-5.json", "harder-5.json"]
    last = cells[-1].recipe
    assert (last.method, last.seed, last.data.seed) == ("npo", 5, 5)
    assert last.unlearn == {"learning_rate": 5e-4, "max_steps": 9}
    assert Path(last.output).name == "harder-5"


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"methods": {}}, "at least one method"),
        ({"methods": [["graddiff"]]}, "at least one method"),
        ({"methods": {"../out": None}}, "folder's name"),
        ({"methods": {"npo": 5}}, "npo: 5"),
        ({"data": 5}, "`data` must be a mapping"),
        ({"output": 5}, "name of a folder"),
        ({"seeds": [True]}, "whole numbers"),
        ({"modell": "x"}, "modell"),
        ({"methods": {"graddiff": {"unlern": {}}}}, "unlern"),
        ({"methods": ["graddiff", "gradiff"]}, "gradiff"),
        ({"attacks": {"relearn-related": {"steps": 3}}}, "steps"),
    ],
)
def test_what_is_no_grid_is_told(change: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        Grid.of({**TREE, **change}, "here")


def test_a_part_of_a_grid() -> None:
    grid = Grid.of(TREE, "here")
    assert grid.part(None, None, "here") == grid
    assert [cell.file for cell in grid.part(["harder"], ["5"], "here").cells()] == ["harder-5.json"]
    for methods, seeds, word in ((["hardest"], None, "harder"), (None, ["3", "7"], "no seed 7")):
        with pytest.raises(InputError, match=word):
            grid.part(methods, seeds, "here")


def test_what_is_stored_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def run_all(recipes: list[object], *rest: object) -> list[Record]:
        made.append(str(recipes[0].output))  # type: ignore[attr-defined]
        return [make_record("graddiff")]

    monkeypatch.setattr(pipeline, "run_all", run_all)
    grid = Grid.of(TREE, "here")
    (tmp_path / "harder-3.json").write_text(make_record("npo").dumps())
    assert {name: len(own) for name, own in stored(grid, tmp_path).items()} == {"harder": 1}
    found = run_grid(grid, tmp_path)
    assert [Path(name).name for name in made] == ["graddiff-3", "graddiff-5", "harder-5"]
    assert {name: len(own) for name, own in found.items()} == {"graddiff": 2, "harder": 2}
    run_grid(grid, tmp_path)
    run_grid(Grid.of({**TREE, "output": "elsewhere"}, "here"), tmp_path)
    assert len(made) == 3

    # The runs are gone, or never stood here: the recipe beside the record tells what it is of.
    other = Grid.of({**TREE, "unlearn": {"max_steps": 7}}, "here")
    with pytest.raises(InputError, match="of another recipe") as told:
        run_grid(other, tmp_path)
    assert told.value.where == str(tmp_path / "graddiff-3.json")
    for name in ("graddiff-3", "graddiff-5", "harder-5"):
        (tmp_path / f"{name}.json").unlink()
    run_grid(other, tmp_path)
    assert len(made) == 6


def test_intervals_are_student_s() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 4.303 / math.sqrt(3), 2 + 4.303 / math.sqrt(3)))
    assert all(map(math.isnan, interval([1.0])))
    scipy = pytest.importorskip("scipy.stats")
    for n in range(2, 13):
        values = [float(value) for value in range(n)]
        low, high = scipy.t.interval(0.95, n - 1, fmean(values), scipy.sem(values))
        known = n in STUDENT
        assert known == (n <= 10)
        assert interval(values) == pytest.approx((low, high), abs=0.002 if known else 0.1)
        assert known or interval(values)[1] > high, "wider rather than narrower"


def test_differences_are_paired_by_seed() -> None:
    """The recoveries spread widely over the seeds, their differences do not: only pairing sees that."""
    base = [with_recovery("graddiff", seed, value) for seed, value in ((1, 0.2), (2, 0.9), (3, 0.5))]
    other = [with_recovery("npo", seed, value) for seed, value in ((3, 0.41), (1, 0.1), (2, 0.8))]
    first, second = rows({"graddiff": base, "npo": other})
    assert (first.against, second.against) == (0.0, pytest.approx(-0.0967, abs=1e-4))
    assert second.against_high < -0.07
    assert second.ci_low < 0 < second.ci_high - 0.8
    assert second.recovery_by_seed == [0.41, 0.1, 0.8]
    told = [line.split(" | ")[8] for line in markdown([first, second]).splitlines()[-2:]]
    assert told == ["", f"{second.against:+.2f} [{second.against_low:+.2f}, {second.against_high:+.2f}]"]


def test_models_that_never_knew_have_a_spread_of_their_own() -> None:
    def seen(seed: int, odds: float) -> Record:
        record = with_recovery("graddiff", seed, 0.2)
        (attack,) = record.attacks
        control = attack.control.model_copy(update={"log_odds": odds, "curve": (attack.best,)})
        return record.model_copy(update={"attacks": (attack.model_copy(update={"control": control}),)})

    records = [seen(1, -1.0), seen(2, 0.0), seen(3, 1.0)]
    scale = records[0].scores.forget.before.log_odds - records[0].attacks[0].best.log_odds
    (row,) = rows({"graddiff": records})
    assert row.control_spread == pytest.approx(2 / scale, abs=1e-4)
    assert f"({2 / scale:.2f})" in markdown([row])
    assert rows({"graddiff": records[:1]})[0].control_spread is None


def test_seeds_that_agree_do_not_make_an_accuracy_surer_than_its_questions() -> None:
    (row,) = rows({"graddiff": [with_recovery("graddiff", seed, 0.2) for seed in (1, 2, 3)]})
    (attack,) = with_recovery("graddiff", 1, 0.2).attacks
    assert (row.attacked_accuracy_low, row.attacked_accuracy_high) == pytest.approx(
        share_interval([attack.accuracy], attack.start.n), abs=1e-4
    )


def test_a_wide_table_has_a_line_a_method_and_a_column_an_attack() -> None:
    one, other = (with_recovery(method, 1, value) for method, value in (("graddiff", 0.2), ("npo", 0.41)))
    benign = one.attacks[0].model_copy(update={"name": "relearn-benign", "recovery": 0.7})
    found = rows({"graddiff": [one.model_copy(update={"attacks": (*one.attacks, benign)})], "npo": [other]})
    head, _, first, second = recovery_table(found).splitlines()
    names = [attack_name(attack) for attack in (*one.attacks, benign)]
    assert head == f"| method | seeds | after: log-odds | {' | '.join(names)} | retain | held-out | seconds |"
    assert first.split(" | ")[3:5] == ["0.20", "0.70"]
    assert second.split(" | ")[3:5] == ["0.41", ""]


def test_rho_is_that_of_the_records_that_have_one() -> None:
    def seen(seed: int, rho: float | None) -> Record:
        record = with_recovery("graddiff", seed, 0.2)
        return record.model_copy(update={"attacks": (record.attacks[0].model_copy(update={"rho": rho}),)})

    (row,) = rows({"graddiff": [seen(1, 0.2), seen(2, None), seen(3, 0.6)]})
    assert row.rho == pytest.approx(0.4)
    assert rows({"graddiff": [seen(1, None)]})[0].rho is None


@pytest.mark.parametrize(
    ("name", "settings", "called"),
    [
        ("relearn-harmful", {"fraction": 0.3}, "harmful_0.3"),
        ("relearn-harmful", {"fraction": 0.1, "pool": "wrong"}, "harmful_0.1_wrong"),
        ("relearn-benign@lora", {"lora_rank": 8}, "benign_lora8"),
        ("relearn-benign", {"file": "data/alpaca.jsonl", "lora_rank": 0}, "benign_alpaca"),
        ("quantise@4", {"file": None}, "quantise"),
    ],
)
def test_attacks_are_called_by_what_sets_them_apart(name: str, settings: dict[str, object], called: str) -> None:
    (attack,) = make_record("graddiff").attacks[:1]
    assert attack_name(attack.model_copy(update={"name": name, "settings": settings})) == called


def test_rows_come_back_from_their_json() -> None:
    """NaN, which JSON has not, too; and what is None stays None."""
    for seeds in ((1,), (1, 2)):
        (row,) = rows({"graddiff": [with_recovery("graddiff", seed, 0.2) for seed in seeds]})
        assert str(Row.from_json(json.loads(json.dumps(row.to_json())))) == str(row)


def test_records_of_several_grids_make_one_table() -> None:
    """One method and seed, attacked in two grids: what both did alike counts once, the rest is added."""
    one, two = with_recovery("graddiff", 1, 0.2), with_recovery("graddiff", 1, 0.9)
    (name,) = {attack_name(attack) for attack in one.attacks}
    further = two.attacks[0].model_copy(update={"name": "relearn-benign"})
    two = two.model_copy(update={"attacks": (*two.attacks, further)})
    found = rows({"graddiff": [one, two, with_recovery("graddiff", 2, 0.4)]})
    assert {row.attack: row.seeds for row in found} == {name: [1, 2], attack_name(further): [1]}
    assert found[0].recovery_by_seed == [0.2, 0.4]


def test_draws_of_the_facts_count_as_one_a_seed() -> None:
    """Of attacks that differ in the facts drawn alone the mean is the seed's; the interval is over seeds."""

    def drawn(seed: int, recoveries: Sequence[float]) -> Record:
        record = with_recovery("graddiff", seed, 0.0)
        draws = tuple(
            record.attacks[0].model_copy(
                update={"name": f"relearn-harmful@draw{n}" if n else "relearn-harmful", "recovery": r}
            )
            for n, r in enumerate(recoveries)
        )
        benign = record.attacks[0].model_copy(update={"name": "relearn-benign", "settings": {}})
        return record.model_copy(update={"attacks": (benign, *draws)})

    found = rows({"graddiff": [drawn(1, [0.1, 0.2, 0.6]), drawn(2, [0.5, 0.4, 0.0])]})
    assert [row.attack for row in found] == [attack_name(drawn(1, [0.0]).attacks[1]), "benign"], "required ones first"
    assert found[0].seeds == [1, 2]
    assert found[0].recovery_by_seed == pytest.approx([0.3, 0.3])
    assert (found[0].ci_low, found[0].ci_high) == pytest.approx((0.3, 0.3))


def test_what_was_not_scored_has_no_accuracy_in_a_table() -> None:
    record = with_recovery("graddiff", 1, 0.5)
    nothing = record.scores.model_copy(
        update={
            "test": record.scores.test.model_copy(
                update={"after": record.scores.test.after.model_copy(update={"n": 0})}
            )
        }
    )
    (row, *_) = rows({"graddiff": [record.model_copy(update={"scores": nothing})]})
    assert math.isnan(row.held_out_after) and row.to_json()["held_out_after"] is None and row.short()[-1] == ""


def test_an_attack_on_a_scale_of_its_own_has_no_row() -> None:
    record = with_recovery("graddiff", 1, 0.5)
    own = record.attacks[0].model_copy(
        update={"name": "sampling", "recovery_low": None, "recovery_high": None, "counts": False}
    )
    both = rows({"graddiff": [record.model_copy(update={"attacks": (*record.attacks, own)})]})
    assert [row.attack for row in both] == [row.attack for row in rows({"graddiff": [record]})]
