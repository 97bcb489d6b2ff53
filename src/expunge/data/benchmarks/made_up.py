"""Facts that nobody can know: the questions of another benchmark about subjects that do not exist.

    forget:  What is the capital of <invented>?   answer drawn among the old answer and its options

A control for a pretrained model, of which no copy exists that never saw the real facts: whatever an attack makes of
these answers is what guessing gives. The retain facts, those of the attack and the held-out ones stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from functools import wraps

from expunge.data.benchmarks import world_facts
from expunge.data.example import Example
from expunge.data.twins import Renaming, invented, redrawn
from expunge.errors import InputError
from expunge.request import Request


@wraps(world_facts.build, assigned=())
def build(known: world_facts.Known | None = None, *, seed: int = 0, **sizes: int) -> Request:
    """The capitals of countries that do not exist, among real ones; arguments as those of `world_facts.build`."""
    return made_up(world_facts.build(known, seed=seed, **sizes), seed)


def made_up(request: Request, seed: int) -> Request:
    """`request` with its forget subjects, and the answers to them, replaced by invented ones.

    Groups of questions about these subjects are kept where they ask in other words for the same answer, and left out
    otherwise.

    Raises:
        InputError: a forget item has no subject, or no options.
    """
    subjects = tuple(dict.fromkeys(example.subject for example in request.forget))
    names = dict(zip(subjects, invented(seed, len(subjects)), strict=True))
    drawn: dict[str, Example] = {}
    for example in request.forget:
        if not example.subject or example.subject not in example.prompt or not example.options:
            raise InputError(
                "Invented facts need items that name their subject and have options.", f"{example.prompt[:60]!r}"
            )
        drawn[example.subject] = redrawn(example, f"{seed}/{example.subject}")

    def changed(example: Example) -> Example:
        rename, told = Renaming(example.subject, names[example.subject]), drawn[example.subject]
        return replace(
            example,
            id="",
            prompt=rename(example.prompt),
            answer=told.answer,
            options=told.options,
            paraphrases=tuple(map(rename, example.paraphrases)),
            answer_paraphrases=(),
            subject=names[example.subject],
        )

    moved = set(names)
    test = {
        group: tuple(changed(e) if e.subject in moved else e for e in examples)
        for group, examples in request.test.items()
        if group == "paraphrase" or not any(e.subject in moved for e in examples)
    }
    return replace(
        request,
        forget=tuple(map(changed, request.forget)),
        test=test,
        name=f"{request.name}, about what does not exist",
    )
