"""How exactly products of float32 matrices are computed: in full, or with fewer bits and faster.

highest: float32     high: TF32 or pairs of bfloat16     medium: bfloat16        weights, sums and all else stay float32
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from expunge.errors import InputError

_log = logging.getLogger(__name__)


@contextmanager
def matmul_precision(precision: str, device: str) -> Iterator[None]:
    """`torch.set_float32_matmul_precision` for what is done inside; restored afterwards, also after an error.

    On a CPU, torch's flash attention multiplies many small blocks, for which changing to fewer bits costs more than it
    gains; so attention is computed plainly there, in memory that grows with the square of the length of the texts.
    """
    before = torch.get_float32_matmul_precision()
    with ExitStack() as stack:
        stack.callback(torch.set_float32_matmul_precision, before)
        torch.set_float32_matmul_precision(precision)
        if precision != "highest" and device.partition(":")[0] == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def require_digits(what: str, weights: Iterable[Tensor]) -> None:
    """Say so where weights that are to move have so few digits that they swallow small steps.

    Raises:
        InputError: they are float16, in which Adam's second moment is 0 where gradients are small.
    """
    for dtype in {each.dtype for each in weights if torch.finfo(each.dtype).bits < 32}:
        if dtype == torch.float16:
            raise InputError(
                f"{what} are float16, in which the squares of small gradients are 0: Adam's steps would have no bound.",
                "dtype",
                "Take dtype float32, with matmul_precision medium for speed, or bfloat16.",
            )
        _log.warning(
            "%s are %s: a step below 1/%d of a weight is rounded away. "
            "Take dtype float32, with matmul_precision medium for speed.",
            what,
            str(dtype).removeprefix("torch."),
            round(2 / torch.finfo(dtype).eps),
        )
