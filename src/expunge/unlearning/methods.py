"""The catalogue: the one place where names meet parts. A method is what is minimised, how the gradient is changed, and
what may move; every combination of the three is a method, named here or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Final

from expunge.errors import SETTINGS_PAGE, InputError, closest, nearest
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.objectives.base import Objective
from expunge.unlearning.objectives.bounded import Bounded
from expunge.unlearning.objectives.ceu import CEU
from expunge.unlearning.objectives.counterfactual import Counterfactual
from expunge.unlearning.objectives.dpo import DPO
from expunge.unlearning.objectives.ga import GradientAscent
from expunge.unlearning.objectives.graddiff import GradDiff
from expunge.unlearning.objectives.idk import IdkNLL
from expunge.unlearning.objectives.kl import KL
from expunge.unlearning.objectives.npo import NPO
from expunge.unlearning.objectives.pdu import PDU
from expunge.unlearning.objectives.rmu import RMU
from expunge.unlearning.objectives.satimp import SatImp
from expunge.unlearning.objectives.simnpo import SimNPO
from expunge.unlearning.objectives.undial import UNDIAL
from expunge.unlearning.objectives.wga import WGA
from expunge.unlearning.parametrizations.base import Parametrization
from expunge.unlearning.parametrizations.full import Full
from expunge.unlearning.parametrizations.fused import FusedLoRA
from expunge.unlearning.parametrizations.layers import Layers
from expunge.unlearning.parametrizations.lora import LoRA
from expunge.unlearning.parametrizations.projection import Projection
from expunge.unlearning.parts import build, changed, field_names
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.base import GradientTransform
from expunge.unlearning.transforms.dual import DualAscent
from expunge.unlearning.transforms.l2 import L2Penalty
from expunge.unlearning.transforms.latent import LatentAdversary
from expunge.unlearning.transforms.neurons import KnowledgeNeuronMask
from expunge.unlearning.transforms.pgu import ProjectedGradient
from expunge.unlearning.transforms.relearning import SimulatedRelearning
from expunge.unlearning.transforms.repselect import RepSelect
from expunge.unlearning.transforms.sam import SAM
from expunge.unlearning.transforms.sparse import SparsityMask


@dataclass(frozen=True, slots=True)
class Method:
    """One unlearning method: three choices, and a line that says what it is.

    Args:
        objective: what is minimised.
        transforms: how its gradient is changed, the first of them outermost.
        parametrization: what may move.
        loop: arguments of the loop that this method needs unless the user says otherwise.
        summary: one line for `expunge list methods`.
    """

    objective: Objective
    transforms: tuple[GradientTransform, ...] = ()
    parametrization: Parametrization = field(default_factory=Full)
    loop: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)
    summary: str = field(default="", compare=False, repr=False)

    @property
    def called(self) -> dict[str, Any]:
        """The parts by what their settings are called: `objective`, `transform` (of several `transform1`, `transform2`
        ...), `parametrization`."""
        return {"objective": self.objective, **_numbered(self.transforms), "parametrization": self.parametrization}

    @property
    def parts(self) -> dict[str, str]:
        """The three choices with every setting, as a record tells them."""
        return {
            "objective": repr(self.objective),
            "transform": ", ".join(map(repr, self.transforms)),
            "parametrization": repr(self.parametrization),
        }


_KEPT_DOWN = AttributionPenalty(
    strength=4.0, anchor="original", penalty="hinge", scale="relative", level="neuron", of="log_odds"
)
"""The strongest form of the penalty that we found: the neurons' negative influence on the log-odds may not grow."""

_BESIDE = replace(_KEPT_DOWN, strength=1.0)
"""That, as strong as the loss, for beside an attacker."""

_ATTACKER = SimulatedRelearning(mix=1.0, every=2, period=30, retain_share=0.5)
_HELD = {"min_steps": 60, "max_steps": 120}
_LONG = {"learning_rate": 7e-5, "lr_scheduler_type": "linear", "min_steps": 216, "max_steps": 240}
"""What made the weights hold best against attackers that were never shown to the method (docs/results)."""

