"""Planted suppressors: a model that still holds its facts and no longer says them, to try diagnostics on.

    theta(t) = theta_0 + t * delta,    delta on a few parameters,    t with mean log-odds of the facts as wanted

The edit is trained with everything else frozen, so taking it away gives the first model back bit for bit: whatever the
facts are made of is intact, and a diagnostic that calls such a model erased is wrong. It minimises

    mean (log-odds - wanted)^2 of the facts  +  cross-entropy of what has to stay

until the mean log-odds are low enough, and is then scaled along the line above until they are what is wanted: 0, which
is ignorance, or what a model has that never knew.

    neurons      rows of gate and up, and columns of down, of the MLP neurons of one block that do least
    rank_one     down + write read^T of one block
    steering     a constant added to the residual stream by one block, as the bias of its down projection
    output_bias  a constant added to the logits, as the bias of the head

All are weights of the model. The first three stay in a saved folder; a family whose head has no bias keeps the last one
in memory only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from expunge.data.collate import Batch, collate
from expunge.errors import InputError, nearest
from expunge.models.answers import answer_log_probs, evaluating
from expunge.models.architecture import Architecture, base_linear, describe
from expunge.models.scores import grouped_log_odds, score_items, summarise

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example

BISECTIONS: Final = 16
LARGEST_SCALE: Final = 64.0
"""How far an edit is scaled up, at most, before it counts as one that cannot hide the facts."""


@dataclass(frozen=True, slots=True)
class Suppressor:
    """What to plant, and how hard to train it.

    Args:
        kind: a key of `KINDS`.
        layer: block that is edited; negative ones count from the end. Not used by `output_bias`.
        neurons: how many MLP neurons `neurons` takes.
        steps: of Adam, on all facts at once.
        learning_rate: of Adam.
        keep: weight of the cross-entropy of what has to stay.
        seed: of the edit's random beginning.
    """

    kind: str = "rank_one"
    layer: int = -1
    neurons: int = 8
    steps: int = 120
    learning_rate: float = 0.02
    keep: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Planted:
    """A suppressor in place.

    Args:
        kind: of the suppressor.
        scale: t of the module's formula.
        log_odds: mean over the facts, with the suppressor.
        undo: takes it out again, bit for bit; the parameters that were added stay, and are zero.
    """

    kind: str
    scale: float
    log_odds: float
    undo: Callable[[], None] = field(repr=False)


@dataclass(frozen=True)
class _Edit:
    """Free numbers, and how they change the model's own: `deltas` gives what to add to each of `targets`."""

    free: tuple[Tensor, ...]
    targets: tuple[Tensor, ...]
    deltas: Callable[[], tuple[Tensor, ...]]


def plant(
    model: PreTrainedModel,
    encoder: Encoder,
    facts: Sequence[Example],
    stays: Sequence[Example],
    suppressor: Suppressor,
    *,
    log_odds: float = 0.0,
    within: float = 0.05,
) -> Planted:
    """Hide `facts` in `model`, which is changed, until their mean log-odds are `log_odds`, give or take `within`.

    Raises:
        InputError: an unknown kind, a fact without options, a map that is not `nn.Linear`, or an edit that cannot hide
            the facts, in which case the model is as it was.
    """
    if suppressor.kind not in KINDS:
        raise InputError(f"There is no suppressor {suppressor.kind!r}.", "kind", nearest(suppressor.kind, KINDS))
    if not all(fact.options for fact in facts):
        raise InputError("A fact has no options to be as likely as.", "facts", 'Give each one "options".')
    generator = torch.Generator().manual_seed(suppressor.seed)
    batch = _batch(encoder, [(fact.prompt, fact.answer) for fact in facts])
    edit = KINDS[suppressor.kind](model, batch, suppressor, generator)
    before = [target.detach().clone() for target in edit.targets]
    _train(model, encoder, facts, stays, edit, before, suppressor, log_odds)
    deltas = [delta.detach() for delta in edit.deltas()]

    def at(scale: float) -> float:
        _assign(edit.targets, [start + scale * delta for start, delta in zip(before, deltas, strict=True)])
        return summarise(score_items(model, encoder, facts)).log_odds

    scale = _tune(at, log_odds, within)
    if scale is None:
        _assign(edit.targets, before)
        raise InputError(
            f"This {suppressor.kind} cannot hide these facts.", repr(suppressor), "Train it longer, or elsewhere."
        )
    return Planted(suppressor.kind, scale, at(scale), lambda: _assign(edit.targets, before))


def _neurons(model: PreTrainedModel, batch: Batch, suppressor: Suppressor, generator: torch.Generator) -> _Edit:
    arch = describe(model)
    maps = arch.linears[suppressor.layer]
    gate, up, down = (_linear(maps.get(name), name).weight for name in ("gate", "up", "down"))
    read = _inputs(model, arch, maps["down"], batch)
    idle = (read.abs().mean(0) * down.norm(dim=0)).argsort()[: suppressor.neurons]
    free = tuple(
        (torch.randn(shape, generator=generator) * size).to(down).requires_grad_()
        for shape, size in (
            ((len(idle), gate.shape[1]), gate.std().item()),
            ((len(idle), up.shape[1]), up.std().item()),
            ((down.shape[0], len(idle)), 0.0),
        )
    )

    def deltas() -> tuple[Tensor, ...]:
        rows = [torch.zeros_like(w).index_copy(0, idle, new) for w, new in zip((gate, up), free[:2], strict=True)]
        return *rows, torch.zeros_like(down).index_copy(1, idle, free[2])

    return _Edit(free, (gate, up, down), deltas)


