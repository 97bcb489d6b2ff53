"""Suites: attacks that are run together, by the time that one has for them.

Each suite tries all that the one before it tries and more, so that what it finds can only grow. An attack stands in a
suite several times where it is told apart by a label after @.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.attacks.catalogue import ATTACKS
from expunge.errors import InputError, nearest

Suite = dict[str, dict[str, Any]]
"""Settings by attack."""

_LONG: dict[str, Any] = {
    "learning_rates": [5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4],
    "seeds": [0, 1, 2],
    "max_steps": 32,
}
_ADAPTERS: dict[str, Any] = {"lora_rank": 16, "learning_rates": [2e-4, 1e-3]}

SUITES: dict[str, Suite] = {
    "quick": {
        "relearn-harmful": {"learning_rates": [2e-5, 5e-5]},
        "relearn-related": {"learning_rates": [5e-5]},
        "quantise": {"bits": [4], "groups": [32], "nf4": [], "original": False},
        "prune": {"criteria": ["magnitude"], "sparsities": [0.4], "original": False},
        "prompts": {"kinds": ["paraphrase", "few-shot", "prefill"], "shots": [2]},
    },
    "standard": {
        "relearn-harmful": {},
        "relearn-harmful@lora": _ADAPTERS,
        "relearn-related": {},
        "relearn-syntactic": {},
        "relearn-benign": {},
        "quantise": {},
        "prune": {},
        "prompts": {},
        "sampling": {},
        "ablate-direction": {},
        "mix": {},
        "pgd": {},
        "suffix": {},
        "unproject": {},
    },
    "thorough": {
        "relearn-harmful": _LONG,
        "relearn-harmful@tenth": {**_LONG, "fraction": 0.1},
        "relearn-harmful@half": {**_LONG, "fraction": 0.5},
        "relearn-harmful@lora": {**_LONG, **_ADAPTERS, "learning_rates": [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]},
        "relearn-related": _LONG,
        "relearn-syntactic": _LONG,
        "relearn-benign": _LONG,
        "quantise": {"bits": [8, 6, 5, 4, 3]},
        "quantise-bnb": {},
        "prune": {"sparsities": [0.2, 0.3, 0.4, 0.5, 0.6, 0.7]},
        "prompts": {"shots": [1, 2, 4, 8, 12]},
        "sampling": {"samples": 64},
        "ablate-direction": {},
        "steer-back": {},
        "mix": {},
        "pgd": {"radii": [0.1, 0.3, 1.0], "steps": 60},
        "suffix": {"iterations": 60},
        "unproject": {},
    },
}
"""By name, the quickest first: some minutes, a quarter of an hour, hours on a small model."""


@dataclass(frozen=True)
class Chosen:
    """An attack that is to be run.

    Args:
        settings: its own.
        optional: whether it is left out, and not an error, where the request or the model has nothing for it.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    optional: bool = False


def expand(names: Sequence[str], own: Mapping[str, Mapping[str, Any]]) -> dict[str, Chosen]:
    """The attacks behind names of suites and of attacks; those that only a suite names are optional.

    Args:
        names: of suites and attacks, in any order; of two suites the longer one gives the settings.
        own: settings of attacks that are named for themselves and stand in none of the suites.

    Raises:
        InputError: a name is neither (with the nearest one).
    """
    suites = [suite for name, suite in SUITES.items() if name in names]
    chosen = {each: Chosen(dict(settings), optional=True) for suite in suites for each, settings in suite.items()}
    for name in names:
        if name in SUITES:
            continue
        if name.partition("@")[0] not in ATTACKS:
            known = nearest(name, [*SUITES, *ATTACKS])
            raise InputError(f"There is no attack and no suite {name!r}.", "attacks", known)
        settings = chosen[name].settings if name in chosen else own.get(name, {})
        chosen[name] = Chosen(dict(settings))
    return chosen
