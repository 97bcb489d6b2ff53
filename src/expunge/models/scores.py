"""How well a model knows facts: log-probability of the answer against its options, and what it says by itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from expunge.data.collate import Encoded, Encoder
from expunge.data.example import Example
from expunge.errors import InputError, NotANumber
from expunge.models.answers import evaluating
from expunge.models.architecture import Readout, readout
from expunge.models.candidates import LogProb, candidate_log_probs, candidate_totals, padded

MOST_CANDIDATES = 160
"""Answers and options of a batch."""


@dataclass(frozen=True)
class ItemScore:
    """The scores of one example.

    Args:
        id: the example's id.
        log_prob: log P(answer | prompt), the sum over its tokens.
        tokens: the answer's length.
        option_log_probs: per-token mean log P of each option.
        answer_mean: per-token mean log P of the answer.
        log_odds: answer_mean - log mean exp(option_log_probs): 0 is ignorance, whatever the number of options; NaN
            without options.
        correct: the answer beats every option (always, without options).
        probability: P(answer | prompt).
        chance: accuracy of a uniform guess.
    """

    id: str
    log_prob: float
    tokens: int
    option_log_probs: tuple[float, ...]
    answer_mean: float
    log_odds: float
    correct: bool
    probability: float
    chance: float


@dataclass(frozen=True)
class Scores:
    """Means over `n` items; `log_odds` is over those with options, NaN if none has any."""

    accuracy: float
    log_odds: float
    chance: float
    probability: float
    n: int


def log_odds(answer_mean: float, option_log_probs: Sequence[float]) -> float:
    """The answer's mean log P minus the log of the options' mean probability; NaN without options."""
    if not option_log_probs:
        return math.nan
    top = max(option_log_probs)
    return answer_mean - top - math.log(fmean(math.exp(value - top) for value in option_log_probs))


def choices(encoder: Encoder, example: Example) -> list[Encoded]:
    """The answer, then the options, each after the prompt."""
    return [encoder.encode(example.prompt, text) for text in (example.answer, *example.options)]


def log_odds_of(
    model: PreTrainedModel, read: Readout, groups: Sequence[Sequence[Encoded]], pad_id: int
) -> Float[Tensor, " groups"]:
    """The log-odds of `choices`, each with one option at least, in the graph where there is one."""
    totals, tokens = candidate_totals(model, read, groups, pad_id)
    return grouped_log_odds(totals / torch.tensor(tokens), [len(group) for group in groups])


def grouped_log_odds(means: Float[Tensor, " members"], sizes: Sequence[int]) -> Float[Tensor, " groups"]:
    """Log-odds of groups of per-token means, the answer's first in each and one option at least behind it."""
    groups = torch.split(means, list(sizes))
    return torch.stack([group[0] - group[1:].logsumexp(0) + math.log(len(group) - 1) for group in groups])


def score_items(
    model: PreTrainedModel, encoder: Encoder, examples: Sequence[Example], batch_size: int = 32
) -> tuple[ItemScore, ...]:
    """One score per example, in order; independent of `batch_size` (in examples) up to rounding.

    A batch has no more than `MOST_CANDIDATES` answers and options, as each holds the keys and values of its prompt.

    Raises:
        InputError: an answer or option tokenises to nothing.
    """
    groups = [choices(encoder, example) for example in examples]
    order = sorted(range(len(groups)), key=lambda i: -len(groups[i][0].ids))
    read = readout(model)
    found: dict[int, list[LogProb]] = {}
    with evaluating(model):
        for rows in _batches(order, [len(group) for group in groups], batch_size):
            values = candidate_log_probs(model, read, [groups[i] for i in rows], encoder.pad_id)
            found.update(zip(rows, values, strict=True))
    return tuple(_item(example, found[i]) for i, example in enumerate(examples))


