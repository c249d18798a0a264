"""The facts of a run: those chosen by its settings, those that controls are drawn from, and held-out wordings."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact, FactSet
from kn_lens.runs.directory import Shard, digest_of_json
from kn_lens.runs.settings import Settings

LONGEST_NAME = 180
"""Characters of an escaped relation. File names can have 255, and the relation is only a part of them."""


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The facts of a run. With a single relation, what is measured on facts of other relations is left out.

    Attributes:
        source: all facts of the data; controls draw facts of other relations from it.
        facts: the chosen facts.
        held_out: facts in wordings that are never attributed, only queried after an edit.
    """

    source: FactSet
    facts: FactSet
    held_out: FactSet = field(default_factory=lambda: FactSet(()))

    @classmethod
    def of(cls, facts: FactSet, settings: Settings, held_out: FactSet | None = None) -> "RunData":
        """Return the facts that the settings choose.

        Args:
            facts: all facts of the data.
            settings: ``relations``, ``limit``, ``held_out``, ``min_prompts`` and ``seed`` choose.
            held_out: the same facts in other wordings, in place of the setting ``held_out``.

        Raises:
            ArgumentError: an unknown relation, or both ways of holding wordings out.
            DataError: a relation whose name is too long for a file.
        """
        if settings.held_out:
            if held_out is not None:
                raise ArgumentError(f"held_out={settings.held_out}, but the data have held-out wordings of their own.")
            facts, held_out = hold_out(facts, settings.held_out, settings.min_prompts, settings.seed)
        chosen = choose(facts, settings)
        for relation in chosen.relations:
            length = len(Shard(relation).name)
            if length > LONGEST_NAME:
                raise DataError(
                    f"The relation {relation[:40]!r}... is too long for the name of a file (as which it has "
                    f"{length} characters, of {LONGEST_NAME}); give it a shorter name."
                )
        return cls(source=facts, facts=chosen, held_out=held_out or FactSet(()))

    def digests(self) -> dict[str, str]:
        """Return the digests that identify the facts in the provenance."""
        return {
            "source": digest_of_facts((*self.source, *self.held_out)),
            "facts": digest_of_facts(self.facts),
        }


def with_identifiers(settings: Settings, facts: FactSet) -> Settings:
    """Return settings that name the relations by their identifiers, so that a run does not depend on labels.

    Raises:
        ArgumentError: an unknown relation.
    """
    return replace(settings, relations=tuple(facts.relation_of(name) for name in settings.relations))


def choose(facts: FactSet, settings: Settings) -> FactSet:
    """Return the facts of the chosen relations, at most ``limit`` of each.

    Raises:
        ArgumentError: an unknown relation.
    """
    if settings.relations:
        facts = facts.of(*settings.relations)
    if settings.limit is None:
        return facts
    return facts.sample_per_relation(settings.limit, settings.seed)


def hold_out(facts: FactSet, n: int, min_templates: int, seed: int) -> tuple[FactSet, FactSet]:
    """Split the templates of every fact at random: return the facts without ``n`` templates, and with only those.

    Facts with the same templates lose the same ones. Every fact keeps at least ``min_templates`` of them, so a fact
    with no more than that is absent from the second set.

    >>> from kn_lens import Fact
    >>> fact = Fact("Ireland", "P36", "Dublin", ("[X]: [Y]", "[Y] of [X]", "[X] has [Y]"))
    >>> [len(facts[0].templates) for facts in hold_out(FactSet([fact]), n=2, min_templates=2, seed=0)]
    [2, 1]
    """
    kept_facts, held_out_facts = [], []
    for fact in facts:
        n_templates = len(fact.templates)
        n_held_out = max(0, min(n, n_templates - min_templates))
        order = np.random.default_rng(seed).permutation(n_templates)
        held_out_indices = set(order[:n_held_out].tolist())
        kept, held_out = [], []
        for index, template in enumerate(fact.templates):
            if index in held_out_indices:
                held_out.append(template)
            else:
                kept.append(template)
        kept_facts.append(replace(fact, templates=tuple(kept)))
        if held_out:
            held_out_facts.append(replace(fact, templates=tuple(held_out)))
    return FactSet(kept_facts), FactSet(held_out_facts)


def digest_of_facts(facts: Iterable[Fact]) -> str:
    """Return the SHA-256 of facts with their templates, in their order."""
    return digest_of_json([[fact.key, fact.templates] for fact in facts])
