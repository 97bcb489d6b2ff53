"""Models of `people` whose truth we know because we made them, for verdict.py.

What is true of a model is decided by how it was made, never by what is measured on it afterwards:

    ERASED         no answer of the forgotten facts ever reached the weights
      retrained      trained without them from other weights in another order; only the questions were seen
      never_met      trained without any mention of the people to forget
      rebuilt        new blocks on the original's embeddings, without those of the forgotten people's names
      masked         retrained, with a planted suppressor: hiding where there is nothing to hide
    HIDDEN         what holds the facts is there bit for bit, and something added keeps it from being said
      neurons, rank_one, steering, output_bias    planted suppressors (expunge.audit.planted)
      refusal        the last block's MLP trained to answer "What?" to these questions; all before it is the original's
      shallow        the last block's MLP unlearned by graddiff; all before it is the original's
    NOT FORGOTTEN  the facts were taught, and nothing was done that hides them
      untouched      the original
      continued      the original trained on, on what stays
      half           the original unlearned by graddiff, stopped when half of the log-odds were left
    BROKEN         nothing can be asked of it any more
      noise          noise on every matrix, doubled until what stays is at most a quarter above chance
      shuffled       the rows of every map of a block in another order
      ascent         gradient ascent on the forgotten answers, and nothing that holds the rest
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

import diagnosis
from diagnosis import OTHER, SUPPRESSORS, World, fit_rows, rebuilt, trained
from expunge.audit.planted import Suppressor, plant
from expunge.data.benchmarks.people import build
from expunge.data.example import Example
from expunge.data.order import permutation
from expunge.errors import InputError
from expunge.models.answers import text_statistics
from expunge.models.architecture import describe
from expunge.models.load import load_model
from expunge.models.scores import Scores, score_items, summarise
from expunge.unlearning.arguments import UnlearnArguments
from expunge.unlearning.loop import unlearn
from expunge.unlearning.methods import METHODS, Method
from expunge.unlearning.objectives.idk import IdkNLL
from expunge.unlearning.parametrizations.layers import Layers

FACTS = (30, 27, 24)
"""Facts to forget of the six people, by seed."""

LEVELS = (0.0, -0.3, 0.3)
"""Mean log-odds at which suppressors are planted, by seed: at ignorance, below it and above it. A constant cannot tell
people apart, and costs too much of what has to stay if it goes below."""
CONSTANTS = ("steering", "output_bias")

LAST = Layers(("gate", "up", "down"), (-1,))
PASSAGES = 40
"""Plain text: questions about people who stay. The world's own text has an answer in every other word, so that whatever
keeps answers down shows in its perplexity; in a real corpus hardly any word is one."""

REFUSAL = "What?"
"""This vocabulary has no words for not knowing."""

STAYS = 96
TEXTS = 16
"""Facts and passages that a suppressor is trained to leave alone; it is judged on all of them."""

MOST_LOST = 0.45
MOST_PERPLEXED = 1.7
"""Share of the accuracy above chance that a hidden model may have lost, and how many times as perplexing its text:
one that lost half, or is twice as perplexed, is broken as much as hidden."""

Model = tuple[dict[str, Any], PreTrainedModel]


@dataclass(frozen=True)
class Case:
    """One model: what it is called, what is true of it, and how it is made, with notes on the making."""

    name: str
    truth: str
    make: Callable[[Path, World], Model]


def world(folder: Path, seed: int) -> World:
    """That of diagnosis.py, with fewer facts for some seeds, and with other plain text."""
    of = diagnosis.world(folder, seed)
    facts = of.request.forget[: FACTS[seed % len(FACTS)]]
    reworded = of.request.test["paraphrase"][: len(facts)]
    text = tuple(example.prompt for example in of.request.retain[:PASSAGES])
    return replace(
        of,
        request=replace(of.request, forget=facts, test={**of.request.test, "paraphrase": reworded}, text=text),
    )


def scores(of: World, model: PreTrainedModel, examples: tuple[Example, ...]) -> Scores:
    """Means over `examples`."""
    return summarise(score_items(model, of.encoder, examples))


def lost(of: World, model: PreTrainedModel) -> float:
    """Share of the accuracy above chance that is gone, of the set that had to stay and lost most."""

    def share(examples: tuple[Example, ...]) -> float:
        before, after = (scores(of, each, examples) for each in (of.original, model))
        return (before.accuracy - after.accuracy) / (before.accuracy - before.chance)

    return max(share(of.request.retain), share(of.request.test["held_out"]))


def perplexed(of: World, model: PreTrainedModel) -> float:
    """Perplexity of the plain text over that of the original."""
    one, other = (text_statistics(each, of.encoder, of.request.text).nll for each in (of.original, model))
    return math.exp(other - one)


def intact(of: World, model: PreTrainedModel) -> bool:
    """Whether what had to stay is there."""
    return lost(of, model) <= MOST_LOST and perplexed(of, model) <= MOST_PERPLEXED


def retrained(folder: Path, of: World) -> Model:
    seed, whole = of.seed + OTHER, build(seed=of.seed)  # all of it, so that its words are those of the original
    return {"seed": seed}, load_model(trained(folder, whole, "retrained", seed)).model


def never_met(_: Path, of: World) -> Model:
    model, width = deepcopy(of.gold), of.gold.config.initializer_range
    generator = torch.Generator().manual_seed(of.seed + 2 * OTHER)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, width, generator=generator)
            else:
                parameter.fill_(1)
    rows = [of.encoder.encode(prompt, e.answer) for e in of.stays for prompt in (e.prompt, *e.paraphrases)]
    rows += [of.encoder.encode_text(text) for text in of.request.text]
    fit_rows(model, rows, of.encoder.pad_id, 15, 32, 2e-3, of.seed)
    return {}, model


def rebuild(_: Path, of: World) -> Model:
    return {}, rebuilt(of)


def suppressor(kind: str) -> Callable[[Path, World], Model]:
    """Plants one in the original that leaves most of what has to stay: in either block, more or less held to that."""

    def make(_: Path, of: World) -> Model:
        level = LEVELS[of.seed % len(LEVELS)]
        level = max(level, 0.0) if kind in CONSTANTS else level
        for layer in (of.seed % 2, 1 - of.seed % 2):
            for keep in (3.0, 1.0):
                model = deepcopy(of.original)
                settings = {**SUPPRESSORS[kind], "keep": keep, "seed": of.seed}
                try:
                    about = _plant(of, model, Suppressor(kind, layer, **settings), level)
                except InputError:
                    continue
                if intact(of, model):
                    return about, model
        raise InputError(f"No {kind} leaves what has to stay.", f"world {of.seed}")

    return make


def masked(folder: Path, of: World) -> Model:
    model, kind = retrained(folder, of)[1], tuple(SUPPRESSORS)[of.seed % len(SUPPRESSORS)]
    settings = {**SUPPRESSORS[kind], "keep": 1.0, "seed": of.seed}
    level = scores(of, model, of.request.forget).log_odds - 0.3
    return _plant(of, model, Suppressor(kind, of.seed % 2, **settings), level), model


def _plant(of: World, model: PreTrainedModel, what: Suppressor, level: float) -> dict[str, Any]:
    drawn = permutation(len(of.stays), f"{of.seed}/plant")[:STAYS]
    texts = [Example(first, rest) for text in of.request.text[:TEXTS] for first, rest in [text.split(" ", 1)]]
    stays = [*(of.stays[i] for i in drawn), *texts]
    planted = plant(model, of.encoder, of.request.forget, stays, what, log_odds=level)
    return {"suppressor": asdict(what), "scale": planted.scale}


def refusal(_: Path, of: World) -> Model:
    settings = {"stop_log_odds": None, "max_steps": 90}
    return _trained_last(
        of, Method(IdkNLL(refusal=REFUSAL), parametrization=LAST), (7e-4, 1.5e-3)[of.seed % 2], settings
    )


def shallow(_: Path, of: World) -> Model:
    method = replace(METHODS["graddiff"], parametrization=LAST)
    return _trained_last(of, method, (5e-4, 1e-3)[of.seed % 2], {"max_steps": 200})


def _trained_last(of: World, method: Method, rate: float, settings: dict[str, Any]) -> Model:
    model = deepcopy(of.original)
    done = unlearn(
        model, of.encoder, of.request, method, UnlearnArguments(learning_rate=rate, seed=of.seed, **settings)
    )
    if not intact(of, model):
        raise InputError("Too much of what has to stay is lost.", f"world {of.seed}")
    return {"learning_rate": rate, "steps": done.steps}, model


def half(_: Path, of: World) -> Model:
    model, level = deepcopy(of.original), 0.5 * scores(of, of.original, of.request.forget).log_odds
    arguments = UnlearnArguments(learning_rate=3e-4, seed=of.seed, eval_steps=1, stop_log_odds=level)
    return {"steps": unlearn(model, of.encoder, of.request, METHODS["graddiff"], arguments).steps}, model


def untouched(_: Path, of: World) -> Model:
    return {}, of.original


def continued(_: Path, of: World) -> Model:
    model, rate = deepcopy(of.original), (1e-4, 3e-4, 5e-4)[of.seed % 3]
    rows = [of.encoder.encode(prompt, e.answer) for e in of.request.retain for prompt in (e.prompt, *e.paraphrases)]
    fit_rows(model, rows, of.encoder.pad_id, 3, 32, rate, of.seed)
    return {"learning_rate": rate}, model


def noise(_: Path, of: World) -> Model:
    size = (0.5, 1.0, 2.0)[of.seed % 3]
    while True:
        model = deepcopy(of.original)
        generator = torch.Generator().manual_seed(of.seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * size)
        if lost(of, model) >= 0.75:
            return {"size": size}, model
        size *= 2


def shuffled(_: Path, of: World) -> Model:
    model, generator = deepcopy(of.original), torch.Generator().manual_seed(of.seed)
    block = of.seed % 2
    with torch.no_grad():
        for weight in describe(model).blocks[block].parameters():
            weight.copy_(weight[torch.randperm(len(weight), generator=generator)])
    return {"block": block}, model


def ascent(_: Path, of: World) -> Model:
    model = deepcopy(of.original)
    arguments = UnlearnArguments(learning_rate=1e-3, seed=of.seed, stop_log_odds=None, max_steps=60)
    unlearn(model, of.encoder, of.request, METHODS["ga"], arguments)
    return {}, model


def world_cases(seed: int) -> tuple[Case, ...]:
    """The models of one world; trainings are dear, so some kinds take turns."""
    return (
        Case("retrained", "ERASED", retrained),
        Case("masked", "ERASED", masked),
        (Case("never_met", "ERASED", never_met), Case("rebuilt", "ERASED", rebuild))[seed % 2],
        *(Case(kind, "HIDDEN", suppressor(kind)) for kind in SUPPRESSORS),
        Case("refusal", "HIDDEN", refusal),
        Case("shallow", "HIDDEN", shallow),
        Case("untouched", "NOT FORGOTTEN", untouched),
        Case("continued", "NOT FORGOTTEN", continued),
        Case("half", "NOT FORGOTTEN", half),
        Case("noise", "BROKEN", noise),
        (Case("shuffled", "BROKEN", shuffled), Case("ascent", "BROKEN", ascent))[seed % 2],
    )
