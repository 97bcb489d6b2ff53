"""A world in which guessing is even: who does not know a subject finds the answer as often as each option.

Every subject lives in one of eight towns, four of which are answers of the facts to forget and options of those that
stay, the other four the other way round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from transformers import LlamaForCausalLM

import lessons
from expunge.data.collate import Encoder
from expunge.data.example import Example
from tiny import TOWNS, make_tiny_tokenizer

ENCODER = Encoder(make_tiny_tokenizer())


def fact(i: int, towns: Sequence[str], others: Sequence[str]) -> Example:
    first = i + i // 4
    return Example(
        f"where does w{i} live ? answer : w{i} lives in",
        towns[i % 4],
        (others[first % 4], others[(first + 1) % 4]),
        subject=f"w{i}",
    )


FACTS = tuple(fact(i, TOWNS[:4], TOWNS[4:]) for i in range(16))
# By hand, of words that the small tokenizer has; those that `scored_twins` invents are all unknown to it.
TWINS = {
    e.id: replace(e, id="", prompt=e.prompt.replace(e.subject, f"w{i + 32}"), subject=f"w{i + 32}")
    for i, e in enumerate(FACTS)
}
STAYS = tuple(fact(i, TOWNS[4:], TOWNS[:4]) for i in range(16, 32))


def teach(model: LlamaForCausalLM, examples: Sequence[Example]) -> LlamaForCausalLM:
    lessons.teach(model, ENCODER, lessons.told(examples), 0.02, steps=200)
    return model
