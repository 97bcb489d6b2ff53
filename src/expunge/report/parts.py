"""The parts of a record: scores, attacks, influence, items, cost, provenance. Frozen, and closed to unknown keys."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, model_validator

from expunge.request import FORGET_GROUPS, RETAIN_GROUPS

SHOULD_GO, SHOULD_STAY = FORGET_GROUPS, RETAIN_GROUPS
NO_CONTROL = "log-odds 0 and chance accuracy"
GOLD_MODEL = "gold model"

Verdict = Literal["ERASED", "HIDDEN", "NOT FORGOTTEN", "BROKEN", "INCONCLUSIVE"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]


def _finite_or_none(value: object) -> object:
    """None for a number that JSON cannot hold: a broken model has an infinite perplexity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]


class Part(BaseModel):
    """Base of all parts: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Score(Part):
    """Means over `n` items; n = 0 says that nothing was measured, whatever the other values.

    accuracy: share of items whose answer beats every option. log_odds: of the answer against its options, nats per
    token, 0 = no preference. chance: accuracy of a guess. probability: mean P(answer). rouge_l: recall of greedy
    answers. low, high: 95 % bounds.
    """

    accuracy: Share
    log_odds: float
    chance: Share
    n: Count
    probability: Measured = None
    rouge_l: Measured = None
    accuracy_low: Measured = None
    accuracy_high: Measured = None
    log_odds_low: Measured = None
    log_odds_high: Measured = None


class Change(Part):
    """One set of items before and after unlearning."""

    before: Score
    after: Score


class Scores(Part):
    """What had to go, what had to stay, what was never trained on; groups: `SHOULD_GO`, `SHOULD_STAY`, others."""

    forget: Change
    retain: Change
    test: Change
    groups: dict[str, Change] = {}


class VerdictDetails(Part):
    """Why the verdict was given: sentences, the strongest attack's name, the budget in words, the confidence.

    hidden_above, erased_below: where the rule cuts the interval of recovery; records that do not say were judged by the
    defaults. untried: attacks that were not run.
    """

    reasons: tuple[str, ...]
    strongest_attack: str = ""
    budget: str = ""
    confidence: str = ""
    hidden_above: float = 0.2
    erased_below: float = 0.25
    untried: tuple[str, ...] = ()


class CurvePoint(Part):
    """Scores on the held-out items at one moment of one cell (learning rate, seed) of an attack, or of one `variant` of
    the model or of the questions where nothing is trained; recovery: R there, where the audit told it; original: R of
    the original under the same variant, where that takes knowledge from every model."""

    learning_rate: float
    seed: int
    step: Count
    examples_seen: Count
    accuracy: Share
    log_odds: float
    variant: str = ""
    recovery: Measured = None
    original: Measured = None

    @property
    def place(self) -> str:
        """Where in its grid, in words."""
        return self.variant or f"{self.learning_rate:g}, step {self.step}"


class AttackControl(Part):
    """What the same attack does to the control: its best scores, and its curve where a control model was attacked."""

    accuracy: Share
    log_odds: float
    curve: tuple[CurvePoint, ...] = ()


class Attack(Part):
    """One attack: the most that it brought back over its whole grid, and how.

    accuracy, log_odds: at `best`. recovery: R of the log-odds, 0 = nothing came back, 1 = everything, may leave that
    range. start: scores of the same held-out items before the attack. rho: correlation of attributions before and after
    it. samples: greedy words after the attack by item id. budget: what the attack could spend, in words. counts: False
    for an attack that decides no verdict: it finds answers by itself and was made on no control, has its own scale, or
    came to nothing.
    notes: what a reader has to know of how it was made.
    """

    name: str
    accuracy: Share
    log_odds: float
    recovery: float
    recovery_low: Measured = None
    recovery_high: Measured = None
    accuracy_low: Measured = None
    accuracy_high: Measured = None
    log_odds_low: Measured = None
    log_odds_high: Measured = None
    chance: Share
    control: AttackControl
    start: Score
    best: CurvePoint | None = None
    curve: tuple[CurvePoint, ...] = ()
    settings: dict[str, JsonValue] = {}
    budget: str = ""
    rho: Measured = None
    samples: dict[str, str] = {}
    seconds: float = 0.0
    counts: bool = True
    notes: tuple[str, ...] = ()

    @property
    def known(self) -> bool:
        """Whether the recovery means something: the original knew more than the control."""
        return self.recovery_low is not None and self.recovery_high is not None

    @property
    def trains(self) -> bool:
        """Whether its curve is over training steps, so that it can be drawn as one."""
        return bool(self.curve) and not self.sweeps

    @property
    def sweeps(self) -> bool:
        """Whether its points are variants of the model or of the questions, with no order in time."""
        return any(point.variant for point in self.curve)


class Influence(Part):
    """Influence lost (D+, erased) and negative influence gained (D-, hidden), arXiv:2509.22263.

    of: the attributed quantity. erased, hidden: sums of the `top` largest D+ and D-. curve_*: cumulative sums of the
    top `curve_m` neurons. map_*: [modules][layers], mean of the `top` largest of that map. saturated_*: share of forget
    pairs with P near 0 or 1 before, after, or at either time; of these the influence on P says little.
    """

    of: str = "probability"
    top: Count = 100
    erased: float
    hidden: float
    curve_m: tuple[int, ...]
    curve_plus: tuple[float, ...]
    curve_minus: tuple[float, ...]
    modules: tuple[str, ...]
    layers: Count
    map_plus: tuple[tuple[float, ...], ...]
    map_minus: tuple[tuple[float, ...], ...]
    saturated_before: Share = 0.0
    saturated_after: Share = 0.0
    saturated_share: Share

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        if not len(self.curve_m) == len(self.curve_plus) == len(self.curve_minus):
            raise ValueError("curve_m, curve_plus and curve_minus differ in length")
        for grid in (self.map_plus, self.map_minus):
            if len(grid) != len(self.modules) or any(len(row) != self.layers for row in grid):
                raise ValueError("map_plus and map_minus must be [modules][layers]")
        return self


class LogitLens(Part):
    """Accuracy per layer of "gold beats one random distractor" (chance 0.5), read from the residual stream."""

    before: tuple[Share, ...]
    after: tuple[Share, ...]


class Probe(Part):
    """Linear probes of the answer, learnt from facts that stay: log-odds and accuracy on forgotten ones, by layer."""

    before: tuple[float, ...]
    after: tuple[float, ...]
    accuracy_before: tuple[Share, ...]
    accuracy_after: tuple[Share, ...]
    chance: Share
    n: Count


class Text(Part):
    """Plain text: perplexity, and KL(before || after) in nats per token."""

    perplexity_before: Measured = None
    perplexity_after: Measured = None
    kl: Measured = None


class MetricState(Part):
    """A metric of one model: its value, 95 % bounds, and the value of each item, null where an item has none."""

    value: Measured
    low: Measured = None
    high: Measured = None
    values: tuple[Measured, ...] = ()


class Metric(Part):
    """A metric under its name in OpenUnlearning or TOFU; chance: what guessing gives. See docs/metrics.md."""

    name: str
    chance: Measured = None
    before: MetricState | None = None
    after: MetricState | None = None
    control: MetricState | None = None


class LmEval(Part):
    """What lm-eval said of the unlearned model: a file beside the record, its sha256, and the tasks in it."""

    file: str
    sha256: str
    tasks: tuple[str, ...]


class Metrics(Part):
    """Memorisation, membership and utility.

    forget, others: ids of the items behind the values of forget metrics, and of the non-members of membership metrics,
    whose values follow those of the forget items. non_members: where these are from (attack, held_out).
    reference: the model that `mia_reference` compares with (control, original).
    """

    rows: tuple[Metric, ...] = ()
    forget: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    non_members: str = ""
    reference: str = ""
    lm_eval: LmEval | None = None


class ItemState(Part):
    """One item at one moment: scores, and the model's greedy words (untrusted text)."""

    log_odds: Measured = None
    correct: bool | None = None
    probability: Measured = None
    words: str = ""


