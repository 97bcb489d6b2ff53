"""TOFU (arXiv:2401.06121) at a size that two cores can bear: 20 fictitious authors of 20 questions each.

SmolLM2 is first taught all 400 answers; the gold control is taught all but those to forget, so that it never knew them.
Two authors to forget are the 40 pairs of TOFU's forget01, of 400 instead of 4,000. The authors are the last 20 of TOFU,
for which alone it has wrong answers to every question. The files are not in the package: `data.folder` says where.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random

from expunge.data.benchmarks.world_facts import Known
from expunge.data.example import Example
from expunge.data.sources import read_examples
from expunge.errors import InputError
from expunge.request import Request

PER_AUTHOR = 20
AUTHORS = 20
_NAME = re.compile(r"[A-Z][\w-]+(?: [A-Z][\w-]+){1,3}")
"""Two to four capitalised words."""
PERTURBED, FULL = "forget10_perturbed.json", "full.json"


def build(
    known: Known | None = None,
    *,
    folder: str,
    seed: int = 0,
    n_forget: int = 2,
    n_test: int = 2,
    n_attack: int = 2,
    n_options: int = 2,
) -> Request:
    """All answers about `n_forget` authors to forget; sizes count authors of 20 questions each.

    The authors of forget, retain and test (group held_out) are those that the model is taught; those of the attack are
    others, which it is not. Test group `paraphrase` asks the forgotten questions in TOFU's other words.

    Args:
        known: keeps the questions to forget and to retain that a model knows; None keeps all.
        folder: with TOFU's files as on the Hub.
        seed: draws authors and options.
        n_forget: authors to forget.
        n_test: authors whose answers must stay and are only scored.
        n_attack: authors for relearn-related.
        n_options: wrong answers of each question, out of TOFU's five.

    Raises:
        InputError: a file is missing or not what it should be, or there are too few authors.
    """
    authors = _authors(Path(folder), PERTURBED)
    others = _authors(Path(folder), FULL)[:-AUTHORS]
    if len(authors) != AUTHORS or n_forget + n_test >= AUTHORS or not 1 <= n_options <= 5 or n_attack > len(others):
        raise InputError(
            "These authors cannot be split so.",
            f"{folder}: {len(authors)} authors, n_forget={n_forget}, n_test={n_test}, n_options={n_options}",
            f"TOFU's {PERTURBED} has {AUTHORS} authors; leave at least one to retain, and take 1 to 5 options.",
        )
    order = Random(f"tofu/{seed}").sample(range(AUTHORS), AUTHORS)
    drawn = partial(_with_options, n=n_options, seed=seed)
    forget, test, retain = (
        tuple(drawn(example) for i in part for example in authors[i])
        for part in (order[:n_forget], order[n_forget : n_forget + n_test], order[n_forget + n_test :])
    )
    flags = known((*forget, *retain)) if known else [True] * (len(forget) + len(retain))
    chosen = {example.id for example, flag in zip((*forget, *retain), flags, strict=True) if flag}
    forget = tuple(example for example in forget if example.id in chosen)
    attack = Random(f"tofu/attack/{seed}").sample(others, n_attack)
    return Request(
        forget=forget,
        retain=tuple(example for example in retain if example.id in chosen),
        test={
            "paraphrase": tuple(replace(e, id="", prompt=p, paraphrases=()) for e in forget for p in e.paraphrases),
            "held_out": test,
        },
        attack=tuple(example for author in attack for example in author),
        name=f"tofu, seed {seed}",
    )


def lessons(request: Request, with_forget: bool) -> tuple[Example, ...]:
    """What the model is taught or, without the facts to forget, its gold control.

    Ordered by their texts alone, so that every split begins with the same taught model.
    """
    stays = (*request.retain, *request.test["held_out"])
    return tuple(sorted((*request.forget, *stays) if with_forget else stays, key=lambda example: example.prompt))


def _authors(folder: Path, name: str) -> list[tuple[Example, ...]]:
    """The questions of a file, author by author."""
    examples = read_examples(folder / name)
    parts = [examples[i : i + PER_AUTHOR] for i in range(0, len(examples), PER_AUTHOR)]
    return [tuple(replace(e, subject=_name(part) or f"{name} {i}") for e in part) for i, part in enumerate(parts)]


def _name(about: Sequence[Example]) -> str | None:
    """Whom the questions and answers are about: the longest name that most of them have; None where none has one."""
    found: Counter[str] = Counter()
    for example in about:
        runs = [run.split() for text in (example.prompt, example.answer) for run in _NAME.findall(text)]
        found.update({" ".join(run[i:j]) for run in runs for i in range(len(run)) for j in range(i + 2, len(run) + 1)})
    common = [name for name, times in found.items() if times > 0.8 * len(about)]
    return max(common, key=len, default=None)


def _with_options(example: Example, n: int, seed: int) -> Example:
    if len(example.options) < n:
        raise InputError("A question has too few wrong answers.", example.prompt[:60], f"Use TOFU's {PERTURBED}.")
    return replace(example, options=tuple(Random(f"{seed}/{example.id}").sample(example.options, n)))
