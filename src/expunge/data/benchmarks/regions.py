"""world_facts as a stream of five requests: the capitals of one region after another."""

from __future__ import annotations

from functools import partial

from expunge.data.benchmarks.countries import load_countries
from expunge.data.benchmarks.world_facts import BASE, HELD_OUT, Known, ask, draw, draw_options, known_countries, pool_of
from expunge.errors import InputError
from expunge.stream import Stream

REGIONS = ("Africa", "Asia", "Europe", "Americas", "Oceania")
LEAST = 2


def build(
    known: Known | None = None, *, seed: int = 0, n_forget: int = 8, n_retain: int = 40, n_test: int = 20
) -> Stream:
    """The capitals of up to `n_forget` countries of each region, and never more than half of those that are known.

    Args:
        known: keeps the countries whose capital the model knows, as in `world_facts.build`.
        seed: draws countries and options.
        n_forget: countries of each request.
        n_retain: countries, of all regions, whose capital must stay and may be trained.
        n_test: countries, of all regions, whose capital must stay and is only scored.

    Raises:
        InputError: the model knows too few capitals, of one region or altogether.
    """
    countries = load_countries()
    drawn = sorted(known_countries(countries, known, seed), key=lambda country: draw(seed, country.name))
    regions = {name: [country for country in drawn if country.region == name] for name in REGIONS}
    gone = {name: own[: min(n_forget, len(own) // 2)] for name, own in regions.items()}
    moved = {country for own in gone.values() for country in own}
    stays = [country for country in drawn if country not in moved]
    few = [name for name, own in gone.items() if len(own) < LEAST]
    if few or len(stays) < n_retain + n_test:
        raise InputError(
            "The model knows too few capitals for this stream.",
            f"{len(drawn)} countries; {', '.join(f'{len(own)} of {name}' for name, own in regions.items())}",
            f"It takes {2 * LEAST} of each region, and n_retain + n_test = {n_retain + n_test} beside those to forget.",
        )
    retain, held_out = stays[:n_retain], stays[n_retain : n_retain + n_test]
    pool = pool_of(countries, {"forget": list(moved), "retain": retain})
    options = partial(draw_options, pool=pool, seed=seed)
    return Stream(
        name=f"world_facts by region, seed {seed}",
        requests={name: ask([BASE], own, options) for name, own in gone.items()},
        retain=ask([BASE], retain, options),
        held_out=ask(HELD_OUT, held_out, options),
    )