def _batches(order: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """`order` in pieces of up to `most` groups and, unless one alone is larger, `MOST_CANDIDATES` of their members."""
    rows: list[int] = []
    for i in order:
        if rows and (len(rows) == most or sum(sizes[row] for row in rows) + sizes[i] > MOST_CANDIDATES):
            yield rows
            rows = []
        rows.append(i)
    if rows:
        yield rows


def numbers(items: tuple[ItemScore, ...]) -> tuple[ItemScore, ...]:
    """The same items; NotANumber where the model made none of one of them."""
    for item in items:
        if any(math.isnan(value) for value in (item.answer_mean, *item.option_log_probs)):
            raise NotANumber(
                "What the model makes of an answer is not a number.",
                f"item {item.id}",
                "Its weights are damaged or overflow: look for NaN in them, or try dtype float32.",
            )
    return items


def summarise(items: Sequence[ItemScore]) -> Scores:
    """The means over `items`.

    Raises:
        InputError: there are none.
    """
    if not items:
        raise InputError("There are no items to score.")
    odds = [item.log_odds for item in items if item.option_log_probs]
    return Scores(
        accuracy=fmean(item.correct for item in items),
        log_odds=fmean(odds) if odds else math.nan,
        chance=fmean(item.chance for item in items),
        probability=fmean(item.probability for item in items),
        n=len(items),
    )


def greedy(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[str],
    max_new_tokens: int = 16,
    batch_size: int = 32,
) -> tuple[str, ...]:
    """What the model says to each prompt, token by token the likeliest, up to its end-of-sequence token.

    The text is stripped, holds no special tokens and is not to be trusted. Sampling settings, penalties and
    `use_cache` of the model's own configuration play no part.
    """
    return tuple(said.text for said in _say(model, encoder, prompts, max_new_tokens, batch_size))


@dataclass(frozen=True, slots=True)
class Said:
    """One output: its text, stripped, without special tokens and not to be trusted, and its length in tokens."""

    text: str
    tokens: int


def sample(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[str],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    draw: int = 0,
    max_new_tokens: int = 16,
    batch_size: int = 32,
) -> tuple[Said, ...]:
    """One output to each prompt, drawn token by token from the whole of softmax(logits / temperature); 0 is greedy.

    What is drawn depends on the model, the prompt, `seed` and `draw` (which tells the first output to a prompt from the
    second) and, up to rounding, on nothing else: not on the other prompts, the batch, or torch's global state.
    """

    def drawn(rows: Sequence[int]) -> LogitsProcessor:
        return _Gumbel(temperature, [f"{seed}/{draw}/{prompts[i]}" for i in rows])

    return _say(model, encoder, prompts, max_new_tokens, batch_size, drawn if temperature else None)


class _Gumbel(LogitsProcessor):
    """Makes the likeliest token a sample: argmax_v (z_v / T + G_v) ~ softmax(z / T), G_v independent Gumbel(0, 1).

    `generate` draws all rows of a batch from one state, so that a row would depend on its neighbours; here every row
    has its own.
    """

    def __init__(self, temperature: float, keys: Sequence[str]) -> None:
        self.temperature, self.states = temperature, [_generator(key) for key in keys]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        waiting = torch.stack([torch.empty(scores.shape[1]).exponential_(generator=state) for state in self.states])
        return scores / self.temperature - waiting.log().to(scores)


def _generator(key: str) -> torch.Generator:
    digest = hashlib.sha256(key.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _say(
    model: PreTrainedModel,
    encoder: Encoder,
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
    changed: Callable[[Sequence[int]], LogitsProcessor] | None = None,
) -> tuple[Said, ...]:
    """The likeliest continuations, after `changed` of a batch's rows has had its way with the logits."""
    ids = [encoder.encode_prompt(prompt) for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
    said: dict[int, Said] = {}
    own = model.generation_config
    try:
        plain = _plain_generation(own, encoder, max_new_tokens)
        model.generation_config = plain
        with evaluating(model):
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                processors = LogitsProcessorList([changed(rows)] if changed else [])
                new = _continue(model, padded([ids[i] for i in rows], encoder.pad_id, left=True), processors)
                decoded = encoder.tokenizer.batch_decode(new, skip_special_tokens=True)
                lengths = [_length(row, plain.eos_token_id) for row in new.tolist()]
                said.update(zip(rows, map(Said, map(str.strip, decoded), lengths), strict=True))
    finally:
        model.generation_config = own
    return tuple(said[i] for i in range(len(ids)))


def _length(row: Sequence[int], ends: int | list[int] | None) -> int:
    """Tokens of a continuation up to its end-of-sequence token, that one included."""
    stops = {ends} if isinstance(ends, int) else set(ends or ())
    before = sum(1 for _ in takewhile(lambda token: token not in stops, row))
    return min(before + 1, len(row))


def _item(example: Example, found: Sequence[LogProb]) -> ItemScore:
    answer, *others = found
    options = tuple(option.mean for option in others)
    return ItemScore(
        id=example.id,
        log_prob=answer.total,
        tokens=answer.tokens,
        option_log_probs=options,
        answer_mean=answer.mean,
        log_odds=log_odds(answer.mean, options),
        correct=all(answer.mean > option for option in options),
        probability=math.exp(answer.total),
        chance=example.chance,
    )


def _plain_generation(own: GenerationConfig | None, encoder: Encoder, max_new_tokens: int) -> GenerationConfig:
    """Greedy settings that take nothing but the end-of-sequence ids from the model's own."""
    ends = own.eos_token_id if own is not None and own.eos_token_id is not None else encoder.tokenizer.eos_token_id
    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False, max_new_tokens=max_new_tokens, use_cache=True, eos_token_id=ends, pad_token_id=encoder.pad_id
    )


def _continue(model: PreTrainedModel, batch: tuple[Tensor, Tensor], processors: LogitsProcessorList) -> Tensor:
    """The new ids [batch, new]."""
    ids, mask = (tensor.to(model.device) for tensor in batch)
    out: Tensor = model.generate(input_ids=ids, attention_mask=mask, logits_processor=processors)  # type: ignore[operator]
    return out[:, ids.shape[1] :]
