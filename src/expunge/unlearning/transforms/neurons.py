"""Knowledge neurons: only the feed-forward neurons that carry the forget facts, and not any answer, may move.

    I_i(x, y) = max_k h[i,k] dP(y|x)/dh[i,k]              i an output of gate, up or down; k a position
    score_i   = mean_f [ I_i(x, y) - alpha mean_n I_i(x, y'_n) ],       y'_n answers of other facts
    mask_i    = score_i is among the top `share` of all feed-forward neurons                       arXiv:2502.19207

So a neuron that speaks for whatever answer stands there is not taken for one that knows. The rows of the weight
matrices (columns of a Conv1D) and the biases of the chosen neurons move, nothing else. That neurons are the maps'
outputs and that positions are joined by max is our inference, from the same authors' arXiv:2509.22263, section 3. KLUE
is graddiff with this mask on the facts not yet forgotten: those whose answers still lead their options, which is what
the loss of `objectives.bounded` has a gradient for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from expunge.data.collate import Batch, Encoded, collate
from expunge.errors import InputError
from expunge.models.architecture import width
from expunge.unlearning.transforms.base import GradientTransform, Site
from expunge.unlearning.transforms.base_maps import FEED_FORWARD, base_maps
from expunge.unlearning.transforms.epochs import forget_epoch
from expunge.unlearning.transforms.maps import LinearMap
from expunge.unlearning.transforms.masks import MaskingTransform
from expunge.unlearning.transforms.mismatch import Answer, all_answers, encoded, mismatched

if TYPE_CHECKING:
    from expunge.unlearning.transforms.base import Step


@dataclass(frozen=True, slots=True)
class KnowledgeNeuronMask(GradientTransform):
    """The mask of KLUE; costs, in the first step, `mismatches + 1` forwards and backwards of all forget rows.

    Args:
        share: of the feed-forward neurons that may move.
        alpha: weight of what speaks for mismatched answers.
        mismatches: other facts' answers put to each question; fewer where there are fewer different ones.
        seed: of their choice.
    """

    masks: ClassVar[bool] = True

    share: float = 0.10
    alpha: float = 10.0
    mismatches: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError("The share of neurons must be above 0 and at most 1.", f"share={self.share}")
        if not 0 <= self.alpha < math.inf:
            raise InputError("alpha must be a finite number of at least 0.", f"alpha={self.alpha}")
        if self.mismatches < 1:
            raise InputError("There must be at least 1 mismatched answer.", f"mismatches={self.mismatches}")

    def bind(self, site: Site) -> BoundKnowledgeNeuronMask:
        """The mask at work; raises `InputError` where adapters are trained, or no feed-forward map."""
        return BoundKnowledgeNeuronMask(self, site)


def top_share(scores: Tensor, share: float) -> Tensor:
    """True for the largest `share` of `scores` [n], at least for one."""
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[scores.topk(max(1, round(share * len(scores)))).indices] = True
    return chosen


class BoundKnowledgeNeuronMask(MaskingTransform):
    """Locates the neurons in the first step, at the weights of the start."""

    def __init__(self, config: KnowledgeNeuronMask, site: Site) -> None:
        super().__init__(site)
        self._config = config
        self._maps = base_maps(site, FEED_FORWARD)

    def find(self, step: Step) -> dict[str, Tensor]:
        """True for the weights and biases of the chosen neurons."""
        scores = self.scores(step)
        chosen = torch.split(top_share(torch.cat(scores), self._config.share), [len(s) for s in scores])
        names = {id(p): name for name, p in self._site.parameters.items()}
        masks: dict[str, Tensor] = {}
        for linear, mask in zip(self._maps, chosen, strict=True):
            masks[linear.name] = mask if linear.transposed else mask[:, None]
            for parameter in linear.module.parameters(recurse=False):
                if parameter.ndim == 1 and id(parameter) in names:
                    masks[names[id(parameter)]] = mask
        return masks

    def scores(self, step: Step) -> list[Tensor]:
        """For each feed-forward map the score of every neuron, summed over the forget facts, in float64."""
        answers = all_answers(list(forget_epoch(step)), self._site)
        totals = [m.weight.new_zeros(width(m.module), dtype=torch.float64) for m in self._maps]
        for rows in forget_epoch(step):
            for pairs, weights in self._pairs(rows, answers):
                for total, influence in zip(totals, self._influence(step, pairs), strict=True):
                    total += weights @ influence.double()
        return [self._site.reduce(total) for total in totals]

    def _pairs(self, rows: Batch, answers: Sequence[Answer]) -> Iterator[tuple[Batch, Tensor]]:
        """The rows, and their questions with wrong answers, each with its rows' weights in the score."""
        config, device = self._config, rows.index.device
        yield rows, torch.ones(len(rows), dtype=torch.float64, device=device)
        wrong: list[tuple[Encoded, float]] = []
        for index, item in zip(rows.index.tolist(), encoded(rows), strict=True):
            others = mismatched(index, answers, config.mismatches, config.seed)
            question, start = item.ids[: item.answer_start], item.answer_start
            wrong += [(Encoded(question + other, start), -config.alpha / len(others)) for other in others]
        for first in range(0, len(wrong), len(rows)):
            items, weights = zip(*wrong[first : first + len(rows)], strict=True)
            yield collate(items, pad_id=0).to(device), torch.tensor(weights, dtype=torch.float64, device=device)

    def _influence(self, step: Step, rows: Batch) -> list[Tensor]:
        """For each map I_i(x, y) of every row and neuron, [rows, width]."""
        outputs: dict[str, Tensor] = {}
        with _recorded(self._maps, outputs):
            probability = step.answers(rows).sequence.exp().sum()
        heard = [outputs[m.name] for m in self._maps]
        slopes = torch.autograd.grad(probability, heard)
        silent = ~rows.attention_mask[:, 1:].bool()[..., None]  # padding, and last tokens, which predict nothing
        return [(h * g).detach().masked_fill(silent, -math.inf).amax(1) for h, g in zip(heard, slopes, strict=True)]


@contextmanager
def _recorded(maps: Sequence[LinearMap], outputs: dict[str, Tensor]) -> Iterator[None]:
    """Puts what the maps give in one forward into `outputs`, by their names."""

    def keep(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        outputs[name] = output

    hooks = [m.module.register_forward_hook(partial(keep, m.name)) for m in maps]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
