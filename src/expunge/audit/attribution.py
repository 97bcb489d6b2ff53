"""How much each neuron speaks for or against an answer: activation times gradient, all maps in one backward.

    A[i, k] = h[i, k] * dP(y|x) / dh[i, k]        neuron i, token position k              arXiv:2509.22263, eq. 1
    positive_i = max_k A[i, k]        negative_i = min_k A[i, k]

Neurons are the scalar outputs of the linear maps of all blocks. Positions are those up to the one that predicts the
last answer token: later ones cannot act on P, and their zeros would hide a neuron that only ever speaks against it.

What is run backward is s = log P, which does not underflow. Every choice of `of` is a positive multiple of ds/dh, one
number per example, so it is applied after the maximum and the minimum, and one pass serves them all:

    probability      dP = P ds                              the paper's; vanishes where P is near 0 or near 1
    log_probability  ds                                     vanishes where P is near 1
    log_odds         d log(P / (1 - P)) = ds / (1 - P)      vanishes nowhere; P of the whole answer

The weights need no gradient: the only leaf is the output of the embedding, which saves the weights' share of the work.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from expunge.audit.layout import Layout, Span
from expunge.errors import InputError, nearest
from expunge.models.answers import answer_log_probs, evaluating, length_sorted
from expunge.models.architecture import Architecture, describe, width
from expunge.models.asking import asking
from expunge.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Batch, Encoder
    from expunge.data.example import Example

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]

_CLOSEST_TO_ONE = -float(np.finfo(np.float32).eps)  # a log P that float32 cannot tell from 0 counts as this

QUANTITIES: dict[str, Callable[[DoubleArray], DoubleArray]] = {
    "probability": np.exp,
    "log_probability": np.ones_like,
    "log_odds": lambda log_p: -1 / np.expm1(np.minimum(log_p, _CLOSEST_TO_ONE)),
}
"""What is attributed: a factor onto ds/dh, from the log-probability [n] of each answer."""


@dataclass(frozen=True, eq=False)
class Attribution:
    """Influence of every neuron on every answer.

    Args:
        ids: the examples' ids, n of them.
        of: the attributed quantity, a key of `QUANTITIES`.
        largest: [n, neurons] max_k of h * ds/dh, whatever `of` is.
        smallest: [n, neurons] min_k of it.
        log_probability: [n] s = log P of each whole answer.
        layout: where the neurons are.
    """

    ids: tuple[str, ...]
    of: str
    largest: FloatArray
    smallest: FloatArray
    log_probability: DoubleArray
    layout: Layout

    @property
    def positive(self) -> FloatArray:
        """[n, neurons] the largest A over the positions."""
        return self.largest * self._factor

    @property
    def negative(self) -> FloatArray:
        """[n, neurons] the smallest A over the positions."""
        return self.smallest * self._factor

    def in_terms_of(self, of: str) -> Attribution:
        """The same for another quantity, without running the model again; raises `InputError` for an unknown one."""
        _require_known(of)
        return replace(self, of=of)

    @property
    def _factor(self) -> FloatArray:
        return QUANTITIES[self.of](self.log_probability)[:, None].astype(np.float32)

    @property
    def probability(self) -> DoubleArray:
        """[n] P of each whole answer."""
        return np.exp(self.log_probability)

    def save(self, path: Path) -> None:
        """Write a safetensors file, atomically."""
        from safetensors.numpy import save

        arrays: dict[str, npt.NDArray[Any]] = {
            "largest": self.largest,
            "smallest": self.smallest,
            "log_probability": self.log_probability,
        }
        about = {"ids": self.ids, "of": self.of, "layout": asdict(self.layout)["spans"]}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(save(arrays, {"attribution": json.dumps(about)}))
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> Attribution:
        """Read what `save` wrote; InputError where the file is missing, damaged or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "numpy") as file:
                about = json.loads((file.metadata() or {})["attribution"])
                largest, smallest, log_p = map(file.get_tensor, ("largest", "smallest", "log_probability"))
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise InputError(
                "this is not a stored attribution", f"{path}: {error}", "Make it again with `expunge audit`."
            ) from error
        layout = Layout(tuple(Span(**span) for span in about["layout"]))
        return cls(tuple(about["ids"]), about["of"], largest, smallest, log_p, layout)


