"""Where names stand beside their points, so that none covers another."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Place = tuple[float, float]

DOT = 5.0  # half a dot with its air, in points
REACH = 140.0


@dataclass(frozen=True)
class Box:
    """A rectangle in points; away: it stands too far from its dot to belong to it without a line.

    side: of the box on which its text begins, "left", "right" or "center".
    """

    left: float
    right: float
    low: float
    high: float
    away: bool = False
    side: str = "center"

    @property
    def anchor(self) -> Place:
        """The point at which its text is set: half way up, at `side`."""
        across = {"left": self.left, "right": self.right}.get(self.side, (self.left + self.right) / 2)
        return across, (self.low + self.high) / 2

    def touches(self, other: Box) -> bool:
        """Whether both share some area."""
        return self.left < other.right and other.left < self.right and self.low < other.high and other.low < self.high


def place(dots: Sequence[Place], sizes: Sequence[Place], frame: Place) -> list[Box]:
    """A box of each size near its dot, in order, inside (0, 0, *frame) and clear of all dots and of the boxes so far.

    Boxes beside the dot are tried first, then those on growing circles; the last resort is right of the dot.
    """
    taken = [Box(x - DOT, x + DOT, y - DOT, y + DOT) for x, y in dots]
    found: list[Box] = []
    for dot, size in zip(dots, sizes, strict=True):
        free = (box for box in _around(dot, size) if _inside(box, frame) and not any(map(box.touches, taken)))
        box = next(free, next(_around(dot, size)))
        found.append(box)
        taken.append(box)
    return found


def _around(dot: Place, size: Place) -> Iterator[Box]:
    """Right, left, above, below, then on circles of growing radius."""
    wide, high = size[0] / 2, size[1] / 2
    clear = DOT + 0.5
    beside = (wide + clear, 0.0, "left"), (-wide - clear, 0.0, "right")
    for across, up, side in (*beside, (0.0, high + clear, "center"), (0.0, -high - clear, "center")):
        yield _box(dot[0] + across, dot[1] + up, wide, high, side=side)
    for radius in range(12, int(REACH), 6):
        for turn in range(16):
            angle = math.tau * turn / 16
            across, up = math.cos(angle), math.sin(angle)
            yield _box(dot[0] + across * (radius + wide), dot[1] + up * (radius + high), wide, high, away=True)


def _box(x: float, y: float, wide: float, high: float, away: bool = False, side: str = "center") -> Box:
    return Box(x - wide, x + wide, y - high, y + high, away, side)


def _inside(box: Box, frame: Place) -> bool:
    return min(box.left, box.low) >= 0 and box.right <= frame[0] and box.high <= frame[1]
