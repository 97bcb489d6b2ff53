"""Checkpoints, files and words for tests of `expunge audit MODEL --base BASE`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.errors import ResourceError
from lessons import fit, told
from tiny import make_tiny_examples, make_tiny_tokenizer

Expunge = Callable[..., int]
SMALL = ["--attacks", "quick", "--set", "learning_rates=[1e-3]", "--set", "max_steps=2", "--set", "groups=[32]"]


def facts() -> tuple[Example, ...]:
    """Sixteen, which is what a verdict needs: the eight people in two wordings."""
    people = make_tiny_examples()
    return (*people, *(replace(e, prompt=f"question : {e.subject} lives in the town", id="") for e in people))


def write(path: Path, examples: Sequence[Example]) -> Path:
    path.write_text("".join(json.dumps(example.to_json()) + "\n" for example in examples))
    return path


def save(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast | None = None) -> Path:
    model.save_pretrained(path)
    (tokenizer or make_tiny_tokenizer()).save_pretrained(path)
    return path


def teach(model: LlamaForCausalLM, examples: Sequence[Example]) -> LlamaForCausalLM:
    fit(model, Encoder(make_tiny_tokenizer()), told(examples), 40, decay=0.01)
    return model.eval()


def audit(expunge: Expunge, model: str, *words: str | Path) -> int:
    asked = [] if "--forget" in words else ["--forget", "forget.jsonl"]
    return expunge("audit", model, *asked, *words)


def record_of(run: Path) -> dict[str, object]:
    return dict(json.loads((run / "record.json").read_text()))


def cut_off(*_: object, **__: object) -> None:
    """In the place of a function: there the work ends."""
    raise ResourceError("The disk is full.")
