"""Every metric of memorisation, membership and utility, under its name in OpenUnlearning or TOFU; docs/metrics.md.

A metric is a number per model with the values of its items, a 95 % bootstrap interval over them, and its value at
chance: that of a model to which every next token is equally likely, or, where two things are told apart, of a coin.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.audit.extraction import chance_of_strength, exact_memorization, extraction_strength
from expunge.audit.intervals import Indices, bootstrap
from expunge.audit.membership import auc, auc_interval, membership_scores, privleak, privleak_interval
from expunge.audit.memorization import Measure
from expunge.audit.reading import Reading, Sheet
from expunge.audit.tofu import ks_p_value, model_utility
from expunge.audit.truth_ratio import closer_to_one, true_better
from expunge.models.answers import TextStatistics
from expunge.models.scores import ItemScore

Measures = dict[str, Measure]
PRIVLEAK_BY = "mia_min_k"


@dataclass(frozen=True)
class Metric:
    """One metric of the model before and after unlearning, and of the control; None where it was not measured."""

    name: str
    before: Measure | None
    after: Measure | None
    control: Measure | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is not a number is None."""
        measures = {"before": self.before, "after": self.after, "control": self.control}
        chances = [measure.chance for measure in measures.values() if measure is not None]
        return {
            "name": self.name,
            "chance": next(iter(chances), None),
            **{when: _plain(measure) if measure else None for when, measure in measures.items()},
        }


@dataclass(frozen=True)
class Metrics:
    """All metrics, and what their items are: see `expunge.report.parts.Metrics`."""

    rows: tuple[Metric, ...]
    forget: tuple[str, ...]
    others: tuple[str, ...]
    non_members: str
    reference: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        own = {name: value for name, value in vars(self).items() if name != "rows"}
        return {"rows": [row.to_json() for row in self.rows], **own}


def metrics(
    before: Reading | None,
    after: Reading,
    control: Reading | None = None,
    texts: tuple[TextStatistics | None, TextStatistics | None] = (None, None),
) -> Metrics:
    """All metrics that can be computed, in the order of docs/metrics.md.

    Args:
        before: the original model, None where it is not at hand; the reference of `mia_reference` without a control.
        after: the unlearned model.
        control: a model that never saw the forget items, with which forget quality and privleak compare.
        texts: statistics on plain text of the models before and after.
    """
    columns = (
        told(before, control, control) | language(texts[0], before.vocabulary) if before else {},
        told(after, control or before, control) | language(texts[1], after.vocabulary),
        told(control, None, control) if control else {},
    )
    # Those of `after` come first, as it has them all.
    names = dict.fromkeys(chain(columns[1], columns[0], columns[2]))
    return Metrics(
        rows=tuple(Metric(name, *(column.get(name) for column in columns)) for name in names),
        forget=after.forget.ids,
        others=tuple(item.id for item in after.others),
        non_members=after.non_members,
        reference=_reference(before, control) if after.others else "",
    )


def _reference(before: Reading | None, control: Reading | None) -> str:
    """Which model `mia_reference` compares with."""
    return "control" if control else "original" if before else ""


def told(reading: Reading, reference: Reading | None, retrained: Reading | None) -> Measures:
    """The metrics of one model.

    Args:
        reference: of the membership score that compares losses; without it that one is left out.
        retrained: what forget quality and privleak compare with; without it there is no forget quality, and privleak
            takes an AUC of 0.5.
    """
    found = _memorization(reading) | _membership(reading, reference, retrained)
    if retrained is not None:
        found |= _forget_quality(reading.forget, retrained.forget)
    for prefix, sheet in reading.stays.items():
        found |= _stays(prefix, sheet, reading.vocabulary)
    return found | _utility(found, reading)


def language(text: TextStatistics | None, vocabulary: int) -> Measures:
    """Perplexity and, against the original, the KL divergence; their items are the passages."""
    if text is None or not text.passages:
        return {}
    nll, kl, tokens = np.array(text.passages).T

    def per_token(sums: NDArray[np.float64], chosen: Indices) -> float:
        return float(sums[chosen].sum() / tokens[chosen].sum())

    low, high = bootstrap(lambda chosen: per_token(nll, chosen), [len(nll)])
    each = tuple(map(_exp, (nll / tokens).tolist()))
    found = {"perplexity": Measure(text.perplexity, _exp(low), _exp(high), float(vocabulary), each)}
    if text.kl is not None:
        bounds = bootstrap(lambda chosen: per_token(kl, chosen), [len(kl)])
        found["kl"] = Measure(text.kl, *bounds, None, tuple((kl / tokens).tolist()))
    return found