METHODS: Final[dict[str, Method]] = {
    "ga": Method(GradientAscent(), summary="gradient ascent on the forget answers (arXiv:2210.01504)"),
    "graddiff": Method(GradDiff(), summary="ascent on forget, descent on retain answers (arXiv:2401.06121)"),
    "kl": Method(KL(), summary="ascent, held by KL to the start on retain answers (arXiv:2401.06121)"),
    "npo": Method(NPO(), summary="negative preference optimization, with retain loss (arXiv:2404.05868)"),
    "npo_sam": Method(NPO(), (SAM(),), summary="npo, flat against small changes of the weights (arXiv:2502.05374)"),
    "npo_lau": Method(
        NPO(), (LatentAdversary(),), summary="npo, against states pushed back towards the answer (arXiv:2408.10682)"
    ),
    "simnpo": Method(SimNPO(), summary="npo without a starting model, by log-probability per token (Fan et al. 2024)"),
    "dpo": Method(DPO(), summary="a refusal preferred to the answer, with retain loss (arXiv:2401.06121)"),
    "idk": Method(IdkNLL(), summary="fine-tuning on a refusal, with retain loss (arXiv:2401.06121)"),
    "undial": Method(UNDIAL(), summary="distilled from the start with the answer's logit lowered (Dong et al. 2024)"),
    "wga": Method(WGA(), summary="ascent weighted by each token's probability (Wang et al. 2025)"),
    "satimp": Method(SatImp(), summary="ascent weighted by saturation and importance (Yang et al. 2025)"),
    "ceu": Method(CEU(), summary="cross-entropy to its own opinion of all but the answer (Yang 2025)"),
    "pdu": Method(PDU(), (DualAscent(),), summary="flat logits as far as retain allows (Entesari et al. 2025)"),
    "rmu": Method(
        RMU(),
        parametrization=Layers(("down",), (5, 6, 7)),
        loop={"max_steps": 200, "learning_rate": 2e-4},
        summary="forget states sent to a random direction (Li et al. 2024)",
    ),
    "klue": Method(
        Bounded(hold_earlier=False),
        (KnowledgeNeuronMask(),),
        summary="graddiff on knowledge neurons, of pairs not yet forgotten (arXiv:2502.19207)",
    ),
    "l2_previous": Method(
        GradDiff(), (L2Penalty(1.0, "previous", "relative"),), summary="graddiff, each step pulled back along the last"
    ),
    "l2_initial": Method(
        GradDiff(), (L2Penalty(1.0, "initial", "relative"),), summary="graddiff, pulled to the weights of the start"
    ),
    "pgu": Method(GradDiff(), (ProjectedGradient(),), summary="graddiff off what retain spans (arXiv:2312.04095)"),
    "repselect": Method(
        GradDiff(),
        (RepSelect(),),
        loop={"learning_rate": 1e-4},
        summary="an edit along what only the forget facts use (arXiv:2606.17168)",
    ),
    "mrp": Method(
        Bounded(restore=1.0, retain_weight=1.2),
        parametrization=Projection(),
        loop={"learning_rate": 1e-2, "lr_scheduler_type": "linear", "min_steps": 36, "max_steps": 60},
        summary="directions of the MLP outputs projected out, and folded in (arXiv:2508.15449)",
    ),
    "mrp_code": Method(
        GradDiff(retain_weight=1.2),
        parametrization=Projection(rank=2, n_layers=2, site="block", init="code"),
        loop={"learning_rate": 1e-2},
        summary="mrp as its authors' script has it: whole blocks, not folded, begun the other way round",
    ),
    "eul": Method(
        GradDiff(),
        parametrization=FusedLoRA(),
        loop={"learning_rate": 1e-3},
        summary="one adapter a request, all fused in closed form (arXiv:2310.20150); the loss is graddiff's",
    ),
    "bounded": Method(Bounded(), summary="hinge on the answer's margin over its options: stops at ignorance"),
    "counterfactual": Method(
        Counterfactual(),
        summary="answers meet what is said of made-up subjects, and that is held (cf. arXiv:2310.02238)",
    ),
    "bounded_relearning": Method(
        Bounded(restore=1.0),
        (SimulatedRelearning(),),
        loop=_HELD,
        summary="held at ignorance while a simulated attacker relearns; may end in disliking the answers",
    ),
    "bounded_relearning_ssiuu": Method(
        Bounded(restore=1.0),
        (_BESIDE, SimulatedRelearning()),
        loop=_HELD,
        summary="bounded_relearning with the penalty of ssiuu_best",
    ),
    "durable": Method(
        Counterfactual(),
        (_ATTACKER,),
        loop=_LONG,
        summary="held at what is said of made-up subjects while attackers relearn other facts",
    ),
    "ssiuu": Method(
        GradDiff(),
        (AttributionPenalty(strength=1e-3),),
        summary="graddiff that may not hide: negative attributions stay (arXiv:2509.22263)",
    ),
    "ssiuu_best": Method(
        GradDiff(),
        (_KEPT_DOWN,),
        summary="ssiuu on neurons: negative influence on the log-odds may not grow over that of the start",
    ),
    "durable_mrp": Method(
        Counterfactual(hold=2.0, retain_weight=2.0),
        (replace(_ATTACKER, moves="all"),),
        Projection(keep_sinks=True),
        loop={"learning_rate": 1e-2, "lr_scheduler_type": "linear", "min_steps": 108, "max_steps": 120},
        summary="the projection of mrp, trained against simulated attackers of all weights",
    ),
    "durable_ssiuu": Method(
        Counterfactual(),
        (_BESIDE, _ATTACKER),
        loop=_LONG,
        summary="durable with the penalty of ssiuu_best",
    ),
}

