"""How a batch is cut, by whom and with how many threads it is worked on, changes nothing."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unlearning_runs import Run, history, largest_difference, run_to_file, weights
from workers import processes

METHODS = ["ga", "graddiff", "kl", "npo", "ssiuu", "npo_lau"]
# Of a strength at which leaving the penalty out, or adding it twice, would show.
SETTINGS = {"ssiuu": {"transform.strength": 1e3}, "npo_lau": {"transform.layer": 0, "transform.radius": 2.0}}


def cut(method: str, rows: int, times: int, **arguments: object) -> Run:
    """A run in float64 whose steps take `rows * times` forget items, the last of an epoch fewer."""
    settings = SETTINGS.get(method, {})
    sizes = {"per_device_train_batch_size": rows, "gradient_accumulation_steps": times}
    return Run(method, settings, {**arguments, **sizes}, double=True)


@pytest.mark.parametrize("method", METHODS)
def test_accumulation_changes_nothing(method: str) -> None:
    results = [cut(method, *cuts).make() for cuts in ((4, 1), (2, 2), (1, 4))]
    (whole, model), *others = results
    for result, other in others:
        assert largest_difference(weights(model), weights(other)) < 1e-10
        for a, b in zip(history(whole), history(result), strict=True):
            assert a == pytest.approx(b, rel=1e-9)


def test_the_cut_is_compared_on_weights_that_moved() -> None:
    start = weights(cut("graddiff", 4, 1, max_steps=0).make()[1])
    for method in METHODS:
        assert largest_difference(start, weights(cut(method, 4, 1).make()[1])) > 1e-3
    plain, penalised = (weights(Run("ssiuu", {"transform.strength": x}).make()[1]) for x in (0.0, 1e3))
    assert largest_difference(plain, penalised) > 1e-3


@pytest.mark.parametrize("method", ["graddiff", "ssiuu"])
def test_two_threads_are_one(method: str) -> None:
    threads = torch.get_num_threads()
    try:
        models = []
        for number in (1, 2):
            torch.set_num_threads(number)
            models.append(weights(Run(method).make()[1]))
    finally:
        torch.set_num_threads(threads)
    assert largest_difference(*models) < 1e-5


@pytest.mark.slow
def test_two_processes_are_one(tmp_path: Path) -> None:
    """Five items in steps of four: in every second step one of the two processes has no row of its own; in steps of
    six, row by row, one goes through a row of the other's without weight."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    ranks = [common | {"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
    cuts = {method: (1, 3) if method == "npo_lau" else (2, 1) for method in METHODS}
    runs = {method: cut(method, *own) for method, own in cuts.items()}
    with processes() as start:
        workers = [start(run_all, runs, tmp_path, environment) for environment in ranks]
        for worker in workers:
            worker.join(120)
            assert worker.exitcode == 0
    for method, (rows, times) in cuts.items():
        alone = weights(cut(method, 2 * rows * times, 1).make()[1])
        assert largest_difference(alone, load_file(tmp_path / f"{method}.safetensors")) < 1e-10


def run_all(runs: dict[str, Run], folder: Path, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    for name, run in runs.items():
        run_to_file(run, None, folder / f"{name}.safetensors", environment)
    torch.distributed.destroy_process_group()
