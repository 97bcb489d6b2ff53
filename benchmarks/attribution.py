"""Attribution of all linear maps against one plain forward and backward, and against captum, one map at a time."""

from __future__ import annotations

import warnings
from functools import partial
from statistics import median

import numpy as np
import torch
from torch import Tensor

from expunge.audit.attribution import attributions
from expunge.data.collate import collate
from expunge.models.answers import answer_log_probs
from expunge.models.architecture import describe
from measure import Claim, Result, Settings, main, side_by_side
from plain import negative_log_likelihood
from shapes import demo_facts, smollm2

ROWS = 8
LAYERS = (0, 14, 29)


def measure(settings: Settings, result: Result) -> None:
    """Bars: 1.5 times a plain forward and backward; captum 10 times slower and within 1e-5."""
    from captum.attr import LayerGradientXActivation

    model, encoder = smollm2(settings)
    examples = demo_facts()[0][:ROWS]
    batch = collate([encoder.encode(e.prompt, e.answer) for e in examples], encoder.pad_id)
    arch = describe(model)

    def plain() -> None:
        negative_log_likelihood(model, batch).backward()
        model.zero_grad(set_to_none=True)

    def probability(ids: Tensor) -> Tensor:
        return answer_log_probs(model, batch, arch).sequence.exp()

    def captum(layer: int, name: str) -> Tensor:
        with warnings.catch_warnings():  # captum says that token ids carry no gradient
            warnings.simplefilter("ignore")
            found = LayerGradientXActivation(probability, arch.linears[layer][name]).attribute(batch.input_ids)
        assert isinstance(found, Tensor)
        return found.detach()

    def ours() -> None:
        attributions(model, encoder, examples, batch_size=ROWS)

    times = side_by_side({"plain forward and backward": plain, "attribution, all maps": ours}, settings.repetitions(12))
    result.add_times(times)
    plain_time, our_time = times["plain forward and backward"], times["attribution, all maps"]
    result.claim_ratio("attribution / plain forward and backward", our_time, plain_time, 1.5, at_least=False)

    layers = LAYERS[:1] if settings.quick else LAYERS
    ways = {f"captum, {name} of layer {n}": (n, name) for n in layers for name in arch.linears[n]}
    one_by_one = side_by_side({key: partial(captum, *at) for key, at in ways.items()}, 2, warm_up=0)
    result.add_times(one_by_one)
    maps = sum(map(len, arch.linears))
    each = sum(min(t.wall) for t in one_by_one.values()) / len(one_by_one)
    result.claims.append(Claim("captum, map by map / attribution", maps * each / median(our_time.wall), 10, True))
    result.notes.append(
        f"captum's LayerGradientXActivation was timed on {len(ways)} of {maps} maps and its mean taken for the rest"
    )

    found = attributions(model, encoder, examples, batch_size=ROWS)
    spans = {(span.layer, span.module): span.slice for span in found.layout.spans}
    last = batch.answer_mask.int().cumsum(1).argmax(1)  # of each row's answer; the position before it predicts it
    outside = torch.arange(batch.input_ids.shape[1]) >= last[:, None]
    worst = 0.0
    for at in ways.values():
        whole = captum(*at)
        left_out = outside[:, : whole.shape[1], None]
        most = whole.masked_fill(left_out, -torch.inf).amax(1).numpy()
        least = whole.masked_fill(left_out, torch.inf).amin(1).numpy()
        for ours_, theirs in ((found.positive, most), (found.negative, least)):
            worst = max(worst, float(np.abs(ours_[:, spans[at]] - theirs).max() / np.abs(theirs).max()))
    result.claims.append(Claim("largest difference to captum / largest attribution of the map", worst, 1e-5, False))


if __name__ == "__main__":
    main("attribution", measure)
