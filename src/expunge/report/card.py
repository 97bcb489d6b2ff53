"""The model card in a saved model's folder: the verdict first, with the budget it was tested at."""

from __future__ import annotations

import re

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from expunge.report import tables, view, words
from expunge.report.figures import labelled
from expunge.report.limits import limits
from expunge.report.record import Record

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
SPECIAL = re.compile(r"([\\`*_\[\]|~$#])")


def markdown(value: object) -> str:
    """`value` as one line of Markdown that cannot open markup, HTML, a link or a table cell."""
    text = words.visible(str(value), 400)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = SPECIAL.sub(r"\\\1", text)
    return text.replace("://", "&#58;//").replace("www.", "www&#46;")


def front_matter(record: Record) -> str:
    """YAML for the Hub; the base model only where its source is a Hub id."""
    fields: dict[str, object] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if HUB_ID.fullmatch(record.model.source):
        fields |= {"base_model": record.model.source, "base_model_relation": "finetune"}
    fields["tags"] = ["unlearning", "expunge"]
    return str(yaml.safe_dump(fields, sort_keys=False))


def render_card(record: Record) -> str:
    """README.md of the model that `record` describes, ending with a line feed; every value in it is escaped."""
    (run,) = labelled([record.canonical()])
    environment = Environment(
        loader=PackageLoader("expunge.report"),
        autoescape=False,
        finalize=markdown,  # escapes every value: this is Markdown, where HTML escaping is not enough
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    body = environment.get_template("card.md.j2").render(
        record=run.record,
        card=view.card(run),
        scores=tables.score_rows(run.record),
        attacks=tables.attack_rows([run]),
        control=run.record.control.sentence,
        provenance=tables.provenance(run.record),
        limits=limits([run]),
        words=words,
    )
    return f"---\n{front_matter(record)}---\n{body}"
