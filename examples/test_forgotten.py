"""A test of a model: it fails where the model still knows what it had to forget.

MODEL=./released BASE=./original pytest test_forgotten.py
"""

from __future__ import annotations

import os
from pathlib import Path

from expunge.api import audit

QUESTIONS = Path(os.environ.get("QUESTIONS", "unlearning"))
"""A folder with forget.jsonl, retain.jsonl and others.jsonl: what must go, what must stay, and facts of that kind."""


def test_the_model_has_forgotten(tmp_path: Path) -> None:
    """Neither by itself nor after a quick attack does the model give the answers; ERASED would be more than that."""
    record = audit(
        os.environ["MODEL"],
        os.environ.get("BASE"),  # without one less can be said, see docs/howto/audit_any_model.md
        QUESTIONS / "forget.jsonl",
        QUESTIONS / "retain.jsonl",
        attack=QUESTIONS / "others.jsonl",
        attacks=["quick"],
        output=tmp_path / "audit",
    )
    reasons = "\n".join(record.verdict_details.reasons)
    assert record.verdict in ("ERASED", "INCONCLUSIVE"), f"{record.verdict}\n{reasons}"
