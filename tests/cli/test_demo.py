"""The demo, small and real, exactly as a newcomer runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SETTINGS = {"max_steps": 4, "eval_every": 4, "learning_rates": [5e-5]}
RECIPE = f"""
model: smollm2
method: graddiff
data: {{benchmark: world_facts, settings: {{n_forget: 16, n_retain: 16, n_test: 8, n_attack: 8}}}}
unlearn: {{max_steps: 9}}
attacks: {{relearn-harmful: {json.dumps(SETTINGS)}}}
"""


def expunge(*words: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    command = [sys.executable, "-m", "expunge", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.slow
def test_the_tiny_demo(tmp_path: Path) -> None:
    start = time.monotonic()
    told = expunge("demo", "--tiny", "--output", tmp_path / "demo")
    assert told.returncode == 0, told.stderr
    assert time.monotonic() - start < 90
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "graddiff" in page
    assert "ssiuu" in page
    record = json.loads((tmp_path / "demo" / "ssiuu" / "record.json").read_text())
    assert record["cost"]["peak_bytes"] < 1.5e9
    assert record["control"]["kind"] == "gold model"
    assert record["scores"]["forget"]["before"]["accuracy"] > 0.9
    assert record["scores"]["forget"]["after"]["accuracy"] <= record["scores"]["forget"]["after"]["chance"] + 0.1
    assert expunge("verify", tmp_path / "demo" / "ssiuu").returncode == 0


@pytest.mark.real
@pytest.mark.timeout(600)
def test_real_facts_go_out_of_a_real_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    told = expunge("run", tmp_path / "recipe.yaml", "--output", tmp_path / "run")
    assert told.returncode == 0, told.stderr
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    forget, retain = record["scores"]["forget"], record["scores"]["retain"]
    assert forget["before"]["accuracy"] == 1.0
    assert forget["after"]["log_odds"] < forget["before"]["log_odds"] - 2
    assert retain["after"]["accuracy"] > 0.7
    assert record["attacks"][0]["log_odds"] >= record["attacks"][0]["start"]["log_odds"]
    assert record["cost"]["peak_bytes"] < 6e9