OBJECTIVES: Final[dict[str, type[Objective]]] = {
    "ga": GradientAscent,
    "graddiff": GradDiff,
    "kl": KL,
    "npo": NPO,
    "simnpo": SimNPO,
    "dpo": DPO,
    "idk": IdkNLL,
    "undial": UNDIAL,
    "wga": WGA,
    "satimp": SatImp,
    "ceu": CEU,
    "pdu": PDU,
    "rmu": RMU,
    "bounded": Bounded,
    "counterfactual": Counterfactual,
}
TRANSFORMS: Final[dict[str, type[GradientTransform]]] = {
    "attribution": AttributionPenalty,
    "relearning": SimulatedRelearning,
    "sam": SAM,
    "latent": LatentAdversary,
    "l2": L2Penalty,
    "pgu": ProjectedGradient,
    "knowledge_neurons": KnowledgeNeuronMask,
    "sparsity": SparsityMask,
    "repselect": RepSelect,
    "dual": DualAscent,
}
PARAMETRIZATIONS: Final[dict[str, type[Parametrization]]] = {
    "full": Full,
    "layers": Layers,
    "lora": LoRA,
    "fused": FusedLoRA,
    "projection": Projection,
}
"""Parts by name. Other packages add theirs by entry points `expunge.objectives`, `.transforms`, `.parametrizations`."""

AXES: Final = ("objective", "transform", "parametrization")
NO_TRANSFORM: Final = "none"
"""Chosen for a transform, it leaves the method's own out and puts nothing there."""


def build_method(name: str, transform: str | None = None, settings: Mapping[str, object] | None = None) -> Method:
    """The method `name`, with `transform` in the place of its own (nothing for `none`, several as `sam+relearning`, the
    outermost first), and `settings` laid over it.

    A setting is dotted (`objective.beta`, `transform.strength`, `parametrization.rank`), or bare where only one part of
    the method has it; the bare name of an axis chooses the part itself (`parametrization=lora`). Those of several
    transforms are called `transform1`, `transform2`.

    Raises:
        InputError: a method, part or setting is unknown (the nearest is named), ambiguous, or of the wrong type.
    """
    if name not in METHODS:
        raise InputError(f"Unknown method {name!r}.", "method", nearest(name, METHODS))
    parts, values = _choose(METHODS[name], transform, dict(settings or {}))
    by_part: dict[str, dict[str, object]] = {key: {} for key in parts}
    for key, value in values.items():
        axis, _, setting = key.rpartition(".") if "." in key else (_owner(name, parts, key), "", key)
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
    parts = method.called
    chosen = {axis: settings.pop(axis) for axis in AXES if axis in settings}
    if transform is not None:
        chosen["transform"] = transform
    for axis, name in chosen.items():
        if axis == "transform":
            parts = {key: part for key, part in parts.items() if not key.startswith("transform")}
            parts |= _numbered([_named(axis, each) for each in str(name).split("+") if each != NO_TRANSFORM])
        else:
            parts[axis] = _named(axis, name)
    return parts, settings


def _numbered(transforms: Sequence[Any]) -> dict[str, Any]:
    """By what their settings are called: `transform` alone, `transform1`, `transform2` in order."""
    return {"transform" if len(transforms) == 1 else f"transform{i}": part for i, part in enumerate(transforms, 1)}


def _named(axis: str, name: object) -> type:
    known = known_parts(axis)
    if not isinstance(name, str) or name not in known:
        raise InputError(f"Unknown {axis} {name!r}.", axis, nearest(str(name), known))
    part = known[name]
    if not is_dataclass(part):
        raise InputError(f"The {axis} {name!r} is not a dataclass, so it cannot be set up.", axis)
    return part


def _owner(method: str, parts: Mapping[str, Any], setting: str) -> str:
    """The one part that has `setting`; InputError where several have it, or none, with the nearest that one has."""
    known = {key: field_names(part if isinstance(part, type) else type(part)) for key, part in parts.items()}
    owners = [key for key, names in known.items() if setting in names]
    if len(owners) == 1:
        return owners[0]
    if owners:
        raise InputError(
            f"More than one part has the setting {setting!r}.",
            setting,
            f"Say {' or '.join(f'{o}.{setting}' for o in owners)}.",
        )
    loop = field_names(UnlearnArguments)
    hint = "It is the loop's: write it under `unlearn`." if setting in loop else _hint(setting, {"": loop, **known})
    raise InputError(f"The method {method!r} has no setting {setting!r}.", setting, hint)


def _hint(setting: str, known: dict[str, tuple[str, ...]]) -> str:
    """The nearest setting with the part that has it before it (nothing for the loop's), or all, each part said once."""
    full = {name: f"{part}.{name}".lstrip(".") for part in reversed(known) for name in known[part]}
    if close := closest(setting, full):
        return f"Did you mean {full[close]!r}? All are listed in {SETTINGS_PAGE}."
    groups = [f"{part}.{{{', '.join(names)}}}" for part, names in known.items() if part and names]
    return f"It has {'; '.join(groups) or 'none'}. Those of the loop, and what all mean: {SETTINGS_PAGE}."


def _made(part: Any, settings: dict[str, object], where: str) -> Any:
    return build(part, settings, where) if isinstance(part, type) else changed(part, settings, where)
