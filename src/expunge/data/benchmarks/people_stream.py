"""people as a stream: request after request about other fictional people, in a small model trained here."""

from __future__ import annotations

from itertools import product
from random import Random

from expunge.data.benchmarks.people import ALL, RELATIONS, TRAINED, Fact, sentences
from expunge.data.benchmarks.world_facts import Known
from expunge.errors import InputError
from expunge.stream import Stream

_STARTS = ("Al", "Bren", "Cor", "Dar", "El", "Fen", "Gar", "Hal", "Is", "Jor", "Kel", "Lor")
_ENDS = ("an", "bert", "da", "eth", "is", "la", "mund", "ric", "sa", "vin")
_PLACES = ("Ash", "Birch", "Cold", "Dun", "East", "Fair", "Grey", "Hart", "Iron", "Kings", "Lark", "Marsh")
_FEATURES = ("bourne", "combe", "field", "ford", "ham", "ley", "mere", "stead", "ton", "wick")


def build(
    known: Known | None = None,
    *,
    seed: int = 0,
    n_requests: int = 10,
    n_forget: int = 6,
    n_retain: int = 18,
    n_test: int = 8,
    n_relations: int = 5,
) -> Stream:
    """All facts of `n_forget` people in each of `n_requests` requests; sizes count people of `n_relations` facts.

    First names and surnames belong to one person each, so that no request is about half of another's name.

    Args:
        known: not used: the small model knows them all.
        seed: draws people, facts and options.
        n_requests: requests.
        n_forget: people of each request.
        n_retain: people whose facts must stay and may be trained.
        n_test: people whose facts must stay and are only scored.
        n_relations: facts per person, 1 to 6.

    Raises:
        InputError: more people or relations than there are.
    """
    first, last = (list(map("".join, product(*halves))) for halves in ((_STARTS, _ENDS), (_PLACES, _FEATURES)))
    wanted = n_requests * n_forget + n_retain + n_test
    if min(n_requests, n_forget, n_retain, n_test) < 1 or wanted > len(first) or not 1 <= n_relations <= len(RELATIONS):
        raise InputError(
            f"There are {len(first)} people and {len(RELATIONS)} relations at most, and at least one of each.",
            f"{wanted} people, {n_relations} relations",
            "Ask for fewer.",
        )
    random = Random(f"people in requests/{seed}")
    names = zip(random.sample(first, wanted), random.sample(last, wanted), strict=True)
    facts = [
        [Fact(" ".join(name), relation, random.choice(relation.values)) for relation in RELATIONS[:n_relations]]
        for name in names
    ]
    gone, stays = facts[: n_requests * n_forget], facts[n_requests * n_forget :]
    asked = {
        f"{start // n_forget + 1:02}": [f for own in gone[start : start + n_forget] for f in own]
        for start in range(0, len(gone), n_forget)
    }
    return Stream(
        name=f"people in requests, seed {seed}",
        requests={name: tuple(f.example("base", TRAINED, seed) for f in own) for name, own in asked.items()},
        retain=tuple(f.example("base", ALL, seed) for own in stays[:n_retain] for f in own),
        held_out=tuple(f.example("held_out", ALL, seed) for own in stays[n_retain:] for f in own),
        text=sentences(seed),
    )