class Item(Part):
    """One question. split: forget, retain or test; group: its test group; attacked: at the strongest attack's best."""

    id: str
    prompt: str
    answer: str
    split: str
    group: str = ""
    before: ItemState
    after: ItemState
    attacked: ItemState | None = None


class Cost(Part):
    """Price of the run: seconds in all and per stage, highest resident memory in bytes, optimiser steps."""

    seconds: float
    peak_bytes: Count
    steps: Count
    stages: dict[str, float] = {}


class TrainingPoint(Part):
    """Forget scores and the loss at one step of the unlearning loop."""

    step: Count
    accuracy: Share
    log_odds: float
    loss: Measured = None


class Training(Part):
    """How the unlearning loop went, and why it stopped."""

    history: tuple[TrainingPoint, ...] = ()
    stop_reason: str = ""


class RecipePart(Part):
    """What was asked: the method's three choices, its arguments, the data."""

    method: str
    objective: str
    transform: str = ""
    parametrization: str = "full"
    benchmark: str = ""
    arguments: dict[str, JsonValue] = {}


class Versions(Part):
    """Software that made the record."""

    python: str
    torch: str
    transformers: str
    expunge: str
    platform: str


class Hashes(Part):
    """sha256 of the data sets by name, of the tokenizer, and of the weights before and after."""

    data: dict[str, str]
    tokenizer: str
    weights_before: str
    weights_after: str


class ModelPart(Part):
    """The model: its name, where it came from, its size, and how questions were put to it."""

    name: str
    source: str
    parameters: Count
    dtype: str
    template: str = "plain"
    bos: str = ""


class Control(Part):
    """What recovery was measured against, and a sentence that says what this means."""

    kind: Literal["gold model", "made-up subjects", "log-odds 0 and chance accuracy"]
    sentence: str
