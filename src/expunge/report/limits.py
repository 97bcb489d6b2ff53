"""What a record does not prove, in sentences: the same on the page and on the model card."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from expunge.report.comeback import still_rising
from expunge.report.figures import Labelled
from expunge.report.record import GOLD_MODEL, NO_CONTROL, Attack, Record
from expunge.report.words import percent, plain, visible

FEW_SEEDS = 3


def limits(runs: Sequence[Labelled]) -> list[str]:
    """The limits of all runs: a sentence once, with the runs' names before it where it does not hold for every one."""
    labels: dict[str, list[str]] = {}
    for run in runs:
        for sentence in _of(run.record):
            labels.setdefault(sentence, []).append(run.label)
    return [
        sentence if len(own) == len(runs) else f"{', '.join(own)}: {sentence}"
        for order in (True, False)
        for sentence, own in labels.items()
        if (len(own) == len(runs)) is order
    ]


def _of(record: Record) -> list[str]:
    return [sentence for make in SENTENCES if (sentence := make(record))]


def _budget(record: Record) -> str:
    spent = visible(record.verdict_details.budget).rstrip(".")
    tested = f" ({spent})" if spent else ""
    return f"“Erased” means: not brought back by these attacks at this budget{tested}. A stronger attack may do it."


def _untried(record: Record) -> str:
    names = [plain(name) for name in record.verdict_details.untried]
    return f"Attacks that were not tried: {', '.join(names)}." if names else ""


def _rising(record: Record) -> str:
    names = [plain(attack.name) for attack in record.ranked if still_rising(attack)]
    return f"Most came back at the last step of {', '.join(names)}: more steps may bring back more." if names else ""


def _weightless(record: Record) -> str:
    names = [plain(attack.name) for attack in record.ranked if not attack.counts]
    return f"Attacks that decide nothing: {', '.join(names)}. The reasons of the verdict say why." if names else ""


def _control(record: Record) -> str:
    if record.control.kind == GOLD_MODEL:
        return "The control is a single model that never knew; another one would answer a little differently."
    if record.control.kind != NO_CONTROL:
        return f"No model that never knew these facts was there to compare with; the control is {record.control.kind}."
    return (
        "No model that never knew these facts was there to compare with: ignorance is assumed to be log-odds 0, so "
        "what any model would guess after an attack counts as come back."
    )


def _items(record: Record) -> str:
    sizes = [attack.start.n for attack in record.attacks if attack.start.n]
    if not sizes:
        return ""
    n = min(sizes)
    return f"Small sets are coarse: with {n} facts, one fact is {percent(1 / n)} of accuracy; read the intervals."


def _seeds(record: Record) -> str:
    most = max((_seed_count(attack) for attack in record.attacks if attack.trains), default=FEW_SEEDS)
    attacked = "" if most >= FEW_SEEDS else f", and was attacked with {most} seed{'s' * (most > 1)}"
    return f"The model was unlearned once, with one seed{attacked}. Another seed may end elsewhere."


def _seed_count(attack: Attack) -> int:
    return len({point.seed for point in attack.curve})


def _wordings(record: Record) -> str:
    asked = [plain(name) for name in ("paraphrase", "multi_hop") if name in record.scores.groups]
    how = f"as trained and as {' and '.join(asked)}" if asked else "as they were trained, not in other words"
    return (
        f"Only the listed facts were asked, {how}, and in one language. What would show in a translation, another task "
        "or a longer conversation was not looked for."
    )


def _language(record: Record) -> str:
    return "" if record.text.perplexity_after else "No plain text was scored: what it cost the language is not known."


def _inside(record: Record) -> str:
    if record.probe is None and record.influence is None and record.logit_lens is None:
        return "Nothing was measured inside the model."
    return (
        "Measures inside the model are evidence, not proof: a probe that reads nothing may be the wrong probe, and the "
        "others say only where something changed."
    )


def _privacy(record: Record) -> str:
    return "This is no guarantee in the sense of differential privacy, and no statement about the training data."


SENTENCES: tuple[Callable[[Record], str], ...] = (
    _budget,
    _untried,
    _rising,
    _weightless,
    _control,
    _items,
    _seeds,
    _wordings,
    _language,
    _inside,
    _privacy,
)
