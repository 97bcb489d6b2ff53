"""What can be named on the command line, with a line on each."""

from __future__ import annotations

from typing import Final, Literal

DEFAULT_METHOD: Final = "durable"


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
