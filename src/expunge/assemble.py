"""Record of a run out of its parts: two measured models, the attacks, the control, the training."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, Literal

import torch
import transformers

from expunge import __version__
from expunge.attacks.base import AttackResult
from expunge.attacks.base import CurvePoint as AttackPoint
from expunge.audit.attribution import Attribution
from expunge.audit.control import Recovery, recovery, residual
from expunge.audit.evidence import Evidence, Tried, gather
from expunge.audit.influence import compare
from expunge.audit.memorization import memorization
from expunge.audit.probe import Probed
from expunge.audit.verdict import decide
from expunge.data.example import Example
from expunge.measure import Measured
from expunge.models.scores import ItemScore
from expunge.recipe import Recipe
from expunge.report import record as schema
from expunge.request import Request
from expunge.unlearning.methods import Method

Kind = Literal["gold model", "log-odds 0 and chance accuracy"]

SENTENCES: dict[Kind, str] = {
    "gold model": "The control was trained like the original, never saw the forgotten facts, and was attacked alike.",
    "log-odds 0 and chance accuracy": (
        "No model that never knew these facts is at hand: recovery is measured against ignorance (log-odds 0, accuracy "
        "at chance), which part of what any model would guess after the attack counts as recovered."
    ),
}


@dataclass(frozen=True)
class Parts:
    """Everything that a record is made of.

    Args:
        control: scores of the control on the forget items, None without one.
        attacks: each with the same attack on the control, or None.
        training: what `training.json` holds.
        stages: seconds of each stage.
    """

    recipe: Recipe
    request: Request
    method: Method
    before: Measured
    after: Measured
    attacks: Sequence[tuple[AttackResult, AttackResult | None]]
    control: Sequence[ItemScore] | None
    training: dict[str, Any]
    stages: dict[str, float]
    peak_bytes: int


def assemble(parts: Parts) -> schema.Record:
    """The record; the verdict is decided here, from the evidence in it."""
    before, after = parts.before.snapshot, parts.after.snapshot
    recoveries = [recovery(result, before.forget, control) for result, control in parts.attacks]
    left = residual(after.forget, before.forget, parts.control)
    verdict = decide(_evidence(parts, recoveries, left))
    kind: Kind = "gold model" if parts.control is not None else "log-odds 0 and chance accuracy"
    strongest = _strongest(parts, verdict.strongest_attack)
    return schema.Record(
        name=parts.request.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict.label,
        verdict_details=schema.VerdictDetails(
            reasons=verdict.reasons,
            strongest_attack=verdict.strongest_attack,
            budget=str(verdict.budget),
            confidence=verdict.confidence,
        ),
        scores=_scores(parts),
        attacks=tuple(
            _attack(result, control, share) for (result, control), share in zip(parts.attacks, recoveries, strict=True)
        ),
        control=schema.Control(kind=kind, sentence=SENTENCES[kind]),
        influence=_influence(before.attribution, after.attribution, "probability"),
        influence_log_odds=_influence(before.attribution, after.attribution, "log_odds"),
        logit_lens=schema.LogitLens(before=before.lens, after=after.lens) if before.lens and after.lens else None,
        probe=_probe(before.probe, after.probe),
        text=_text(parts),
        items=_items(parts, strongest),
        cost=schema.Cost(
            seconds=sum(parts.stages.values()),
            peak_bytes=parts.peak_bytes,
            steps=parts.training["steps"],
            stages=parts.stages,
        ),
        training=_training(parts.training),
        recipe=_recipe(parts),
        seeds={
            "unlearning": parts.recipe.seed,
            "data": parts.recipe.data.seed,
            "attacks": list(dict.fromkeys(point.seed for result, _ in parts.attacks for point in result.curve)),
        },
        versions=schema.Versions(
            python=platform.python_version(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            expunge=__version__,
            platform=platform.platform(terse=True),
        ),
        hashes=schema.Hashes(
            data=parts.request.hashes(),
            tokenizer=parts.before.tokenizer,
            weights_before=parts.before.weights,
            weights_after=parts.after.weights,
        ),
        model=parts.before.part,
    )


def _evidence(parts: Parts, recoveries: Sequence[Recovery], left: Recovery) -> Evidence:
    tried = [
        Tried(result.name, share, result.spent) for (result, _), share in zip(parts.attacks, recoveries, strict=True)
    ]
    return gather(parts.before.snapshot, parts.after.snapshot, left, tried)


def _score(items: Sequence[ItemScore], rouge_l: Sequence[float] = ()) -> schema.Score:
    """Means and bounds of one set; n = 0 where there is nothing."""
    if not items:
        return schema.Score(accuracy=0, log_odds=0, chance=0, n=0)
    told = memorization(items, rouge_l)
    odds = told.log_odds
    return schema.Score(
        accuracy=told.accuracy.value,
        accuracy_low=told.accuracy.low,
        accuracy_high=told.accuracy.high,
        log_odds=odds.value if odds else 0.0,
        log_odds_low=odds.low if odds else None,
        log_odds_high=odds.high if odds else None,
        chance=told.accuracy.chance or 0.0,
        probability=told.probability.value,
        rouge_l=fmean(rouge_l) if rouge_l else None,
        n=len(items),
    )


def _scores(parts: Parts) -> schema.Scores:
    before, after = parts.before.snapshot, parts.after.snapshot

    def change(one: Sequence[ItemScore], other: Sequence[ItemScore]) -> schema.Change:
        return schema.Change(before=_score(one), after=_score(other))

    groups = {name: change(items, after.test[name]) for name, items in before.test.items() if items}
    empty = change((), ())
    return schema.Scores(
        forget=schema.Change(
            before=_score(before.forget, list(before.rouge_l.values())),
            after=_score(after.forget, list(after.rouge_l.values())),
        ),
        retain=change(before.retain, after.retain),
        test=groups.get("held_out", next(iter(groups.values()), empty)),
        groups=groups,
    )


def _point(point: AttackPoint) -> schema.CurvePoint:
    return schema.CurvePoint(
        learning_rate=point.learning_rate,
        seed=point.seed,
        step=point.step,
        examples_seen=point.examples_seen,
        accuracy=point.accuracy,
        log_odds=point.log_odds,
        variant=point.variant,
    )


def _attack(result: AttackResult, control: AttackResult | None, share: Recovery) -> schema.Attack:
    told = memorization(result.items)
    start = result.start
    odds = told.log_odds
    return schema.Attack(
        name=result.name,
        accuracy=result.best_accuracy.accuracy,
        accuracy_low=told.accuracy.low,
        accuracy_high=max(told.accuracy.high, result.best_accuracy.accuracy),
        log_odds=result.best.log_odds,
        log_odds_low=odds.low if odds else None,
        log_odds_high=odds.high if odds else None,
        recovery=share.value,
        recovery_low=share.low,
        recovery_high=share.high,
        chance=start.chance,
        control=schema.AttackControl(
            accuracy=min(max(share.control_accuracy, 0.0), 1.0),
            log_odds=share.control_log_odds,
            curve=tuple(_point(point) for point in control.curve) if control else (),
        ),
        start=schema.Score(**asdict(start)),
        best=_point(result.best),
        curve=tuple(_point(point) for point in result.curve),
        settings=json.loads(json.dumps(result.settings)),
        budget=str(result.allowed),
        rho=result.rho,
        samples=result.samples,
        seconds=result.seconds,
    )


def _influence(before: Attribution | None, after: Attribution | None, of: str) -> schema.Influence | None:
    """D+ and D- of P(answer) or of its log-odds; None where the family is unknown."""
    if before is None or after is None:
        return None
    told = compare(before.in_terms_of(of), after.in_terms_of(of)).to_json()
    own = {key: value for key, value in told.items() if key in schema.Influence.model_fields}
    return schema.Influence(**own, layers=before.layout.layers)


def _probe(before: Probed | None, after: Probed | None) -> schema.Probe | None:
    """What the probes read in both models; None where they could not ask."""
    if before is None or after is None:
        return None
    return schema.Probe(
        before=before.log_odds,
        after=after.log_odds,
        accuracy_before=before.accuracy,
        accuracy_after=after.accuracy,
        chance=after.chance,
        n=after.n,
    )


def _text(parts: Parts) -> schema.Text:
    before, after = parts.before.snapshot.text, parts.after.snapshot.text
    if before is None or after is None:
        return schema.Text()
    return schema.Text(perplexity_before=before.perplexity, perplexity_after=after.perplexity, kl=after.kl)


def _strongest(parts: Parts, name: str) -> AttackResult | None:
    """The attack that the verdict names, or else the one of the highest log-odds."""
    results = [result for result, _ in parts.attacks]
    named = [result for result in results if result.name == name]
    return next(iter(named), max(results, key=lambda result: result.best.log_odds, default=None))


def _items(parts: Parts, strongest: AttackResult | None) -> tuple[schema.Item, ...]:
    """Forget items with the model's words, then every scored item that had to stay or was tested."""
    before, after = parts.before.snapshot, parts.after.snapshot
    attacked = {item.id: item for item in strongest.items} if strongest else {}
    words = strongest.samples if strongest else {}
    known: dict[str, Example] = {e.id: e for e in (*parts.request.forget, *parts.request.retain)}
    rows = [("forget", "", one, other) for one, other in zip(before.forget, after.forget, strict=True)]
    rows += [("retain", "", one, other) for one, other in zip(before.retain, after.retain, strict=True)]
    for group, items in before.test.items():
        known |= {example.id: example for example in parts.request.test[group]}
        rows += [("test", group, one, other) for one, other in zip(items, after.test[group], strict=True)]
    return tuple(
        schema.Item(
            id=one.id,
            prompt=known[one.id].prompt,
            answer=known[one.id].answer,
            split=split,
            group=group,
            before=_state(one, before.samples.get(one.id, "") if split == "forget" else ""),
            after=_state(other, after.samples.get(one.id, "") if split == "forget" else ""),
            attacked=_state(attacked[one.id], words.get(one.id, ""))
            if split == "forget" and one.id in attacked
            else None,
        )
        for split, group, one, other in rows
    )


def _state(item: ItemScore, words: str) -> schema.ItemState:
    return schema.ItemState(log_odds=item.log_odds, correct=item.correct, probability=item.probability, words=words)


def _training(training: dict[str, Any]) -> schema.Training:
    """The steps at which the forget items were scored."""
    return schema.Training(
        history=tuple(
            schema.TrainingPoint(
                step=step["step"],
                accuracy=step["forget_accuracy"],
                log_odds=step.get("forget_log_odds", 0.0),
                loss=step.get("loss"),
            )
            for step in training["history"]
            if step.get("forget_accuracy") is not None and math.isfinite(step["forget_accuracy"])
        ),
        stop_reason=training["stop_reason"],
    )


def _recipe(parts: Parts) -> schema.RecipePart:
    method, recipe = parts.method, parts.recipe
    return schema.RecipePart(
        method=recipe.method,
        objective=repr(method.objective),
        transform=", ".join(map(repr, method.transforms)),
        parametrization=repr(method.parametrization),
        benchmark=recipe.data.benchmark or "",
        arguments=json.loads(json.dumps({**parts.training["arguments"], **recipe.settings})),
    )
