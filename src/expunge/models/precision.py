"""How exactly products of float32 matrices are computed: in full, or with fewer bits and faster.

highest: float32     high: TF32 or pairs of bfloat16     medium: bfloat16        weights, sums and all else stay float32
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


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
        if precision != "highest" and torch.device(device).type == "cpu":
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield
