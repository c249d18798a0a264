"""Facts: triples of subject, relation and object with their templates, and the readers of their file formats.

``facts`` has ``Fact`` and ``FactSet``; ``relations`` the names of relations; ``readers`` turns each file format into a
stream of records.
"""

from kn_lens.facts.facts import Fact, FactSet, check_identity, versions_by_identity
from kn_lens.facts.readers import (
    OBJECT_SLOT,
    SUBJECT_SLOT,
    WORLD,
    Record,
    json_document,
    json_lines,
    read_patterns,
    text_of,
    unique_keys,
)
from kn_lens.facts.relations import WIKIDATA_LABELS, relation_name

__all__ = [
    "OBJECT_SLOT",
    "SUBJECT_SLOT",
    "WIKIDATA_LABELS",
    "WORLD",
    "Fact",
    "FactSet",
    "Record",
    "check_identity",
    "json_document",
    "json_lines",
    "read_patterns",
    "relation_name",
    "text_of",
    "unique_keys",
    "versions_by_identity",
]
