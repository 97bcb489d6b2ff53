"""Small unlearning runs, described by plain values so that other processes can make them too."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from expunge.data.collate import Encoder, collate
from expunge.models.answers import answer_log_probs
from expunge.progress import Progress, Silent
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult, unlearn
from expunge.unlearning.methods import build_method
from tiny import make_tiny_examples, make_tiny_model, make_tiny_tokenizer

TOKENIZER = make_tiny_tokenizer()
EXAMPLES = make_tiny_examples()

# A large epsilon keeps AdamW from blowing rounding errors of vanishing gradients up to whole steps.
SMOOTH = {
    "learning_rate": 1e-2,
    "adam_epsilon": 1e-3,
    "max_steps": 4,
    "eval_steps": 2,
    "stop_log_odds": -99.0,
}


def make_encoder() -> Encoder:
    return Encoder(TOKENIZER)


def make_request(n_forget: int = 5) -> Request:
    """The first examples are to be forgotten, the others kept."""
    return Request(EXAMPLES[:n_forget], EXAMPLES[n_forget:])


def make_uneven_request() -> Request:
    """As `make_request`, with prompts of many lengths: those of the examples are all alike."""
    longer = [replace(e, prompt="where " * (3 * n % 7) + e.prompt) for n, e in enumerate(EXAMPLES)]
    return Request(tuple(longer[:5]), tuple(longer[5:]))


@dataclass(frozen=True)
class Run:
    """One run of the tiny model; `double` computes in float64, where equal means equal to 1e-10."""

    method: str = "graddiff"
    settings: Mapping[str, Any] = field(default_factory=dict)
    arguments: Mapping[str, Any] = field(default_factory=dict)
    double: bool = False

    def make(
        self, output: Path | None = None, progress: Progress | None = None
    ) -> tuple[UnlearnResult, LlamaForCausalLM]:
        """The result, and the model that came of it."""
        model = make_tiny_model()
        if self.double:
            model = model.double()
        return self.on(model, output, progress), model

    def on(
        self, model: LlamaForCausalLM, output: Path | None = None, progress: Progress | None = None
    ) -> UnlearnResult:
        """The result on `model`, which is changed."""
        return unlearn(
            model,
            make_encoder(),
            make_request(),
            build_method(self.method, settings=self.settings),
            UnlearnArguments(**{**SMOOTH, **self.arguments}),
            output=output,
            progress=progress or Silent(),
        )


class CutAfter(Silent):
    """Interrupts when so many steps are done, by a signal as Ctrl-C would, or from inside the callback."""

    def __init__(self, steps: int, by_signal: signal.Signals | None = None) -> None:
        self.left, self.by_signal = steps, by_signal

    def advance(self, task: str, n: int = 1, **info: float) -> None:
        self.left -= n
        if self.left == 0:
            if not self.by_signal:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.by_signal)


TINY: Mapping[str, Mapping[str, Any]] = {
    "rmu": {"objective.layer": 1, "parametrization.layers": [0, 1], "retain_weight": 1.0},
    "klue": {"share": 0.5},
    "npo_lau": {"transform.layer": 0},
    "mrp_code": {"parametrization.layers": [0, 1], "parametrization.rank": 4, "parametrization.energy": 0.5},
}
"""What a method of the catalogue needs on a model of two blocks."""


@cache
def _known_weights() -> dict[str, torch.Tensor]:
    model, encoder = make_tiny_model(), make_encoder()
    batch = collate([encoder.encode(e.prompt, e.answer) for e in EXAMPLES], 0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        answers = answer_log_probs(model, batch)
        (-answers.sequence.sum() / answers.counts.sum()).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return weights(model)


def make_knowing_model() -> LlamaForCausalLM:
    """The tiny model, trained until it is sure of all examples."""
    model = make_tiny_model()
    model.load_state_dict(_known_weights(), strict=False)
    return model


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> None:
    """Every bit of every tensor agrees."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def largest_difference(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def history(result: UnlearnResult) -> list[dict[str, Any]]:
    """What was measured, but for the time."""
    return [{k: v for k, v in metrics.to_json().items() if k != "seconds"} for metrics in result.history]


def run_to_file(run: Run, output: Path | None, target: Path, environment: Mapping[str, str]) -> None:
    """In a process of its own: make the run and save the model's weights at `target`."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    _, model = run.make(output)
    if os.environ.get("RANK", "0") == "0":
        part = target.with_suffix(".part")
        save_file(weights(model), part)
        part.rename(target)
