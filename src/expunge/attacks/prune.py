"""Pruning: set the weights that matter least to 0 and see whether the forgotten answers come back.

    magnitude   score of W_ij = |W_ij|,                  the lowest of each matrix go
    wanda       score of W_ij = |W_ij| * ||x_j||_2,      the lowest of each output row i go        arXiv:2306.11695

x_j are the values of input j at every token of the calibration text. An edit spread over small weights, or over weights
whose inputs what has to stay hardly uses, is pruned away while the model goes on. Pruned are the matrices of all linear
maps but the head, exactly the share of them that is asked for. Unlike in the authors' code the norms are those of the
unpruned model, from one forward for all sparsities, not of one whose earlier blocks are pruned already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from expunge.attacks.base import T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.matrices import InnerMap, changed, inner_maps
from expunge.attacks.trials import Trial, Wear
from expunge.attacks.weights import Weights
from expunge.data.sources import passages
from expunge.errors import InputError
from expunge.models.answers import evaluating
from expunge.models.architecture import readout

Criterion = Literal["magnitude", "wanda"]

Score = Callable[[InnerMap], Tensor]
"""Scores of a map's weights [rows, n], of each row of which the lowest go."""

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Prune(Wear):
    """Magnitude and Wanda pruning.

    Args:
        criteria: what makes a weight matter, magnitude or wanda.
        sparsities: shares of the weights that go; each is tried with each criterion.
        tokens: of calibration text, at most: the request's retain examples, or bundled passages where it has none.
    """

    criteria: tuple[Criterion, ...] = ("magnitude", "wanda")
    sparsities: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6)
    tokens: int = 2048

    name: ClassVar[str] = "prune"
    summary: ClassVar[str] = "set 30 to 60 % of the weights to 0, score all forgotten facts"

    def __post_init__(self) -> None:
        if not self.criteria:
            raise InputError("There must be at least one criterion.", f"{self.name}: criteria={self.criteria}")
        if not self.sparsities or not all(0 < share < 1 for share in self.sparsities):
            raise InputError("Sparsities must lie between 0 and 1.", f"{self.name}: sparsities={self.sparsities}")
        if self.tokens < 1:
            raise InputError("There must be at least 1 token to calibrate on.", f"{self.name}: tokens={self.tokens}")

    def count(self, target: Target[T]) -> int:
        """Pairs of criterion and sparsity."""
        return len(self.criteria) * len(self.sparsities)

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """One for each pair of criterion and sparsity; the first of Wanda pays for its norms."""
        for criterion in self.criteria:
            score, spent = self._score(criterion, target)
            for sparsity in self.sparsities:
                prune = partial(pruned, score, sparsity)
                yield Trial(f"{criterion}, {100 * sparsity:g} %", partial(changed, target.model, prune), spent=spent)
                spent = Budget()

    def allowance(self, target: Target[T]) -> Budget:
        """The trials, and the calibration of Wanda, whose length is known."""
        calibration = _price(self._calibration(target)).times(self.criteria.count("wanda"))
        return super().allowance(target) + calibration

    def notes(self, target: Target[T]) -> tuple[str, ...]:
        """What Wanda was calibrated on."""
        if "wanda" not in self.criteria:
            return ()
        rows, retain = self._calibration(target), target.request.retain
        source = "retain examples" if retain else "bundled passages, as the request has no retain examples"
        return (f"Wanda's norms are of {_price(rows).tokens} tokens of {len(rows)} {source}.",)

    def _score(self, criterion: Criterion, target: Target[T]) -> tuple[Score, Budget]:
        """The scores by a criterion, and what finding them cost; the model must be untouched."""
        if criterion == "magnitude":
            return magnitude, Budget()
        rows = self._calibration(target)
        return partial(wanda, input_norms(target.model, rows)), _price(rows)

    def _calibration(self, target: Target[T]) -> list[Ids]:
        """Token ids of examples or passages in order, the last one cut where there are enough."""
        rows: list[Ids] = []
        left = self.tokens
        for ids in _texts(target):
            if not left:
                break
            rows.append(ids[:left])
            left -= len(rows[-1])
        return rows


def magnitude(each: InnerMap) -> Tensor:
    """|W|, the whole matrix as one row."""
    return each.matrix.abs().reshape(1, -1)


def wanda(norms: dict[str, Tensor], each: InnerMap) -> Tensor:
    """|W_ij| * ||x_j||, a row for each output."""
    return each.matrix.abs() * norms[each.name].to(each.matrix)


def pruned(score: Score, sparsity: float, each: InnerMap) -> Float[Tensor, "outputs inputs"]:
    """The map's matrix with 0 for the `sparsity` share of weights of lowest score, rounded to whole weights."""
    scores = score(each)
    gone = lowest(scores, round(sparsity * scores.shape[1]))
    return each.matrix.masked_fill(gone.reshape(each.matrix.shape), 0)


def lowest(scores: Float[Tensor, "rows n"], count: int) -> Bool[Tensor, "rows n"]:
    """Where the `count` lowest of each row are; of equal ones the first."""
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    edge = scores.kthvalue(count, dim=1, keepdim=True).values
    below, level = scores < edge, scores == edge
    return below | (level & (level.cumsum(1) <= count - below.sum(1, keepdim=True)))


def input_norms(model: PreTrainedModel, rows: Sequence[Ids]) -> dict[str, Float[Tensor, " inputs"]]:
    """||x_j||_2 over all tokens of `rows`, for each input j of each linear map, by the map's name; in float64.

    Rows of one length go through the model together, so that there is no padding; no activation is kept.
    """
    maps = inner_maps(model)
    sums = {each.name: torch.zeros(each.matrix.shape[1], dtype=torch.float64, device=model.device) for each in maps}

    def hear(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        sums[name] += inputs[0].flatten(0, -2).double().square().sum(0)

    backbone = readout(model).backbone
    with evaluating(model), ExitStack() as hooks:
        for each in maps:
            hooks.callback(each.module.register_forward_pre_hook(partial(hear, each.name)).remove)
        for batch in _batches(rows):
            backbone(input_ids=torch.tensor(batch, device=model.device), use_cache=False)
    return {name: total.sqrt() for name, total in sums.items()}


def _batches(rows: Sequence[Ids], most: int = 32) -> Iterator[list[Ids]]:
    for length in sorted({len(row) for row in rows}):
        alike = [row for row in rows if len(row) == length]
        yield from (alike[start : start + most] for start in range(0, len(alike), most))


def _texts(target: Target[T]) -> Iterator[Ids]:
    """The retain examples, or the bundled passages where there are none."""
    encoder = target.encoder
    for example in target.request.retain:
        yield encoder.encode(example.prompt, example.answer).ids
    if not target.request.retain:
        yield from (encoder.encode_text(text).ids for text in passages())


def _price(rows: Sequence[Ids]) -> Budget:
    return Budget(tokens=sum(map(len, rows)), queries=len(rows))
