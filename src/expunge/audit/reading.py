"""What is read from one model so that metrics of memorisation, membership and utility can be computed without it.

One teacher-forced forward over the answers of the forget items, of the non-members, and over paraphrased answers; the
scores over options and the greedy words are those of the snapshot, which are there anyway.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from expunge.audit.rouge import rouge_l_recall
from expunge.audit.truth_ratio import log_truth_ratio
from expunge.models.scores import ItemScore
from expunge.models.tokens import TokenScores, token_scores

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example
    from expunge.request import Request

STAYS: Final = {"real_authors": "ra", "world_facts": "wf"}
"""Test groups that TOFU's model utility asks, and the names that its values begin with."""

MOST_OTHERS = 256
"""Non-members at most: the first ones, the same for every model."""


@dataclass(frozen=True)
class Sheet:
    """What a set of items was answered with, in the order of `ids`.

    Args:
        ids: of the items.
        items: scores over options.
        rouge_l: recall of the answer in the greedy words; NaN for items that were not answered in words.
        log_truth: log R of those that have wrong answers, see `expunge.audit.truth_ratio`; NaN for others.
    """

    ids: tuple[str, ...]
    items: tuple[ItemScore, ...]
    rouge_l: tuple[float, ...]
    log_truth: tuple[float, ...]


@dataclass(frozen=True)
class Reading:
    """One model.

    Args:
        forget: what had to go.
        stays: what had to stay, by the prefix of TOFU's names (retain, ra, wf).
        members: the forget answers, token by token.
        others: those of the non-members.
        answers: texts of members and of non-members.
        non_members: where these are from; empty without any.
        vocabulary: number of tokens that the model chooses from.
    """

    forget: Sheet
    stays: Mapping[str, Sheet]
    members: tuple[TokenScores, ...]
    others: tuple[TokenScores, ...]
    answers: tuple[tuple[str, ...], tuple[str, ...]]
    non_members: str
    vocabulary: int


def non_members(request: Request) -> tuple[str, tuple[Example, ...]]:
    """Items of the forget set's kind that no training of ours saw, and where they are from; ("", ()) without any.

    First the facts kept for attacks: they are trained on only in the copies that an attack makes. Then the test group
    `held_out`: unlearning did not train on it, but whoever made the original may have taught it.
    """
    for name, examples in (("attack", request.attack), ("held_out", request.test.get("held_out", ()))):
        if examples:
            return name, tuple(examples[:MOST_OTHERS])
    return "", ()


def read(
    model: PreTrainedModel,
    encoder: Encoder,
    request: Request,
    forget: Sequence[ItemScore],
    stays: Mapping[str, tuple[Sequence[Example], Sequence[ItemScore]]],
    words: Mapping[str, str],
) -> Reading:
    """What `model` says.

    Args:
        forget: its scores of the forget items.
        stays: by prefix, the items and their scores.
        words: its greedy words by prompt; untrusted text.
    """
    place, others = non_members(request)
    everyone = [*request.forget, *(example for examples, _ in stays.values() for example in examples)]
    reworded = [replace(e, answer=text) for e in everyone for text in e.answer_paraphrases]
    told = token_scores(model, encoder, [*request.forget, *others, *reworded])
    members, strangers = told[: len(request.forget)], told[len(request.forget) : len(request.forget) + len(others)]
    rest = iter(told[len(members) + len(strangers) :])
    # By place, as records of two sets may share an id.
    means = iter([[-next(rest).loss for _ in e.answer_paraphrases] for e in everyone])
    return Reading(
        forget=_sheet(request.forget, forget, means, words),
        stays={name: _sheet(examples, items, means, words) for name, (examples, items) in stays.items()},
        members=members,
        others=strangers,
        answers=(tuple(e.answer for e in request.forget), tuple(e.answer for e in others)),
        non_members=place,
        vocabulary=int(model.config.get_text_config().vocab_size),
    )


def _sheet(
    examples: Sequence[Example],
    items: Sequence[ItemScore],
    means: Iterator[Sequence[float]],
    words: Mapping[str, str],
) -> Sheet:
    """What a set was answered with; the right wording of an item without a paraphrase is its answer.

    Args:
        means: per-token means of the paraphrased answers, for each of the examples in turn.
    """
    return Sheet(
        ids=tuple(item.id for item in items),
        items=tuple(items),
        rouge_l=tuple(rouge_l_recall(e.answer, words[e.prompt]) if e.prompt in words else math.nan for e in examples),
        log_truth=tuple(log_truth_ratio(next(means) or [item.answer_mean], item.option_log_probs) for item in items),
    )
