"""What can be named on the command line, with a line on each."""

from __future__ import annotations

from typing import Final, Literal

DEFAULT_METHOD: Final = "durable"
DEFAULT_ATTACKS: Final = ("relearn-harmful", "relearn-related", "relearn-benign", "quantise")
"""Those of a recipe that names none; an audit of a model made elsewhere starts with the suite `standard`."""

NAMED_ATTACKS: Final = "Attacks, or suites (quick, standard, thorough), with commas"
"""What every option that names attacks takes."""


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
