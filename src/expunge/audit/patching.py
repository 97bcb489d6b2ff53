"""Activation patching: what one model's activations do inside another, for two scores of how much knowledge is left.

Knowledge recovery score (KRS, arXiv:2410.06606): put activations of the original model into the unlearned one.

    KRS = 1 - MSE(z_original, z_patched) / MSE(z_original, z_unlearned)

z are the logits where the original's own greedy continuation is predicted, teacher-forced. 1: the patch restores what
the original says, so what comes after the patched maps is as good as ever; 0: it does nothing. Patched are the input of
the down projection, the output of the attention, or both, of a window of blocks at every position.

Unlearning depth score (UDS, arXiv:2605.24614): put the residual stream of other models into the original. It needs a
model retrained without the facts.

    s     = mean log P of the answer's tokens in the original
    D1_l  = s - s(residual after block l from the retrained model)       what the facts need of block l
    D2_l  = s - s(residual after block l from the unlearned model)
    UDS   = sum_l D1_l clip(D2_l / D1_l, 0, 1) / sum_l D1_l              over the blocks with D1_l > 0.05

of each example, then the mean. 1: erased as deeply as by retraining; 0: the unlearned model's states still carry all.
Both want models of one architecture that share a basis, as an unlearned model and its original do: states of a model
trained from another beginning mean nothing to the original, whatever they know, and score as erased.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from expunge.data.collate import Batch, Encoded, collate
from expunge.errors import InputError
from expunge.models.answers import answer_log_probs, evaluating, length_sorted
from expunge.models.architecture import Architecture, describe
from expunge.models.hooks import RESIDUAL, Place, recording, replacing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example

Sites = Literal["mlp", "attention", "both"]
Positions = Literal["answer", "all"]

_SITES: Final[dict[Sites, tuple[str, ...]]] = {"mlp": ("down",), "attention": ("o",), "both": ("down", "o")}


@dataclass(frozen=True, slots=True)
class Restored:
    """One window of patched blocks: `krs` as in the module's formula, `kl` = KL(original || patched) in nats."""

    blocks: tuple[int, ...]
    krs: float
    kl: float


@dataclass(frozen=True, slots=True)
class KnowledgeRecovery:
    """What patches of the original's activations restore.

    Args:
        sites: what was patched.
        windows: one result per window, from the first block on.
        mse: between the logits of the original and the unlearned model; 0 leaves every KRS undefined (NaN).
        kl: KL(original || unlearned), mean over the positions, nats.
    """

    sites: Sites
    windows: tuple[Restored, ...]
    mse: float
    kl: float

    @property
    def mean(self) -> float:
        """Mean KRS over the windows."""
        return fmean(window.krs for window in self.windows)


@dataclass(frozen=True, slots=True)
class UnlearningDepth:
    """UDS of each example, and what it is made of.

    Args:
        value: mean over the examples that count; NaN where there is none.
        examples: UDS per example, NaN for one of which no block holds more than `least`.
        from_retrained: [examples][blocks] D1.
        from_unlearned: [examples][blocks] D2.
    """

    value: float
    examples: tuple[float, ...]
    from_retrained: tuple[tuple[float, ...], ...]
    from_unlearned: tuple[tuple[float, ...], ...]


def knowledge_recovery(
    original: PreTrainedModel,
    unlearned: PreTrainedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    sites: Sites = "mlp",
    window: int = 5,
    new_tokens: int = 30,
    batch_size: int = 8,
) -> KnowledgeRecovery:
    """KRS of the examples' prompts, for every window of `window` neighbouring blocks (all blocks, if there are fewer).

    Costs one forward of both models, and one of the unlearned per window, over prompt and continuation.

    Raises:
        InputError: the models differ in architecture, or there is no example.
    """
    ours, theirs = _alike(original, unlearned, examples)
    blocks = len(ours.blocks)
    size = min(window, blocks)
    windows = [tuple(range(start, start + size)) for start in range(blocks - size + 1)]
    places = [(block, name) for block in range(blocks) for name in _SITES[sites]]
    plain, patched = _Distance(), [_Distance() for _ in windows]
    prompts = [Encoded(ids := tuple(encoder.encode_prompt(example.prompt)), len(ids)) for example in examples]
    with evaluating(original), evaluating(unlearned):
        for asked in length_sorted(prompts, encoder.pad_id, batch_size):
            batch = _continued(ours, asked.to(original.device), new_tokens, encoder)
            with recording(ours, places) as seen:
                wanted = _logits(ours, batch)
            plain.add(wanted, _logits(theirs, batch))
            for blocks_patched, distance in zip(windows, patched, strict=True):
                chosen = {place: value for place, value in seen.items() if place[0] in blocks_patched}
                with replacing(theirs, chosen):
                    distance.add(wanted, _logits(theirs, batch))
    found = [
        Restored(where, 1 - d.mse / plain.mse if plain.mse else math.nan, d.kl)
        for where, d in zip(windows, patched, strict=True)
    ]
    return KnowledgeRecovery(sites, tuple(found), plain.mse, plain.kl)


