"""The page and the rows of diagnosis.py, from its records alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from expunge.audit.separation import Estimate, agreement, auc, separation
from results_page import RESULTS, write_results

RECORDS = RESULTS / "records" / "diagnosis"

DIAGNOSTICS = {
    "no_attack": "log-odds of the facts, nothing done (not a diagnostic: the level)",
    "influence_probability": "D- / (D+ + D-), of the probability",
    "influence_log_odds": "D- / (D+ + D-), of the log-odds",
    "logit_lens": "logit lens, best block",
    "krs_mlp": "KRS, inputs of down",
    "krs_attention": "KRS, outputs of o",
    "krs_both": "KRS, both",
    "uds_answer": "1 - UDS, where the answer is predicted",
    "uds_all": "1 - UDS, all positions",
    "probe": "linear probe, best block, log-odds",
    "relearn_short": "log-odds gained by relearning, 8 steps",
}
KINDS = ("neurons", "rank_one", "steering", "output_bias")
ERASED = ("gold", "retrained", "rebuilt")

SAME_LEVEL = 0.5
"""Erased models with log-odds this near to 0, which the suppressors are tuned to, are at the hidden ones' level."""

Model = dict[str, Any]
Chooses = Callable[[Model], bool]


def load() -> list[dict[str, Any]]:
    """The records by seed."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in RECORDS.glob("people-*.json")]
    return sorted(records, key=lambda record: record["seed"])


def scores(records: Sequence[dict[str, Any]], name: str, wanted: Chooses) -> list[list[float]]:
    """A diagnostic's values by seed, of the models wanted."""
    return [[model["diagnostics"][name] for model in record["models"] if wanted(model)] for record in records]


def recovered(record: dict[str, Any], model: Model, attack: str = "harmful") -> float:
    """R of the module `expunge.audit.control`, of a model under the long attack."""
    by_name = {each["name"]: each for each in record["models"]}
    never = by_name["gold"]["attacks"][attack]
    knew = by_name["untouched"]["attacks"][attack]["start"] - never["start"]
    return float((model["attacks"][attack]["log_odds"] - never["log_odds"]) / knew)


def hidden(model: Model) -> bool:
    return bool(model["truth"] == "hidden")


def erased(model: Model) -> bool:
    return bool(model["truth"] == "erased")


def level(model: Model) -> bool:
    """Erased, and with log-odds near those of the hidden ones."""
    return erased(model) and abs(model["scores"]["forget"]["log_odds"]) <= SAME_LEVEL


def _named(*names: str) -> Chooses:
    return lambda model: model["name"] in names


def rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per diagnostic."""
    found = []
    for name, label in DIAGNOSTICS.items():
        high, low = scores(records, name, hidden), scores(records, name, erased)
        all_r = [[recovered(r, m) for m in r["models"] if hidden(m) or erased(m)] for r in records]
        all_d = scores(records, name, lambda m: hidden(m) or erased(m))
        hid_r = [[recovered(r, m) for m in r["models"] if hidden(m)] for r in records]
        found.append(
            {
                "diagnostic": name,
                "label": label,
                "seeds": len(records),
                "hidden_models": sum(map(len, high)),
                "erased_models": sum(map(len, low)),
                "auc": _json(separation(high, low)),
                "auc_same_level": _json(separation(high, scores(records, name, level))),
                "erased_models_same_level": sum(map(len, scores(records, name, level))),
                "auc_without_gold": _json(separation(high, scores(records, name, _named("retrained", "rebuilt")))),
                "auc_against": {one: _flat(high, scores(records, name, _named(one))) for one in ERASED},
                "auc_of": {kind: _flat(scores(records, name, _named(kind)), low) for kind in KINDS},
                "rank_correlation": _json(agreement(all_d, all_r)),
                "rank_correlation_hidden": _json(agreement(high, hid_r)),
                "seconds": round(median(m["seconds_of"][name] for r in records for m in r["models"]), 3),
            }
        )
    return found


def _flat(high: Sequence[Sequence[float]], low: Sequence[Sequence[float]]) -> float:
    return round(auc([x for each in high for x in each], [x for each in low for x in each]), 3)


def _json(estimate: Estimate) -> dict[str, float | None]:
    return {k: round(v, 3) if math.isfinite(v) else None for k, v in asdict(estimate).items()}


def models(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per kind of model: what it knows, keeps, and gives back."""
    found = []
    for name in ("untouched", *KINDS, *ERASED, "graddiff"):
        these = [(r, m) for r in records for m in r["models"] if m["name"] == name]
        mean = {
            f"{part}_{what}": fmean(m["scores"][part][what] for _, m in these)
            for part in ("forget", "paraphrase", "retain", "held_out")
            for what in ("accuracy", "log_odds")
        }
        back = {f"recovered_{a}": fmean(recovered(r, m, a) for r, m in these) for a in ("harmful", "related")}
        found.append(
            {"model": name, "truth": these[0][1]["truth"], "n": len(these)}
            | {key: round(value, 3) for key, value in {**mean, **back}.items()}
            | {"diagnostics": {d: _mean([m["diagnostics"][d] for _, m in these]) for d in DIAGNOSTICS}}
        )
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(fmean(known), 3) if known else None