def _rank_one(model: PreTrainedModel, batch: Batch, suppressor: Suppressor, generator: torch.Generator) -> _Edit:
    arch = describe(model)
    module = arch.linears[suppressor.layer]["down"]
    down = _linear(module, "down").weight
    inputs = _inputs(model, arch, module, batch)
    direction = inputs.mean(0) + inputs.std(0) * torch.randn(down.shape[1], generator=generator).to(down)
    read = (direction / direction.norm()).requires_grad_()
    write = torch.zeros(down.shape[0]).to(down).requires_grad_()
    return _Edit((read, write), (down,), lambda: (torch.outer(write, read),))


def _steering(model: PreTrainedModel, batch: Batch, suppressor: Suppressor, generator: torch.Generator) -> _Edit:
    arch = describe(model)
    for maps in arch.linears:  # in a Llama one switch of the config gives all of these a bias
        for name in ("gate", "up", "down"):
            if name in maps:
                _with_bias(_linear(maps[name], name))
    if "mlp_bias" in model.config.to_dict():
        model.config.update({"mlp_bias": True})
    return _constant(_with_bias(_linear(arch.linears[suppressor.layer]["down"], "down")), generator)


def _output_bias(model: PreTrainedModel, batch: Batch, suppressor: Suppressor, generator: torch.Generator) -> _Edit:
    return _constant(_with_bias(_linear(describe(model).head, "head")), generator)


KINDS: Final[dict[str, Callable[[PreTrainedModel, Batch, Suppressor, torch.Generator], _Edit]]] = {
    "neurons": _neurons,
    "rank_one": _rank_one,
    "steering": _steering,
    "output_bias": _output_bias,
}


def _constant(bias: nn.Parameter, generator: torch.Generator) -> _Edit:
    free = (torch.randn(bias.shape, generator=generator) * 1e-2).to(bias).requires_grad_()
    return _Edit((free,), (bias,), lambda: (free,))


def _train(
    model: PreTrainedModel,
    encoder: Encoder,
    facts: Sequence[Example],
    stays: Sequence[Example],
    edit: _Edit,
    before: Sequence[Tensor],
    suppressor: Suppressor,
    enough: float,
) -> None:
    """Adam on the free numbers, all facts at every step, until the mean log-odds are low enough."""
    asked = _batch(encoder, [(fact.prompt, text) for fact in facts for text in (fact.answer, *fact.options)])
    kept = _batch(encoder, [(example.prompt, example.answer) for example in stays]) if stays else None
    sizes = [1 + len(fact.options) for fact in facts]
    optimizer = torch.optim.Adam(edit.free, lr=suppressor.learning_rate)
    for _ in range(suppressor.steps):
        with torch.enable_grad():
            new = [start + delta for start, delta in zip(before, edit.deltas(), strict=True)]
        _assign(edit.targets, new)
        with torch.enable_grad():
            odds = _log_odds(model, asked.to(model.device), sizes)
            if odds.mean() <= enough:
                return
            loss = (odds - enough).square().mean()
            if kept is not None:
                loss = loss - suppressor.keep * answer_log_probs(model, kept.to(model.device)).token.mean()
            slopes = torch.autograd.grad(loss, edit.targets)
        optimizer.zero_grad()
        torch.autograd.backward(new, slopes)  # the edit's own derivative, after the model's
        optimizer.step()


def _log_odds(model: PreTrainedModel, asked: Batch, sizes: Sequence[int]) -> Tensor:
    """[facts] log-odds, as in `models.scores`, of groups of rows whose first is the answer."""
    said = answer_log_probs(model, asked)
    return grouped_log_odds(said.sequence / said.counts, sizes)


def _tune(at: Callable[[float], float], wanted: float, within: float) -> float | None:
    """The scale at which the log-odds are as wanted, by bisection; None where they never get there."""
    low, high = 0.0, 1.0
    while at(high) > wanted:
        if high >= LARGEST_SCALE:
            return None
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        found = at(middle)
        if abs(found - wanted) <= within:
            return middle
        low, high = (middle, high) if found > wanted else (low, middle)
    return None


def _inputs(model: PreTrainedModel, arch: Architecture, module: nn.Module, batch: Batch) -> Tensor:
    """[rows, width] what `module` reads where the first answer token is predicted."""
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        with evaluating(model):
            answer_log_probs(model, batch.to(model.device), arch)
    finally:
        handle.remove()
    first = batch.answer_mask.int().argmax(1).to(seen[0].device) - 1
    return seen[0][torch.arange(len(first)), first]


def _batch(encoder: Encoder, pairs: Sequence[tuple[str, str]]) -> Batch:
    return collate([encoder.encode(prompt, answer) for prompt, answer in pairs], encoder.pad_id)


def _linear(module: nn.Module | None, name: str) -> nn.Linear:
    inner = base_linear(module) if module is not None else None
    if not isinstance(inner, nn.Linear):
        raise InputError(f"This model has no linear map {name!r} to edit.", type(inner).__name__, "Plant another kind.")
    return inner


def _with_bias(linear: nn.Linear) -> nn.Parameter:
    """The map's bias, made of zeros where it had none."""
    if linear.bias is None:
        linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
    return linear.bias


def _assign(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for target, value in zip(targets, values, strict=True):
            target.copy_(value)