def unlearning_depth(
    original: PreTrainedModel,
    unlearned: PreTrainedModel,
    retrained: PreTrainedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    *,
    positions: Positions = "answer",
    least: float = 0.05,
    batch_size: int = 8,
) -> UnlearningDepth:
    """UDS on the examples' answers.

    Args:
        positions: "answer" patches where an answer token is predicted, as the paper's authors do; "all" patches the
            whole sequence, so that no later block can read the fact anew from the original's other positions.
        least: D1 that a block must exceed to count.

    Raises:
        InputError: the models differ in architecture, or there is no example.
    """
    plain, first = patched_log_probs(original, retrained, encoder, examples, positions, batch_size)
    _, second = patched_log_probs(original, unlearned, encoder, examples, positions, batch_size)
    from_retrained, from_unlearned = (
        tuple(tuple(s - layer for layer in row) for s, row in zip(plain, rows, strict=True)) for rows in (first, second)
    )
    scores = tuple(depth(d1, d2, least) for d1, d2 in zip(from_retrained, from_unlearned, strict=True))
    counted = [score for score in scores if not math.isnan(score)]
    return UnlearningDepth(fmean(counted) if counted else math.nan, scores, from_retrained, from_unlearned)


def depth(d1: Sequence[float], d2: Sequence[float], least: float = 0.05) -> float:
    """UDS of one example from D1 and D2 of its blocks; NaN where no D1 exceeds `least`."""
    held = [(one, two) for one, two in zip(d1, d2, strict=True) if one > least]
    total = sum(one for one, _ in held)
    return sum(one * min(max(two / one, 0.0), 1.0) for one, two in held) / total if held else math.nan


def patched_log_probs(
    original: PreTrainedModel,
    source: PreTrainedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    positions: Positions = "answer",
    batch_size: int = 8,
) -> tuple[list[float], list[list[float]]]:
    """s of each example, and s with the residual after each block from `source`, [examples][blocks].

    Raises:
        InputError: the models differ in architecture, or there is no example.
    """
    ours, theirs = _alike(original, source, examples)
    places: list[Place] = [(block, RESIDUAL) for block in range(len(ours.blocks))]
    plain, patched = [0.0] * len(examples), [[0.0] * len(places) for _ in examples]
    encoded = [encoder.encode(example.prompt, example.answer) for example in examples]
    with evaluating(original), evaluating(source):
        for found in length_sorted(encoded, encoder.pad_id, batch_size):
            batch = found.to(original.device)
            where = batch.answer_mask[:, 1:] if positions == "answer" else None
            with recording(theirs, places) as seen:
                answer_log_probs(source, batch, theirs)
            for row, value in zip(found.index.tolist(), _means(original, ours, batch), strict=True):
                plain[row] = value
            for block, place in enumerate(places):
                with replacing(ours, {place: seen[place]}, where):
                    values = _means(original, ours, batch)
                for row, value in zip(found.index.tolist(), values, strict=True):
                    patched[row][block] = value
    return plain, patched


def _means(model: PreTrainedModel, arch: Architecture, batch: Batch) -> list[float]:
    """Mean log P of each row's answer tokens."""
    said = answer_log_probs(model, batch, arch)
    means: list[float] = (said.sequence.double() / said.counts).tolist()
    return means


class _Distance:
    """Mean squared difference of logits and mean KL(wanted || found), over all positions given."""

    def __init__(self) -> None:
        self._squares = self._kl = 0.0
        self._values = self._positions = 0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        """Logits [positions, vocabulary] of both."""
        log_p, log_q = log_softmax(wanted, -1), log_softmax(found, -1)
        self._squares += float((wanted - found).double().square().sum())
        self._kl += float((log_p.exp() * (log_p - log_q)).double().sum())
        self._values += wanted.numel()
        self._positions += len(wanted)

    @property
    def mse(self) -> float:
        return self._squares / self._values

    @property
    def kl(self) -> float:
        return self._kl / self._positions


def _continued(arch: Architecture, asked: Batch, new_tokens: int, encoder: Encoder) -> Batch:
    """The prompts with the model's greedy continuations, up to its end of sequence, as answers."""
    ends = {encoder.tokenizer.eos_token_id}
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(asked.input_ids, asked.attention_mask, strict=True)]
    starts, going = [len(row) for row in rows], list(range(len(rows)))
    for _ in range(new_tokens):
        batch = collate([Encoded(tuple(rows[i]), starts[i]) for i in going], encoder.pad_id).to(asked.input_ids.device)
        states = arch.backbone(input_ids=batch.input_ids, use_cache=False).last_hidden_state
        last = states[torch.arange(len(going)), batch.attention_mask.sum(1) - 1]
        for i, token in zip(going, arch.logits(last).argmax(-1).tolist(), strict=True):
            rows[i].append(token)
        going = [i for i in going if rows[i][-1] not in ends]
        if not going:
            break
    said = [Encoded(tuple(row), start) for row, start in zip(rows, starts, strict=True)]
    return collate(said, encoder.pad_id, asked.index.tolist()).to(asked.input_ids.device)


def _logits(arch: Architecture, batch: Batch) -> Tensor:
    """[positions, vocabulary] where the answers' tokens are predicted."""
    states = arch.backbone(input_ids=batch.input_ids[:, :-1], use_cache=False).last_hidden_state
    return arch.logits(states[batch.answer_mask[:, 1:]])


def _alike(
    one: PreTrainedModel, other: PreTrainedModel, examples: Sequence[Example]
) -> tuple[Architecture, Architecture]:
    """Both models' parts; InputError unless activations of one fit into the other."""
    if not examples:
        raise InputError("There is no example to patch on.", "examples", "Give at least one.")
    found = describe(one), describe(other)
    models = zip(found, (one, other), strict=True)
    sizes = [(arch.family, len(arch.blocks), model.config.hidden_size) for arch, model in models]
    if sizes[0] != sizes[1]:
        raise InputError(
            "Activations of one model do not fit into the other.", f"{sizes[0]} and {sizes[1]}", "Give two versions."
        )
    return found
