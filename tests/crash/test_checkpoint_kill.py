"""A process that saves without pause is killed at random moments; what is left is always whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from expunge.models.checkpoint import newest_checkpoint, save_checkpoint
from expunge.models.storage import TEMPORARY

NURSERY = """
import os, sys, torch
from pathlib import Path
from expunge.models.checkpoint import newest_checkpoint, save_checkpoint

def life(folder):
    last = newest_checkpoint(folder)
    step = last.step if last else 0
    print(os.getpid(), flush=True)
    while True:
        step += 1
        save_checkpoint(folder, step, {"x": torch.full((300_000,), float(step))}, {"step": step})

for line in sys.stdin:  # one import of torch for all lives
    child = os.fork()
    if child == 0:
        life(Path(sys.argv[1]))
    os.waitpid(child, 0)
    print("dead", flush=True)
"""


def test_killed_at_any_moment_leaves_a_verified_checkpoint(tmp_path: Path) -> None:
    """Each life goes on from the step before; no step that was seen is ever lost."""
    chance, seen = random.Random(0), 0
    command = [sys.executable, "-c", NURSERY, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as nursery:
        assert nursery.stdin is not None
        assert nursery.stdout is not None
        for _ in range(12):
            print(file=nursery.stdin, flush=True)
            saver = int(nursery.stdout.readline())
            wait_beyond(tmp_path, seen)
            time.sleep(0.05 * chance.random())
            os.kill(saver, signal.SIGKILL)
            assert nursery.stdout.readline() == "dead\n"
            found = newest_checkpoint(tmp_path)
            assert found is not None
            assert found.step == found.meta["step"] > seen
            assert torch.equal(found.tensors["x"], torch.full((300_000,), float(found.step)))
            seen = found.step
        nursery.stdin.close()


def wait_beyond(folder: Path, step: int) -> None:
    """Return once a folder of a later step is there, so that a slow machine changes nothing but the time."""
    while not any(int(path.name.split("-")[1]) > step for path in folder.glob("step-*")):
        time.sleep(0.001)


def test_every_moment_of_a_save_is_safe(tmp_path: Path) -> None:
    """Killed before each file operation in turn: the older checkpoint or the newer one is there, and whole."""
    save_checkpoint(tmp_path / "start", 1, {"x": torch.ones(5)}, {})
    script = DYING + "\nraise SystemExit('survived')"
    process = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.stderr.strip() == "survived"
    folders = sorted(tmp_path.glob("at-*"))
    assert len(folders) > 8
    found = [newest_checkpoint(folder) for folder in folders]
    steps = [checkpoint.step for checkpoint in found if checkpoint is not None]
    assert len(steps) == len(folders)
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_leftovers_are_removed_by_the_next_save(tmp_path: Path) -> None:
    (tmp_path / f"{TEMPORARY}dead").mkdir(parents=True)
    (tmp_path / f"{TEMPORARY}dead" / "tensors.safetensors").write_text("half")
    assert newest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 1, {"x": torch.ones(1)}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


DYING = """
import os, shutil, sys, torch
from pathlib import Path
from expunge.models.checkpoint import save_checkpoint

base = Path(sys.argv[1])
WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree"}

def life(death):
    folder = base / f"at-{death:02d}"
    shutil.copytree(base / "start", folder)
    if (child := os.fork()) == 0:
        left = [death]
        def hook(event, args):
            if event in WATCHED and str(folder) in str(args[0]):
                if left[0] == 0:
                    os._exit(9)
                left[0] -= 1
        sys.addaudithook(hook)
        save_checkpoint(folder, 2, {"x": torch.zeros(5)}, {}, keep=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

death = 0
while life(death) == 9:
    death += 1
"""