def attributions(
    model: PreTrainedModel,
    encoder: Encoder,
    examples: Sequence[Example],
    of: str = "probability",
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Attribution:
    """The influence of every neuron on each example's answer.

    One forward and one backward per batch; rows do not mix, so `batch_size` changes speed and memory alone. Memory: two
    float32 arrays [n, neurons] for the result, and the outputs of all maps for one batch. The model comes back as it
    was.

    Raises:
        InputError: no example, an unknown `of`, a map that does not keep examples apart (mixtures of experts).
    """
    _require_known(of)
    if not examples:
        raise InputError("there is no example to attribute", "examples", "Give at least one.")
    progress = progress or Silent()
    arch = describe(model)
    encoded = [encoder.encode(example.prompt, example.answer) for example in examples]
    layout = Layout.of_sizes(
        (name, layer, width(linear)) for layer, maps in enumerate(arch.linears) for name, linear in maps.items()
    )
    largest, smallest = (np.zeros((len(examples), layout.neurons), dtype=np.float32) for _ in range(2))
    log_p = np.zeros(len(examples))
    progress.start("attribution", len(examples))
    with evaluating(model), torch.enable_grad(), asking(model.parameters(), False):
        for batch in length_sorted(encoded, encoder.pad_id, batch_size):
            rows = batch.index.numpy()
            log_p[rows], largest[rows], smallest[rows] = _extremes(model, arch, layout, batch.to(model.device))
            progress.advance("attribution", len(rows))
    progress.finish("attribution")
    return Attribution(tuple(example.id for example in examples), of, largest, smallest, log_p, layout)


def _require_known(of: str) -> None:
    if of not in QUANTITIES:
        raise InputError(f"unknown quantity to attribute: {of!r}", "of", nearest(of, QUANTITIES))


def _extremes(
    model: PreTrainedModel, arch: Architecture, layout: Layout, batch: Batch
) -> tuple[DoubleArray, FloatArray, FloatArray]:
    """log P [B], and max_k and min_k [B, neurons] of h * ds/dh, for one batch."""
    largest, smallest = torch.zeros(2, len(batch), layout.neurons, device=model.device)
    outside = (~_positions(batch)).nonzero(as_tuple=True)
    leaves: list[Tensor] = []
    with ExitStack() as hooks:
        hooks.callback(model.get_input_embeddings().register_forward_hook(partial(_make_leaf, leaves)).remove)
        for span in layout.spans:
            listen = partial(_listen, span, outside, largest, smallest)
            hooks.callback(arch.linears[span.layer][span.module].register_forward_hook(listen).remove)
        sequence = answer_log_probs(model, batch, arch).sequence
    torch.autograd.grad(sequence.sum(), leaves)
    return sequence.detach().double().cpu().numpy(), largest.cpu().numpy(), smallest.cpu().numpy()


def _positions(batch: Batch) -> Tensor:
    """[B, T - 1] bool: real tokens up to the one that predicts the last answer token, of those that are forwarded."""
    answers_from = batch.answer_mask.flip(1).cumsum(1).flip(1)
    return (answers_from[:, 1:] > 0) & batch.attention_mask[:, :-1].bool()


def _make_leaf(leaves: list[Tensor], module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """Cut the graph at the embedding, whose output becomes the one leaf."""
    leaves.append(output.detach().requires_grad_())
    return leaves[-1]


def _listen(
    span: Span,
    outside: tuple[Tensor, ...],
    largest: Tensor,
    smallest: Tensor,
    module: nn.Module,
    inputs: tuple[Any, ...],
    output: Tensor,
) -> None:
    """Have the backward write this map's columns of `largest` and `smallest` [B, neurons]."""
    if output.ndim != 3 or len(output) != len(largest):
        raise InputError(
            "a linear map does not keep examples apart: its output is not [batch, positions, width]",
            f"layer {span.layer}, {span.module}, output of shape {tuple(output.shape)}",
            "Attribution does not support this model family.",
        )
    activation = output.detach()

    def hear(gradient: Tensor) -> None:
        influence = activation.float() * gradient.float()
        influence[outside] = influence[outside[0], 0]  # a position that counts anyway, so these change no extreme
        largest[:, span.slice] = influence.amax(1)  # amax and amin: torch.aminmax takes ten times as long here
        smallest[:, span.slice] = influence.amin(1)

    output.register_hook(hear)  # type: ignore[no-untyped-call]
