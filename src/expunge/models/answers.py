"""Log-probabilities of answers, the head applied to answer positions only.

    log P(y | x) = sum_t log softmax(head(h_t))[y_t]        t over the answer's tokens, h_t the state that predicts y_t

The head is the widest map of a small model, and most positions are prompt: leaving those out saves a third of a step.
The log-softmax runs in fp32 whatever the model's dtype (fp64 stays fp64).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, PreTrainedModel

from expunge.data.collate import Batch, Encoded, Encoder, collate, join
from expunge.errors import InputError
from expunge.models.architecture import Readout, capped, readout, width

LOGITS_BYTES = 64 << 20
"""Largest block of fp32 logits [tokens, vocabulary] that is made at once without a graph (four times that with one)."""


@dataclass(frozen=True)
class Answers:
    """What a model says to the answers of one batch; all tensors stay in the autograd graph.

    Args:
        sequence: log P of each row's answer, the sum of its tokens; 0 where a row has no answer token.
        token: log P of each answer token, row after row.
        rows: the row of each token.
        targets: the id of each token.
        hidden: the normed final state that predicts each token.
        counts: answer tokens per row.
    """

    sequence: Float[Tensor, " batch"]
    token: Float[Tensor, " tokens"]
    rows: Int[Tensor, " tokens"]
    targets: Int[Tensor, " tokens"]
    hidden: Float[Tensor, "tokens d"]
    counts: Int[Tensor, " batch"]

    def split(self, rows: int) -> tuple[Answers, Answers]:
        """The first `rows` rows and the rest."""
        n = int(self.counts[:rows].sum())
        tail = self.rows[n:] - rows
        return (
            Answers(
                self.sequence[:rows],
                self.token[:n],
                self.rows[:n],
                self.targets[:n],
                self.hidden[:n],
                self.counts[:rows],
            ),
            Answers(self.sequence[rows:], self.token[n:], tail, self.targets[n:], self.hidden[n:], self.counts[rows:]),
        )


@dataclass(frozen=True)
class Reference:
    """What a model said before it was changed, by the `index` of the batches; holds no second model.

    Args:
        sequence: log P of each item's answer.
        hidden: for each item the normed final states at its answer positions; empty unless kept.
        head: a frozen copy of the head, None unless the states are kept.
        softcap: see `Readout`.
    """

    sequence: Float[Tensor, " items"]
    hidden: tuple[Float[Tensor, "tokens d"], ...] = ()
    head: nn.Module | None = None
    softcap: float | None = None

    def states(self, index: Sequence[int] | Tensor) -> Float[Tensor, "tokens d"]:
        """The kept states of the items in `index`, in the order of `Answers.token` of a batch with that index."""
        return torch.cat([self.hidden[int(i)] for i in index])

    def logits(self, hidden: Float[Tensor, "tokens d"]) -> Float[Tensor, "tokens vocabulary"]:
        """The unchanged model's logits for kept states, in fp32."""
        if self.head is None:
            raise InputError("This reference holds no states.", "Reference", "Build it with keep_hidden=True.")
        return capped(self.head(hidden), self.softcap)


@dataclass(frozen=True)
class TextStatistics:
    """Per-token figures on plain text: `nll` in nats, perplexity = exp(nll), `kl` = KL(reference || model) in nats.

    `passages` holds (sum of nll, sum of kl, tokens) of each passage, in order.
    """

    nll: float
    perplexity: float
    kl: float | None
    tokens: int
    passages: tuple[tuple[float, float, int], ...] = ()

    @classmethod
    def of(cls, passages: Sequence[tuple[float, float, int]], compared: bool) -> TextStatistics:
        """The figures over all passages; without a KL divergence unless they were `compared` with a reference."""
        nlls, kls, tokens = map(sum, zip(*passages, strict=True))
        nll = nlls / tokens
        perplexity = math.exp(nll) if nll < 700 else math.inf
        return cls(nll, perplexity, kls / tokens if compared else None, int(tokens), tuple(passages))


def answer_log_probs(
    model: PreTrainedModel, batch: Batch, arch: Readout | None = None, cache: DynamicCache | None = None
) -> Answers:
    """Log-probabilities of the batch's answers, from one forward of the backbone.

    The last position predicts nothing that is asked for, so it is left out. No attention mask is passed: padding is
    on the right, where causal attention does not look, and attention without a mask is faster.

    Args:
        cache: an empty one, to be filled with the keys and values of all rows.

    Raises:
        InputError: see `readout`.
    """
    read = arch if arch is not None else readout(model)
    kept = {} if cache is None else {"past_key_values": cache}
    out = read.backbone(input_ids=batch.input_ids[:, :-1], use_cache=cache is not None, **kept)
    return answers_of(read, out.last_hidden_state, batch.input_ids[:, 1:], batch.answer_mask[:, 1:])


def answers_of(
    read: Readout,
    states: Float[Tensor, "batch time d"],
    targets: Int[Tensor, "batch time"],
    predicted: Bool[Tensor, "batch time"],
) -> Answers:
    """What states say to the token that follows each, where that is one of an answer (`predicted`)."""
    hidden = states[predicted]
    rows, said = predicted.nonzero()[:, 0], targets[predicted]
    token = token_log_probs(read, hidden, said)
    sequence = token.new_zeros(len(targets)).index_add(0, rows, token)
    return Answers(sequence, token, rows, said, hidden, predicted.sum(1))


