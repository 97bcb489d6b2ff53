"""Record of a run out of its parts: two measured models, the attacks, the control, the training."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from statistics import fmean
from typing import Any, Literal

import torch
import transformers

from expunge import __version__
from expunge.attacks.base import AttackResult
from expunge.attacks.base import CurvePoint as AttackPoint
from expunge.attacks.catalogue import has_own_scale, untried, why_no_evidence
from expunge.audit.attribution import Attribution
from expunge.audit.control import Recovery, recovery, residual
from expunge.audit.evidence import Evidence, Tried, gather
from expunge.audit.influence import compare
from expunge.audit.lm_eval import Link
from expunge.audit.memorization import memorization
from expunge.audit.metrics import metrics
from expunge.audit.probe import Probed
from expunge.audit.snapshot import Snapshot
from expunge.audit.verdict import Rule
from expunge.basis import Basis, Tries, uncounted
from expunge.measure import Measured
from expunge.models.scores import ItemScore
from expunge.recipe import Plan
from expunge.report import record as schema
from expunge.request import Request, had_to_go

Kind = Literal["gold model", "made-up subjects", "log-odds 0 and chance accuracy"]

UNSAID = 0.2
"""Share of the words of retained answers (ROUGE-L) from whose loss on a reason of the verdict tells of it."""

SENTENCES: dict[Kind, str] = {
    "gold model": "The control was trained like the original, never saw the forgotten facts, and was attacked alike.",
    "made-up subjects": (
        "The control is the same questions about subjects that do not exist, put to the attacked model at the same "
        "moment or, where more is recovered that way, ignorance (log-odds 0, accuracy at chance)."
    ),
    "log-odds 0 and chance accuracy": (
        "No model that never knew these facts is at hand: recovery is measured against ignorance (log-odds 0, accuracy "
        "at chance), which part of what any model would guess after the attack counts as recovered."
    ),
}


@dataclass(frozen=True)
class Parts:
    """Everything that a record is made of.

    Args:
        recipe: how the model was made.
        basis: what it is compared with.
        attacks: on it and on the control.
        control: the model that never knew, None without one.
        training: what `training.json` holds.
        stages: seconds of each stage.
        seeds: of all but the attacks.
        lm_eval: what lm-eval left in the run's folder, None where it was not asked.
        worn: attacks on the original, by name.
    """

    plan: Plan
    request: Request
    recipe: schema.RecipePart
    basis: Basis
    after: Measured
    attacks: Tries
    control: Snapshot | None
    training: dict[str, Any]
    stages: dict[str, float]
    seeds: dict[str, int]
    peak_bytes: int
    lm_eval: Link | None = None
    worn: Mapping[str, AttackResult] = field(default_factory=dict)

    @property
    def before(self) -> Measured:
        """The original."""
        return self.basis.measured


def assemble(parts: Parts) -> schema.Record:
    """The record; the verdict is decided here, from the evidence in it.

    An attack that finds answers by itself is no evidence without a control: it stands in the record and is told of
    among the reasons.
    """
    before, after = parts.before.snapshot, parts.after.snapshot
    recoveries = [recovery(result, before.forget, control, twins=before.twins) for result, control in parts.attacks]
    left = residual(after.forget, before.forget, parts.control.forget if parts.control else None)
    counted = [not why_no_evidence(result, control is not None) for result, control in parts.attacks]
    evidence = _evidence(parts, [share if own else None for share, own in zip(recoveries, counted, strict=True)], left)
    results = [result for (result, _), own in zip(parts.attacks, counted, strict=True) if own]
    verdict = parts.basis.judge(evidence, results)
    told = _metrics(parts)
    shares = {result.name: share.value for (result, _), share in zip(parts.attacks, recoveries, strict=True)}
    strongest = _strongest(results or [result for result, _ in parts.attacks], shares, verdict.strongest_attack)
    return schema.Record(
        name=parts.request.name,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        verdict=verdict.label,
        verdict_details=schema.VerdictDetails(
            reasons=(*verdict.reasons, *unsaid(told), *uncounted(parts.attacks)),
            strongest_attack=verdict.strongest_attack,
            budget=str(verdict.budget),
            confidence=verdict.confidence,
            hidden_above=Rule.hidden,
            erased_below=Rule.erased,
            untried=untried(result.name for result, _ in parts.attacks),
        ),
        scores=_scores(parts),
        attacks=tuple(
            _attack(result, control, share, _left(parts, result, control))
            for (result, control), share in zip(parts.attacks, recoveries, strict=True)
        ),
        control=_control(parts, recoveries),
        influence=_influence(before.attribution, after.attribution, "probability"),
        influence_log_odds=_influence(before.attribution, after.attribution, "log_odds"),
        logit_lens=schema.LogitLens(before=before.lens, after=after.lens) if before.lens and after.lens else None,
        probe=_probe(before.probe, after.probe),
        text=_text(parts),
        metrics=told,
        items=_items(parts, strongest),
        cost=schema.Cost(
            seconds=sum(parts.stages.values()),
            peak_bytes=parts.peak_bytes,
            steps=parts.training["steps"],
            stages=parts.stages,
        ),
        training=_training(parts.training),
        recipe=parts.recipe,
        seeds={
            **parts.seeds,
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
            tokenizer=parts.before.tokenizer or parts.after.tokenizer,
            weights_before=parts.before.weights,
            weights_after=parts.after.weights,
        ),
        model=parts.before.part,
    )


def _control(parts: Parts, recoveries: Sequence[Recovery]) -> schema.Control:
    kind: Kind = "log-odds 0 and chance accuracy"
    if parts.control is not None:
        kind = "gold model"
    elif any(result.twin_ids for result, _ in parts.attacks):
        kind = "made-up subjects"
    notes = dict.fromkeys(share.note for share in recoveries if share.note)
    return schema.Control(kind=kind, sentence=" ".join(filter(None, (parts.basis.note, SENTENCES[kind], *notes))))


def _evidence(parts: Parts, recoveries: Sequence[Recovery | None], left: Recovery) -> Evidence:
    tried = [
        Tried(result.name, share, result.spent)
        for (result, _), share in zip(parts.attacks, recoveries, strict=True)
        if share is not None
    ]
    return gather(parts.before.snapshot, parts.after.snapshot, left, tried, parts.control)


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

    groups = {name: change(before.test.get(name, ()), items) for name, items in after.test.items() if items}
    empty = change((), ())
    return schema.Scores(
        forget=schema.Change(
            before=_score(before.forget, list(before.rouge_l.values())),
            after=_score(after.forget, list(after.rouge_l.values())),
        ),
        retain=change(before.retain, after.retain),
        test=groups.get("held_out", next((own for name, own in groups.items() if not had_to_go(name)), empty)),
        groups=groups,
    )


def _point(point: AttackPoint, share: float | None = None, original: float | None = None) -> schema.CurvePoint:
    told = {key: value for key, value in asdict(point).items() if key in schema.CurvePoint.model_fields}
    return schema.CurvePoint(**told, recovery=share, original=original)


def _left(parts: Parts, result: AttackResult, control: AttackResult | None) -> dict[str, float]:
    """R of the original under the same attack, by variant: what is left of what it knew; empty where not made."""
    worn = parts.worn.get(result.name)
    if worn is None or worn.settings != result.settings:
        return {}
    share = recovery(worn, parts.before.snapshot.forget, control)
    return {p.variant: r for p, r in zip(worn.curve, share.curve, strict=True)} if share.known else {}


def _attack(
    result: AttackResult, control: AttackResult | None, share: Recovery, left: Mapping[str, float]
) -> schema.Attack:
    told = memorization(result.items)
    odds = told.log_odds
    scaled = not has_own_scale(result.name)
    return schema.Attack(
        name=result.name,
        accuracy=result.best_accuracy.accuracy,
        accuracy_low=told.accuracy.low,
        accuracy_high=max(told.accuracy.high, result.best_accuracy.accuracy),
        log_odds=result.best.log_odds,
        log_odds_low=odds.low if odds else None,
        log_odds_high=odds.high if odds else None,
        recovery=share.value,
        recovery_low=share.low if scaled else None,
        recovery_high=share.high if scaled else None,
        chance=result.start.chance,
        control=schema.AttackControl(
            accuracy=min(max(share.control_accuracy, 0.0), 1.0),
            log_odds=share.control_log_odds,
            curve=tuple(_point(point) for point in control.curve) if control else (),
        ),
        start=schema.Score(**asdict(result.start)),
        best=_point(result.best),
        curve=tuple(_point(p, back, left.get(p.variant)) for p, back in zip(result.curve, share.curve, strict=True)),
        settings=json.loads(json.dumps(result.settings)),
        budget=str(result.allowed),
        rho=result.rho,
        samples=result.samples,
        seconds=result.seconds,
        notes=result.notes,
        counts=not why_no_evidence(result, control is not None),
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
    return schema.Text(
        perplexity_before=before.perplexity if before else None,
        perplexity_after=after.perplexity if after else None,
        kl=after.kl if after else None,
    )


def _metrics(parts: Parts) -> schema.Metrics | None:
    """All metrics of memorisation, membership and utility."""
    before, after = parts.before.snapshot, parts.after.snapshot
    if after.reading is None:
        return None
    control = parts.control.reading if parts.control else None
    found = metrics(before.reading, after.reading, control, (before.text, after.text))
    link = schema.LmEval(**parts.lm_eval.to_json()) if parts.lm_eval else None
    return schema.Metrics(**found.to_json(), lm_eval=link)


def unsaid(told: schema.Metrics | None) -> list[str]:
    """That retained answers are no longer said, which their accuracy among options need not show; in words."""
    rows = [row for row in told.rows if row.name == "retain_Q_A_ROUGE"] if told else []
    pairs = [(row.before.value, row.after.value) for row in rows if row.before and row.after]
    return [
        f"Asked for what had to stay, it says {after:.0%} of the words of the answers (ROUGE-L), where it said "
        f"{before:.0%}: accuracy among options need not show that."
        for before, after in pairs
        if before is not None and after is not None and after < (1 - UNSAID) * before
    ]


def _strongest(results: Sequence[AttackResult], shares: Mapping[str, float], name: str) -> AttackResult | None:
    """The attack that the verdict names, or else the one that brought back most, as in `Record.strongest`."""
    named = [result for result in results if result.name == name]
    return next(iter(named), max(results, key=lambda result: shares[result.name], default=None))


def _items(parts: Parts, strongest: AttackResult | None) -> tuple[schema.Item, ...]:
    """Forget items with the model's words, then every scored item that had to stay or was tested."""
    before, after = parts.before.snapshot, parts.after.snapshot
    attacked = {item.id: item for item in strongest.items} if strongest else {}
    words = strongest.samples if strongest else {}
    rows = []
    for split, group, old, new, examples in (
        ("forget", "", before.forget, after.forget, parts.request.forget),
        ("retain", "", before.retain, after.retain, parts.request.retain),
        *(("test", name, before.test.get(name, ()), own, parts.request.test[name]) for name, own in after.test.items()),
    ):
        asked, earlier = {example.id: example for example in examples}, {item.id: item for item in old}
        rows += [(split, group, asked[item.id], earlier.get(item.id), item) for item in new]
    return tuple(
        schema.Item(
            id=example.id,
            prompt=example.prompt,
            answer=example.answer,
            split=split,
            group=group,
            before=_state(one, before.samples.get(example.id, "") if split == "forget" else ""),
            after=_state(other, after.samples.get(example.id, "") if split == "forget" else ""),
            attacked=_state(attacked[example.id], words.get(example.id, ""))
            if split == "forget" and example.id in attacked
            else None,
        )
        for split, group, example, one, other in rows
    )


def _state(item: ItemScore | None, words: str) -> schema.ItemState:
    if item is None:
        return schema.ItemState()
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
