"""A language model of about 300 numbers, steps on it, and the attribution penalty written down a second time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from expunge.data.collate import Batch, Encoded, collate
from expunge.unlearning.objectives.base import WHOLE, Share
from expunge.unlearning.transforms.attribution import AttributionPenalty
from expunge.unlearning.transforms.base import BoundTransform, Site

Weights = dict[str, Tensor]


class Block(nn.Module):
    """Causal attention and a feed-forward map, without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.up, self.down = nn.Linear(5, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x + scaled_dot_product_attention(self.q(x), self.k(x), x, is_causal=True)
        return x + self.down(torch.tanh(self.up(x)))


class Tiny(nn.Module):
    """A causal language model of about 300 numbers, all float64: Llama's norms would compute in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(8, 5), nn.Linear(5, 8, bias=False)
        self.blocks = nn.ModuleList([Block(), Block()])
        torch.manual_seed(3)
        for p in self.double().parameters():
            nn.init.normal_(p, std=0.7)

    def sequence(self, rows: Batch) -> Tensor:
        """log P of each row's answer; the last token is not forwarded, as it predicts nothing."""
        x = self.embed(rows.input_ids[:, :-1])
        for block in self.blocks:
            x = block(x)
        return answer_sum(self.head(x), rows)


def answer_sum(logits: Tensor, rows: Batch) -> Tensor:
    token = logits.log_softmax(-1).gather(2, rows.input_ids[:, 1:, None])[..., 0]
    return (token * rows.answer_mask[:, 1:]).sum(1)


def make_batches(count: int = 3, rows: int = 4) -> list[Batch]:
    """Prompts of 2 to 4 tokens and answers of one or two, hence with padding."""
    draw = torch.Generator().manual_seed(5)
    items = [
        Encoded(tuple(torch.randint(1, 8, (prompt + answer,), generator=draw).tolist()), prompt)
        for _ in range(count)
        for prompt, answer in ((3, 1), (2, 2), (4, 1), (3, 2))[:rows]
    ]
    return [collate(items[i : i + rows], 0, range(rows)) for i in range(0, len(items), rows)]


def options_of(item: int) -> list[Encoded]:
    """One to three answers of one or two tokens after the prompt of item `item` of every batch alike."""
    prompt = (3, 2, 4, 3)[item]
    draw = torch.Generator().manual_seed(50 + item)
    ids = torch.randint(1, 8, (1 + item % 3, prompt + 2), generator=draw).tolist()
    ids = [own[: prompt + 1 + k % 2] for k, own in enumerate(ids)]
    return [Encoded(tuple(own), prompt) for own in ids]


class Fake:
    """One step of the loop: micro-batches of `batch`, and GA as the host."""

    steps_per_epoch = 1

    def __init__(self, model: Tiny, number: int, parts: Sequence[Batch], total: int = 4) -> None:
        self.model, self.number, self.parts, self.total = model, number, parts, total

    def add(self, share: Share) -> None:
        assert share == WHOLE
        for part in self.parts:
            (self.model.sequence(part).sum() / self.total).backward()

    def rows(self, side: str, ahead: int = 0) -> Iterator[Batch]:
        assert (side, ahead) == ("forget", 0)
        return iter(self.parts)

    def answers(self, rows: Batch) -> SimpleNamespace:
        return SimpleNamespace(sequence=self.model.sequence(rows))

    def options(self, rows: Batch) -> tuple[Batch, Tensor]:
        found = [(place, option) for place, item in enumerate(rows.index.tolist()) for option in options_of(item)]
        return collate([option for _, option in found], 0), torch.tensor([place for place, _ in found])

    def tokens(self, side: str, ahead: int = 0) -> int:
        raise AssertionError


def bind(model: Tiny, form: AttributionPenalty, reduce: Callable[[Tensor], Tensor] = lambda x: x, world: int = 1):
    linears = tuple(dict(block.named_children()) for block in model.blocks)
    arch = SimpleNamespace(blocks=model.blocks, linears=linears)
    site = Site(model, arch, dict(model.named_parameters()), reduce, world, (form, form))  # type: ignore[arg-type]
    return replace(form, measure_every=1).bind(site)


def split(batch: Batch, sizes: Sequence[int]) -> list[Batch]:
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [batch.rows(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]


def make_step(
    model: Tiny, bound: BoundTransform, number: int, parts: Sequence[Batch]
) -> tuple[Weights, dict[str, float]]:
    """What the transform adds to the gradient, and what it tells."""
    step = Fake(model, number, parts)
    model.zero_grad()
    step.add(WHOLE)
    plain = gradients(model)
    model.zero_grad()
    told = bound.gradient(step)  # type: ignore[arg-type]
    bound.apply()
    return {name: gradient - plain[name] for name, gradient in gradients(model).items()}, told


def gradients(model: Tiny) -> Weights:
    """Zero where a process has no rows."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in model.named_parameters()}


def move(model: Tiny, seed: int) -> Weights:
    """Changes the weights as an optimizer would; those from before."""
    before = snapshot(model)
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=draw, dtype=p.dtype)
    return before


def snapshot(model: Tiny) -> Weights:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


# --- the reference: the model, its influences and the penalty, written down once more, and differentiated numerically


def said(weights: Weights, row: Batch, nudges: Weights | None = None) -> tuple[Tensor, Weights]:
    """log P of one row's answer, and the outputs of all maps; `nudges` are added to those."""
    heard: Weights = {}

    def linear(name: str, x: Tensor) -> Tensor:
        heard[name] = x @ weights[f"blocks.{name}.weight"].T + weights.get(f"blocks.{name}.bias", 0)
        return heard[name] if nudges is None else heard[name] + nudges[name]

    x = weights["embed.weight"][row.input_ids[0, :-1]]
    later = torch.ones(len(x), len(x)).triu(1).bool()
    for b in range(2):
        scores = linear(f"{b}.q", x) @ linear(f"{b}.k", x).T / 5**0.5
        x = x + scores.masked_fill(later, -torch.inf).softmax(-1) @ x
        x = x + linear(f"{b}.down", torch.tanh(linear(f"{b}.up", x)))
    return answer_sum((x @ weights["head.weight"].T)[None], row)[0], heard


def read(row: Batch, of: str) -> list[Batch]:
    """The rows that q of one item depends on, the answer's first."""
    beside = options_of(int(row.index[0])) if of == "margin" else []
    return [row, *(collate([option], 0) for option in beside)]


def quantity(rows: Sequence[Batch], logs: Sequence[Tensor], of: str) -> Tensor:
    """q of one item from log P of its rows."""
    s = logs[0]
    if of == "margin":
        mean, *others = (log / row.answer_mask.sum() for row, log in zip(rows, logs, strict=True))
        return mean - torch.stack(others).exp().mean().log()
    p = s.exp()
    return {"probability": p, "log_probability": s, "log_odds": torch.log(p / (1 - p))}[of]


def influence(weights: Weights, row: Batch, form: AttributionPenalty, constant: Weights | None = None) -> Weights:
    """A of one item at `weights`, g taken at `constant` where that is given."""
    at = {name: w.clone().requires_grad_() for name, w in (constant or weights).items()}
    kinds = form.modules or ("q", "k", "up", "down")
    names = [f"{b}.{kind}" for b in range(2) for kind in kinds]
    rows = read(row, form.of)
    if form.level == "parameter":
        leaves = [at[f"blocks.{name}.weight"] for name in names]
        g = torch.autograd.grad(quantity(rows, [said(at, one)[0] for one in rows], form.of), leaves)
        return {n: weights[f"blocks.{n}.weight"] * x for n, x in zip(names, g, strict=True)}
    with torch.no_grad():
        outputs = [said(weights, one)[1] for one in rows]
    nudges = [{name: torch.zeros_like(h).requires_grad_() for name, h in own.items()} for own in outputs]
    logs = [said(at, one, own)[0] for one, own in zip(rows, nudges, strict=True)]
    g = torch.autograd.grad(quantity(rows, logs, form.of), [own[name] for own in nudges for name in names])
    found = []
    for one, own in zip(rows, outputs, strict=True):
        last = int(one.answer_mask[0].nonzero().max())  # predicted one position before
        mine, g = g[: len(names)], g[len(names) :]
        found.append({n: (own[n] * x)[:last].amin(0) for n, x in zip(names, mine, strict=True)})
    return total(found)


def units(batch: Batch, form: AttributionPenalty) -> list[list[Batch]]:
    rows = split(batch, [1] * len(batch))
    return [[row] for row in rows] if form.products == "example" else [rows]


def total(found: Sequence[Weights]) -> Weights:
    return {name: torch.stack([a[name] for a in found]).sum(0) for name in found[0]}


def penalty(
    weights: Weights, batch: Batch, form: AttributionPenalty, references: Sequence[Weights], constant: Weights | None
) -> float:
    """sum over units of D^2, at strength 1."""
    result = 0.0
    for rows, before in zip(units(batch, form), references, strict=True):
        now = total([influence(weights, row, form, constant) for row in rows])
        for name, a in now.items():
            for x, y in zip(a.flatten().tolist(), before[name].flatten().tolist(), strict=True):
                d = y - x if x < 0 else 0.0
                result += max(d, 0.0) ** 2 if form.penalty == "hinge" else d**2
    return result


def references(
    form: AttributionPenalty, batches: Sequence[Batch], original: Weights, previous: Weights
) -> list[Weights]:
    """A_ref of the third step."""
    there = original if form.anchor == "original" else previous
    other = form.anchor == "previous" and form.compare == "batches"
    batch = batches[1] if other else batches[2]
    return [total([influence(there, row, form) for row in rows]) for rows in units(batch, form)]


def third_step(
    form: AttributionPenalty, sizes: Sequence[int] = (4,)
) -> tuple[Tiny, Weights, dict[str, float], list[Weights]]:
    """The model, the penalty's gradient, what is told, and the weights of the first two steps."""
    model, batches = Tiny(), make_batches()
    bound = bind(model, form)
    earlier = []
    for number in range(2):
        make_step(model, bound, number, split(batches[number], sizes))
        earlier.append(move(model, number))
    return model, *make_step(model, bound, 2, split(batches[2], sizes)), earlier
