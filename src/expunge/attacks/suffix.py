"""Universal suffix: words behind every question, found on half of the facts by greedy coordinate gradient.

    gain[j, v]  =  dL / d onehot_j  [v]  =  (dL / d e_j) . E_v        e_j: embedding of the suffix's token j
    one iteration: draw `candidates` swaps (j, v) among the `top_k` tokens of largest gain of each j,
                   compute L for each, and keep the best if it is better than what there is

GCG (arXiv:2307.15043), as a dynamic attack on unlearning arXiv:2408.10682; L is that of `search`. The suffix stands
before the line that begins the answer ("Answer:"), at the end of the prompt where there is none, which under a chat
template is the end of the user's turn. It is text: whatever does not come back from the tokenizer as the tokens that
were meant is dropped, and so are special tokens. L never falls, and an iteration does not depend on how many follow.

The defaults are what a small machine does in about a minute; a thorough search takes a suffix of 20 tokens, hundreds of
iterations and candidates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from itertools import islice
from random import Random
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from expunge.attacks.base import T, Target
from expunge.attacks.budget import Budget
from expunge.attacks.search import Goal, Groups, Moment, Search
from expunge.attacks.trials import Questions, Trial
from expunge.attacks.weights import Weights
from expunge.errors import InputError

Ids = tuple[int, ...]

TRIES = 400
"""Tokens that are tried at most for one place of the first suffix."""

_ANSWER = re.compile(r"\s*\n\s*Answer\s*:")


@dataclass(frozen=True)
class Suffix(Search):
    """Greedy coordinate gradient from a random suffix.

    Args:
        split_seed: of the choice of the halves.
        length: of the suffix, in tokens.
        iterations: swaps that are made at most.
        eval_every: score after every so many iterations; divides `iterations`.
        candidates: swaps that are compared in an iteration.
        top_k: tokens that are considered for each place.
        seed: of the first suffix and of the swaps drawn.
    """

    length: int = 6
    iterations: int = 4
    eval_every: int = 2
    candidates: int = 8
    top_k: int = 64
    seed: int = 0

    name: ClassVar[str] = "suffix"
    summary: ClassVar[str] = "search words to put after the question on half of the facts, score the other half"

    def __post_init__(self) -> None:
        least = min(self.length, self.iterations, self.eval_every, self.candidates, self.top_k)
        if least < 1 or self.iterations % self.eval_every:
            raise InputError(
                "All numbers must be at least 1, and iterations a multiple of eval_every.",
                f"{self.name}: iterations={self.iterations}, eval_every={self.eval_every}",
            )

    def count(self, target: Target[T]) -> int:
        """Scored points of the search."""
        return self.iterations // self.eval_every

    def allowance(self, target: Target[T]) -> Budget:
        """All points, and per iteration one gradient and all candidates, each over the questions searched on."""
        passes = 1 + self.iterations * (1 + self.candidates)
        return Budget(variants=self.count(target), queries=passes * len(self.material(target).train))

    def trials(self, target: Target[T], weights: Weights) -> Iterator[Trial]:
        """The best suffix so far, after every `eval_every` iterations."""
        facts = self.material(target).train
        hunt = Hunt(Goal(target.model, target.encoder, facts))
        settings = {key: value for key, value in asdict(self).items() if key not in ("split_seed", "iterations")}
        kept, now, passes = self.kept(target, weights, **settings), None, 0
        for step in range(self.eval_every, self.iterations + 1, self.eval_every):
            stored = kept.read(str(step))
            if stored is None or (found := hunt.again(stored)) is None:
                if now is None:
                    now, passes = hunt.begin(self.length, Random(f"{self.seed}/suffix")), 1
                for place in range(step - self.eval_every + 1, step + 1):
                    draws = Random(f"{self.seed}/suffix/{place}")
                    now, compared = hunt.improved(now, self.candidates, self.top_k, draws)
                    passes += 1 + compared
                stored = Moment(now.ids, now.value, passes * len(facts))
                kept.write(str(step), stored)
            else:
                now = found
            spent, passes = Budget(queries=stored.queries), 0
            yield Trial(f"suffix {now.text!r}, {step} iterations", ask=partial(asked, now.text), spent=spent)


@dataclass(frozen=True)
class Found:
    """A suffix: its tokens, their text, the questions searched on with it, and L."""

    ids: Ids
    text: str
    groups: Groups
    value: float


@dataclass(frozen=True)
class Hunt:
    """The search for one suffix."""

    goal: Goal

    def begin(self, length: int, random: Random) -> Found:
        """Random tokens.

        Raises:
            InputError: no text of that length comes back from the tokenizer as it went in.
        """
        ids: Ids = ()
        groups: Groups = ()
        for _ in range(length):
            drawn = ((*ids, random.choice(self.allowed)) for _ in range(TRIES))
            longer = next(((tried, read) for tried in drawn if (read := self.groups(tried)) is not None), None)
            if longer is None:
                raise InputError("No suffix survives this tokenizer.", f"length={length}", "Leave this attack out.")
            ids, groups = longer
        return Found(ids, self.text(ids), groups, *self.goal.values([groups]))

    def again(self, stored: Moment) -> Found | None:
        """What was found before; None where it is no suffix of this tokenizer."""
        ids = tuple(map(int, stored.found))
        if not set(ids) <= set(self.allowed) or (groups := self.groups(ids)) is None:
            return None
        return Found(ids, self.text(ids), groups, stored.value)

    def improved(self, now: Found, candidates: int, top_k: int, random: Random) -> tuple[Found, int]:
        """The best of some swaps, or `now` where none is better; and how many were compared."""
        swaps = list(islice(self._swaps(now, top_k, random), candidates))
        values = self.goal.values([groups for _, groups in swaps])
        best = max(range(len(swaps)), key=values.__getitem__, default=None)
        if best is None or values[best] <= now.value:
            return now, len(swaps)
        ids, groups = swaps[best]
        return Found(ids, self.text(ids), groups, values[best]), len(swaps)

    def _swaps(self, now: Found, top_k: int, random: Random) -> Iterator[tuple[Ids, Groups]]:
        """Suffixes that differ in one token of large gain, in random order."""
        gain = self.gains(now)
        gain[torch.arange(len(now.ids)), list(now.ids)] = -torch.inf
        usable = torch.full_like(gain[0], -torch.inf)
        usable[list(self.allowed)] = 0
        best = (gain + usable).topk(min(top_k, len(self.allowed)), dim=1)
        pairs = [
            (place, token)
            for place, (values, tokens) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True))
            for value, token in zip(values, tokens, strict=True)
            if value > -torch.inf
        ]
        random.shuffle(pairs)
        for place, token in pairs:
            ids = (*now.ids[:place], token, *now.ids[place + 1 :])
            if (groups := self.groups(ids)) is not None:
                yield ids, groups

    def gains(self, now: Found) -> Float[Tensor, "length vocabulary"]:
        """Derivative of L by the one-hot vectors of the suffix's tokens, up to a positive factor."""
        table, weight = self._table
        free = torch.zeros(len(now.ids), weight.shape[1], dtype=weight.dtype, device=weight.device, requires_grad=True)

        def shift(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            begins = [start_of(row, now.ids) for row in inputs[0].tolist()]
            rows = [(row, begin + j, j) for row, begin in enumerate(begins) if begin >= 0 for j in range(len(now.ids))]
            row, column, place = torch.tensor(rows, dtype=torch.long, device=output.device).reshape(-1, 3).T
            return output.index_put((row, column), free[place].to(output.dtype), accumulate=True)

        handle = table.register_forward_hook(shift)
        try:
            slope = self.goal.slope(now.groups, free)
        finally:
            handle.remove()
        return (slope @ weight.detach().T).float().cpu()

    def groups(self, ids: Ids) -> Groups | None:
        """The questions searched on with the suffix behind them; None where its text is not read as these tokens."""
        text = self.text(ids)
        if not text.isprintable():
            return None
        groups = self.goal.groups(asked(text, self.goal.facts))
        stable = all(start_of(choice.ids[: choice.answer_start], ids) >= 0 for group in groups for choice in group)
        return groups if stable else None

    def text(self, ids: Ids) -> str:
        """What the tokens say, without space at either end."""
        return str(self.goal.encoder.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)).strip()

    @cached_property
    def allowed(self) -> tuple[int, ...]:
        """Every token but the special ones and those that were added to the tokenizer."""
        tokenizer: Any = self.goal.encoder.tokenizer
        barred = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
        return tuple(i for i in range(min(len(tokenizer), len(self._table[1]))) if i not in barred)

    @property
    def _table(self) -> tuple[nn.Module, Tensor]:
        """The module that embeds tokens, and its rows."""
        module: Any = self.goal.model.get_input_embeddings()
        return module, module.weight


def asked(suffix: str, questions: Questions) -> Questions:
    """The questions with `suffix` behind them, before the line that begins the answer if there is one."""
    return [replace(example, prompt=placed(suffix, example.prompt)) for example in questions]


def placed(suffix: str, prompt: str) -> str:
    """One prompt with the suffix."""
    answer = max((found.start() for found in _ANSWER.finditer(prompt)), default=len(prompt))
    return f"{prompt[:answer]} {suffix}{prompt[answer:]}"


def start_of(row: Sequence[int], ids: Sequence[int]) -> int:
    """Where `ids` begin in `row` for the last time, -1 where they do not."""
    width = len(ids)
    starts = range(len(row) - width, -1, -1)
    return next((start for start in starts if tuple(row[start : start + width]) == tuple(ids)), -1)
