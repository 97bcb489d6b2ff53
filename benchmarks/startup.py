"""Processor time from the start of `expunge unlearn` to the end of its first step, against that of the imports."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import Claim, Result, Settings, main

CLASS = (
    "import torch; from transformers import AutoModelForCausalLM, AutoTokenizer; "
    "from transformers.models.llama.modeling_llama import LlamaForCausalLM"
)
IMPORTS = {"import torch, transformers": "import torch, transformers", "the same and the model's class": CLASS}
SPENT = """
import os, resource
def spent(*_):
    used = resource.getrusage(resource.RUSAGE_SELF)
    print("SPENT", used.ru_utime + used.ru_stime, flush=True)
    os._exit(0)
"""
FIRST_STEP = f"""
{SPENT}
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(spent)
import sys
sys.argv[0] = "expunge"
from expunge.cli import main
main()
"""


def processor_seconds(code: str, *arguments: str) -> float:
    """User and system time that a fresh interpreter reports for itself."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    lines = [line for line in done.stdout.splitlines() if line.startswith("SPENT")]
    if not lines:
        raise SystemExit(f"{arguments or code} took no step:\n{done.stdout}\n{done.stderr}")
    return float(lines[-1].split()[1])


def write_facts(path: Path, seed: int, words: int) -> None:
    """Sixteen questions of 30 words with answers of three."""
    draw = random.Random(seed)
    lines = []
    for _ in range(16):
        question, answer = (" ".join(f"w{draw.randrange(words)}" for _ in range(n)) for n in (30, 3))
        lines.append(json.dumps({"question": question, "answer": answer}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(folder: Path) -> list[str]:
    """Arguments of `expunge unlearn` for the peers' model and sixteen facts, written in a process of its own."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import shapes; shapes.save_peers(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", code, str(folder / "model")], check=True)
    write_facts(folder / "forget.jsonl", 1, 1000)
    write_facts(folder / "retain.jsonl", 2, 1000)
    options = {"model": "model", "forget": "forget.jsonl", "retain": "retain.jsonl", "output": "run"}
    paths = [text for name, file in options.items() for text in (f"--{name}", str(folder / file))]
    return ["unlearn", *paths, "--method", "graddiff", "--set", "max_steps=1", "--set", "stop_log_odds=null"]


def measure(settings: Settings, result: Result) -> None:
    """Bar: 1.5 times the imports."""
    with tempfile.TemporaryDirectory() as temporary:
        arguments = prepare(Path(temporary))
        ways = {name: [f"{code}\n{SPENT}\nspent()"] for name, code in IMPORTS.items()}
        ways["expunge unlearn, to the end of the first step"] = [FIRST_STEP, *arguments]
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(settings.repetitions(12)):
            for name, command in ways.items():
                seconds[name].append(processor_seconds(*command))
    *imports, whole = seconds.values()
    for name, found in seconds.items():
        result.rows[name] = {"cpu_median_s": round(median(found), 3), "cpu_min_s": round(min(found), 3)}
    for what, found in zip(IMPORTS, imports, strict=True):
        beside = {"minima": min(whole) / min(found)}
        result.claims.append(Claim(f"first step / {what}", median(whole) / median(found), 1.5, False, beside))
    result.notes.append("the model's class cannot be left out: transformers resolves it when it loads the model")


if __name__ == "__main__":
    main("startup", measure)
