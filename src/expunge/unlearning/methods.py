"""The catalogue: the one place where names meet parts. A method is what is minimised, how the gradient is changed, and
what may move; every combination of the three is a method, named here or not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, is_dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Final

from expunge.errors import InputError, nearest
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.objectives.base import Objective
from expunge.unlearning.objectives.bounded import Bounded
from expunge.unlearning.objectives.dpo import DPO
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.objectives.idk import IdkNLL
from expunge.unlearning.objectives.kl import KL
from expunge.unlearning.objectives.npo import NPO
from expunge.unlearning.parametrizations.base import Parametrization
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.parts import build, changed, field_names
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.base import GradientTransform
from expunge.unlearning.transforms.relearning import SimulatedRelearning
from expunge.unlearning.transforms.sam import SAM


@dataclass(frozen=True, slots=True)
class Method:
    """One unlearning method: three choices, and a line that says what it is."""

    objective: Objective
    transforms: tuple[GradientTransform, ...] = ()
    parametrization: Parametrization = field(default_factory=Full)
    summary: str = field(default="", compare=False, repr=False)


METHODS: Final[dict[str, Method]] = {
    "ga": Method(GradientAscent(), summary="gradient ascent on the forget answers (arXiv:2210.01504)"),
    "graddiff": Method(GradDiff(), summary="ascent on forget, descent on retain answers (arXiv:2401.06121)"),
    "kl": Method(KL(), summary="ascent, held by KL to the start on retain answers (arXiv:2401.06121)"),
    "npo": Method(NPO(), summary="negative preference optimization, with retain loss (arXiv:2404.05868)"),
    "dpo": Method(DPO(), summary="a refusal preferred to the answer, with retain loss (arXiv:2401.06121)"),
    "idk": Method(IdkNLL(), summary="fine-tuning on a refusal, with retain loss (arXiv:2401.06121)"),
    "bounded": Method(Bounded(), summary="hinge on the answer's margin over its options: stops at ignorance"),
    "npo_sam": Method(NPO(), (SAM(),), summary="npo, flat against small changes of the weights (arXiv:2502.05374)"),
    "durable": Method(
        Bounded(),
        (SimulatedRelearning(),),
        summary="stops at ignorance, half of the forget gradient taken where an attacker would bring the weights",
    ),
    "ssiuu": Method(
        GradDiff(),
        (AttributionPenalty(strength=1e-3),),
        summary="graddiff that may not hide: negative attributions stay (arXiv:2509.22263)",
    ),
}

OBJECTIVES: Final[dict[str, type[Objective]]] = {
    "ga": GradientAscent,
    "graddiff": GradDiff,
    "kl": KL,
    "npo": NPO,
    "dpo": DPO,
    "idk": IdkNLL,
    "bounded": Bounded,
}
TRANSFORMS: Final[dict[str, type[GradientTransform]]] = {
    "attribution": AttributionPenalty,
    "relearning": SimulatedRelearning,
    "sam": SAM,
}
PARAMETRIZATIONS: Final[dict[str, type[Parametrization]]] = {"full": Full, "layers": Layers, "lora": LoRA}
"""Parts by name. Other packages add theirs by entry points `expunge.objectives`, `.transforms`, `.parametrizations`."""

AXES: Final = ("objective", "transform", "parametrization")


def build_method(name: str, transform: str | None = None, settings: Mapping[str, object] | None = None) -> Method:
    """The method `name`, with `transform` in the place of its own, and `settings` laid over its parts.

    A setting is dotted (`objective.beta`, `transform.strength`, `parametrization.rank`), or bare where only one part of
    the method has it; the bare name of an axis chooses the part itself (`parametrization=lora`).

    Raises:
        InputError: a method, part or setting is unknown (the nearest is named), ambiguous, or of the wrong type.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}.", "method", nearest(name, METHODS))
    parts, values = _choose(METHODS[name], transform, dict(settings or {}))
    by_part: dict[str, dict[str, object]] = {key: {} for key in parts}
    for key, value in values.items():
        axis, _, setting = key.rpartition(".") if "." in key else (_owner(parts, key), "", key)
        if axis not in parts:
            raise InputError(f"The method {name!r} has no part {axis!r}.", key, nearest(axis, parts))
        by_part[axis][setting] = value
    made = {key: _made(part, by_part[key], key) for key, part in parts.items()}
    transforms = tuple(part for key, part in made.items() if key.startswith("transform"))
    return replace(
        METHODS[name], objective=made["objective"], transforms=transforms, parametrization=made["parametrization"]
    )


def split_settings(settings: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """`settings` in two: the arguments of `UnlearnArguments`, and the rest, which is for `build_method`."""
    loop = set(field_names(UnlearnArguments))
    return (
        {key: value for key, value in settings.items() if key in loop},
        {key: value for key, value in settings.items() if key not in loop},
    )


def known_parts(axis: str) -> dict[str, type]:
    """The parts of an axis ("objective", "transform", "parametrization") by name, those of other packages included."""
    own: dict[str, dict[str, type]] = {
        "objective": dict(OBJECTIVES),
        "transform": dict(TRANSFORMS),
        "parametrization": dict(PARAMETRIZATIONS),
    }
    return {**{point.name: point.load() for point in entry_points(group=f"expunge.{axis}s")}, **own[axis]}


def _choose(
    method: Method, transform: str | None, settings: dict[str, object]
) -> tuple[dict[str, Any], dict[str, object]]:
    """The method's parts by axis, each an instance or, where chosen by name, its class; and the settings left over."""
    parts: dict[str, Any] = {"objective": method.objective, "parametrization": method.parametrization}
    own = method.transforms
    parts |= {"transform" if len(own) == 1 else f"transform{i}": part for i, part in enumerate(own, 1)}
    chosen = {axis: settings.pop(axis) for axis in AXES if axis in settings}
    if transform is not None:
        chosen["transform"] = transform
    for axis, name in chosen.items():
        if axis == "transform":
            parts = {key: part for key, part in parts.items() if not key.startswith("transform")}
        parts[axis] = _named(axis, name)
    return parts, settings


def _named(axis: str, name: object) -> type:
    known = known_parts(axis)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"Unknown {axis} {name!r}.", axis, nearest(str(name), known))
    part = known[name]
    if not is_dataclass(part):
        raise InputError(f"The {axis} {name!r} is not a dataclass, so it cannot be set up.", axis)
    return part


def _owner(parts: Mapping[str, Any], setting: str) -> str:
    """The one part that has `setting`."""
    fields = {key: field_names(part if isinstance(part, type) else type(part)) for key, part in parts.items()}
    owners = [key for key, names in fields.items() if setting in names]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise InputError(
            f"More than one part has the setting {setting!r}.",
            setting,
            f"Say {' or '.join(f'{o}.{setting}' for o in owners)}.",
        )
    known = {name for names in fields.values() for name in names} | set(field_names(UnlearnArguments))
    raise InputError(f"There is no setting {setting!r}.", setting, nearest(setting, known))


def _made(part: Any, settings: dict[str, object], where: str) -> Any:
    return build(part, settings, where) if isinstance(part, type) else changed(part, settings, where)
