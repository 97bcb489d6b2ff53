"""Every attack by name; the only place where names meet parts.

A recipe that wants one attack several times, with other settings, tells them apart by a label after the name:
`relearn-harmful@tenth`. A label changes nothing but the name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from expunge.attacks.ablate import AblateDirection, SteerBack
from expunge.attacks.base import Attack, AttackResult
from expunge.attacks.mix import Mix
from expunge.attacks.pgd import PGD
from expunge.attacks.prompts import Prompts
from expunge.attacks.prune import Prune
from expunge.attacks.quantise import Quantise
from expunge.attacks.quantise_bnb import QuantiseBnb
from expunge.attacks.relearn import RelearnBenign, RelearnHarmful, RelearnRelated, RelearnSyntactic
from expunge.attacks.sampling import Sampling
from expunge.attacks.suffix import Suffix
from expunge.attacks.unproject import Unproject
from expunge.errors import InputError, nearest

ATTACKS: dict[str, Attack] = {
    "relearn-harmful": RelearnHarmful(),
    "relearn-related": RelearnRelated(),
    "relearn-syntactic": RelearnSyntactic(),
    "relearn-benign": RelearnBenign(),
    "quantise": Quantise(),
    "prompts": Prompts(),
    "sampling": Sampling(),
    "quantise-bnb": QuantiseBnb(),
    "prune": Prune(),
    "mix": Mix(),
    "unproject": Unproject(),
    "ablate-direction": AblateDirection(),
    "steer-back": SteerBack(),
    "pgd": PGD(),
    "suffix": Suffix(),
}


def kind_of(name: str) -> str:
    """The attack that `name` is one of: the name without its label.

    Raises:
        InputError: an unknown attack (with the nearest name), or a label that cannot stand in a setting's name.
    """
    kind, labelled, label = name.partition("@")
    if kind not in ATTACKS:
        raise InputError(f"There is no attack {kind!r}.", "attacks", nearest(kind, ATTACKS))
    if labelled and not re.fullmatch(r"\w[\w-]*", label):
        raise InputError(f"{label!r} cannot be a label.", f"attacks, {name}", "Use letters, digits and hyphens.")
    return kind


def untried(names: Iterable[str]) -> tuple[str, ...]:
    """Attacks of which none of `names` is one."""
    kinds = {name.partition("@")[0] for name in names}
    return tuple(kind for kind in ATTACKS if kind not in kinds)


def has_own_scale(name: str) -> bool:
    """Whether the log-odds of the attack `name` are not the model's, so that they make no recovery."""
    attack = ATTACKS.get(name.partition("@")[0])
    return attack is not None and attack.own_scale


def why_uncounted(name: str, controlled: bool) -> str:
    """Why no verdict may rest on the attack `name`, made on a control as well or not; empty where it may."""
    attack = ATTACKS.get(name.partition("@")[0])
    if attack is None:
        return ""
    if has_own_scale(name):
        return "it counts what is said, which is no share of the original's log-odds."
    if attack.control_only and not controlled:
        return (
            "it searches for the answers or is given them, so it can reach them where there is no knowledge, and no "
            "model that never knew was attacked alike."
        )
    return ""


def why_no_evidence(result: AttackResult, controlled: bool) -> str:
    """Why no verdict may rest on an attack that was made; empty where it may."""
    if result.diverged:
        return "it diverged at every learning rate before anything was scored, so it is as if it had not run."
    return why_uncounted(result.name, controlled)


def settings_of(name: str) -> list[str]:
    """What can be set of the attack `name`."""
    attack: Any = ATTACKS[kind_of(name)]
    return [field.name for field in fields(attack)]


def make_attack(name: str, settings: Mapping[str, Any] | None = None) -> Attack:
    """The attack `name`, which may bear a label, with its own settings where `settings` does not say otherwise.

    Raises:
        InputError: an unknown attack or setting (with the nearest name), or a value of the wrong type or range.
    """
    attack: Any = ATTACKS[kind_of(name)]
    hints, known = get_type_hints(type(attack)), settings_of(name)
    for key in settings or {}:
        if key not in known:
            raise InputError(f"{name} has no setting {key!r}.", f"{name}.{key}", nearest(key, known))
    values = {key: _typed(value, hints[key], f"{name}.{key}") for key, value in (settings or {}).items()}
    changed: Attack = replace(attack, **values)
    return changed


def _typed(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` where nothing is lost: an int may stand for a float, a list or a single value for a tuple."""
    if get_origin(hint) is tuple and not isinstance(value, list | tuple):
        value = [value]
    adapter: TypeAdapter[Any] = TypeAdapter(hint)
    try:
        # Strictly, but by the rules of JSON, where a list is a tuple.
        return adapter.validate_json(json.dumps(value), strict=True)
    except (ValidationError, TypeError) as error:
        faults = error.errors() if isinstance(error, ValidationError) else [{"msg": str(error)}]
        what = "; ".join(dict.fromkeys(str(fault["msg"]) for fault in faults))
        raise InputError(f"{what}, not {value!r}.", where, "Correct its value.") from error
