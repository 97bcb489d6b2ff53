"""Made-up subjects as the control of a course: scored in every model of it and, under attack, where most is led."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest

from expunge.attacks.base import CurvePoint
from expunge.attacks.relearn import RelearnHarmful
from expunge.audit.planted import Suppressor, plant
from expunge.bench.standings import plain_recovery, recovery, twin_recovery
from expunge.continual.course import run_course
from expunge.continual.record import Course, Moment, SetScore, twinned
from expunge.continual.relearning import Asked, _leading, outcome, relearn, rest_of
from expunge.data.benchmarks import Benchmark
from expunge.data.benchmarks.streams import STREAMS
from expunge.data.twins import stream_twins
from expunge.models.scores import score_items
from expunge.progress import Silent
from expunge.recipe import Recipe
from expunge.stream import Stream
from tiny import make_tiny_model, make_tiny_tokenizer
from towns import ENCODER, FACTS, STAYS, TWINS, teach

REQUESTS = {"a": FACTS[:8], "b": FACTS[8:]}
STREAM = Stream("towns", REQUESTS, STAYS[:12], STAYS[12:])


@pytest.fixture(scope="module")
def start() -> Moment:
    model = teach(make_tiny_model(), FACTS + STAYS)
    sets = {name: score_items(model, ENCODER, own) for name, own in REQUESTS.items()}
    guesses = dict(zip(TWINS, (s.log_odds for s in score_items(model, ENCODER, list(TWINS.values()))), strict=True))
    return Moment(
        request="",
        sets={name: SetScore.of(own) for name, own in sets.items()},
        perplexity=2.0,
        twins=twinned({name: {s.id: s.log_odds for s in own} for name, own in sets.items()}, guesses),
    )


def test_a_bias_against_the_answers_is_found_out_over_a_course(start: Moment, tmp_path: Path) -> None:
    """Ignorance would take both requests for erased; made-up subjects, whose answers it weighs on as much, do not."""
    knew = teach(make_tiny_model(), FACTS + STAYS)
    model = copy.deepcopy(knew)
    plant(model, ENCODER, FACTS, STAYS, Suppressor("output_bias", -1, neurons=4, learning_rate=0.05))
    attack = RelearnHarmful(fraction=0.4, learning_rates=(3e-3,), max_steps=2, eval_every=1)
    asked = Asked.of(STREAM, attack, TWINS)
    cells = relearn(model, ENCODER, asked, attack, "merged", {}, Silent(), tmp_path)
    back = outcome("merged", asked, cells, rest_of(asked, ENCODER, knew, None))
    after = tuple(start.model_copy(update={"request": name}) for name in REQUESTS)
    course = Course(stream="s", method="m", recipe={}, seed=1, model="x", start=start, after=after, relearnt=(back,))
    assert {name: found.n for name, found in back.twins.items()} == {"a": 5, "b": 8}
    for names in (["a"], ["b"], ["a", "b"]):
        assert plain_recovery(course, back, names) < 0.3
        assert recovery(course, back, names) == twin_recovery(course, back, names) > 0.7


def test_the_largest_lead_counts_and_not_the_highest_score() -> None:
    ids = [e.id for e in FACTS[:3]]

    def point(step: int, odds: tuple[float, ...], guesses: tuple[float, ...]) -> CurvePoint:
        return CurvePoint(1e-3, 0, step, step, 0.5, sum(odds) / 3, odds, twin_log_odds=guesses)

    points = [
        point(0, (0.0, 0.0, 0.0), (-1.0, -1.0)),
        point(2, (1.0, 2.0, 3.0), (0.0, -2.0)),
        point(4, (4.0, 4.0, 9.0), (4.0, 4.0)),
    ]
    found = _leading(points, {"a": FACTS[:2], "b": FACTS[2:3]}, [ids[0], ids[2]])
    assert {name: (one.log_odds, one.made_up, one.n) for name, one in found.items()} == {
        "a": (1.0, 0.0, 1),
        "b": (3.0, -2.0, 1),
    }
    bare = [replace(one, twin_log_odds=()) for one in points]
    assert _leading(bare, {"a": FACTS[:2], "b": FACTS[2:3]}, []) == {}


def test_every_model_of_a_course_is_asked_about_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STREAMS, "towns", Benchmark("towns", "", "", build=lambda known, seed: STREAM))
    model = teach(make_tiny_model(), FACTS + STAYS)
    model.save_pretrained(tmp_path / "model")
    make_tiny_tokenizer().save_pretrained(tmp_path / "model")
    recipe = Recipe.of(
        {
            "model": str(tmp_path / "model"),
            "data": {"benchmark": "towns"},
            "unlearn": {"learning_rate": 1e-3, "max_steps": 3, "stop_log_odds": None},
            "attacks": {
                "relearn-harmful": {"fraction": 0.5, "learning_rates": [1e-3], "max_steps": 2, "eval_every": 2}
            },
            "output": str(tmp_path / "out"),
        },
        "here",
    )
    course = run_course(recipe)
    twins = stream_twins(STREAM)
    for number, name in enumerate(REQUESTS):
        items = score_items(model, ENCODER, REQUESTS[name])
        beside = score_items(model, ENCODER, [twins[item.id] for item in items])
        found = course.start.twins[name]
        assert found.n == 8
        assert found.log_odds == pytest.approx(sum(item.log_odds for item in items) / 8, abs=1e-3)
        assert found.made_up == pytest.approx(sum(item.log_odds for item in beside) / 8, abs=1e-3)
        assert course.after[number].twins.keys() == course.relearnt[0].twins.keys() == {"a", "b"}
        assert course.after[number].twins[name].lead < found.lead - 0.5
    assert course.relearnt[0].twins["a"].n == 4
    # The request that is tuned on is measured from its other questions alone.
    rest = course.relearnt[0].rest
    assert rest is not None
    attack = RelearnHarmful(fraction=0.5)
    questions = Asked.of(STREAM, attack, twins).sets["a"]
    items = score_items(model, ENCODER, questions)
    beside = score_items(model, ENCODER, [twins[item.id] for item in items])
    assert rest.start == SetScore.of(items)
    assert rest.gold is None
    assert (
        rest.twins
        == twinned(
            {"a": {item.id: item.log_odds for item in items}},
            {item.id: guess.log_odds for item, guess in zip(items, beside, strict=True)},
        )["a"]
    )
    assert len(questions) == 4 < len(REQUESTS["a"])
