"""The two models of a run, measured one after the other: never both in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from expunge.audit.lm_eval import Link, evaluate, linked
from expunge.audit.snapshot import Snapshot, control_snapshot, snapshot
from expunge.data.collate import Encoder
from expunge.data.example import Example
from expunge.data.sources import passages
from expunge.errors import InputError
from expunge.models.architecture import row_limit
from expunge.models.load import LoadedModel, load_model
from expunge.models.scores import ItemScore, score_items
from expunge.models.smollm import model_source
from expunge.models.storage import weights_hash
from expunge.progress import Progress
from expunge.recipe import Plan
from expunge.report.record import ModelPart
from expunge.request import Request


@dataclass(frozen=True)
class Measured:
    """One model: what it says, what it weighs, where it is from."""

    snapshot: Snapshot
    hashes: dict[str, str]
    part: ModelPart

    @property
    def weights(self) -> str:
        """One hash for all weight files."""
        return weights_hash(self.hashes)

    @property
    def tokenizer(self) -> str:
        """The hash of tokenizer.json, or of whatever the tokenizer consists of."""
        return " ".join(digest for name, digest in sorted(self.hashes.items()) if name.startswith("tokenizer."))


def encoder_of(loaded: LoadedModel, plan: Plan) -> Encoder:
    """How the plan's prompts are put to this model."""
    return Encoder(loaded.tokenizer, plan.template, row_limit(loaded.model))


def with_text(request: Request) -> Request:
    """The request, with the bundled passages where it brings no plain text."""
    return request if request.text else request.with_text(passages())


def require_measurable(encoder: Encoder, request: Request) -> None:
    """InputError where something scored tokenises to nothing, or a wrong option as its answer: before work begins."""
    for _ in put_to(encoder, request):
        pass
    for example in chain(request.forget, request.retain, *request.test.values()):
        answer = encoder.encode(example.prompt, example.answer)
        for option in example.options:
            if encoder.encode(example.prompt, option) == answer:
                raise InputError(
                    f"The tokenizer cannot tell the answer {example.answer!r} from the wrong option {option!r}.",
                    f"prompt {example.prompt[:60]!r}",
                    "Correct the options, or the tokenizer that was saved with the model.",
                )


def put_to(encoder: Encoder, request: Request) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Each text of the request as it is put to a model, and its ids; InputError where one tokenises to nothing."""
    for example in chain(request.forget, request.retain, *request.test.values(), request.attack):
        for prompt in (example.prompt, *example.paraphrases):
            for answer in (example.answer, *example.options, *example.answer_paraphrases):
                yield f"{prompt} {answer}", encoder.encode(prompt, answer).ids
    for text in with_text(request).text:
        yield text, encoder.encode_text(text).ids


def measure(
    path: str, plan: Plan, request: Request, reference: Measured | None = None, progress: Progress | None = None
) -> Measured:
    """Load the model at `path`, measure it, and let go of it."""
    loaded = load_model(path, dtype=plan.dtype, revision=None if reference else plan.revision, device=plan.device)
    encoder = encoder_of(loaded, plan)
    taken = snapshot(
        loaded.model,
        encoder,
        with_text(request),
        reference=reference.snapshot if reference else None,
        progress=progress,
    )
    part = ModelPart(
        name=str(loaded.model.config.model_type) + " " + loaded.folder.name,
        source=_source(loaded),
        parameters=sum(parameter.numel() for parameter in loaded.model.parameters()),
        dtype=plan.numbers,
        template=plan.template,
        bos=str(encoder.describe()["bos"]),
    )
    return Measured(taken, dict(loaded.hashes), part)


def score_set(path: str, plan: Plan, examples: Sequence[Example]) -> tuple[ItemScore, ...]:
    """Scores of some examples by the model at `path`."""
    loaded = load_model(path, dtype=plan.dtype, device=plan.device)
    return score_items(loaded.model, encoder_of(loaded, plan), examples)


def measure_control(path: str, plan: Plan, request: Request) -> Snapshot:
    """What others are compared with, of the model at `path`, which never knew."""
    loaded = load_model(path, dtype=plan.dtype, device=plan.device)
    return control_snapshot(loaded.model, encoder_of(loaded, plan), request)


def ask_lm_eval(path: str, plan: Plan, tasks: Sequence[str], folder: Path) -> Link | None:
    """What lm-eval finds of the model at `path`, stored in `folder`; what is stored there already, without tasks."""
    if not tasks:
        return linked(folder)
    loaded = load_model(path, dtype=plan.dtype, device=plan.device)
    return evaluate(loaded.model, loaded.tokenizer, tasks, folder)


def _source(loaded: LoadedModel) -> str:
    """Where the weights are from, without this machine's paths."""
    source = model_source(loaded.folder) if (loaded.folder / "source.json").is_file() else {}
    if source:
        return f"{source['what']} ({source['origin']}; {source['weights']})"
    return loaded.folder.name if Path(loaded.path).exists() else loaded.path
