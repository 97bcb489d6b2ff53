"""A run that is cut anywhere and taken up again ends in the same bits as one that is not."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from expunge.errors import InputError
from expunge.models.projections import save_rows
from expunge.unlearning.objectives.base import Terms
from expunge.unlearning.step import Moment
from tiny import make_tiny_model
from unlearning_runs import CutAfter, Run, assert_same, history, largest_difference, weights

STEPS = 5
LORA = {"parametrization": "lora", "parametrization.rank": 2}
RUNS = {
    "graddiff": Run("graddiff", arguments={"max_steps": STEPS, "weight_decay": 0.1, "lr_scheduler_type": "cosine"}),
    "kl": Run("kl", arguments={"max_steps": STEPS}),
    "npo": Run("npo", arguments={"max_steps": STEPS, "gradient_accumulation_steps": 2, "eval_steps": 3}),
    "ssiuu": Run("ssiuu", {"transform.strength": 1e3}, {"max_steps": STEPS, "per_device_train_batch_size": 2}),
    "lora": Run("ssiuu", LORA, {"max_steps": STEPS, "warmup_steps": 2}),
    "landing": Run(
        "graddiff", arguments={"max_steps": STEPS, "eval_steps": 5, "stop_log_odds": -1.0, "stop_within": 0.1}
    ),
    "layers": Run("ga", {"parametrization": "layers"}, {"max_steps": STEPS}),
}


@pytest.mark.parametrize("cut", range(1, STEPS + 1))
@pytest.mark.parametrize("name", RUNS)
def test_resumed_is_straight(name: str, cut: int, tmp_path: Path) -> None:
    run = RUNS[name]
    straight, model = run.make()
    with pytest.raises(KeyboardInterrupt):
        run.make(tmp_path, CutAfter(cut))
    resumed, again = run.make(tmp_path)
    assert_same(weights(model), weights(again))
    assert history(straight) == history(resumed)
    assert straight.final == resumed.final
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS + 1))
    assert [line["seconds"] for line in lines] == sorted(line["seconds"] for line in lines)


def test_cut_twice_and_differently_batched(tmp_path: Path) -> None:
    """The cut of a step into forwards may change on the way; the result then agrees up to rounding."""
    whole = Run("graddiff", arguments={"max_steps": STEPS, "per_device_train_batch_size": 4}, double=True)
    parts = {"max_steps": STEPS, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    for cut in (2, 4):
        with pytest.raises(KeyboardInterrupt):
            whole.make(tmp_path, CutAfter(cut))
    _, resumed = Run("graddiff", arguments=parts, double=True).make(tmp_path)
    assert largest_difference(weights(whole.make()[1]), weights(resumed)) < 1e-10


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step_and_its_handler_is_left_as_it_was(
    number: signal.Signals, tmp_path: Path
) -> None:
    before = signal.getsignal(number)
    run = RUNS["npo"]
    with pytest.raises(KeyboardInterrupt):
        run.make(tmp_path, CutAfter(2, by_signal=number))
    assert signal.getsignal(number) is before
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]
    assert_same(weights(run.make()[1]), weights(run.make(tmp_path)[1]))


@pytest.mark.parametrize(("presses", "saved"), [(1, ["step-00000003"]), (2, [])])
def test_ctrl_c_in_the_middle_of_a_step(
    presses: int, saved: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one lets the step end; a second one does not, and then the torn state is not saved."""
    backward = Moment._micro_batch

    def interrupted(self: Moment, *arguments: object, **named: object) -> Terms:
        terms = backward(self, *arguments, **named)  # type: ignore[arg-type]
        optimizer = self.stepper.optimizer
        if optimizer.state and next(iter(optimizer.state.values()))["step"] == 2:
            for _ in range(presses):
                os.kill(os.getpid(), signal.SIGINT)
        return terms

    monkeypatch.setattr(Moment, "_micro_batch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        RUNS["kl"].make(tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == saved
    monkeypatch.undo()
    assert_same(weights(RUNS["kl"].make()[1]), weights(RUNS["kl"].make(tmp_path)[1]))


def test_an_interrupted_model_is_ordinary_again(tmp_path: Path) -> None:
    model = make_tiny_model()
    names = set(weights(model))
    with pytest.raises(KeyboardInterrupt):
        RUNS["lora"].on(model, tmp_path, CutAfter(2))
    assert set(weights(model)) == names
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (Run("npo", arguments={"max_steps": STEPS}), "method"),
        (Run("graddiff", arguments={"max_steps": STEPS, "seed": 1}), "seed"),
        (Run("graddiff", arguments={"max_steps": STEPS, "per_device_train_batch_size": 3}), "items per step"),
        (Run("graddiff", arguments={"max_steps": STEPS}, double=True), "starting weights"),
    ],
)
def test_checkpoints_of_another_run_are_refused(other: Run, named: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Run("graddiff", arguments={"max_steps": STEPS}).make(tmp_path, CutAfter(2))
    with pytest.raises(InputError, match=f"another run .*{named}"):
        other.make(tmp_path)


def test_a_run_does_not_go_on_with_other_earlier_requests(tmp_path: Path) -> None:
    earlier = tmp_path / "removed.safetensors"

    def begun(seed: int, progress: CutAfter | None) -> None:
        rows = torch.linalg.qr(torch.randn(32, 1, generator=torch.Generator().manual_seed(seed)))[0].T
        save_rows(earlier, {0: rows.contiguous()})
        settings: dict[str, object] = {"layers": [0], "rank": 1, "earlier": str(earlier)}
        Run("mrp", settings=settings, arguments={"max_steps": STEPS}).make(tmp_path / "run", progress)

    with pytest.raises(KeyboardInterrupt):
        begun(0, CutAfter(2))
    with pytest.raises(InputError, match=r"another run .*earlier requests"):
        begun(1, None)
