"""The library in a few calls, with the argument names that users of transformers and TRL know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.attacks.base import AttackResult
from expunge.attacks.catalogue import make_attack
from expunge.catalogue import DEFAULT_METHOD
from expunge.comparison import compare, plan_of
from expunge.data.collate import Encoder
from expunge.models.architecture import row_limit
from expunge.pipeline import sort_settings
from expunge.progress import Progress
from expunge.report.record import Record
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
        Encoder(tokenizer, template, row_limit(model)),
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
    encoder = Encoder(tokenizer, template, row_limit(model))
    return make_attack(name, settings).run(model, encoder, request, progress=progress).result


def audit(
    model: Path | str,
    base: Path | str | None,
    forget: Path | str,
    retain: Path | str | None = None,
    *,
    attack: Path | str | None = None,
    test: Mapping[str, Path | str] | None = None,
    control: Path | str | None = None,
    attacks: Sequence[str] | None = None,
    template: Literal["plain", "chat"] = "plain",
    output: Path | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Record:
    """What `model` still knows of `forget`, whoever made it with whatever tool: `record.verdict`, and why.

    Args:
        model: folder or Hub id of the model that is audited.
        base: likewise of the model before unlearning; None where it is not at hand, see `expunge.audit.alone`.
        forget: file or `datasets` id of what it must not know.
        retain: likewise of what it must still know.
        attack: likewise of facts of the same kind about others, for relearn-related.
        test: likewise of further questions, by name.
        control: folder or Hub id of a model that never knew.
        attacks: names of attacks and suites (`expunge.attacks.suites`).
        template: plain prompts or the tokenizer's chat template.
        output: where the record and the report go; an interrupted audit goes on there.
        progress: told of every step.
        settings: dtype, matmul_precision, device, revision (of `base`), or fields of the attacks.

    Raises:
        InputError: data or checkpoints cannot be read, or do not fit together.
    """
    plan, own = plan_of(
        str(model),
        _text(base),
        str(forget),
        _text(retain),
        attack=_text(attack),
        test={name: str(file) for name, file in (test or {}).items()},
        control=_text(control),
        template=template,
        output=output,
        settings=settings,
    )
    return compare(plan, attacks, own, progress)


def _text(path: Path | str | None) -> str | None:
    return None if path is None else str(path)
