"""What a run measures, writes and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import score_items, summarise
from expunge.progress import Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import unlearn
from expunge.unlearning.methods import build_method
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.stopping import StopReason
from tiny import make_tiny_model
from unlearning_runs import EXAMPLES, SMOOTH, Run, assert_same, largest_difference, make_encoder, make_request, weights


class Watcher(Silent):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, dict[str, float]]] = []
        self.finished = 0

    def start(self, task: str, total: int) -> None:
        self.told.append((task, total, {}))

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.told.append((task, n, info))

    def finish(self, task: str) -> None:
        self.finished += 1


def test_the_history_holds_every_step_and_the_metrics_file_is_the_history(tmp_path: Path) -> None:
    result, model = Run("npo", arguments={"max_steps": 5, "warmup_steps": 1}).make(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [metrics.to_json() for metrics in result.history]
    assert [StepMetrics.of_json(line) for line in lines] == list(result.history)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4, 5]
    assert [line["step"] for line in lines if "forget_accuracy" in line] == [0, 2, 4, 5]
    assert lines[1].keys() == {"step", "seconds", "loss", "forget", "retain", "grad_norm", "learning_rate"}
    assert [line["learning_rate"] for line in lines[1:3]] == [0.005, 0.01]
    assert all(line["loss"] == pytest.approx(line["forget"] + line["retain"], rel=1e-6) for line in lines[1:])
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)
    assert (result.steps, result.stop_reason) == (5, StopReason.MAX_STEPS)
    assert result.final == summarise(score_items(model, make_encoder(), EXAMPLES[:5]))
    assert lines[-1]["forget_log_odds"] == result.final.log_odds
    assert 1e7 < result.peak_bytes < 1e11


def test_transform_metrics_are_in_the_lines(tmp_path: Path) -> None:
    Run("ssiuu", {"measure_every": 1}).make(tmp_path)
    *_, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert last["attribution_penalty"] > 0
    assert last["attribution_gradient_ratio"] > 0


def test_it_stops_when_the_facts_are_forgotten() -> None:
    arguments = {"max_steps": 50, "stop_log_odds": -2.0, "stop_within": 0.1}
    result, model = Run("graddiff", arguments=arguments).make()
    assert result.stop_reason is StopReason.FORGOTTEN
    assert 0 < result.steps < 50
    assert result.steps % 2 == 0
    assert -2.1 <= result.final.log_odds <= -1.9
    *earlier, _ = [m for m in result.history if m.forget_log_odds is not None]
    assert all(m.forget_log_odds > -1.9 for m in earlier)  # type: ignore[operator]
    assert result.final == summarise(score_items(model, make_encoder(), EXAMPLES[:5]))


def test_a_run_that_went_too_far_goes_back_along_its_last_stretch() -> None:
    """The landed weights lie on the line between those of two scorings, and where the metrics say."""
    long = {"eval_steps": 4, "stop_log_odds": -1.0, "max_steps": 40}
    landed, model = Run("ga", arguments={**long, "stop_within": 0.05}).make()
    free, end = Run("ga", arguments={**long, "stop_within": None}).make()
    t = landed.history[-1].landed
    assert free.final.log_odds < -1.5  # without going back it would be inverted
    assert landed.steps == free.steps
    assert abs(landed.final.log_odds + 1) <= 0.05
    assert t is not None
    assert 0 < t < 1
    before = Run("ga", arguments={**long, "stop_within": None, "max_steps": free.steps - 4}).make()[1]
    a, b = weights(before), weights(end)
    line = {name: torch.lerp(a[name], b[name], t) for name in a}
    assert largest_difference(line, weights(model)) < 1e-6


def test_weights_of_few_digits_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    """After a bfloat16 1 comes 1 + 1/128: less than half of that is swallowed."""
    Run("ga", arguments={"max_steps": 1}).on(make_tiny_model().bfloat16())
    (said,) = (record.message for record in caplog.records if "rounded away" in record.message)
    assert "bfloat16" in said and "1/256" in said
    assert torch.tensor(1.0).bfloat16() + 0.99 / 256 == 1 != torch.tensor(1.0).bfloat16() + 1.01 / 256
    caplog.clear()
    Run("ga", arguments={"max_steps": 1}).make()
    assert "rounded away" not in caplog.text


def test_a_step_of_one_item_has_no_room_for_earlier_requests() -> None:
    """Half of the forget side of a step is theirs."""
    request = Request(EXAMPLES[:2], EXAMPLES[5:], hold=EXAMPLES[2:4])
    one = UnlearnArguments(**{**SMOOTH, "max_steps": 1, "per_device_train_batch_size": 1})
    with pytest.raises(InputError, match="no room"):
        unlearn(make_tiny_model(), make_encoder(), request, build_method("bounded"), one)
    unlearn(make_tiny_model(), make_encoder(), request, build_method("graddiff"), one)  # it holds none


def test_float16_is_refused() -> None:
    """The square of a gradient of 1e-4 is 0 there, and Adam divides by its root."""
    assert torch.tensor(1e-4).half().square() == 0
    with pytest.raises(InputError, match="float16"):
        Run("ga", arguments={"max_steps": 1}).on(make_tiny_model().half())


@pytest.mark.parametrize(
    ("restore", "margin", "back"),
    [
        pytest.param(1.0, -1.0, False, id="a little below, and comes back by itself"),
        pytest.param(0.0, -1.0, True, id="a little below, and stays there"),
        pytest.param(1.0, -2.0, True, id="far below"),
    ],
)
def test_a_loss_with_a_way_back_up_keeps_what_it_has_learnt_below_the_target(
    restore: float, margin: float, back: bool
) -> None:
    """A third of the run lies below the target: whoever goes back along it undoes that third."""
    settings = {"restore": restore, "margin": margin}
    arguments = {"eval_steps": 4, "stop_log_odds": -0.4, "min_steps": 60, "max_steps": 60}
    result, model = Run("bounded", settings, arguments={**arguments, "stop_within": 0.4}).make()
    free, end = Run("bounded", settings, arguments={**arguments, "stop_within": None}).make()
    below = [m for m in free.history[-21::4] if m.forget_log_odds is not None and m.forget_log_odds < -0.8]
    assert len(below) >= 4
    assert (result.history[-1].landed is not None) == back
    assert (largest_difference(weights(model), weights(end)) > 0) == back


def test_a_run_that_goes_by_accuracy_goes_back_too() -> None:
    """Options that no longer win are not unknown but avoided: chance is where it rests, one item up or down."""
    request = Request(preferred(make_tiny_model(), EXAMPLES[:5]), EXAMPLES[5:])
    free, landed = (
        unlearn(
            make_tiny_model(),
            make_encoder(),
            request,
            "ga",
            UnlearnArguments(
                learning_rate=1e-2, eval_steps=20, stop_log_odds=None, stop_accuracy="chance", stop_within=within
            ),
        )
        for within in (None, 0.25)
    )
    assert free.final.accuracy < free.final.chance - 1 / 5
    assert abs(landed.final.accuracy - landed.final.chance) <= 1 / 5
    assert landed.history[-1].landed is not None
    assert landed.stop_reason is StopReason.FORGOTTEN


def test_facts_of_earlier_requests_are_moved_to_ignorance_from_both_sides_and_do_not_end_the_run() -> None:
    """Only where the loss has a floor: ascent would drive what is gone on into inversion."""
    known = preferred(make_tiny_model(), EXAMPLES[:5])
    avoided = replace(known[4], id="", answer=known[4].options[-1], options=(known[4].answer, *known[4].options[:-1]))
    request = Request(known[:3], EXAMPLES[5:], hold=(known[3], avoided))
    arguments = UnlearnArguments(learning_rate=3e-3, eval_steps=1, max_steps=200, stop_log_odds=0.0)

    def held(model: PreTrainedModel) -> list[float]:
        return [item.log_odds for item in score_items(model, make_encoder(), request.hold)]

    def made(name: str, **settings: bool) -> list[float]:
        model = make_tiny_model()
        method = build_method(name, settings={"retain_weight": 0.0, **settings})
        result = unlearn(model, make_encoder(), request, method, arguments)
        assert result.stop_reason is StopReason.FORGOTTEN
        assert result.final == summarise(score_items(model, make_encoder(), request.forget))
        return held(model)

    (up, down), (high, low), (_, left) = held(make_tiny_model()), made("bounded"), made("bounded", hold_earlier=False)
    assert up > 0 > down
    assert high < 0.3 * up and low > 0.3 * down > left
    bare = replace(request, hold=())
    one, other = make_tiny_model(), make_tiny_model()
    for model, asked in ((one, request), (other, bare)):
        unlearn(model, make_encoder(), asked, "graddiff", replace(arguments, max_steps=3))
    assert_same(weights(one), weights(other))


def preferred(model: PreTrainedModel, examples: Sequence[Example]) -> tuple[Example, ...]:
    """The same questions, each answered by what the model itself likes best."""
    found = []
    for example, item in zip(examples, score_items(model, make_encoder(), examples), strict=True):
        means = dict(zip((example.answer, *example.options), (item.answer_mean, *item.option_log_probs), strict=True))
        best, *others = sorted(means, key=lambda text: -means[text])
        found.append(replace(example, id="", answer=best, options=tuple(others)))
    return tuple(found)


def test_fewer_steps_than_a_method_asks_for_are_all_made_and_end_at_the_target_too() -> None:
    """Somebody's max_steps below the method's own min_steps must not leave the answers inverted."""
    short = {"eval_steps": 4, "stop_log_odds": -1.0, "stop_within": 0.05, "max_steps": 20}
    free, _ = Run("ga", arguments={**short, "stop_within": None, "stop_log_odds": -99.0}).make()
    assert free.final.log_odds < -1.5
    result, _ = Run("ga", arguments={**short, "min_steps": 100}).make()
    assert (result.steps, result.stop_reason) == (20, StopReason.FORGOTTEN)
    assert abs(result.final.log_odds + 1) <= 0.05


def test_time_is_a_budget() -> None:
    result, _ = Run("ga", arguments={"max_seconds": 0.0}).make()
    assert (result.steps, result.stop_reason) == (0, StopReason.MAX_SECONDS)


def test_progress_is_told_the_length_every_step_and_the_end() -> None:
    watcher = Watcher()
    Run("graddiff", arguments={"max_steps": 3}).make(progress=watcher)
    (task, total, _), *steps = watcher.told
    assert (task, total, len(steps), watcher.finished) == ("unlearn", 3, 3, 1)
    scored = ["accuracy", "log_odds", "loss"]
    assert [sorted(info) for _, _, info in steps] == [["loss"], scored, scored]


def test_nothing_is_written_without_an_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Run("graddiff", arguments={"checkpoint_steps": 1}).make()
    assert list(tmp_path.iterdir()) == []


def test_saving_changes_nothing(tmp_path: Path) -> None:
    plain, saved = (Run("ssiuu", arguments={"checkpoint_steps": 1}).make(output)[1] for output in (None, tmp_path))
    assert_same(weights(plain), weights(saved))


def test_two_runs_are_bit_equal_whatever_the_global_seed() -> None:
    models = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = make_tiny_model()
        torch.manual_seed(seed)
        Run("npo", {"parametrization": "lora"}).on(model)
        models.append(weights(model))
    assert_same(*models)


def test_dropout_is_off() -> None:
    models = [make_tiny_model(), make_tiny_model(attention_dropout=0.5)]
    for model in models:
        model.train()
        Run("graddiff").on(model)
    assert_same(*map(weights, models))


def test_items_without_options_run_to_the_budget() -> None:
    bare = tuple(replace(example, options=()) for example in EXAMPLES[:3])
    arguments = UnlearnArguments(**{**SMOOTH, "stop_log_odds": None})
    result = unlearn(make_tiny_model(), make_encoder(), Request(bare, EXAMPLES[3:]), "graddiff", arguments)
    assert (result.steps, result.stop_reason) == (4, StopReason.MAX_STEPS)
    assert all(metrics.forget_log_odds is None for metrics in result.history)
    assert result.final.probability < result.history[0].forget_probability  # type: ignore[operator]


def test_items_with_options_are_the_ones_that_are_graded() -> None:
    mixed = (*EXAMPLES[:2], replace(EXAMPLES[2], options=()))
    model = make_tiny_model()
    result = unlearn(model, make_encoder(), Request(mixed, EXAMPLES[3:]), "ga", UnlearnArguments(**SMOOTH))
    assert result.final == summarise(score_items(model, make_encoder(), EXAMPLES[:2]))


@pytest.mark.parametrize(("method", "rows"), [("ga", 5), ("graddiff", 10), ("npo", 10), ("kl", 10)])
def test_a_step_is_one_forward_of_the_rows_it_needs_and_no_second_model_runs(method: str, rows: int) -> None:
    model, forwards = make_tiny_model(), []
    model.model.register_forward_hook(
        lambda module, inputs, named, out: forwards.append(len(named["input_ids"])) if out[0].requires_grad else None,
        with_kwargs=True,
    )
    request = Request(EXAMPLES[:5], EXAMPLES[5:])
    unlearn(model, make_encoder(), request, method, UnlearnArguments(**{**SMOOTH, "max_steps": 3}))
    assert forwards == [rows] * 3


def test_an_unknown_method_is_an_input_error() -> None:
    with pytest.raises(InputError, match="Did you mean 'graddiff'"):
        unlearn(make_tiny_model(), make_encoder(), make_request(), "gradiff")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("method", ["graddiff", "kl", "npo"])
def test_other_dtypes_train_too(method: str, dtype: torch.dtype) -> None:
    model = make_tiny_model().to(dtype)
    before = weights(model)
    result = Run(method).on(model)
    assert result.steps == 4
    assert any(not torch.equal(value, before[name]) for name, value in weights(model).items())
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_weight_decay_spares_vectors() -> None:
    arguments = {"weight_decay": 0.5, "learning_rate": 1e-2, "max_steps": 1, "adam_epsilon": 1e9}
    _, model = Run("graddiff", arguments=arguments).make()
    start = weights(make_tiny_model())
    for name, value in weights(model).items():
        shrunk = start[name] * (1 - 0.5 * 1e-2) if value.ndim > 1 else start[name]
        assert torch.allclose(value, shrunk, atol=1e-7)


def test_the_step_is_the_clipped_gradient_at_the_rate_and_0_is_no_clipping() -> None:
    def first_move(**arguments: float) -> float:
        # With a huge epsilon AdamW's first step is proportional to the gradient.
        _, model = Run("ga", arguments={"max_steps": 1, "adam_epsilon": 1e3, "learning_rate": 1.0, **arguments}).make()
        start = weights(make_tiny_model())
        return float(torch.cat([(v - start[n]).flatten() for n, v in weights(model).items()]).norm())

    result, _ = Run("ga", arguments={"max_steps": 1}).make()
    norm = result.history[1].grad_norm
    assert norm is not None
    assert norm > 2
    assert first_move(max_grad_norm=1.0) == pytest.approx(1e-3, rel=1e-2)
    assert first_move(max_grad_norm=0.5) == pytest.approx(0.5e-3, rel=1e-2)
    assert first_move(max_grad_norm=0.0) == pytest.approx(norm * 1e-3, rel=1e-1)
    assert first_move(warmup_steps=1) == pytest.approx(0.5e-3, rel=1e-2)
    assert first_move(max_grad_norm=1e3) == first_move(max_grad_norm=0.0)


def test_what_did_not_end_is_not_told_as_done(tmp_path: Path) -> None:
    """Without a terminal each finished task leaves a line; one that broke off must not."""

    class Breaking(Watcher):
        def advance(self, task: str, n: int = 1, **info: float) -> None:
            raise KeyboardInterrupt

    watcher, arguments = Breaking(), UnlearnArguments(max_steps=2, stop_log_odds=None)
    with pytest.raises(KeyboardInterrupt):
        unlearn(
            make_tiny_model(), make_encoder(), make_request(), build_method("graddiff"), arguments, progress=watcher
        )
    assert watcher.finished == 0
