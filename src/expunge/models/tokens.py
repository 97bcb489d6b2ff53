"""What a model says to every token of an answer, teacher-forced: all that per-token metrics need, from one forward.

    log_probs_t = log P(y_t)        hits_t = [y_t = argmax_v P(v)]
    means_t = sum_v P(v) log P(v)   variances_t = sum_v P(v) (log P(v) - means_t)^2

with P = P(. | x, y_<t) and v over the vocabulary.
The head is applied to answer positions only, in blocks, and of each block four numbers per token are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import log_softmax
from transformers import PreTrainedModel

from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.answers import LOGITS_BYTES, evaluating, length_sorted
from expunge.models.architecture import Readout, readout, width


@dataclass(frozen=True)
class TokenScores:
    """The tokens of one answer, in order; the fields are those of the formulas above, logarithms in nats."""

    id: str
    log_probs: tuple[float, ...]
    hits: tuple[bool, ...]
    means: tuple[float, ...]
    variances: tuple[float, ...]

    @property
    def loss(self) -> float:
        """Minus the mean log P of a token."""
        return -fmean(self.log_probs)


@torch.no_grad()
def token_scores(
    model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example], batch_size: int = 32
) -> tuple[TokenScores, ...]:
    """One per example, in order; independent of `batch_size` (in examples) up to rounding.

    Raises:
        InputError: an answer tokenises to nothing.
    """
    encoded = [encoder.encode(example.prompt, example.answer) for example in examples]
    read, found = readout(model), dict[int, TokenScores]()
    with evaluating(model):
        for batch in length_sorted(encoded, encoder.pad_id, batch_size):
            ids, mask = (tensor.to(model.device) for tensor in (batch.input_ids, batch.answer_mask))
            states = read.backbone(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
            told = _tell(read, states[mask[:, 1:]], ids[:, 1:][mask[:, 1:]])
            rows = torch.split(told.cpu(), batch.answer_mask[:, 1:].sum(1).tolist())
            found |= {i: _scores(examples[i].id, row) for i, row in zip(batch.index.tolist(), rows, strict=True)}
    return tuple(found[i] for i in range(len(examples)))


def _tell(read: Readout, hidden: Tensor, targets: Tensor) -> Tensor:
    """The four numbers of each token [tokens, 4]; at most four blocks of logits are alive at once."""
    block = max(1, LOGITS_BYTES // (16 * width(read.head)))
    pieces = []
    for states, said in zip(torch.split(hidden, block), torch.split(targets, block), strict=True):
        logs = log_softmax(read.logits(states), -1)
        shares = logs.exp()
        means = (shares * logs).sum(-1)
        variances = (shares * (logs - means[:, None]).square()).sum(-1)
        log_probs = logs.gather(1, said[:, None])[:, 0]
        pieces.append(torch.stack([log_probs, (logs.argmax(-1) == said).to(logs.dtype), means, variances], 1))
    return torch.cat(pieces)


def _scores(name: str, row: Tensor) -> TokenScores:
    log_probs, hits, means, variances = (tuple(column) for column in row.T.tolist())
    return TokenScores(name, log_probs, tuple(map(bool, hits)), means, variances)
