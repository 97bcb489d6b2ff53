"""Processes of their own for tests, forked from a server that has imported the heavy libraries once."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from typing import Any

# Only what is installed: the server does not know the paths that pytest adds, and passes over what it cannot import.
HEAVY = [
    "pytest",
    "accelerate",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "expunge.unlearning.loop",
]


@contextmanager
def processes() -> Iterator[Callable[..., BaseProcess]]:
    """`start(function, *arguments)` for the block; whatever still runs at its end is killed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(HEAVY)
    started: list[BaseProcess] = []

    def start(function: Callable[..., None], *arguments: Any) -> BaseProcess:
        process = context.Process(target=function, args=arguments)
        process.start()
        started.append(process)
        return process

    try:
        yield start
    finally:
        for process in started:
            process.kill()
            process.join()
            process.close()
