"""TOFU's own files through the command line: all nine values of model utility, of as many items as there are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import harmonic_mean

import pytest

from audits import Expunge, record_of, save
from expunge.audit.tofu import UTILITY_TERMS
from expunge.data.benchmarks.tiny import word_tokenizer
from expunge.data.sources import read_examples
from tiny import make_tiny_model

TOFU = Path(__file__).parents[3] / "shared" / "data" / "tofu"
SETS = {"forget": "forget01", "retain": "retain", "real_authors": "real_authors", "world_facts": "world_facts"}


@pytest.mark.skipif(not TOFU.is_dir(), reason="the data sets beside the repository are absent")
@pytest.mark.usefixtures("unrendered")
def test_every_value_of_tofu_is_there(expunge: Expunge, tmp_path: Path) -> None:
    files = {name: TOFU / f"{file}_perturbed.json" for name, file in SETS.items()}
    read = {name: read_examples(file) for name, file in files.items()}
    words = word_tokenizer(text for all_ in read.values() for e in all_ for text in (e.prompt, f" {e.answer}"))
    save(tmp_path / "model", make_tiny_model(vocab_size=len(words), max_position_embeddings=512), words)
    tests = [word for name in ("real_authors", "world_facts") for word in ("--test", f"{name}={files[name]}")]
    sides = ["--forget", files["forget"], "--retain", files["retain"], *tests]
    alone = ["--no-base", "--attacks", "quantise", "--set", "bits=[8]", "-o", tmp_path / "run"]
    assert expunge("audit", tmp_path / "model", *sides, *alone) == 0
    rows = {row["name"]: row for row in record_of(tmp_path / "run")["metrics"]["rows"]}  # type: ignore[index]
    values = {name: rows[name]["after"]["value"] for name in UTILITY_TERMS}
    assert rows["model_utility"]["after"]["value"] == pytest.approx(harmonic_mean(values.values()))
    for short, name in (("ra", "real_authors"), ("wf", "world_facts")):
        choices = Counter(1 + len(e.options) for e in read[name])
        chance = sum(n / size for size, n in choices.items()) / choices.total()
        normalised = rows[f"{short}_Q_A_Prob_normalised"]
        assert normalised["chance"] == pytest.approx(chance, abs=1e-4)
        assert 0 < normalised["after"]["value"] < 1
