"""Whatever kills a run, and whatever it tears on the way, the next call ends where an undisturbed run ends."""

from __future__ import annotations

import errno
import json
import logging
import random
import time
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from expunge.errors import NonFiniteLoss, NotANumber, ResourceError
from expunge.unlearning import session
from expunge.unlearning.metrics import StepMetrics
from expunge.unlearning.objectives.base import Terms
from expunge.unlearning.step import Moment, Stepper
from tiny import make_tiny_model
from unlearning_runs import CutAfter, Run, assert_same, history, run_to_file, weights
from workers import processes

STEPS = 12
RUN = Run("ssiuu", {"transform.strength": 1e3}, {"max_steps": STEPS, "checkpoint_steps": 1})


def wait_for_progress(process: BaseProcess, folder: Path, done: int) -> None:
    """Return when there is a checkpoint of more than `done` steps, or the process has ended."""
    deadline = time.monotonic() + 60
    while process.is_alive() and newest(folder) <= done and time.monotonic() < deadline:
        time.sleep(0.001)


def newest(folder: Path) -> int:
    return max((int(path.name.split("-")[1]) for path in (folder / "checkpoints").glob("step-*")), default=-1)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    moments, kills, target = random.Random(5), 0, tmp_path / "weights.safetensors"
    with processes() as start:
        while not target.exists():
            done = newest(tmp_path)
            process = start(run_to_file, RUN, tmp_path, target, {})
            wait_for_progress(process, tmp_path, done + moments.randrange(1, 5))
            time.sleep(moments.random() / 20)
            if process.is_alive():
                process.kill()
                kills += 1
            process.join()
            assert process.exitcode in (0, -9)
    assert kills >= 2
    assert_same(weights(RUN.make()[1]), load_file(target))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS + 1))


def test_a_damaged_newest_checkpoint_is_noticed_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(KeyboardInterrupt):
        RUN.make(tmp_path, CutAfter(5))
    damaged = sorted((tmp_path / "checkpoints").iterdir())[-1]
    file = damaged / "tensors.safetensors"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    straight, model = RUN.make()
    with caplog.at_level(logging.WARNING):
        resumed, again = RUN.make(tmp_path)
    assert damaged.name in caplog.text
    assert_same(weights(model), weights(again))
    assert history(straight) == history(resumed)


def test_a_full_disk_keeps_what_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, save = [], session.save_checkpoint

    def fill_up(folder: Path, step: int, *rest: object) -> Path:
        if step == 4:
            raise ResourceError("The disk is full.", str(folder))
        saved.append(step)
        return save(folder, step, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(session, "save_checkpoint", fill_up)
    with pytest.raises(ResourceError):
        RUN.make(tmp_path)
    assert (saved, newest(tmp_path)) == ([1, 2, 3], 3)
    monkeypatch.undo()
    assert_same(weights(RUN.make()[1]), weights(RUN.make(tmp_path)[1]))


def test_a_full_disk_under_the_metrics_has_its_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(ResourceError, match="disk is full"):
        Run("ga").make(tmp_path)


@pytest.mark.parametrize("part", ["weights", "gradient"])
@pytest.mark.parametrize("method", ["graddiff", "npo", "ssiuu"])
def test_a_non_finite_step_leaves_the_last_good_weights(
    part: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third step meets a value that is not a number: in the rows' loss, or in the gradient alone."""
    good = weights(Run(method, arguments={"max_steps": 2}).make()[1])
    backward = Moment._micro_batch

    def poisoned(self: Moment, *arguments: object, **named: object) -> Terms:
        terms = backward(self, *arguments, **named)  # type: ignore[arg-type]
        optimizer, parameters = self.stepper.optimizer, self.stepper.parameters
        if optimizer.state and next(iter(optimizer.state.values()))["step"] == 2:
            if part == "weights":
                return replace(terms, forget=terms.forget * torch.nan)
            next(iter(parameters.values())).grad[0, 0] = torch.inf  # type: ignore[index]
        return terms

    monkeypatch.setattr(Moment, "_micro_batch", poisoned)
    model = make_tiny_model()
    with pytest.raises(NonFiniteLoss, match="in step 3"):
        Run(method, arguments={"max_steps": 6}).on(model, tmp_path)
    assert_same(good, weights(model))
    assert all(p.grad is None for p in model.parameters())


def test_a_model_gone_mad_in_a_step_is_noticed_by_its_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepper.step

    def last(self: Stepper, number: int) -> StepMetrics:
        made = step(self, number)
        next(iter(self.parameters.values())).data.fill_(torch.nan)
        return made

    monkeypatch.setattr(Stepper, "step", last)
    with pytest.raises(NonFiniteLoss, match="NaN"):
        Run("graddiff", arguments={"eval_steps": 1}).on(make_tiny_model())


def test_a_model_that_was_mad_before_is_told_apart() -> None:
    model = make_tiny_model()
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    with pytest.raises(NotANumber, match="not a number"):
        Run("graddiff").on(model)
