"""Which parameters ask for a gradient, for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def asking(parameters: Iterable[nn.Parameter], wanted: bool) -> Iterator[None]:
    """Inside, all of `parameters` ask for a gradient, or none of them; after it, those that did before."""
    others = [parameter for parameter in parameters if parameter.requires_grad != wanted]
    try:
        for parameter in others:
            parameter.requires_grad_(wanted)
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(not wanted)
