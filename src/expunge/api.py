"""The library in four calls, with the argument names that users of transformers and TRL know."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import make_attack
from expunge.catalogue import DEFAULT_METHOD
from expunge.data.collate import Encoder
from expunge.pipeline import sort_settings
from expunge.progress import Progress
from expunge.request import Request
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import UnlearnResult
from expunge.unlearning.loop import unlearn as unlearn_model
from expunge.unlearning.methods import build_method
from expunge.unlearning.parts import build


def unlearn(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    method: str = DEFAULT_METHOD,
    *,
    transform: str | None = None,
    template: Literal["plain", "chat"] = "plain",
    output: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> UnlearnResult:
    """Take `request.forget` out of `model`, in place.

    Args:
        method: a name of `expunge list methods`.
        transform: a gradient transform in the place of the method's own.
        template: plain prompts or the tokenizer's chat template.
        output: where metrics and checkpoints go; with it an interrupted run resumes.
        settings: fields of `UnlearnArguments` (learning_rate ...) or of the method's parts (beta, strength ...).

    Raises:
        InputError: an unknown name, a wrong type, or data that do not fit.
        NonFiniteLoss: training blew up; the model keeps its last good weights.
    """
    seed = {"seed": settings.pop("seed")} if "seed" in settings else {}
    sorted_ = sort_settings(settings)
    parts = build_method(method, transform, sorted_["settings"])
    return unlearn_model(
        model,
        Encoder(tokenizer, template),
        request,
        parts,
        build(UnlearnArguments, {**parts.loop, **sorted_["unlearn"], **seed}, "unlearn"),
        output=output,
        progress=progress,
    )


def attack(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    request: Request,
    name: str = "relearn-harmful",
    *,
    template: Literal["plain", "chat"] = "plain",
    progress: Progress | None = None,
    **settings: Any,
) -> AttackResult:
    """What the attack `name` brings back; the model comes back bit-equal. `settings` are the attack's own."""
    return make_attack(name, settings).run(model, Encoder(tokenizer, template), request, progress=progress).result
