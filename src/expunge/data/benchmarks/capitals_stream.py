"""world_facts as a stream of requests: the capitals of one region after another, or of a few countries at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from expunge.data.benchmarks.countries import Country, load_countries
from expunge.data.benchmarks.world_facts import BASE, HELD_OUT, Known, ask, draw, draw_options, known_countries, pool_of
from expunge.errors import InputError
from expunge.stream import Stream

REGIONS = ("Africa", "Asia", "Europe", "Americas", "Oceania")
LEAST = 2


def by_region(
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
    drawn = _drawn(known, seed)
    regions = {name: [country for country in drawn if country.region == name] for name in REGIONS}
    gone = {name: own[: min(n_forget, len(own) // 2)] for name, own in regions.items()}
    if any(len(own) < LEAST for own in gone.values()):
        told = ", ".join(f"{len(own)} of {name}" for name, own in regions.items())
        raise _too_few(f"{len(drawn)} countries; {told}", f"It takes {2 * LEAST} of each region.")
    return _stream(f"world_facts by region, seed {seed}", gone, drawn, seed, n_retain, n_test)


def in_requests(
    known: Known | None = None,
    *,
    seed: int = 0,
    n_requests: int = 10,
    n_forget: int = 4,
    n_retain: int = 36,
    n_test: int = 20,
) -> Stream:
    """`n_requests` requests, "01", "02" and so on, about the capitals of `n_forget` countries each, from anywhere.

    The other arguments are as in `by_region`; likewise what is raised.
    """
    drawn = _drawn(known, seed)
    gone = {f"{i + 1:02}": drawn[i * n_forget : (i + 1) * n_forget] for i in range(n_requests)}
    return _stream(f"world_facts in requests, seed {seed}", gone, drawn, seed, n_retain, n_test)


def _drawn(known: Known | None, seed: int) -> list[Country]:
    """Those that are known, in an order drawn by `seed`."""
    return sorted(known_countries(load_countries(), known, seed), key=lambda country: draw(seed, country.name))


def _stream(
    name: str, gone: Mapping[str, Sequence[Country]], drawn: Sequence[Country], seed: int, n_retain: int, n_test: int
) -> Stream:
    """The requests `gone`; what stays is taken from the rest of `drawn`."""
    moved = {country for own in gone.values() for country in own}
    stays = [country for country in drawn if country not in moved]
    if len(stays) < n_retain + n_test:
        needed = f"It takes n_retain + n_test = {n_retain + n_test} beside the {len(moved)} to forget."
        raise _too_few(f"{len(drawn)} countries", needed)
    retain, held_out = stays[:n_retain], stays[n_retain : n_retain + n_test]
    pool = pool_of(load_countries(), {"forget": list(moved), "retain": retain})
    options = partial(draw_options, pool=pool, seed=seed)
    return Stream(
        name=name,
        requests={each: ask([BASE], own, options) for each, own in gone.items()},
        retain=ask([BASE], retain, options),
        held_out=ask(HELD_OUT, held_out, options),
    )


def _too_few(found: str, needed: str) -> InputError:
    return InputError("The model knows too few capitals for this stream.", found, needed)
