"""What a loss holds beside its forget items: rows, and the log-probability that each of them is to keep.

    twin     the answer after the prompt of twin k     log P_start(y | x'_k)
    option   wrong option j after the item's prompt    |o_j| mean_k ( log P_start(o'_j | x'_k) / |o'_j| )

x'_k is the prompt of a made-up twin (`expunge.data.twins`) and o'_j the option as it stands there, so both keep what
the model said of subjects that it cannot know: the first of the others, the second of the one that must go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from expunge.data.collate import Encoded

Twin = tuple[Encoded, ...]
"""Answer and options after the prompt of one twin."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """One row that is held.

    Args:
        row: what is read.
        option: j where it is wrong option j, counted from 1; 0 where it is a twin's, and keeps what it said itself.
    """

    row: Encoded
    option: int = 0

    def value(self, said: Float[Tensor, "twins members"]) -> Float[Tensor, ""]:
        """The log-probability that an option is to keep, from what the start said to the twins: per-token means of the
        answer and of each option."""
        return said[:, self.option].mean() * (len(self.row.ids) - self.row.answer_start)


def anchors(twins: Sequence[Twin], options: Sequence[Encoded], first: int = 0) -> tuple[Anchor, ...]:
    """Those of one item in the order of their turns: a twin, an option, the next twin, ...

    Args:
        twins: of the item; nothing is held where there are none.
        options: rows of the wrong options that are held, the first ones of the item's.
        first: 1 has an option begin; 0 a twin.
    """
    if not twins:
        return ()
    about = [Anchor(answer) for answer, *_ in twins]
    if not options:
        return tuple(about)
    own = [Anchor(row, j) for j, row in enumerate(options, 1)]
    kinds = (about, own) if first == 0 else (own, about)
    return tuple(kind[k % len(kind)] for k in range(max(len(about), len(own))) for kind in kinds)