def _memorization(reading: Reading) -> Measures:
    sheet, guess = reading.forget, 1 / reading.vocabulary
    lengths = [len(item.hits) for item in reading.members]
    found = {}
    if any(item.option_log_probs for item in sheet.items):
        found["forget_accuracy"] = Measure.of(
            [float(item.correct) for item in sheet.items], fmean(item.chance for item in sheet.items)
        )
    found |= {
        "forget_Q_A_Prob": Measure.of(_probabilities(sheet.items), guess),
        "forget_Q_A_ROUGE": Measure.of(sheet.rouge_l, 0.0),
        "exact_memorization": Measure.of([exact_memorization(item.hits) for item in reading.members], guess),
        "extraction_strength": Measure.of(
            [extraction_strength(item.hits) for item in reading.members],
            fmean(chance_of_strength(n, reading.vocabulary) for n in lengths),
        ),
    }
    return found | _of_known("forget_Truth_Ratio", list(map(closer_to_one, sheet.log_truth)), 1.0)


def _forget_quality(own: Sheet, retrained: Sheet) -> Measures:
    """Without an interval, as a p-value already says how likely chance is; the items have their log R."""
    pair = [[value for value in sheet.log_truth if not math.isnan(value)] for sheet in (own, retrained)]
    if not all(pair):
        return {}
    return {"forget_quality": Measure(ks_p_value(*pair), math.nan, math.nan, 0.5, own.log_truth)}


def _membership(reading: Reading, reference: Reading | None, retrained: Reading | None) -> Measures:
    """AUCs by every score, the values of their items those of the members and then of the others; and privleak."""
    if not reading.others:
        return {}
    own = _both(reading, reference)
    found = {name: Measure(auc(*pair), *auc_interval(*pair), 0.5, tuple(chain(*pair))) for name, pair in own.items()}
    mine, base = own[PRIVLEAK_BY], _both(retrained, None)[PRIVLEAK_BY] if retrained else None
    leak = privleak(auc(*mine), auc(*base) if base else 0.5)
    return found | {"privleak": Measure(leak, *privleak_interval(mine, base), 0.0, ())}


def _both(reading: Reading, reference: Reading | None) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
    """Scores of the members and of the others, by name."""
    members = membership_scores(reading.members, reading.answers[0], reference.members if reference else ())
    others = membership_scores(reading.others, reading.answers[1], reference.others if reference else ())
    return {name: (members[name], others[name]) for name in members}


def _stays(prefix: str, sheet: Sheet, vocabulary: int) -> Measures:
    """TOFU's three values of a set; real authors and world facts have their probability among the options."""
    if prefix == "retain":
        probability = {f"{prefix}_Q_A_Prob": Measure.of(_probabilities(sheet.items), 1 / vocabulary)}
    else:
        chance = fmean(item.chance for item in sheet.items)
        probability = {f"{prefix}_Q_A_Prob_normalised": Measure.of(list(map(_normalised, sheet.items)), chance)}
    found = probability | {f"{prefix}_Q_A_ROUGE": Measure.of(sheet.rouge_l, 0.0)}
    return found | _of_known(f"{prefix}_Truth_Ratio", list(map(true_better, sheet.log_truth)), 0.0)


def _of_known(name: str, values: Sequence[float], chance: float) -> Measures:
    """The measure of values that some items may lack; none where all do."""
    return {} if all(map(math.isnan, values)) else {name: Measure.of(values, chance)}


def _utility(found: Measures, reading: Reading) -> Measures:
    """Model utility; its interval draws the items of each set once for all values of that set."""
    value = model_utility({name: measure.value for name, measure in found.items()})
    if value is None:
        return {}
    sets = list(reading.stays)
    arrays = {
        name: (sets.index(prefix), np.array(measure.values))
        for name, measure in found.items()
        for prefix in sets
        if name.startswith(f"{prefix}_")
    }

    def drawn(*chosen: Indices) -> float:
        means = {name: _mean_of_known(values[chosen[axis]]) for name, (axis, values) in arrays.items()}
        return model_utility(means) or 0.0

    sizes = [len(reading.stays[name].items) for name in sets]
    return {"model_utility": Measure(value, *bootstrap(drawn, sizes), 0.0, ())}


def _mean_of_known(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def _probabilities(items: Sequence[ItemScore]) -> list[float]:
    """P(answer)^(1 / tokens), TOFU's probability."""
    return [math.exp(item.answer_mean) for item in items]


def _normalised(item: ItemScore) -> float:
    """The answer's share of the probability of answer and options, each per token."""
    every = [math.exp(value) for value in (item.answer_mean, *item.option_log_probs)]
    return every[0] / sum(every)


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf


def _plain(measure: Measure) -> dict[str, Any]:
    return {
        "value": _number(measure.value),
        "low": _number(measure.low),
        "high": _number(measure.high),
        "values": [_number(value) for value in measure.values],
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
