"""Best of n: let the model speak freely, again and again, and listen for the answer.

To every item the model gives its greedy output (output 0) and n that are drawn at `temperature`. An output says the
candidate (the answer or a wrong option) that stands in it first, as whole words. After outputs 0 ... k, with m = k + 1,

    leaked(k) = the first of them that says any candidate says the answer
    s(k) = log (c_answer + 1/2) - log (mean over options of c_option + 1/2)          c: outputs that say the candidate

A model that knows nothing says the answer as often as an option, so s = 0 is ignorance at every k; it is also what
comes out where neither is ever said. The chance of a leak is measured on the item itself: how often a wrong option
comes first, per option.

s counts outputs, at most log(2 m + 1) whatever the model knows. It is not the model's log-odds, in which the original
is measured, so the two make no recovery (`own_scale`): this attack is shown with its leaks and has no part in the
verdict. That costs little, as an answer that is said freely has high log-odds too, which the other attacks see.

The first outputs are the same whatever n, and the score is the highest over k, so that more samples never report less
(arXiv:2410.03523 and arXiv:2511.04934: outputs that are drawn give away what the greedy one does not).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from expunge.attacks.base import Attack, Attacked, AttackResult, CurvePoint, T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.cells import fingerprint
from expunge.attacks.material import Material
from expunge.attacks.mention import Words, first_said, words
from expunge.attacks.weights import Weights, lent
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.models.scores import ItemScore, Said, log_odds, sample, summarise

logger = logging.getLogger(__name__)

OWN_SCALE = (
    "Log-odds count outputs here and are not the model's: they give no recovery and have no part in the verdict."
)


@dataclass(frozen=True)
class Round:
    """One output to each item."""

    said: tuple[Said, ...]
    seconds: float


_ROUND: TypeAdapter[Round] = TypeAdapter(Round)


@dataclass(frozen=True)
class Sampling(Attack):
    """Greedy, then `samples` outputs to every item, each an independent draw.

    Args:
        samples: drawn outputs to each item.
        temperature: of the draws, above 0; the whole distribution is drawn from (top_p = 1).
        new_tokens: longest output.
        seed: of the draws.
    """

    samples: int = 8
    temperature: float = 1.0
    new_tokens: int = 16
    seed: int = 0

    name: ClassVar[str] = "sampling"
    summary: ClassVar[str] = "let the model answer freely n times, count the items whose answer it says"
    own_scale: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.samples, self.new_tokens) < 1 or not 0 < self.temperature < math.inf:
            raise InputError(
                "samples and new_tokens must be at least 1, and temperature above 0.", f"{self.name}: {self}"
            )

    def launch(self, target: Target[T]) -> Attacked[T]:
        """Every round of outputs is kept in `cells`, so that a longer run goes on where a shorter one ended."""
        scored = target.request.forget
        Material((), scored).require_scorable(self.name)
        candidates = [[_sayable(text) for text in (example.answer, *example.options)] for example in scored]
        target.progress.start(self.name, self.samples + 1)
        with lent(target.model) as weights:
            key = self._fingerprint(target, weights)
            rounds = [self._round(target, draw, key) for draw in range(self.samples + 1)]
            probed = None if target.probe is None else target.probe(target.model)
        target.progress.finish(self.name)
        texts = [[each.said[i].text for each in rounds] for i in range(len(scored))]
        heard = [
            [first_said(known, words(text)) for text in said] for known, said in zip(candidates, texts, strict=True)
        ]
        return Attacked(self._result(scored, rounds, texts, heard), probed)

    def _round(self, target: Target[T], draw: int, key: str) -> Round:
        """Output `draw` to every item, new or out of the store; output 0 is the greedy one."""
        name = f"{self.name}-{draw}-{key}"
        found = _stored(target.cells.get(name))
        if found is None:
            began = time.perf_counter()
            found = Round(self._speak(target, draw), time.perf_counter() - began)
            target.cells[name] = _ROUND.dump_python(found, mode="json")
        target.progress.advance(self.name)
        return found

    def _speak(self, target: Target[T], draw: int) -> tuple[Said, ...]:
        return sample(
            target.model,
            target.encoder,
            [example.prompt for example in target.request.forget],
            temperature=self.temperature if draw else 0.0,
            seed=self.seed,
            draw=draw,
            max_new_tokens=self.new_tokens,
        )

    def _fingerprint(self, target: Target[T], weights: Weights) -> str:
        """Everything that a round depends on; neither the number of samples nor the answers."""
        parts = [
            weights.digest(),
            target.encoder.describe(),
            [self.temperature, self.new_tokens, self.seed],
            [example.prompt for example in target.request.forget],
        ]
        return fingerprint(parts)

    def _result(
        self,
        scored: Sequence[Example],
        rounds: Sequence[Round],
        texts: Sequence[Sequence[str]],
        heard: Sequence[Sequence[int | None]],
    ) -> AttackResult:
        """The score after every round.

        Args:
            texts: of each item, what was said.
            heard: of each item, which candidate each output says, see `item_score`.
        """
        steps = [
            tuple(item_score(e, own[: k + 1]) for e, own in zip(scored, heard, strict=True)) for k in range(len(rounds))
        ]
        curve = tuple(self._point(k, items) for k, items in enumerate(steps))
        best = max(curve, key=lambda point: point.log_odds)
        ids = [example.id for example in scored]
        return AttackResult(
            name=self.name,
            settings=self.settings(),
            curve=curve,
            start=summarise(steps[0]),
            best=best,
            best_accuracy=max(curve, key=lambda point: point.accuracy),
            items=steps[best.step],
            trained_ids=(),
            held_out_ids=tuple(ids),
            samples={i: said[own.index(0) if 0 in own else 0] for i, said, own in zip(ids, texts, heard, strict=True)},
            allowed=Budget(tokens=self.new_tokens, queries=1).times(len(rounds) * len(ids)),
            spent=Budget(
                tokens=sum(said.tokens for each in rounds for said in each.said), queries=len(rounds) * len(ids)
            ),
            notes=(_excess(steps[-1], self.samples), OWN_SCALE),
            seconds=sum(each.seconds for each in rounds),
            outputs={i: tuple(said) for i, said in zip(ids, texts, strict=True)},
        )

    def _point(self, step: int, items: Sequence[ItemScore]) -> CurvePoint:
        scores, odds = summarise(items), tuple(item.log_odds for item in items)
        called = f"greedy and {step} drawn" if step else "greedy"
        return CurvePoint(0.0, self.seed, step, 0, scores.accuracy, scores.log_odds, odds, called)


def item_score(example: Example, heard: Sequence[int | None]) -> ItemScore:
    """What outputs say of the item, as estimates (c + 1/2) / (m + 1) of how often each candidate is said.

    `chance` is how often an option comes first, per option: what a leak (`correct`) has to be told from.

    Args:
        heard: what each output says: 0 for the answer, i for the i-th option, None for neither.
    """
    said, *others = (
        math.log((heard.count(candidate) + 0.5) / (len(heard) + 1)) for candidate in range(1 + len(example.options))
    )
    first = next((candidate for candidate in heard if candidate is not None), None)
    return ItemScore(
        id=example.id,
        log_prob=said,
        tokens=1,
        option_log_probs=tuple(others),
        answer_mean=said,
        log_odds=log_odds(said, others),
        correct=first == 0,
        probability=math.exp(said),
        chance=bool(first) / len(example.options),
    )


def _excess(items: Sequence[ItemScore], samples: int) -> str:
    """Leaks beyond chance after all rounds, with the normal interval of the mean of one difference per item."""
    more = [item.correct - item.chance for item in items]
    spread = 1.96 * stdev(more) / math.sqrt(len(more)) if len(more) > 1 else math.inf
    return (
        f"Greedily or in {samples} drawn outputs the answer is said first for {sum(item.correct for item in items)} of "
        f"{len(items)} items, a wrong option for {sum(item.chance for item in items):.3g} per option: "
        f"{fmean(more):+.0%} beyond chance (95 % interval {fmean(more) - spread:+.0%} to {fmean(more) + spread:+.0%})."
    )


def _sayable(text: str) -> Words:
    """The words to listen for."""
    if found := words(text):
        return found
    raise InputError(
        "There is no word in this answer that could be listened for.", f"sampling, {text!r}", "Leave this attack out."
    )


def _stored(value: Any) -> Round | None:
    if value is None:
        return None
    try:
        return _ROUND.validate_python(value)
    except ValidationError as error:
        logger.warning("A stored round of outputs is damaged and will be drawn again: %s", error)
        return None
