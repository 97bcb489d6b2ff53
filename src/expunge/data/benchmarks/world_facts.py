"""Capitals of countries: facts that small pretrained models really know, and everything around them that must stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from hashlib import sha256
from itertools import islice

from expunge.data.benchmarks.countries import Country, load_countries
from expunge.data.example import Example
from expunge.errors import InputError
from expunge.request import Request

Known = Callable[[Sequence[Example]], Sequence[bool]]
"""Which of these examples a model knows (it prefers the answer to every option)."""

Pool = tuple[tuple[Country, int], ...]
"""Countries that options may come from, each with its rank (lower is taken first)."""

N_OPTIONS = 2
SPLITS = ("forget", "retain", "test", "attack")


@dataclass(frozen=True, slots=True)
class Kind:
    """One way to ask about a country.

    Args:
        group: the group of `Request.test` that these questions belong to, or "base".
        asks: the Country field that is the answer; wrong options are the same field of other countries.
        question: with Country fields in braces; countries for which one of them is empty are not asked about.
        stem: the beginning of the answer, up to the answer proper.
    """

    group: str
    asks: str
    question: str
    stem: str

    def prompt(self, country: Country) -> str:
        """The whole prompt; its odd spaces are those of the wording that was measured."""
        fields = {name: _in_a_sentence(value) for name, value in _fields(country).items()}
        return f"Question: {self.question.format(**fields)} \n Answer: {self.stem.format(**fields)}"

    def applies(self, country: Country) -> bool:
        """Whether every field that this kind needs is there."""
        fields = _fields(country)
        needed = [name for name in fields if f"{{{name}}}" in self.question + self.stem]
        fits = self.group != "same_answer" or country.capital_is_largest
        return fits and all(fields[name] for name in (self.asks, *needed))


Options = Callable[[Kind, Country], tuple[str, ...]]

BASE = Kind("base", "capital", "What is the capital of {name}?", "The capital of {name} is")

# The wordings are the best of two to eight each by accuracy of SmolLM2-135M-Instruct; see files/README.md.
PARAPHRASES = (
    Kind("paraphrase", "capital", "Which city is the capital of {name}?", "The capital city of {name} is"),
    Kind("paraphrase", "capital", "{name} is governed from which city?", "{name} is governed from the city of"),
)
MULTI_HOP = (
    Kind(
        "multi_hop",
        "capital",
        "What is the capital of the country whose people are called {demonym}?",
        "The {demonym} capital is",
    ),
    Kind(
        "multi_hop",
        "capital",
        "In {region} there is a country whose people are called {demonym}. What is its capital?",
        "The capital of that country is",
    ),
)
LARGEST = "What is the most populous city of {name}?"
SAME_ANSWER = (Kind("same_answer", "largest_city", LARGEST, "The most populous city of {name} is"),)
SAME_SUBJECT = (
    Kind("same_subject", "continent", "Which continent does {name} belong to?", "{name} belongs to the continent of"),
    Kind("same_subject", "demonym", "What are the people of {name} called?", "The people of {name} are called"),
    Kind("same_subject", "currency", "What is the currency of {name}?", "The currency of {name} is the {demonym}"),
)
HELD_OUT = (replace(BASE, group="held_out"),)


def build(
    known: Known | None = None,
    *,
    seed: int = 0,
    n_forget: int = 24,
    n_retain: int = 40,
    n_test: int = 20,
    n_attack: int = 16,
) -> Request:
    """The capitals of `n_forget` countries to forget, and all that goes with them.

    The countries of forget, retain, test (group held_out) and attack are disjoint and drawn by `seed`. Wrong options
    come from countries outside forget and attack, first from those outside retain too (so that no training moves
    them), first from the same region.

    Args:
        known: keeps the countries whose capital the model knows, asked in the base wording among twice the usual
            number of options (the final ones depend on the split). None keeps all.
        seed: draws splits and options.
        n_forget: countries whose capital must go.
        n_retain: countries whose capital must stay and may be trained.
        n_test: countries whose capital must stay and is only scored.
        n_attack: countries for relearn-related.

    Raises:
        InputError: the model knows too few capitals.
    """
    countries = load_countries()
    sizes = dict(zip(SPLITS, (n_forget, n_retain, n_test, n_attack), strict=True))
    splits = _split(known_countries(countries, known, seed), sizes, seed)
    options = partial(draw_options, pool=pool_of(countries, splits), seed=seed)
    groups = {
        "paraphrase": ask(PARAPHRASES, splits["forget"], options),
        "multi_hop": ask(MULTI_HOP, splits["forget"], options),
        "same_answer": ask(SAME_ANSWER, splits["forget"], options),
        "same_subject": ask(SAME_SUBJECT, splits["forget"], options),
        "held_out": ask(HELD_OUT, splits["test"], options),
    }
    base = {name: ask([BASE], splits[name], options) for name in SPLITS}
    return Request(
        forget=base["forget"],
        retain=base["retain"],
        test=groups,
        attack=base["attack"],
        name=f"world_facts, seed {seed}",
    )


def known_countries(countries: Sequence[Country], known: Known | None, seed: int) -> list[Country]:
    """Those whose capital the model knows, asked among twice the usual number of options; None keeps all."""
    if known is None:
        return list(countries)
    pool = pool_of(countries, {})
    options = partial(draw_options, pool=pool, seed=seed, n=2 * N_OPTIONS)
    flags = known(ask([BASE], countries, options))
    return [country for country, flag in zip(countries, flags, strict=True) if flag]


def _split(countries: Sequence[Country], sizes: Mapping[str, int], seed: int) -> dict[str, list[Country]]:
    wanted = sum(sizes.values())
    if wanted > len(countries):
        raise InputError(
            f"The splits need {wanted} countries, and the model knows the capital of {len(countries)} only.",
            ", ".join(f"n_{name}={n}" for name, n in sizes.items()),
            "Ask for fewer, or take a model that knows more.",
        )
    # Each country draws its own place, so that another size or another model changes the splits as little as possible.
    drawn = iter(sorted(countries, key=lambda country: draw(seed, country.name)))
    return {name: list(islice(drawn, n)) for name, n in sizes.items()}


def pool_of(countries: Sequence[Country], splits: Mapping[str, Sequence[Country]]) -> Pool:
    """Countries that give wrong options: none to forget or to attack with, and those to retain only after others."""
    moved = {*splits.get("forget", ()), *splits.get("attack", ())}
    trained = set(splits.get("retain", ()))
    return tuple((c, int(c in trained)) for c in countries if c not in moved)


def draw_options(kind: Kind, country: Country, *, pool: Pool, seed: int, n: int = N_OPTIONS) -> tuple[str, ...]:
    """`n` wrong answers, drawn for this question alone: other questions and other countries do not change them."""
    prompt, answer = kind.prompt(country), _fields(country)[kind.asks]

    def order(candidate: tuple[Country, int]) -> tuple[int, bool, str]:
        other, rank = candidate
        return rank, other.region != country.region, draw(seed, prompt, other.name)

    values = (_fields(other)[kind.asks] for other, _ in sorted(pool, key=order))
    # A country's own cities and its capital are no wrong answers.
    taken = {"", answer, country.capital, country.largest_city}
    return tuple(dict.fromkeys(v for v in values if v not in taken))[:n]


def ask(kinds: Iterable[Kind], countries: Sequence[Country], options: Options) -> tuple[Example, ...]:
    """Every question of `kinds` that applies to a country."""
    return tuple(
        Example(
            prompt=kind.prompt(country),
            answer=_fields(country)[kind.asks],
            options=options(kind, country),
            paraphrases=tuple(p.prompt(country) for p in PARAPHRASES) if kind.group == "base" else (),
            subject=country.name,
            group=kind.group,
        )
        for country in countries
        for kind in kinds
        if kind.applies(country)
    )


@cache
def _fields(country: Country) -> dict[str, str]:
    return asdict(country)


def draw(seed: int, *names: str) -> str:
    """Where `names` come in the order that `seed` draws; other names do not change it."""
    return sha256("/".join([str(seed), *names]).encode()).hexdigest()


def _in_a_sentence(value: str) -> str:
    return f"the {value}" if value == "Americas" else value
