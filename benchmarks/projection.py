"""What a projection costs on SmolLM2: to begin it, to train it, and to serve the model that it leaves."""

from __future__ import annotations

import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import PreTrainedModel

from expunge.continual.relearning import Rows, enforced
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.models.answers import evaluating, length_sorted
from expunge.models.architecture import base_linear, describe, readout
from expunge.models.checkpoint import save_pretrained_atomic
from expunge.models.projections import attach
from expunge.unlearning.parametrizations.base import Material
from expunge.unlearning.parametrizations.projection import Projection
from measure import Claim, Result, Settings, main, side_by_side
from shapes import demo_facts, smollm2

EXAMPLES = 1000
PER_FORWARD = 16
BLOCKS = tuple(range(1, 30))


def measure(settings: Settings, result: Result) -> None:
    """Bars: beginning one request at most 1.3 times a forward over its examples; a folded model costs nothing."""
    model, encoder = smollm2(settings)
    forget, retain = demo_facts()
    half = EXAMPLES // 2  # also when quick: what does not grow with the examples would count for more
    rows = [[encoder.encode(e.prompt, e.answer) for e in many(facts, half)] for facts in (forget, retain)]
    special = frozenset(encoder.tokenizer.all_special_ids)
    material = Material(*rows, encoder.pad_id, special, PER_FORWARD)

    def begin() -> None:
        Projection().bind(model, 0, material).fold()

    def forward() -> None:
        backbone = readout(model).backbone
        with evaluating(model):
            for side in rows:
                for batch in length_sorted(side, encoder.pad_id, PER_FORWARD):
                    backbone(input_ids=batch.input_ids, use_cache=False)

    times = side_by_side({"begin a request": begin, "forward over its examples": forward}, 2, warm_up=0)
    result.add_times(times)
    result.claim_ratio("begin a request / a forward", *times.values(), 1.3, at_least=False)

    folded, blocked = copy.deepcopy(model), copy.deepcopy(model)
    trained = Projection().bind(folded, 0, material)
    with torch.no_grad():
        for parameter in trained.parameters.values():
            parameter.add_(0.01 * torch.randn_like(parameter))
    removed = trained.removed()
    trained.fold()
    attach(blocked, removed)
    batch = next(iter(length_sorted(rows[0][:PER_FORWARD], encoder.pad_id, PER_FORWARD)))
    ways = {
        name: lambda served=served: served_once(served, batch.input_ids)
        for name, served in (("serve plain", model), ("serve folded", folded), ("serve with hooks at blocks", blocked))
    }
    times = side_by_side(ways, settings.repetitions(24))
    result.add_times(times)
    result.claim_ratio("serve folded / plain", times["serve folded"], times["serve plain"], 1.02, at_least=False)
    hooks, plain = times["serve with hooks at blocks"], times["serve plain"]
    result.rows["hooks at blocks / plain"] = {"ratio": round(min(hooks.wall) / min(plain.wall), 4)}
    sizes = [size_on_disk(each, encoder) for each in (folded, model)]
    result.claims.append(Claim("bytes on disk, folded / plain", sizes[0] / sizes[1], 1.0, at_least=False))
    for dtype in (torch.float32, torch.bfloat16):
        found = agreement(model, folded, removed, batch.input_ids, dtype)
        result.rows[f"folded beside hooked, {str(dtype).removeprefix('torch.')}"] = found
    numbers = sum(rows.numel() for rows in removed.values())
    result.rows["numbers trained"] = {
        "projection": numbers,
        "all weights": sum(p.numel() for p in model.parameters()),
        "layers": len(removed),
    }
    result.notes.append(
        f"{2 * half} examples of the demo's shapes; k = {Projection().rank} rows at {len(BLOCKS)} blocks"
    )


def many(facts: tuple[Example, ...], n: int) -> list[Example]:
    """`n` examples, the facts again and again."""
    return [facts[i % len(facts)] for i in range(n)]


def served_once(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """One forward without a gradient."""
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)


def agreement(
    model: PreTrainedModel, folded: PreTrainedModel, removed: Rows, ids: torch.Tensor, dtype: torch.dtype
) -> dict[str, float]:
    """How far logits of the folded model lie from those with hooks, in this dtype, beside how far the plain model's lie
    from its own in float32 (2-norms, relative); and what of the weights lies in removed directions, at most."""
    plain, merged = (copy.deepcopy(each).to(dtype) for each in (model, folded))
    with torch.no_grad():
        exact, rounded, one = (each(input_ids=ids, use_cache=False).logits.float() for each in (model, plain, merged))
        with enforced(plain, "frozen", removed):
            other = plain(input_ids=ids, use_cache=False).logits.float()
    downs = {block: base_linear(describe(merged).linears[block]["down"]).weight.detach().float() for block in removed}
    inside = [float((rows @ downs[block]).norm() / downs[block].norm()) for block, rows in removed.items()]
    return {
        "logits, folded - hooked": float((one - other).norm() / other.norm()),
        "logits, plain - plain in float32": float((rounded - exact).norm() / exact.norm()),
        "weights inside what is removed": max(inside),
    }


def size_on_disk(model: PreTrainedModel, encoder: Encoder) -> int:
    """Bytes of the weight files."""
    with TemporaryDirectory() as folder:
        save_pretrained_atomic(model, encoder.tokenizer, Path(folder) / "model")
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))


if __name__ == "__main__":
    main("projection", measure)
