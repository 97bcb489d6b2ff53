"""Everything that is measured about one model before it is compared with another.

The model before unlearning, the one after it, and the control are measured one after the other, so that no two are in
memory at once; what the comparison needs of the first (the final states of the plain text and a copy of the head, for
the KL divergence) is in its snapshot.
"""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeVar

from expunge.audit.attribution import Attribution, attributions
from expunge.audit.logit_lens import logit_lens
from expunge.audit.probe import Probed, linear_probe
from expunge.audit.reading import STAYS, Reading, read
from expunge.data.twins import scored_twins
from expunge.errors import InputError
from expunge.models.answers import Reference, TextStatistics, cache_text, text_statistics
from expunge.models.architecture import FAMILIES
from expunge.models.scores import ItemScore, Scores, greedy, numbers, score_items, summarise
from expunge.progress import Progress, Silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from expunge.data.collate import Encoder
    from expunge.data.example import Example
    from expunge.request import Request

log = logging.getLogger(__name__)

T = TypeVar("T")

Scored = tuple[tuple[ItemScore, ...], tuple[ItemScore, ...], dict[str, tuple[ItemScore, ...]]]
"""Scores of forget, retain and each test group."""

TASK = "measuring"


@dataclass(frozen=True, slots=True)
class Caps:
    """The most that a snapshot measures of each kind; what exceeds it is drawn by `seed`, the same for every model.

    Args:
        retain: examples.
        text_tokens: tokens of plain text, in whole passages; one passage is always measured.
        attribution: forget examples.
        probe: retain examples that the linear probe learns from.
        spoken: retain examples, and those of each group of TOFU's model utility, that are answered in words: each of
            them costs as much as four that are scored.
        new_tokens: of each greedy answer, unless a forget answer is longer.
        most_new_tokens: of each greedy answer.
        seed: of the draws, and of the logit lens.
    """

    retain: int = 64
    text_tokens: int = 2048
    attribution: int = 64
    probe: int = 256
    spoken: int = 8
    new_tokens: int = 16
    most_new_tokens: int = 64
    seed: int = 0

    def draw(self, items: Sequence[T], most: int) -> tuple[T, ...]:
        """At most `most` of the items, in their order."""
        if len(items) <= most:
            return tuple(items)
        return tuple(items[i] for i in sorted(random.Random(self.seed).sample(range(len(items)), most)))

    def draw_texts(self, encoder: Encoder, texts: Sequence[str]) -> tuple[str, ...]:
        """Passages of at most `text_tokens` tokens together, in their order."""
        order = random.Random(self.seed).sample(range(len(texts)), len(texts))
        sums = accumulate(len(encoder.encode_text(texts[i]).ids) for i in order)
        fitting = sum(total <= self.text_tokens for total in sums)
        return tuple(texts[i] for i in sorted(order[: max(fitting, 1)]))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One model, measured.

    Args:
        forget: scores of what had to go.
        retain: scores of what had to stay, at most `Caps.retain` of them.
        test: scores of each test group.
        samples: greedy answer by forget item id; untrusted text.
        rouge_l: recall of the answer in it, by forget item id.
        text: perplexity on the plain text and, against a reference, the KL divergence; None without text.
        text_reference: what the next model's KL divergence is measured against; None unless this is the reference.
        attribution: of the forget items, at most `Caps.attribution`; None in a light snapshot or of an unknown family.
        lens: accuracy per layer on the forget items; empty where it was not or cannot be measured.
        probe: what linear probes trained on retain items read of the forget items, layer by layer; None where it was
            not measured, or where no retain item has a forget item's answer.
        twins: scores of the made-up twins by the id of their forget item; empty unless this is the reference.
        reading: what the metrics of memorisation, membership and utility are made of; None in a light snapshot.
    """

    forget: tuple[ItemScore, ...]
    retain: tuple[ItemScore, ...]
    test: Mapping[str, tuple[ItemScore, ...]]
    samples: Mapping[str, str]
    rouge_l: Mapping[str, float]
    text: TextStatistics | None = None
    text_reference: Reference | None = None
    attribution: Attribution | None = None
    lens: tuple[float, ...] = ()
    probe: Probed | None = None
    twins: Mapping[str, ItemScore] = field(default_factory=dict)
    reading: Reading | None = None

    def to_json(self) -> dict[str, Any]:
        """The means and other single numbers; what is not finite, or was not measured, is None."""
        sets = {"forget": self.forget, "retain": self.retain}
        return {
            **{name: _means(items) for name, items in sets.items() if items},
            "test": {name: _means(items) for name, items in self.test.items() if items},
            "rouge_l": fmean(self.rouge_l.values()) if self.rouge_l else None,
            "perplexity": _finite(self.text.perplexity) if self.text else None,
            "kl": _finite(self.text.kl) if self.text and self.text.kl is not None else None,
            "lens": list(self.lens),
            "probe": list(self.probe.log_odds) if self.probe else None,
        }


def snapshot(
    model: PreTrainedModel,
    encoder: Encoder,
    request: Request,
    *,
    reference: Snapshot | None = None,
    caps: Caps | None = None,
    progress: Progress | None = None,
) -> Snapshot:
    """Measure `model` on everything in `request`; it comes back as it was.

    Args:
        model: any causal LM; attribution, logit lens and probe need a family of `expunge.models.architecture.FAMILIES`.
        encoder: the one it was unlearned with.
        request: what had to go and to stay, the test groups, the plain text.
        reference: the snapshot of the model before unlearning; without it this one becomes the reference.
        caps: how much is measured.
        progress: told of every stage.
    """
    caps, progress = caps or Caps(), progress or Silent()
    progress.start(TASK, 6)
    scored = _scores(model, encoder, request, caps)
    progress.advance(TASK)
    reading, words = _reading(model, encoder, request, caps, scored)
    progress.advance(TASK)
    text, text_reference = _text(model, encoder, caps.draw_texts(encoder, request.text), reference)
    progress.advance(TASK)
    attribution = lens = probe = None
    if model.config.model_type in FAMILIES:
        attribution = attributions(model, encoder, caps.draw(request.forget, caps.attribution))
        progress.advance(TASK)
        lens = logit_lens(model, encoder, request.forget, caps.seed)
        progress.advance(TASK)
        probe = _probe(model, encoder, request, caps)
        progress.advance(TASK)
    else:
        log.warning("No attribution, logit lens or probe: the family %r is not known.", model.config.model_type)
    progress.finish(TASK)
    said = {
        item: share
        for item, share in zip(reading.forget.ids, reading.forget.rouge_l, strict=True)
        if not math.isnan(share)
    }
    return Snapshot(
        *scored,
        samples={example.id: words[example.prompt] for example in prompted(request.forget)},
        rouge_l=said,
        text=text,
        text_reference=text_reference,
        attribution=attribution,
        lens=lens or (),
        probe=probe,
        twins=_twins(model, encoder, request) if reference is None else {},
        reading=reading,
    )


def _twins(model: PreTrainedModel, encoder: Encoder, request: Request) -> dict[str, ItemScore]:
    twins = scored_twins(request)
    return dict(zip(twins, score_items(model, encoder, list(twins.values())), strict=True))


def control_snapshot(model: PreTrainedModel, encoder: Encoder, request: Request, caps: Caps | None = None) -> Snapshot:
    """What others are compared with, of a model that never knew: scores of the forget items and of their paraphrases,
    what the probe reads, and the reading of the forget items and the non-members that metrics compare with."""
    caps = caps or Caps()
    reworded = request.test.get("paraphrase", ())
    scores = numbers(score_items(model, encoder, [*request.forget, *reworded]))
    forget, others = scores[: len(request.forget)], scores[len(request.forget) :]
    words = _words(model, encoder, request, request.forget, caps)
    return Snapshot(
        forget,
        (),
        {"paraphrase": others} if reworded else {},
        samples={},
        rouge_l={},
        probe=_probe(model, encoder, request, caps) if model.config.model_type in FAMILIES else None,
        reading=read(model, encoder, request, forget, {}, words),
    )


def _scores(model: PreTrainedModel, encoder: Encoder, request: Request, caps: Caps) -> Scored:
    """Scores of forget, retain and each test group, from one pass over all of them."""
    sets = [request.forget, caps.draw(request.retain, caps.retain), *request.test.values()]
    scores = iter(numbers(score_items(model, encoder, [example for examples in sets for example in examples])))
    forget, retain, *test = (tuple(next(scores) for _ in examples) for examples in sets)
    return forget, retain, dict(zip(request.test, test, strict=True))


def _reading(
    model: PreTrainedModel, encoder: Encoder, request: Request, caps: Caps, scored: Scored
) -> tuple[Reading, dict[str, str]]:
    """What the metrics need, and the greedy words by prompt, of everything that is answered in words in one go."""
    forget, retain, test = scored
    sets = {"retain": (caps.draw(request.retain, caps.retain), retain)}
    sets |= {prefix: (request.test[group], test[group]) for group, prefix in STAYS.items() if group in request.test}
    stays = {name: pair for name, pair in sets.items() if pair[0]}
    asked = [
        *request.forget,
        *(e for examples, _ in stays.values() for e in caps.draw(prompted(examples), caps.spoken)),
    ]
    words = _words(model, encoder, request, asked, caps)
    return read(model, encoder, request, forget, stays, words), words


def _words(
    model: PreTrainedModel, encoder: Encoder, request: Request, asked: Sequence[Example], caps: Caps
) -> dict[str, str]:
    """Greedy answers by prompt, as records of two sets may share an id; untrusted text."""
    encoded = [encoder.encode(example.prompt, example.answer) for example in request.forget]
    longest = max(len(each.ids) - each.answer_start for each in encoded)
    new_tokens = max(caps.new_tokens, min(longest, caps.most_new_tokens))
    prompts = list(dict.fromkeys(example.prompt for example in prompted(asked)))
    return dict(zip(prompts, greedy(model, encoder, prompts, new_tokens), strict=True))


def prompted(examples: Sequence[Example]) -> list[Example]:
    """Those that ask something: plain text, an answer without a prompt, is scored and not asked."""
    return [example for example in examples if example.prompt]


def _probe(model: PreTrainedModel, encoder: Encoder, request: Request, caps: Caps) -> Probed | None:
    """What the probes read; None, and a line in the log, where the request gives them nothing to learn or to ask."""
    try:
        return linear_probe(model, encoder, caps.draw(prompted(request.retain), caps.probe), request.forget)
    except InputError as error:
        log.info("No linear probe: %s", error)
        return None


def _text(
    model: PreTrainedModel, encoder: Encoder, texts: Sequence[str], reference: Snapshot | None
) -> tuple[TextStatistics | None, Reference | None]:
    """Figures on plain text, and the reference for the next model if there is none yet."""
    if not texts:
        return None, None
    if reference is not None:
        return text_statistics(model, encoder, texts, reference.text_reference), None
    own = cache_text(model, encoder, texts)
    passages = [(-value, 0.0, len(states)) for value, states in zip(own.sequence.tolist(), own.hidden, strict=True)]
    return TextStatistics.of(passages, compared=False), own


def _means(items: Sequence[ItemScore]) -> dict[str, Any]:
    means: Scores = summarise(items)
    return {name: _finite(value) for name, value in asdict(means).items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
