"""What can be named on the command line, with a line on each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, Literal

from expunge.errors import InputError, closest

if TYPE_CHECKING:
    from expunge.unlearning.methods import Method

DEFAULT_METHOD: Final = "durable"
DEFAULT_ATTACKS: Final = ("relearn-harmful", "relearn-related", "relearn-benign", "quantise")
"""Those of a recipe that names none; an audit of a model made elsewhere starts with the suite `standard`."""

NAMED_ATTACKS: Final = "Attacks, or suites (quick, standard, thorough), with commas"
"""What every option that names attacks takes."""

SETTINGS_PAGE: Final = "docs/reference/recipe.md"
"""Where every setting is listed."""


def describe(kind: Literal["methods", "attacks", "suites", "benchmarks"]) -> list[tuple[str, str]]:
    """(name, summary) of every method, attack, suite of attacks or benchmark, streams of requests last."""
    if kind == "methods":
        from expunge.unlearning.methods import METHODS

        return [(name, method.summary) for name, method in METHODS.items()]
    if kind == "attacks":
        from expunge.attacks.catalogue import ATTACKS

        return [(name, attack.summary) for name, attack in ATTACKS.items()]
    if kind == "suites":
        from expunge.attacks.suites import SUITES

        return [(name, ", ".join(suite)) for name, suite in SUITES.items()]
    from expunge.data.benchmarks import BENCHMARKS
    from expunge.data.benchmarks.streams import STREAMS

    named = [*BENCHMARKS.values(), *STREAMS.values()]
    return [(each.name, f"{each.summary} Source: {each.source}.") for each in named]


def make_method(name: str, transform: str | None, settings: Mapping[str, object]) -> Method:
    """The method as `build_method` makes it; a bare setting that it has not is told with the nearest, or with all."""
    from expunge.unlearning.methods import AXES, build_method

    try:
        return build_method(name, transform, settings)
    except InputError as error:
        setting = error.where
        if setting not in settings or "." in setting or setting in AXES:
            raise
        bare = build_method(name, transform, {axis: settings[axis] for axis in AXES if axis in settings})
        known = _settings(bare)
        owners = [prefix for prefix, names in known.items() if setting in names]
        if len(owners) > 1:
            raise
        hint = "It is the loop's: write it under `unlearn`." if owners else _hint(setting, known)
        raise InputError(f"The method {name!r} has no setting {setting!r}.", setting, hint) from error


def _settings(method: Method) -> dict[str, tuple[str, ...]]:
    """The names of what can be set by the prefix of those whose they are, which is empty for the loop's."""
    from expunge.unlearning.arguments import UnlearnArguments
    from expunge.unlearning.parts import field_names

    own = {prefix: field_names(type(part)) for prefix, part in method.called.items()}
    return {"": field_names(UnlearnArguments), **own}


def _hint(setting: str, known: dict[str, tuple[str, ...]]) -> str:
    """The nearest setting with its prefix, or all of the method's, each prefix said once."""
    full = {name: f"{prefix}.{name}".lstrip(".") for prefix in reversed(known) for name in known[prefix]}
    if close := closest(setting, full):
        return f"Did you mean {full[close]!r}? All are listed in {SETTINGS_PAGE}."
    groups = [f"{prefix}.{{{', '.join(names)}}}" for prefix, names in known.items() if prefix and names]
    return f"It has {'; '.join(groups) or 'none'}. Those of the loop, and what all mean: {SETTINGS_PAGE}."
