"""Where each neuron of a flat vector sits in its model: module, layer, place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True)
class Span:
    """The neurons [offset, offset + size): the scalar outputs of one linear map.

    Args:
        module: "q", "k", "v", "o", "gate", "up", "down", or the map's own name where several are fused ("qkv").
        layer: index of the block.
        offset: index of the first neuron in the flat vector.
        size: number of outputs.
    """

    module: str
    layer: int
    offset: int
    size: int

    @property
    def slice(self) -> slice:
        """The neurons as a slice of the flat vector."""
        return slice(self.offset, self.offset + self.size)


@dataclass(frozen=True)
class Layout:
    """The linear maps of all blocks, in the order of the flat vector."""

    spans: tuple[Span, ...]

    @classmethod
    def of_sizes(cls, sizes: Iterator[tuple[str, int, int]]) -> Layout:
        """A layout from (module, layer, number of outputs), in order."""
        spans, offset = [], 0
        for module, layer, size in sizes:
            spans.append(Span(module, layer, offset, size))
            offset += size
        return cls(tuple(spans))

    @cached_property
    def neurons(self) -> int:
        """The length of the flat vector."""
        return sum(span.size for span in self.spans)

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """The modules' names, each once, in order of appearance."""
        return tuple(dict.fromkeys(span.module for span in self.spans))

    @cached_property
    def layers(self) -> int:
        """The number of blocks."""
        return 1 + max((span.layer for span in self.spans), default=-1)

    def place(self, neuron: int) -> tuple[str, int, int]:
        """Module, layer, and index within the map, of one neuron."""
        for span in self.spans:
            if span.offset <= neuron < span.offset + span.size:
                return span.module, span.layer, neuron - span.offset
        raise IndexError(neuron)
