"""A stream of requests from the command line: carried out in order, scored against gold controls, resumed, tabled."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from expunge.audit.intervals import wilson
from expunge.bench.courses import course_rows, course_table, paired_table, twin_table
from expunge.bench.rows import interval, share_interval, with_interval
from expunge.bench.standings import plain_recovery, recovery, twin_recovery
from expunge.cli import app
from expunge.continual.record import Course, Moment, Relearnt, Rest, SetScore, Twinned
from expunge.errors import InputError
from expunge.unlearning.methods import METHODS
from expunge.unlearning.objectives.graddiff import GradDiff

RECIPE = """
methods:
  graddiff:
  mrp: {settings: {layers: [0, 1], rank: 2}, unlearn: {learning_rate: 2.0e-2}}
  block: {method: mrp, settings: {layers: [0, 1], rank: 2, site: block}, unlearn: {learning_rate: 2.0e-2}}
  eul:
seeds: [1]
model: trained
data:
  benchmark: people_in_requests
  settings: {n_requests: 2, n_forget: 2, n_retain: 4, n_test: 2, n_relations: 3}
unlearn: {learning_rate: 5.0e-4, max_steps: 6, stop_log_odds: null}
attacks:
  relearn-harmful: {fraction: 0.5, learning_rates: [1.0e-3], max_steps: 4, eval_every: 2}
