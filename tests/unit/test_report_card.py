"""The model card: YAML that parses, Markdown that cannot be broken out of."""

from __future__ import annotations

import re

import pytest
import yaml

from expunge.report.card import markdown, render_card
from synthetic_record import make_record

EVIL = "x\n---\n# Owned\n<img src=x> [a](http://evil.example) | `code` **b** ![i](javascript:1)\u202e www.evil.example"


def split(card: str) -> tuple[dict[str, object], str]:
    _, head, body = card.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_front_matter_names_the_base_model_and_the_tags() -> None:
    head, _ = split(render_card(make_record()))
    assert head["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert head["library_name"] == "transformers" and {"unlearning", "expunge"} <= set(head["tags"])  # type: ignore[call-overload]


@pytest.mark.parametrize("source", ["/srv/models/smol", "smol", "../a/b", "a/b\nlicense: mit", ""])
def test_a_source_that_is_no_hub_id_is_not_a_base_model(source: str) -> None:
    record = make_record()
    head, _ = split(
        render_card(record.model_copy(update={"model": record.model.model_copy(update={"source": source})}))
    )
    assert set(head) == {"library_name", "pipeline_tag", "tags"}


def test_the_card_says_verdict_budget_scores_and_attacks() -> None:
    record = make_record()
    _, body = split(render_card(record))
    assert "**HIDDEN.**" in body and record.verdict_details.budget in body and record.control.sentence in body
    assert re.search(r"\| to forget \| 24 \| 33.% \| 96.% \| 21.% \| \+2\.30 \| −0\.40 \|", body)
    assert all(f"| {attack.name} |" in body for attack in record.attacks)
    assert all(r"\_" in line for line in body.splitlines() if "world" in line)


def test_every_table_row_has_as_many_cells_as_its_head() -> None:
    _, body = split(render_card(make_record()))
    for table in re.findall(r"(?:^\|.*\n)+", body, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}) == 1 and table.count("\n") > 3


def test_untrusted_text_cannot_open_markup() -> None:
    record = make_record()
    attack = record.attacks[0].model_copy(update={"name": EVIL, "budget": EVIL})
    details = record.verdict_details.model_copy(update={"reasons": (EVIL,), "strongest_attack": EVIL})
    card = render_card(
        record.model_copy(
            update={
                "attacks": (attack,),
                "verdict_details": details,
                "recipe": record.recipe.model_copy(update={"method": EVIL, "benchmark": EVIL}),
                "model": record.model.model_copy(update={"name": EVIL}),
            }
        )
    )
    assert card.count("\n---\n") == 1 and "\u202e" not in card
    assert not re.search(r"^# Owned|<img|(?<!\\)\[a|http://|www\.", card, re.MULTILINE)
    test_table = [row for row in card.splitlines() if row.startswith("| x")]
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 7 for row in test_table) and test_table


def test_markdown_keeps_plain_words() -> None:
    assert markdown("63 % came back, twice.") == "63 % came back, twice."
    assert markdown("a|b\\|") == "a\\|b\\\\\\|"