def causal(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Share of the forgotten log-odds that an ablation brings back: mean and range over seeds."""
    runs = [record["causal"] for record in records if record["causal"]]
    keys = list(dict.fromkeys((row["m"], row["neurons"], row["put"]) for run in runs for row in run["rows"]))
    found = []
    for key in keys:
        shares = []
        for run in runs:
            after, gone = run["unlearned"]["log_odds"], run["original"]["log_odds"] - run["unlearned"]["log_odds"]
            mine = [row["log_odds"] for row in run["rows"] if (row["m"], row["neurons"], row["put"]) == key]
            shares.append((fmean(mine) - after) / gone)
        m, neurons, put = key
        found.append(
            {"m": m, "neurons": neurons, "put": put, "seeds": len(runs), "share": round(fmean(shares), 3)}
            | {"lowest": round(min(shares), 3), "highest": round(max(shares), 3)}
        )
    return found


def tables() -> None:
    """Write docs/results/diagnosis.md and .json."""
    records = load()
    if not records:
        return
    told = {"diagnostics": rows(records), "models": models(records), "causal": causal(records)}
    seconds = sum(record["seconds"] for record in records)
    parts = [
        HEAD.format(seeds=len(records), minutes=seconds / 60),
        *_separation(told["diagnostics"]),
        *_by_truth(told["diagnostics"]),
        *_models(told["models"]),
        *_causal(told["causal"]),
    ]
    write_results("diagnosis", parts, json.dumps(told, indent=1) + "\n")


HEAD = """# Diagnosis: which diagnostics tell hidden facts from erased ones

Generated by `python benchmarks/diagnosis.py --tables` from `records/diagnosis/`; the same rows are in
[diagnosis.json](diagnosis.json). Benchmark `people`, {seeds} seeds, {minutes:.0f} minutes of one core. A seed is
another split, original, gold, retrained and rebuilt model, and one suppressor of each kind (in the first block for even
seeds, in the second for odd ones), so there are {seeds} independent trainings; intervals (95 %, bootstrap) resample
those, each with all its models. Suppressors are tuned to mean log-odds 0 within 0.05.

Truths: *hidden* is the original with a planted suppressor, which taken out gives the original back bit for bit;
*erased* never saw the facts: `gold` (same first weights and order as the original), `retrained` (other weights, other
order), `rebuilt` (new blocks on the original's embeddings, without those of the forgotten people's names). Of
`graddiff`, stopped at log-odds 0, nobody knows, so it is in no separation."""


def _ci(value: dict[str, float | None]) -> str:
    if value["value"] is None:
        return ""
    return f"{value['value']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _separation(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "\n## Separation\n",
        "AUC of hidden over erased: 1 always told apart, 0.50 a coin, below 0.50 the wrong way round. Models that",
        "never knew have log-odds below 0 here, so the level alone tells something: *same level* takes only the",
        f"{found[0]['erased_models_same_level']} erased models within {SAME_LEVEL} of 0.",
        "Rank correlation (Spearman) with R, the share that relearn-harmful brings back in 48 steps at three learning",
        "rates, against gold: over hidden and erased models, and over the hidden ones alone.\n",
        "| diagnostic | AUC | same level | without gold | correlation with R | among hidden | seconds per model |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {row['label']} | {_ci(row['auc'])} | {_ci(row['auc_same_level'])} | {_ci(row['auc_without_gold'])} "
        f"| {_ci(row['rank_correlation'])} | {_ci(row['rank_correlation_hidden'])} | {row['seconds']:.2f} |"
        for row in found
    ]


def _by_truth(found: Sequence[dict[str, Any]]) -> list[str]:
    head = " | ".join((*KINDS, *(f"against {one}" for one in ERASED)))
    lines = [
        "\n## Which suppressor, which erasure\n",
        "AUC of each kind of suppressor over all erased models, and of all suppressors over each kind of erased one.\n",
        f"| diagnostic | {head} |",
        "|---" * 8 + "|",
    ]
    return lines + [
        f"| {row['label']} | "
        + " | ".join(f"{value:.2f}" for value in (*row["auc_of"].values(), *row["auc_against"].values()))
        + " |"
        for row in found
    ]


def _models(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "\n## The models\n",
        "Means. R: what the long attacks bring back, 0 as much as in gold, 1 all.\n",
        "| model | truth | n | facts: accuracy / log-odds | reworded | retain | held-out | R harmful | R related |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['model']} | {row['truth']} | {row['n']} "
        f"| {row['forget_accuracy']:.2f} / {row['forget_log_odds']:+.2f} | {row['paraphrase_accuracy']:.2f} "
        f"| {row['retain_accuracy']:.2f} | {row['held_out_accuracy']:.2f} "
        f"| {row['recovered_harmful']:.2f} | {row['recovered_related']:.2f} |"
        for row in found
    ]
    names = [row["model"] for row in found]
    lines += [
        "\nMean value of each diagnostic:\n",
        f"| diagnostic | {' | '.join(names)} |",
        "|---" * (1 + len(names)) + "|",
    ]
    for name, label in DIAGNOSTICS.items():
        values = (row["diagnostics"][name] for row in found)
        lines.append(f"| {label} | " + " | ".join("" if v is None else f"{v:.2f}" for v in values) + " |")
    return lines


def _causal(found: Sequence[dict[str, Any]]) -> list[str]:
    counts = list(dict.fromkeys(row["m"] for row in found))
    lines = [
        "\n## Causal check\n",
        f"graddiff to log-odds 0, {found[0]['seeds'] if found else 0} seeds. Share of the lost log-odds that returns",
        "when m neurons give what they give in the original, or zero: mean over seeds (lowest to highest); random",
        "draws are averaged, five a seed. *Maps of*: as many random neurons of each linear map of each block as the",
        "largest D- have.\n",
        f"| neurons | put in | {' | '.join(f'm = {m}' for m in counts)} |",
        "|---|---" + "|---" * len(counts) + "|",
    ]
    for neurons, put in dict.fromkeys((row["neurons"], row["put"]) for row in found):
        mine = [row for row in found if (row["neurons"], row["put"]) == (neurons, put)]
        cells = (f"{row['share']:.2f} ({row['lowest']:.2f} to {row['highest']:.2f})" for row in mine)
        lines.append(f"| {neurons} | {put} | {' | '.join(cells)} |")
    return lines
