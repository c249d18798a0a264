"""From a model, facts and settings to a study in its run directory."""

import hashlib
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from kn_lens.errors import DataError
from kn_lens.experiments.run_directory import open_run
from kn_lens.experiments.settings import Settings
from kn_lens.experiments.study import Study, digest_of_facts
from kn_lens.facts import FactSet
from kn_lens.hosts import Host, host_of


@contextmanager
def open_study(
    model: Any,
    facts: FactSet,
    path: str | os.PathLike[str],
    settings: Settings,
    *,
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
        names: what the user calls model and facts, for ``config.toml``.
        memory_budget: bytes that passes may take; see ``attribute``.
        force: take up a directory of other settings; see ``open_run``.

    Raises:
        ArgumentError: a relation that there is not, or a directory of something else.
        DataError: facts of one relation only, or as ``open_run``.
    """
    host = host_of(model)
    chosen = choose(facts, settings)
    if len(facts.relations) < 2:
        raise DataError(
            f"All facts are of the relation {', '.join(facts.relations)}; the controls need facts of another. Give a "
            "source with more relations; --relations chooses from it."
        )
    made_from = {"versions": versions(), "model": identity(host)}
    data = {"source": digest_of_facts(facts), "facts": digest_of_facts(chosen)}
    provenance = {
        "made_from": {**made_from, "data": data},
        "n_facts": len(chosen),
        "n_relations": len(chosen.relations),
        "device": str(host.device),
        "threads": torch.get_num_threads(),
        "machine": platform.platform(),
    }
    config = {**(names or {}), **settings.as_dict()}
    with open_run(path, config, provenance, force=force) as run:
        yield Study(
            run=run, host=host, source=facts, facts=chosen, settings=settings, made_from=made_from,
            memory_budget=memory_budget,
        )  # fmt: skip


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


def identity(host: Host) -> dict[str, Any]:
    """Return what tells the model from others: its weights and its tokenizer, bit by bit, and where it runs.

    Reads all weights once: about a second per gigabyte.
    """
    weights = hashlib.sha256()
    for name, tensor in host.model.original_model.state_dict().items():
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


def versions() -> dict[str, str]:
    """Return the versions of what the records depend on."""
    from importlib.metadata import version

    import kn_lens

    names = ("torch", "transformers", "tokenizers", "transformer-lens")
    return {"kn_lens": kn_lens.__version__, **{name: version(name) for name in names}}