def forward_pair(
    model: PreTrainedModel,
    forget: Batch,
    retain: Batch | None,
    pad_id: int,
    arch: Readout | None = None,
    cache: DynamicCache | None = None,
) -> tuple[Answers, Answers | None]:
    """The answers of both batches from one fused forward, forget rows first, in the `cache` too if there is one."""
    if retain is None:
        return answer_log_probs(model, forget, arch, cache), None
    return answer_log_probs(model, join(forget, retain, pad_id), arch, cache).split(len(forget))


def token_log_probs(
    read: Readout, hidden: Float[Tensor, "tokens d"], targets: Int[Tensor, " tokens"]
) -> Float[Tensor, " tokens"]:
    """Log P of each target. Long inputs go through the head in blocks, whose logits are made again in the backward."""
    block = _block(read, LOGITS_BYTES * (4 if torch.is_grad_enabled() else 1))
    if len(targets) <= block:
        return _log_probs(read, hidden, targets)
    pieces = zip(torch.split(hidden, block), torch.split(targets, block), strict=True)
    return torch.cat(
        [checkpoint(_log_probs, read, h, t, use_reentrant=False, preserve_rng_state=False) for h, t in pieces]
    )


def cache_reference(model: PreTrainedModel, batches: Iterable[Batch], keep_hidden: bool = False) -> Reference:
    """The reference values of all items; the batches' indices together must be 0, 1, ... n - 1.

    With `keep_hidden` the states at answer positions and one frozen copy of the head are kept, from which the
    model's whole distribution can be computed again.

    Raises:
        InputError: an index is missing or given twice.
    """
    read, items = readout(model), dict[int, tuple[Tensor, Tensor]]()
    with evaluating(model):
        for batch in batches:
            answers = answer_log_probs(model, batch.to(model.device), read)
            states = torch.split(answers.hidden, answers.counts.tolist())
            items |= {int(i): (answers.sequence[row], states[row]) for row, i in enumerate(batch.index)}
    if sorted(items) != list(range(len(items))):
        raise InputError("The batches of a reference must hold every item.", f"{sorted(items)[:8]} ...")
    sequence = torch.stack([items[i][0] for i in range(len(items))])
    if not keep_hidden:
        return Reference(sequence)
    head = copy.deepcopy(read.head).requires_grad_(False)
    return Reference(sequence, tuple(items[i][1] for i in range(len(items))), head, read.softcap)


def cache_text(model: PreTrainedModel, encoder: Encoder, texts: Sequence[str]) -> Reference:
    """The reference that `text_statistics` needs to give the KL divergence on the same texts."""
    return cache_reference(model, _text_batches(encoder, texts), keep_hidden=True)


def text_statistics(
    model: PreTrainedModel, encoder: Encoder, texts: Sequence[str], reference: Reference | None = None
) -> TextStatistics:
    """Perplexity on `texts` and, given `cache_text` of the unchanged model, KL(reference || model), both per token.

    Raises:
        InputError: there is no text, or one has no token to predict.
    """
    read, passages = readout(model), dict[int, tuple[float, float, int]]()
    with evaluating(model):
        for batch in _text_batches(encoder, texts):
            answers = answer_log_probs(model, batch.to(model.device), read)
            nll, kl = -answers.token.double(), torch.zeros(len(answers.token), dtype=torch.double)
            if reference is not None:
                kl = _kl(read, answers.hidden, reference, reference.states(batch.index))
            sums = (torch.stack([part.sum() for part in torch.split(x, answers.counts.tolist())]) for x in (nll, kl))
            told = zip(*(x.tolist() for x in sums), answers.counts.tolist(), strict=True)
            passages |= dict(zip(batch.index.tolist(), told, strict=True))
    if not passages:
        raise InputError("There is no text to measure.")
    return TextStatistics.of([passages[i] for i in range(len(texts))], compared=reference is not None)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No gradients and no dropout inside; afterwards every module is in its own mode again."""
    training = [module for module in model.modules() if module.training]
    model.train(False)
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def length_sorted(encoded: Sequence[Encoded], pad_id: int, batch_size: int) -> Iterator[Batch]:
    """Batches of items of similar length, longest first; `index` leads back to the order given."""
    order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i].ids))
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        yield collate([encoded[i] for i in index], pad_id, index)


def _text_batches(encoder: Encoder, texts: Sequence[str]) -> Iterator[Batch]:
    return length_sorted([encoder.encode_text(text) for text in texts], encoder.pad_id, batch_size=8)


def _kl(read: Readout, hidden: Tensor, reference: Reference, states: Tensor) -> Float[Tensor, " tokens"]:
    """KL(reference || model) at each token, in fp64; four blocks of logits are alive at once."""
    block = _block(read, LOGITS_BYTES // 4)
    pieces = []
    for ours, theirs in zip(torch.split(hidden, block), torch.split(states, block), strict=True):
        before = log_softmax(reference.logits(theirs), -1)
        after = log_softmax(read.logits(ours), -1)
        pieces.append((before.exp() * (before - after)).sum(-1).double())
    return torch.cat(pieces)


def _block(read: Readout, budget: int) -> int:
    return max(1, budget // (4 * width(read.head)))


def _log_probs(read: Readout, hidden: Tensor, targets: Tensor) -> Tensor:
    return -cross_entropy(read.logits(hidden), targets, reduction="none")
