"""Measures every claim about speed and memory: `python benchmarks/run.py [NAME ...] [--quick] [--model FOLDER]`.

Each benchmark runs in a fresh process with its own number of threads, prints a table and writes results/NAME.json. Exit
code 1 if a bar is missed. Take the numbers on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
TWO = ("step_smollm2", "memory", "freed_memory", "attribution", "projection", "ten_requests")
THREADS = {**dict.fromkeys(TWO, 2), "step_peers": 1, "startup": 1}


def main() -> int:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(THREADS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="a quarter of the repetitions")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct, where it is not to be fetched")
    options = parser.parse_args()
    if unknown := set(options.names) - set(THREADS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    passed = [*(["--quick"] if options.quick else []), *(["--model", str(options.model)] if options.model else [])]
    missed = []
    for name in options.names or THREADS:
        # Before torch is imported: threads that spin while they wait steal time from each other.
        environment = {
            "OMP_NUM_THREADS": str(THREADS[name]),
            "OMP_WAIT_POLICY": "passive",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        command = [sys.executable, str(HERE / f"{name}.py"), *passed]
        subprocess.run(command, env={**os.environ, **environment}, check=True)
        content = json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))
        missed += [f"{name}: {claim['what']}" for claim in content["claims"] if not claim["met"]]
    print("\nmissed: " + ("; ".join(missed) or "nothing"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
