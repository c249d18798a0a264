"""Facts: triples of subject, relation and object with their templates, and the readers of their file formats.

``facts`` has ``Fact`` and ``FactSet``; ``readers`` turns each file format into a stream of records.
"""

from kn_lens.facts.facts import Fact, FactSet
from kn_lens.facts.readers import (
    OBJECT_SLOT,
    SUBJECT_SLOT,
    WORLD,
    Record,
    json_lines,
    read_patterns,
    text_of,
    unique_keys,
)

__all__ = [
    "OBJECT_SLOT",
    "SUBJECT_SLOT",
    "WORLD",
    "Fact",
    "FactSet",
    "Record",
    "json_lines",
    "read_patterns",
    "text_of",
    "unique_keys",
]
