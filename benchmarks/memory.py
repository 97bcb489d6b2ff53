"""Peak memory of unlearning SmolLM2 with the demo's shapes, a fresh process for each method."""

from __future__ import annotations

from statistics import median

from expunge.models.memory import peak_bytes
from measure import Claim, Result, Settings, in_fresh_process, main, tell
from ours import OurStep
from plain import PlainStep, graddiff, npo_with_second_model
from shapes import demo_facts, smollm2

BATCH, STEPS = 8, 3
OURS = ("graddiff", "npo", "ssiuu", "counterfactual", "durable")
WAYS = (*(f"expunge {name}" for name in OURS), "plain graddiff", "plain npo")


def child(settings: Settings) -> None:
    """Print the peak after a few steps, the size of the trained parameters, and that of the largest of them."""
    kind, method = settings.extra
    model, encoder = smollm2(settings)
    if kind == "expunge":
        OurStep(model, encoder, method, demo_facts(), BATCH, STEPS).walk(range(STEPS))
    else:
        loss = npo_with_second_model(model) if method == "npo" else graddiff
        step = PlainStep(model, loss, *OurStep(model, encoder, "graddiff", demo_facts(), BATCH).pair())
        for _ in range(STEPS):
            step()
    sizes = [p.numel() * p.element_size() for p in model.parameters()]
    tell(peak=peak_bytes(), trained=sum(sizes), largest=max(sizes))


def measure(settings: Settings, result: Result) -> None:
    """Bars: npo 1.05 times graddiff; ssiuu one copy of what is trained and its largest tensor more, durable three.

    Three is a copy and its Adam state, of which the attacker takes two thirds. counterfactual is durable without it:
    from graddiff to that it is the rows of made-up subjects.
    """
    times = 1 if settings.quick else 3
    ways = WAYS[: len(OURS)] if settings.quick else WAYS
    found = {way: [in_fresh_process(settings, *way.split()) for _ in range(times)] for way in ways}
    peak = {way: median(run["peak"] for run in runs) for way, runs in found.items()}
    trained, largest = (found[WAYS[0]][0][what] for what in ("trained", "largest"))
    for way, runs in found.items():
        peaks = [round(run["peak"] / 1e6) for run in runs]
        result.rows[way] = {"median_MB": round(peak[way] / 1e6), "min_MB": min(peaks), "max_MB": max(peaks)}
    result.rows["trained parameters"] = {"MB": round(trained / 1e6)}
    result.rows["largest tensor"] = {"MB": round(largest / 1e6)}
    base = peak["expunge graddiff"]
    extra = (peak["expunge ssiuu"] - base) / (trained + largest)
    whole, attacker = (
        (peak["expunge durable"] - peak[f"expunge {name}"]) / (3 * trained) for name in ("graddiff", "counterfactual")
    )
    result.claims += [
        Claim("peak of npo / graddiff", peak["expunge npo"] / base, 1.05, at_least=False),
        Claim("(ssiuu - graddiff) / (trained parameters + largest tensor)", extra, 1.0, at_least=False),
        Claim("(durable - graddiff) / (a copy of the trained parameters and its Adam state)", whole, 1.0, False),
        Claim("(durable - counterfactual) / the same", attacker, 0.75, at_least=False),
    ]
    result.notes.append(f"highest resident memory of the process after {STEPS} steps, median of {times}")


if __name__ == "__main__":
    main("memory", measure, child)