output: runs
"""


def run(*words: str) -> int:
    try:
        app(["run", "recipe.yaml", *words], standalone_mode=False)
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def without_times(course: Course) -> dict[str, object]:
    """All of a record but what no second run has."""
    tree = json.loads(course.dumps())
    for part in (*tree["after"], *tree["relearnt"]):
        part.update(seconds=0, peak_bytes=0)
    return dict(tree)


def test_a_course_from_recipe_to_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert run() == 0
    assert "graddiff" in capsys.readouterr().out
    courses = {name: [Course.load(Path(f"runs/records/{name}-1.json"))] for name in ("graddiff", "mrp", "block", "eul")}
    (course,) = courses["mrp"]
    assert [moment.request for moment in course.after] == ["01", "02"]
    assert len(course.gold) == 2
    # Gold models say what guessing gives, so nothing is asked about made-up subjects.
    assert not any(stood.twins for stood in (course.start, *course.after, *course.relearnt))
    assert course.start.sets["01"].accuracy > 0.9
    assert course.gold[0].sets["01"].accuracy < 0.8
    assert course.gold[0].sets["02"].accuracy > 0.9
    assert [found.setting for found in course.relearnt] == ["merged", "frozen", "reapplied", "deleted"]
    others = {name: [found.setting for found in courses[name][0].relearnt] for name in ("graddiff", "block", "eul")}
    assert others == {"graddiff": ["merged"], "block": ["frozen", "deleted"], "eul": ["merged"]}
    # The gold model is attacked alike; half of the first request is tuned on, the other half asked for.
    for found in course.relearnt:
        assert found.rest is not None
        assert found.rest.gold is not None
        assert found.rest.start.n == found.rest.gold.n == found.sets["01"].n == 3 < course.start.sets["01"].n
        assert found.control.keys() == (set() if found.setting == "deleted" else {"01", "02"})
    merged, *_, bare = course.relearnt
    assert merged.rest == bare.rest
    start = merged.curve[0]
    gold = course.gold[-1].sets["02"].log_odds
    assert (merged.control["02"] == pytest.approx(gold, abs=1e-3)) == (merged.step == start[1])
    assert recovery(course, bare, ["01"]) == recovery(course, bare, ["02"]) == 1
    # Two blocks of two rows of 128 numbers, against all weights.
    assert course.after[0].trained == 2 * 2 * 128 < courses["graddiff"][0].after[0].trained

    # The second request is carried out on the model that the first one left.
    last = courses["graddiff"][0].after[1].sets
    assert all(last[name].log_odds < course.start.sets[name].log_odds - 2 for name in ("01", "02"))

    rows, attacked = (json.loads(Path(f"runs/{name}.json").read_text()) for name in ("table", "table_relearnt"))
    assert [bool(row["relearnt"]) for row in rows] == [False] * 4 * 3 * 4
    assert [bool(row["relearnt"]) for row in attacked] == [True] * 2 * (1 + 4 + 2 + 1)
    assert {row["scored_on"] for row in rows} == {"01", "02", "retain", "held_out"}
    assert "| mrp | 1 |" in Path("runs/table.md").read_text()
    assert all(Path(f"runs/{name}.svg").read_text().startswith("<?xml") for name in ("course", "kept"))

    # The second request alone is carried out again, from the model that the first one left.
    kept = Path("runs/graddiff-1")
    assert not (kept / "01" / "model").exists()
    (Path("runs/records/graddiff-1.json")).unlink()
    (kept / "course.json").unlink()
    assert run() == 0
    assert without_times(Course.load(Path("runs/records/graddiff-1.json"))) == without_times(courses["graddiff"][0])

    Path("runs/records/graddiff-1.json").unlink()
    assert run("--set", "unlearn.max_steps=7") == 1
    assert "holds another course" in capsys.readouterr().err

    # Nor is it taken for one of the same recipe once the method has changed; the record tells what it was made of.
    told = Course.load(Path("runs/graddiff-1/course.json"))
    assert "GradDiff(" in told.parts["objective"]
    assert told.arguments["max_steps"] == 6
    monkeypatch.setitem(METHODS, "graddiff", replace(METHODS["graddiff"], objective=GradDiff(retain_weight=2.0)))
    assert run() == 1
    assert "The method has changed" in capsys.readouterr().err


def test_a_course_that_was_cut_ends_in_the_same_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from expunge.continual import course as module
    from expunge.models.load import LoadedModel
    from expunge.recipe import Recipe
    from expunge.settings import read_yaml

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    tree = read_yaml(Path("recipe.yaml"))
    own = tree.pop("methods")["mrp"]
    del tree["seeds"]
    recipes = [Recipe.of({**tree, **own, "method": "mrp", "output": name}, "here") for name in ("whole", "cut")]
    load, loaded = module._load, []

    def spy(model: str, recipe: Recipe) -> LoadedModel:
        loaded.append(Path(model).parent.name)
        return load(model, recipe)

    monkeypatch.setattr(module, "_load", spy)
    whole = module.run_course(recipes[0])
    # The second request is carried out on what the first one left; its own is loaded once for all that follows.
    assert loaded[2] == "01"
    assert (loaded.count("01"), loaded.count("02")) == (1, 1)
    save, calls = module._write, []

    def cut(path: Path, moment: Moment) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(path, moment)

    monkeypatch.setattr(module, "_write", cut)
    with pytest.raises(KeyboardInterrupt):
        module.run_course(recipes[1])
    monkeypatch.setattr(module, "_write", save)
    assert without_times(module.run_course(recipes[1])) == without_times(whole)


def test_what_is_no_stream_is_told(tmp_path: Path) -> None:
    from expunge.continual.course import run_course
    from expunge.recipe import Recipe

    files = {"data": {"forget": "f.jsonl", "retain": "r.jsonl"}, "model": "m", "output": str(tmp_path / "o")}
    with pytest.raises(InputError, match="needs a stream"):
        run_course(Recipe.of({**files, "attacks": []}, "here"))
    with pytest.raises(InputError, match="relearn-harmful alone"):
        run_course(Recipe.of({**files, "attacks": ["quantise"]}, "here"))
    with pytest.raises(InputError, match="with all weights"):
        run_course(Recipe.of({**files, "attacks": {"relearn-harmful": {"lora_rank": 8}}}, "here"))
    for wrong in ("people", "people_in_request"):
        with pytest.raises(InputError, match="people_in_requests"):
            run_course(Recipe.of({**files, "data": {"benchmark": wrong}, "attacks": []}, "here"))
    assert not (tmp_path / "o").exists()


def score(odds: float, accuracy: float = 0.5, n: int = 10) -> SetScore:
    return SetScore(accuracy=accuracy, log_odds=odds, chance=0.5, n=n)


def moment(request: str, **odds: float) -> Moment:
    return Moment(request=request, sets={name: score(value) for name, value in odds.items()}, perplexity=2.0)


def test_a_model_that_says_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from expunge.continual import course as module

    says = module.text_statistics
    monkeypatch.setattr(module, "text_statistics", lambda *given: replace(says(*given), perplexity=math.inf))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EXPUNGE_CACHE", str(tmp_path / "cache"))
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert run("--set", "methods=[graddiff]", "--set", "unlearn.max_steps=1") == 0
    course = Course.load(Path("runs/records/graddiff-1.json"))
    assert course.after[0].perplexity > 1e308


def test_the_table_tells_a_request_that_comes_back() -> None:
    start = moment("", a=4.0, b=4.0, retain=4.0, held_out=4.0)
    after = moment("a", a=0.0, b=4.0, retain=4.0, held_out=4.0), moment("b", a=3.0, b=0.0, retain=4.0, held_out=3.0)
    back = Relearnt(
        setting="merged", request="a", learning_rate=1e-3, step=4, curve=((1e-3, 4, 2.0),), seconds=1.0,
        sets={"a": score(2.0), "b": score(1.0)},
    )  # fmt: skip
    course = Course(stream="s", method="m", recipe={}, seed=1, model="x", start=start, after=after, relearnt=(back,))
    assert recovery(course, back, ["a"]) == pytest.approx(0.5)
    assert recovery(course, back, ["b"]) == pytest.approx(0.25)
    line = course_table({"m": [course]}).splitlines()[-1]
    assert "+0.00 / +3.00" in line
    assert "0.50 / 0.25" in line
    rows = {(row.number, row.scored_on): row for row in course_rows({"m": [course]}) if not row.relearnt}
    shares = {row.scored_on: row.recovery for row in course_rows({"m": [course]}) if row.relearnt == "merged"}
    assert shares == {"a": 0.5, "b": 0.25}
    assert rows[2, "a"].log_odds == 3.0
    assert rows[1, "a"].after_request == "a"
    assert (rows[2, "a"].ci_low, rows[2, "a"].ci_high) == pytest.approx(wilson(0.5, 10), abs=1e-4)
    known = course.model_copy(update={"gold": (moment("g", a=1.0, b=4.0), moment("g", a=1.0, b=2.0))})
    assert recovery(known, back, ["a"]) == pytest.approx((2.0 - 1.0) / (4.0 - 1.0))


def test_what_is_tuned_on_is_measured_from_its_other_questions_and_the_control_is_attacked_too() -> None:
    start = moment("", a=4.0, b=4.0, retain=4.0, held_out=4.0)
    after = moment("a", a=0.0, b=4.0, retain=4.0, held_out=4.0), moment("b", a=0.0, b=0.0, retain=4.0, held_out=4.0)
    twins = Twinned(log_odds=6.0, made_up=1.0, n=8)
    start = start.model_copy(update={"twins": {"a": twins.model_copy(update={"log_odds": 3.0})}})
    back = Relearnt(
        setting="merged", request="a", learning_rate=1e-3, step=4, curve=((1e-3, 4, 2.0),), seconds=1.0,
        sets={"a": score(3.0, n=8), "b": score(1.0)},
        rest=Rest(start=score(6.0, n=8), gold=score(1.0, n=8), twins=twins),
        twins={"a": Twinned(log_odds=3.0, made_up=-1.0, n=8)},
    )  # fmt: skip
    course = Course(stream="s", method="m", recipe={}, seed=1, model="x", start=start, after=after, relearnt=(back,))
    assert plain_recovery(course, back, ["a"]) == pytest.approx(3 / 6)
    assert plain_recovery(course, back, ["b"]) == pytest.approx(1 / 4)
    assert plain_recovery(course, back, ["a", "b"]) == pytest.approx((3 + 1) / (6 + 4))
    assert twin_recovery(course, back, ["a"]) == pytest.approx(4 / 5)
    # A gold model lies at -1 over all questions of a, at 1 over the rest of them, and at 2 once it was attacked.
    known = course.model_copy(update={"gold": (moment("g", a=-1.0, b=4.0), moment("g", a=-1.0, b=0.5))})
    assert plain_recovery(known, back, ["a"]) == pytest.approx((3 - 1) / (6 - 1))
    alike = back.model_copy(update={"control": {"a": 2.0, "b": 0.75}})
    assert plain_recovery(known, alike, ["a"]) == pytest.approx((3 - 2) / (6 - 1))
    assert plain_recovery(known, alike, ["b"]) == pytest.approx((1 - 0.75) / (4 - 0.5))


def test_methods_are_compared_on_the_seeds_that_both_have() -> None:
    start = moment("", a=4.0, b=4.0, retain=4.0, held_out=4.0)

    def ended(seed: int, held_out: float, attacked: float | None) -> Course:
        last = moment("b", a=0.0, b=0.0, retain=4.0, held_out=4.0)
        stays = {**last.sets, "held_out": score(1.0, held_out)}
        after = moment("a", a=0.0, b=4.0, retain=4.0, held_out=4.0), last.model_copy(update={"sets": stays})
        back = () if attacked is None else (
            Relearnt(
                setting="merged", request="a", learning_rate=1e-3, step=4, curve=(), seconds=1.0,
                sets={"a": score(attacked), "b": score(attacked / 2)},
            ),
        )  # fmt: skip
        return Course(stream="s", method="m", recipe={}, seed=seed, model="x", start=start, after=after, relearnt=back)

    base = [ended(seed, 0.5, 4.0) for seed in (1, 2, 3)]
    own = [ended(3, 0.8, 1.0), ended(1, 0.6, 2.0), ended(9, 0.0, 4.0), ended(2, 0.4, 4.0)]
    unheard = [ended(1, 0.5, None), ended(2, 0.5, 1.0), ended(3, 0.5, 1.0)]
    table = paired_table({"own": own, "base": base, "two": own[:3], "unheard": unheard}, "base")
    held_out, same, others = ([0.3, 0.1, -0.1], [-0.75, -0.5, 0.0], [-0.375, -0.25, 0.0])
    cells = [with_interval(fmean(each), *interval(each), "+") for each in (held_out, same, others)]
    retain = with_interval(0.0, 0.0, 0.0, "+")
    assert table.splitlines()[2:] == [
        f"| own | 3 | {retain} | {' | '.join(cells)} |",
        f"| unheard | 3 | {retain} | {retain} |  |  |",
    ]
    assert paired_table({"base": base, "two": own[:3]}, "base") == paired_table({"own": own}, "base") == ""


def test_made_up_subjects_tell_an_answer_that_is_only_disliked() -> None:
    """Items come back as far as the dislike lets them, which weighs on the twins as much."""

    def beside(lead: float, made_up: float, n: int = 8) -> Twinned:
        return Twinned(log_odds=lead + made_up, made_up=made_up, n=n)

    start = moment("", a=4.0, b=4.0, retain=4.0, held_out=4.0)
    after = moment("a", a=0.0, b=4.0, retain=4.0, held_out=4.0), moment("b", a=0.0, b=0.0, retain=4.0, held_out=4.0)
    start = start.model_copy(update={"twins": {"a": beside(5.0, -1.0), "b": beside(3.0, 1.0)}})
    end = after[1].model_copy(update={"twins": {"a": beside(1.7, -2.0), "b": beside(2.3, -2.0)}})
    back = Relearnt(
        setting="merged", request="a", learning_rate=1e-3, step=4, curve=((1e-3, 4, 1.0),), seconds=1.0,
        sets={"a": score(1.0), "b": score(1.0)}, twins={"a": beside(4.0, -3.0), "b": beside(1.5, -1.0)},
    )  # fmt: skip
    course = Course(
        stream="s", method="m", recipe={}, seed=1, model="x", start=start, after=(after[0], end), relearnt=(back,)
    )
    assert recovery(course, back, ["a"]) == twin_recovery(course, back, ["a"]) == pytest.approx(4 / 5)
    assert recovery(course, back, ["b"]) == pytest.approx(1.5 / 3)
    assert recovery(course, back, ["a", "b"]) == pytest.approx(5.5 / 8)
    # They never make a recovery smaller.
    high = back.model_copy(update={"sets": {"a": score(3.8), "b": score(1.0)}})
    assert recovery(course, high, ["a"]) == pytest.approx(0.95)
    assert "0.80 / 0.50" in course_table({"m": [course]}).splitlines()[-1]
    line = twin_table({"m": [course], "bare": [course.model_copy(update={"start": moment("", a=4.0, b=4.0)})]})
    assert line.splitlines()[2:] == ["| m | 1 | +4.00 | +2.00 / +2.30 | +2.75 | 0.25 / 0.25 | 0.80 / 0.50 |"]
    # A course from before they were asked about makes its row one against ignorance, as a whole.
    older = course.model_copy(update={"start": moment("", a=4.0, b=4.0, retain=4.0, held_out=4.0)})
    assert "0.25 [0.25, 0.25] / 0.25" in course_table({"m": [course, older]}).splitlines()[-1]
    rows = [row for row in course_rows({"m": [course]}) if row.scored_on == "a"]
    assert [row.made_up_log_odds for row in rows] == [-1.0, None, -2.0, -3.0]
    # No control: few questions have a twin, the start hardly leads them, or log-odds say nothing.
    for twins in ({"a": beside(5.0, -1.0, n=7)}, {"a": beside(0.05, -1.0)}, {}):
        lacking = course.model_copy(update={"start": start.model_copy(update={"twins": twins})})
        assert math.isnan(twin_recovery(lacking, back, ["a"]))
        assert recovery(lacking, back, ["a"]) == pytest.approx(0.25)
    by_accuracy = {"unlearn": {"stop_accuracy": "chance", "stop_log_odds": None}}
    assert math.isnan(twin_recovery(course.model_copy(update={"recipe": by_accuracy}), back, ["a"]))
    assert twin_table({"m": [course.model_copy(update={"recipe": by_accuracy})]}) == ""
    assert twin_table({"bare": [course.model_copy(update={"start": moment("", a=4.0, b=4.0)})]}) == ""


def test_a_course_that_stops_by_accuracy_is_told_by_accuracy_above_chance() -> None:
    """Log-odds of tens of nats, as options of other lengths give them, play no part."""

    def at(request: str, a: float, b: float) -> Moment:
        sets = {"a": score(30.0, a), "b": score(-9.0, b), "retain": score(0.0), "held_out": score(0.0)}
        return Moment(request=request, sets=sets, perplexity=2.0)

    back = Relearnt(
        setting="merged", request="a", learning_rate=1e-3, step=4, curve=((1e-3, 4, 2.0),), seconds=1.0,
        sets={"a": score(99.0, 0.7), "b": score(99.0, 0.6)},
    )  # fmt: skip
    course = Course(
        stream="s", method="m", recipe={"unlearn": {"stop_accuracy": "chance", "stop_log_odds": None}}, seed=1,
        model="x", start=at("", 0.9, 0.7), after=(at("a", 0.5, 0.7), at("b", 0.55, 0.45)), relearnt=(back,),
    )  # fmt: skip
    assert recovery(course, back, ["a"]) == pytest.approx(0.2 / 0.4)
    assert recovery(course, back, ["a", "b"]) == pytest.approx((0.2 + 0.1) / (0.4 + 0.2))
    head, _, line = course_table({"m": [course]}).splitlines()
    assert "worst earlier one, accuracy above chance" in head
    assert "-0.05 / +0.05" in line


@pytest.mark.parametrize("data", ["5", "[people]", "{benchmark: [people]}"])
def test_data_that_are_no_mapping_are_told(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(f"model: m\ndata: {data}\n", encoding="utf-8")
    assert run() == 1
    assert "data" in capsys.readouterr().err


def test_seeds_that_agree_by_luck_leave_the_doubt_of_their_questions() -> None:
    low, high = share_interval([0.42, 0.42, 0.42], 26)
    assert (low, high) == wilson(0.42, 26) == share_interval([0.42], 26)
    assert low < 0.3 < 0.55 < high
    assert share_interval([0.4, 0.5, 0.6], 10_000) == pytest.approx(interval([0.4, 0.5, 0.6]))
    assert share_interval([0.0, 1.0], 9) == (0.0, 1.0)
    course = Course(
        stream="s", method="m", recipe={}, seed=1, model="x",
        start=moment("", a=4.0, retain=4.0, held_out=4.0), after=(moment("a", a=0.0, retain=4.0, held_out=4.0),),
    )  # fmt: skip
    rows = [row for row in course_rows({"m": [course, course]}) if row.scored_on == "a"]
    assert {(row.ci_low, row.ci_high) for row in rows} == {tuple(round(each, 4) for each in wilson(0.5, 10))}
    assert course_table({"m": [course, course]}).count("0.50 [0.24, 0.76]") == 3


def test_wilson_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for right, n in ((0, 5), (3, 9), (40, 40)):
        found = stats.binomtest(right, n).proportion_ci(method="wilson")
        assert wilson(right / n, n) == pytest.approx((found.low, found.high), abs=1e-4)
