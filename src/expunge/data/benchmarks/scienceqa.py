"""ScienceQA (arXiv:2209.09513), questions without image: four topics of natural science, one request after another.

Options are scored by their texts, not by letters, which a small model cannot read. A request is a topic; with
`untouched` above 0 a part of each topic is not in the request, and this part alone is scored. SmolLM2 knows three of
the topics by itself; with `model: trained` it is first taught the requested questions of the fourth. The file is not in
the package: `data.folder` says where `scienceqa_text.jsonl` lies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from expunge.data.benchmarks.world_facts import Known
from expunge.data.example import Example
from expunge.data.forms import plain_question
from expunge.data.sources import read_rows
from expunge.errors import InputError
from expunge.request import Request
from expunge.stream import Stream

FILE = "scienceqa_text.jsonl"
TOPICS = ("biology", "physics", "chemistry", "earth-science")
NATURAL = "natural science"
UNKNOWN = ("chemistry",)
"""The topics that SmolLM2 cannot forget, as it does not know them: accuracy .37 at a chance of .35."""


def build(
    known: Known | None = None,
    *,
    folder: str,
    seed: int = 0,
    n_forget: int = 100,
    n_retain: int = 160,
    n_test: int = 100,
    untouched: float = 0.0,
) -> Stream:
    """The topics of `TOPICS`, each as one request of at most `n_forget` questions.

    Args:
        known: not used: accuracy is to fall to chance over all questions, known or not.
        folder: with the file of questions, one JSON object a line.
        seed: draws the questions.
        n_forget: most questions of a request.
        n_retain: most questions of the other subjects to train on.
        n_test: most questions of the other subjects that are only scored.
        untouched: share of each topic, below 1, that no request holds and that is scored in its place.

    Raises:
        InputError: the file is missing or not what it should be, or `untouched` is no such share.
    """
    if not 0 <= untouched < 1:
        raise InputError("untouched must be at least 0 and below 1.", f"data.settings.untouched={untouched}")
    rows = read_rows(Path(folder) / FILE)
    shuffled = Random(f"scienceqa/{seed}").sample(rows, len(rows))
    try:
        topics = {topic: _asked(shuffled, subject=NATURAL, topic=topic) for topic in TOPICS}
        subjects = dict.fromkeys(row["subject"] for row in shuffled if row["subject"] != NATURAL)
        others = [example for subject in subjects for example in _asked(shuffled, subject=subject)]
    except (KeyError, IndexError, TypeError) as error:
        raise InputError("These are not the questions of ScienceQA.", f"{folder}/{FILE}: {error!r}") from error
    others = Random(f"scienceqa/others/{seed}").sample(others, len(others))
    cut = min(n_retain, len(others) // 2)
    if not all(len(own) > 1 for own in topics.values()) or not cut:
        raise InputError("A topic has fewer than two questions.", f"{folder}/{FILE}", f"Topics: {', '.join(TOPICS)}.")
    left = {topic: own[round(untouched * len(own)) :] for topic, own in topics.items()}
    return Stream(
        name=f"ScienceQA, seed {seed}",
        requests={topic: own[:n_forget] for topic, own in left.items()},
        scored={topic: own[: len(own) - len(left[topic])][:n_forget] for topic, own in topics.items()}
        if untouched
        else {},
        retain=tuple(others[:cut]),
        held_out=tuple(others[cut : cut + n_test]),
    )


def lessons(request: Request, with_forget: bool) -> tuple[Example, ...]:
    """What SmolLM2 must be taught of the questions to forget, as it does not know their topic (accuracy at chance)."""
    return tuple(example for example in request.forget if with_forget and example.subject in UNKNOWN)


def _asked(rows: Sequence[Mapping[str, Any]], **wanted: str) -> tuple[Example, ...]:
    """The questions whose fields are as wanted, each once."""
    found = [_example(row) for row in rows if all(row[key] == value for key, value in wanted.items())]
    return tuple({(example.prompt, example.answer): example for example in found}.values())


def _example(row: Mapping[str, Any]) -> Example:
    """The question with its hint before it; the answer and the wrong choices as texts."""
    asked = " ".join(part.strip() for part in (row["hint"], row["question"]) if part.strip())
    choices, right = [str(choice) for choice in row["choices"]], row["answer"]
    return Example(
        prompt=plain_question(asked),
        answer=choices[right],
        options=tuple(choice for i, choice in enumerate(choices) if i != right),
        subject=row["topic"],
        group=row["subject"],
    )
