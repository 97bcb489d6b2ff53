"""Linear probe: whether the answer can be read off the residual stream by a classifier that never saw these facts.

    p(value | r_l) = softmax(W x + b),    x = (r_l - mean) / scale,    r_l [d] after block l, where the answer begins
    W, b minimise  mean cross-entropy over facts that stay  +  (decay / 2) ||W||^2

The probe is trained on other people's facts and asked about the forgotten ones. Trained on the forgotten facts
themselves it would learn them, and find them in a model that never knew: telling the people apart is enough for that.
The classes are the answers; an answer that the training facts never give cannot be named, so its example is left out.
One convex problem per block, solved in float64, so that nothing depends on a seed or a learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from expunge.errors import InputError
from expunge.models.states import prompt_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example

ITERATIONS = 200


@dataclass(frozen=True, slots=True)
class Probed:
    """What the probes read, block by block.

    Args:
        accuracy: share of examples whose answer beats its options.
        log_odds: mean of log p(answer) - log mean p(options); 0 is ignorance.
        chance: accuracy of a guess.
        n: examples that could be asked.
        items: log-odds of each of them, block by block; empty where they were not kept.
    """

    accuracy: tuple[float, ...]
    log_odds: tuple[float, ...]
    chance: float
    n: int
    items: tuple[tuple[float, ...], ...] = ()


def linear_probe(
    model: PreTrainedModel,
    encoder: Encoder,
    known: Sequence[Example],
    asked: Sequence[Example],
    *,
    decay: float = 1e-2,
    batch_size: int = 32,
) -> Probed:
    """Probes trained on `known`, in all their wordings, and tested on `asked`, whose options they choose from.

    Raises:
        InputError: `known` has fewer than two answers, or no example of `asked` has an answer and options among them.
    """
    classes = {answer: i for i, answer in enumerate(sorted({example.answer.strip() for example in known}))}
    testable = [example for example in asked if _nameable(example, classes)]
    if len(classes) < 2 or not testable:
        raise InputError(
            "The probe has nothing to learn or nothing to tell apart.",
            f"{len(classes)} answers, {len(testable)} of {len(asked)} examples within them",
            "Give facts that stay, with the answers and options of those to forget among their answers.",
        )
    rows = [(prompt, classes[e.answer.strip()]) for e in known for prompt in (e.prompt, *e.paraphrases)]
    states = prompt_states(
        model, encoder, [*(prompt for prompt, _ in rows), *(example.prompt for example in testable)], batch_size
    )
    labels = torch.tensor([label for _, label in rows], device=states.device)
    options = [(classes[e.answer.strip()], _among(e, classes)) for e in testable]
    accuracy, items = [], []
    for layer in states:
        logits = _logits(fit(layer[: len(rows)], labels, len(classes), decay), layer[len(rows) :])
        odds = (
            float(row[gold] - row[wrong].logsumexp(0)) + math.log(len(wrong))
            for row, (gold, wrong) in zip(logits, options, strict=True)
        )
        items.append(tuple(odds))
        accuracy.append(fmean(bool(row[g] > row[w].max()) for row, (g, w) in zip(logits, options, strict=True)))
    chance = fmean(1 / (1 + len(wrong)) for _, wrong in options)
    return Probed(tuple(accuracy), tuple(map(fmean, items)), chance, len(testable), tuple(items))


@dataclass(frozen=True, eq=False)
class Fitted:
    """A probe: `weight` [classes, d] and `bias` [classes] on states shifted by `mean` and divided by `scale`."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor


def fit(states: Tensor, labels: Tensor, classes: int, decay: float) -> Fitted:
    """The probe of the module's formula for states [n, d] and labels [n]."""
    mean, scale = states.mean(0), (states - states.mean(0)).square().mean().sqrt().clamp(min=1e-12)
    inputs = (states - mean) / scale
    weight = inputs.new_zeros(classes, inputs.shape[1], requires_grad=True)
    bias = inputs.new_zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias], max_iter=ITERATIONS, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = cross_entropy(inputs @ weight.T + bias, labels) + decay / 2 * weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[no-untyped-call]
    return Fitted(weight.detach(), bias.detach(), mean, scale)


def _logits(probe: Fitted, states: Tensor) -> Tensor:
    return (states - probe.mean) / probe.scale @ probe.weight.T + probe.bias


def _nameable(example: Example, classes: dict[str, int]) -> bool:
    return example.answer.strip() in classes and bool(_among(example, classes))


def _among(example: Example, classes: dict[str, int]) -> list[int]:
    """Those of the example's options that are classes; white space around an answer makes no other class of it."""
    return [classes[option.strip()] for option in example.options if option.strip() in classes]
