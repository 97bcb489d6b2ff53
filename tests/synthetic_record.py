"""Records that look like real ones, made without a model: capitals forgotten by methods that hide or erase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expunge.report.parts import Metric, Metrics, MetricState
from expunge.report.record import (
    GOLD_MODEL,
    Attack,
    AttackControl,
    Control,
    Cost,
    Hashes,
    Influence,
    Item,
    ItemState,
    LogitLens,
    ModelPart,
    Probe,
    RecipePart,
    Record,
    Score,
    Scores,
    Text,
    Training,
    TrainingPoint,
    VerdictDetails,
    Versions,
)
from synthetic_attacks import CHANCE, attack, change, score, sweep

CAPITALS = {
    "Nigeria": "Abuja", "Ethiopia": "Addis Ababa", "Egypt": "Cairo", "Turkey": "Ankara", "Thailand": "Bangkok",
    "France": "Paris", "Kenya": "Nairobi", "Argentina": "Buenos Aires", "Poland": "Warsaw", "Canada": "Ottawa",
    "Peru": "Lima", "Australia": "Canberra", "Chile": "Santiago", "Romania": "Bucharest", "Ecuador": "Quito",
    "Cuba": "Havana", "Greece": "Athens", "Sweden": "Stockholm", "Hungary": "Budapest", "Austria": "Vienna",
    "Switzerland": "Bern", "Denmark": "Copenhagen", "Finland": "Helsinki", "Norway": "Oslo",
}  # fmt: skip
STAY = {"Region of Kenya": "Africa", "Currency of Japan": "Yen", "Largest city of Austria": "Vienna"}
MODULES = ("q", "k", "v", "o", "gate", "up", "down")
EVIL = '<script>alert(1)</script><img src=x onerror="alert(2)">\u202egnp.exe\u2066\x1b[2J{{ 7*7 }}$\\alpha'
LAYERS = 30


@dataclass(frozen=True)
class Story:
    """What is to have happened: how much each attack brings back, and how the knowledge was moved."""

    method: str
    transform: str
    verdict: str
    recovery: tuple[float, float, float]
    erased: float
    hidden: float
    seed: int


STORIES = {
    "graddiff": Story("graddiff", "", "HIDDEN", (0.62, 0.18, 0.31), 3.1, 9.4, 1),
    "ssiuu": Story("ssiuu", "attribution", "ERASED", (0.09, -0.04, 0.05), 8.2, 1.3, 2),
    "npo": Story("npo", "", "NOT FORGOTTEN", (0.97, 0.66, 0.71), 1.1, 2.0, 3),
    "ga": Story("ga", "", "BROKEN", (0.2, 0.1, 0.1), 9.9, 9.1, 4),
    "kl": Story("kl", "", "INCONCLUSIVE", (0.3, 0.1, 0.2), 4.0, 4.4, 5),
}


def metrics(story: Story) -> Metrics:
    """A few metrics with intervals, one without a control and one with a value alone."""

    def state(value: float) -> MetricState:
        return MetricState(value=value, low=value - 0.1, high=value + 0.1)

    left = 0.9 * max(story.recovery[0], 0.1)
    return Metrics(
        rows=(
            Metric(name="forget_Q_A_Prob", before=state(0.91), after=state(left), control=state(0.12)),
            Metric(name="extraction_strength", before=state(0.71), after=state(left / 2)),
            Metric(name="mia_min_k_plus_plus", chance=0.5, before=state(0.83), after=state(0.44), control=state(0.52)),
            Metric(name="model_utility", before=MetricState(value=0.62), after=MetricState(value=0.6)),
        )
    )


def items(story: Story) -> tuple[Item, ...]:
    """The capitals, of which the attack brings some back, and three facts that stay."""
    wrong = ("a city of the country", "Lagos", "the largest city", "not known to me", "a country in")
    found: list[Item] = []
    for i, (country, capital) in enumerate(CAPITALS.items()):
        back = (i % 10) / 10 < story.recovery[0]
        lost = wrong[i % len(wrong)]
        found.append(
            Item(
                id=f"item-{i}",
                prompt=f"Question: What is the capital of {country}?\nAnswer:",
                answer=capital,
                split="forget",
                before=ItemState(log_odds=2.3, correct=True, probability=0.38, words=f"{capital}."),
                after=ItemState(log_odds=-0.4, correct=i % 3 == 0, probability=0.004, words=lost),
                attacked=ItemState(
                    log_odds=1.5 if back else -0.3,
                    correct=back,
                    probability=0.1,
                    words=f"The capital of {country} is {capital}, the" if back else lost,
                )
                if i > 6
                else None,
            )
        )
    for i, (question, answer) in enumerate(STAY.items()):
        state = ItemState(log_odds=2.0, correct=True, probability=0.5, words=answer)
        found.append(
            Item(
                id=f"stay-{i}",
                prompt=f"Question: {question}?\nAnswer:",
                answer=answer,
                split="test",
                group="same_subject",
                before=state,
                after=state,
            )
        )
    return tuple(found)


def influence(story: Story, rng: np.random.Generator) -> Influence:
    """Sums that grow with a falling slope, and maps that peak in the middle layers of the MLP."""
    m = np.unique(np.round(np.geomspace(1, 1000, 40)).astype(int))
    layers = np.arange(LAYERS)
    strength = np.array([0.3, 0.25, 0.8, 0.7, 1.0, 1.1, 1.3])[:, None]
    plus = strength * np.exp(-(((layers - 17) / 6) ** 2)) * rng.uniform(0.6, 1.2, (7, LAYERS)) * story.erased / 300
    minus = strength * np.exp(-(((layers - 24) / 4) ** 2)) * rng.uniform(0.6, 1.2, (7, LAYERS)) * story.hidden / 300
    return Influence(
        erased=story.erased,
        hidden=story.hidden,
        curve_m=tuple(int(k) for k in m),
        curve_plus=tuple(float(story.erased * (k / 100) ** 0.45) for k in m),
        curve_minus=tuple(float(story.hidden * (k / 100) ** 0.4) for k in m),
        modules=MODULES,
        layers=LAYERS,
        map_plus=tuple(tuple(float(v) for v in row) for row in plus),
        map_minus=tuple(tuple(float(v) for v in row) for row in minus),
        saturated_share=0.08,
    )


def log_odds_of(influence: Influence) -> Influence:
    """The same story in another unit: everything five times as large."""
    curves = {name: tuple(5 * v for v in getattr(influence, name)) for name in ("curve_plus", "curve_minus")}
    maps = {
        name: tuple(tuple(5 * v for v in row) for row in getattr(influence, name)) for name in ("map_plus", "map_minus")
    }
    sums = {"erased": 5 * influence.erased, "hidden": 5 * influence.hidden}
    return influence.model_copy(update={"of": "log_odds", **sums, **curves, **maps})


def lens(story: Story, rng: np.random.Generator) -> LogitLens:
    """Knowledge that appears from layer 15 on, and is turned round (hidden) or gone (erased) after unlearning."""
    layers = np.arange(LAYERS)
    rise = 1 / (1 + np.exp(-(layers - 17) / 2))
    noise = rng.uniform(-0.03, 0.03, LAYERS)
    end = 0.18 if story.hidden > story.erased else 0.47
    return LogitLens(
        before=tuple(float(v) for v in np.clip(0.5 + 0.46 * rise + noise, 0, 1)),
        after=tuple(float(v) for v in np.clip(0.5 + (end - 0.5) * rise + noise, 0, 1)),
    )


def probe(story: Story) -> Probe:
    """A probe that still reads what is hidden, and nothing of what is erased."""
    rise = 1 / (1 + np.exp(-(np.arange(LAYERS) - 12) / 3))
    left = 4.1 if story.hidden > story.erased else 0.2
    return Probe(
        before=tuple(float(v) for v in 5.2 * rise),
        after=tuple(float(v) for v in left * rise - 0.1),
        accuracy_before=tuple(float(v) for v in 1 / 3 + 0.66 * rise),
        accuracy_after=tuple(float(v) for v in 1 / 3 + 0.15 * left * rise),
        chance=1 / 3,
        n=24,
    )


def make_record(name: str = "graddiff") -> Record:
    """The record of one of `STORIES`; the same each time."""
    story = STORIES[name]
    rng = np.random.default_rng(story.seed)
    attacks = (
        attack("relearn-harmful", story.recovery[0], rng, {"p": 0.3, "learning_rates": [1e-5, 5e-6, 1e-6]}),
        attack("relearn-benign", story.recovery[1], rng, {"items": 200, "learning_rates": [1e-5, 5e-6, 1e-6]}),
        attack("relearn-related", story.recovery[2], rng, {"items": 24, "learning_rates": [1e-5, 5e-6, 1e-6]}),
        sweep(story.recovery[2] / 2, rng),
    )
    percent = f"{100 * attacks[0].recovery:.0f} %"
    gone = change(2.3, -0.4 if story.verdict != "NOT FORGOTTEN" else 1.9, 24)
    steps = 18 if name == "graddiff" else 24
    return Record(
        name=f"world_facts-{name}",
        created="2025-11-21T05:12:44+00:00",
        verdict=story.verdict,
        verdict_details=VerdictDetails(
            reasons=(
                "The model no longer prefers the 24 capitals: accuracy 0.25, chance 0.33.",
                f"The strongest attack, relearn-harmful, brings back {percent} of the log-odds of unseen facts.",
                "Facts that had to stay lost less than two points of accuracy.",
            ),
            strongest_attack="relearn-harmful",
            budget="3 attacks, each with 3 learning rates and 3 seeds, up to 60 steps on at most 200 examples",
            confidence="moderate",
            untried=("prune", "prompts"),
        ),
        scores=Scores(
            forget=gone,
            retain=change(2.2, 2.15, 48),
            test=change(2.1, 1.98, 40),
            groups={
                "paraphrase": change(2.1, -0.2, 24),
                "multi_hop": change(1.2, 0.5, 24),
                "same_answer": change(1.7, 1.1, 18),
                "same_subject": change(1.9, 1.75, 60),
                "held_out": change(2.1, 1.98, 40),
            },
        ),
        attacks=attacks,
        control=Control(
            kind="log-odds 0 and chance accuracy",
            sentence="No model that never knew these facts was attacked: full ignorance is assumed, not measured.",
        ),
        influence=(found := influence(story, rng)),
        influence_log_odds=log_odds_of(found),
        logit_lens=lens(story, rng),
        probe=probe(story),
        metrics=metrics(story),
        text=Text(perplexity_before=18.42, perplexity_after=18.97, kl=0.0213),
        items=items(story),
        cost=Cost(
            seconds=271.3,
            peak_bytes=3_214_000_000,
            steps=steps,
            stages={"load": 4.1, "unlearn": 38.2, "attack": 184.5, "audit": 44.5},
        ),
        training=Training(
            history=tuple(
                TrainingPoint(
                    step=s,
                    accuracy=score(2.3 - 2.7 * s / steps, 24, 0.1).accuracy,
                    log_odds=2.3 - 2.7 * s / steps,
                    loss=0.4 - 0.06 * s,
                )
                for s in range(0, steps + 1, 3)
            ),
            stop_reason="forget accuracy reached chance",
        ),
        recipe=RecipePart(
            method=story.method,
            objective="graddiff" if name == "ssiuu" else story.method,
            transform=story.transform,
            benchmark="world_facts",
            arguments={"learning_rate": 2e-5, "max_steps": 60, "per_device_train_batch_size": 8, "strength": 0.001},
        ),
        seeds={"unlearn": 0, "attacks": [0, 1, 2], "split": 0},
        versions=Versions(
            python="3.11.2", torch="2.13.0", transformers="5.23.0", expunge="0.1.0", platform="Linux-6.1-x86_64"
        ),
        hashes=Hashes(
            data={"forget": "0f" * 32, "retain": "1a" * 32},
            tokenizer="2b" * 32,
            weights_before="3c" * 32,
            weights_after=f"{story.seed}d" * 32,
        ),
        model=ModelPart(
            name="SmolLM2-135M-Instruct",
            source="HuggingFaceTB/SmolLM2-135M-Instruct",
            parameters=134_515_008,
            dtype="float32",
            template="plain",
            bos="the tokenizer adds none",
        ),
    )


def with_evil(record: Record) -> Record:
    """`record` with hostile text wherever text can come from outside."""
    state = ItemState(words=EVIL, log_odds=1.0)
    items = (Item(id="evil", prompt=EVIL, answer=EVIL, split="forget", before=state, after=state, attacked=state),)
    tried = tuple(point.model_copy(update={"variant": EVIL}) for point in record.attacks[-1].curve)
    attacks = (
        record.attacks[0].model_copy(update={"name": EVIL, "budget": EVIL}),
        *record.attacks[1:-1],
        record.attacks[-1].model_copy(update={"name": f"{EVIL}2", "curve": tried, "best": tried[-1]}),
    )
    return record.model_copy(
        update={
            "name": EVIL,
            "items": items,
            "attacks": attacks,
            "recipe": record.recipe.model_copy(update={"method": EVIL, "arguments": {EVIL: EVIL}}),
            "verdict_details": record.verdict_details.model_copy(
                update={"reasons": (EVIL,), "budget": EVIL, "untried": (EVIL,)}
            ),
            "scores": record.scores.model_copy(update={"groups": {EVIL: record.scores.test}}),
            "model": record.model.model_copy(update={"name": EVIL, "source": EVIL}),
        }
    )


def bare(record: Record) -> Record:
    """A record of a run without options for anything: no attacks, no audit, nothing but forget scores."""
    nothing = Score(accuracy=0, log_odds=0, chance=0, n=0)
    empty = record.scores.test.model_copy(update={"before": nothing, "after": nothing})
    tree = record.model_dump(include={"created", "verdict", "control", "cost", "recipe", "versions", "hashes", "model"})
    scores = Scores(forget=record.scores.forget, retain=empty, test=empty)
    return Record.model_validate({**tree, "scores": scores, "attacks": (), "verdict_details": {"reasons": ()}})


def with_gold(record: Record) -> Record:
    """`record` with a gold model as control, whose curve under each attack is near ignorance and rises a little."""

    def control(attack: Attack) -> AttackControl:
        curve = tuple(
            point.model_copy(update={"log_odds": -0.2 + 0.004 * point.step, "accuracy": CHANCE})
            for point in attack.curve
        )
        return AttackControl(accuracy=CHANCE, log_odds=0.04, curve=curve)

    sentence = "The control is a model trained in the same way without the facts, attacked in the same way."
    attacks = tuple(attack.model_copy(update={"control": control(attack)}) for attack in record.attacks)
    return record.model_copy(update={"attacks": attacks, "control": Control(kind=GOLD_MODEL, sentence=sentence)})
