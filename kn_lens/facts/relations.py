"""Names of relations: the identifier in the data, ``P36``, and its label in words, ``capital``.

A label is for people: the equality of facts, their keys and digests are about the identifier alone. Each fact carries
the label of its relation. The embedded facts, the file of the released code, JSON lines and tables have labels in their
data. ParaRel, LAMA and CounterFact name relations by their numbers in Wikidata, whose labels, some shortened, are here;
JSON lines and tables without labels, too, get those of these numbers.
"""

from collections.abc import Mapping

WIKIDATA_LABELS: Mapping[str, str] = {
    "P19": "place of birth",
    "P20": "place of death",
    "P27": "country of citizenship",
    "P30": "continent",
    "P36": "capital",
    "P37": "official language",
    "P39": "position held",
    "P47": "shares border with",
    "P101": "field of work",
    "P103": "native language",
    "P106": "occupation",
    "P108": "employer",
    "P127": "owned by",
    "P136": "genre",
    "P138": "named after",
    "P140": "religion",
    "P159": "headquarters location",
    "P176": "manufacturer",
    "P178": "developer",
    "P190": "twinned administrative body",
    "P264": "record label",
    "P279": "subclass of",
    "P364": "original language of work",
    "P407": "language of work",
    "P413": "position played on team",
    "P449": "original broadcaster",
    "P463": "member of",
    "P495": "country of origin",
    "P530": "diplomatic relation",
    "P740": "location of formation",
    "P937": "work location",
    "P1303": "instrument",
    "P1376": "capital of",
    "P1412": "languages spoken",
}
"""Labels of ParaRel's 34 relations, in the order of their numbers."""


def relation_name(relation: str, label: str) -> str:
    """Return the name of a relation in tables and figures: its label and its identifier, if it has both.

    >>> relation_name("P36", "capital"), relation_name("instrument", "")
    ('capital (P36)', 'instrument')
    """
    if not label or label == relation:
        return relation
    return f"{label} ({relation})"
