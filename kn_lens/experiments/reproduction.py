"""From a model, facts and settings to a study in its run directory."""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from kn_lens.errors import ArgumentError, DataError
from kn_lens.experiments.run_directory import RunDirectory, Shard, open_run
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.study import Study, digest_of_facts
from kn_lens.facts import FactSet
from kn_lens.hosts import Host, host_of

if TYPE_CHECKING:
    pass

LONGEST_NAME = 180
"""Characters of a relation in names of files, which can have 255, with what stands around it."""


@contextmanager
def open_study(
    model: Any,
    facts: FactSet,
    path: str | os.PathLike[str],
    settings: Settings,
    *,
    held_out: FactSet | None = None,
    names: Mapping[str, str | None] | None = None,
    memory_budget: float | None = None,
    force: bool = False,
) -> Iterator[Study]:
    """Open a run directory for a study of a model, new or to be taken up again.

    Args:
        model: a TransformerLens model in evaluation mode.
        facts: all facts of the data; ``settings`` choose from them.
        path: the run directory.
        settings: see ``Settings``.
        held_out: the same facts in wordings that nothing is found with; the setting ``held_out`` takes some of the
            facts' own instead.
        names: what the user calls model and facts, and how these are read, for ``config.toml``.
        memory_budget: bytes that passes may take; see ``attribute``.
        force: take up a directory of other settings; see ``open_run``.

    Raises:
        ArgumentError: a relation that there is not, or a directory of something else.
        DataError: facts of one relation only, or as ``open_run``.
    """
    data = Data.of(facts, settings, held_out)
    study, config, provenance = prepared(model, data, Path(path), settings, names or {}, memory_budget)
    with open_run(path, config, provenance, force=force) as run:
        yield replace(study, run=run)


@dataclass(frozen=True, kw_only=True)
class Data:
    """The facts of a run.

    Attributes:
        source: all facts of the data; the other facts of a control are drawn from it.
        facts: those chosen.
        held_out: facts in wordings that nothing is found with.
    """

    source: FactSet
    facts: FactSet
    held_out: FactSet = field(default_factory=lambda: FactSet(()))

    @classmethod
    def of(cls, facts: FactSet, settings: Settings, held_out: FactSet | None = None) -> "Data":
        """Return what settings choose from facts.

        Raises:
            ArgumentError: a relation that there is not, or two ways to hold wordings out.
            DataError: facts of one relation only, or a relation whose name is too long for a file.
        """
        if settings.held_out:
            if held_out is not None:
                raise ArgumentError(f"held_out={settings.held_out}, but the data have held-out wordings of their own.")
            facts, held_out = hold_out(facts, settings.held_out, settings.min_prompts, settings.seed)
        chosen = choose(facts, settings)
        for relation in chosen.relations:
            if len(Shard(relation).name) > LONGEST_NAME:
                raise DataError(
                    f"The relation {relation[:40]!r}... is too long for the name of a file (as which it has "
                    f"{len(Shard(relation).name)} characters, of {LONGEST_NAME}); give it a shorter name."
                )
        if len(facts.relations) < 2:
            raise DataError(
                f"All facts are of the relation {', '.join(facts.relations)}; the controls need facts of another. Give "
                "a source with more relations; --relations chooses from it."
            )
        return cls(source=facts, facts=chosen, held_out=held_out or FactSet(()))

    def digests(self) -> dict[str, str]:
        """Return what tells the facts from others."""
        return {"source": digest_of_facts((*self.source, *self.held_out)), "facts": digest_of_facts(self.facts)}


def prepared(
    model: Any,
    data: Data,
    path: Path,
    settings: Settings,
    names: Mapping[str, str | None],
    memory_budget: float | None,
    *,
    identified: bool = True,
) -> tuple[Study, dict[str, Any], dict[str, Any]]:
    """Return a study, its configuration and provenance, before its directory is touched; see ``open_study``.

    Which model it is need not be told where there are no records yet: that takes reading all weights.
    """
    host = host_of(model)
    made_from = {"versions": versions(), "model": identity(host) if identified else {}}
    provenance = {
        "made_from": {**made_from, "data": data.digests()},
        "model": size(host),
        "n_facts": len(data.facts),
        "n_relations": len(data.facts.relations),
        "device": str(host.device),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
    }
    study = Study(
        run=RunDirectory(path), host=host, source=data.source, facts=data.facts, held_out=data.held_out,
        settings=settings, made_from=made_from, memory_budget=memory_budget,
    )  # fmt: skip
    return study, {**names, **settings.as_dict()}, provenance


def choose(facts: FactSet, settings: Settings) -> FactSet:
    """Return the facts of the chosen relations, at most ``limit`` of each.

    Raises:
        ArgumentError: a relation that there is not.
    """
    if settings.relations:
        facts = facts.of(*settings.relations)
    if settings.limit is None:
        return facts
    chosen = []
    for relation in facts.relations:
        group = facts.of(relation)
        chosen += group.sample(min(settings.limit, len(group)), settings.seed)
    return FactSet(chosen)


def hold_out(facts: FactSet, n: int, least: int, seed: int) -> tuple[FactSet, FactSet]:
    """Return facts in all but ``n`` of their templates, drawn at random, and in these.

    Facts with the same templates lose the same. ``least`` templates stay; facts that have no more are not among those
    in held-out templates.

    >>> from kn_lens import Fact
    >>> fact = Fact("Ireland", "P36", "Dublin", ("[X]: [Y]", "[Y] of [X]", "[X] has [Y]"))
    >>> [len(one.templates) for (one,) in hold_out(FactSet([fact]), n=2, least=2, seed=0)]
    [2, 1]
    """
    kept, taken = [], []
    for fact in facts:
        order = np.random.default_rng(seed).permutation(len(fact.templates))
        out = set(order[: max(0, min(n, len(order) - least))].tolist())
        parts = [(one, place in out) for place, one in enumerate(fact.templates)]
        kept.append(replace(fact, templates=tuple(one for one, is_out in parts if not is_out)))
        if out:
            taken.append(replace(fact, templates=tuple(one for one, is_out in parts if is_out)))
    return FactSet(kept), FactSet(taken)


def identity(host: Host) -> dict[str, Any]:
    """Return what tells the model from others: its weights and its tokenizer, bit by bit, and where it runs.

    Reads all weights once: about a second per gigabyte.
    """
    weights = hashlib.sha256()
    for name, tensor in host.checkpoint.state_dict().items():
        weights.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        weights.update(tensor.detach().contiguous().flatten().view(torch.uint8).cpu().numpy().data)
    tokenizer = getattr(host.tokenizer, "backend_tokenizer", None)
    words = "" if tokenizer is None else tokenizer.to_str() + str(sorted(host.tokenizer.special_tokens_map.items()))
    return {
        "architecture": host.architecture,
        "weights": weights.hexdigest(),
        "tokenizer": hashlib.sha256(words.encode()).hexdigest(),
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": host.device.type,
    }


def size(host: Host) -> dict[str, Any]:
    """Return what records are compared by across models: what the model reads, and how large it is."""
    n_params = sum(one.numel() for one in host.checkpoint.parameters())
    shape = {name: getattr(host, name) for name in ("kind", "n_layers", "d_model", "d_mlp", "d_vocab")}
    return {**shape, "n_params": n_params}


def versions() -> dict[str, str]:
    """Return the versions of what the records depend on."""
    from importlib.metadata import version

    import kn_lens

    names = ("torch", "transformers", "tokenizers", "transformer-lens")
    return {"kn_lens": kn_lens.__version__, **{name: version(name) for name in names}}
