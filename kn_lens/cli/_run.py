"""What the commands that run a model share: loading it, asking it, and attributing in parts of bounded size."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens.cli._options import DTYPES
from kn_lens.cli._terminal import err, working
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.attribution import Attribution
    from kn_lens.neuron_sets import NeuronSet
    from kn_lens.prompts import PromptBatch

SCORES_AT_ONCE = 1 << 27
"""About as many scores are held at a time (half a gigabyte in single precision), whatever the number of facts."""


def load(name: str, device: str | None, dtype: str, revision: str | None = None) -> Any:
    """Load a model, saying so when it takes long."""
    with working(f"Loading {name}"):
        import torch

        from kn_lens.hosts import load_model

        return load_model(name, revision=revision, device=device, dtype=getattr(torch, dtype))


def load_for(neurons: Path, model: str | None, device: str | None, dtype: str | None, *, force: bool) -> Any:
    """Load the model that a neuron file was found in, or another that is named, if it is the same or by force.

    Raises:
        ArgumentError: neither the file nor the command names a model.
        DataError: the file's neurons are of another model.
    """
    from kn_lens.errors import UnsupportedModelError
    from kn_lens.model_identity import ModelIdentity
    from kn_lens.neuron_files import read_sets

    found_in = ModelIdentity.read(read_sets(neurons)[1])
    if found_in is None:
        if model is None:
            raise ArgumentError(
                f"{neurons} does not say which model its neurons were found in; name that model with --model."
            )
        return load(model, device, dtype or "float32")
    own_dtype = found_in.dtype if found_in.dtype in DTYPES else "float32"
    try:
        loaded = load(model or found_in.name, device, dtype or own_dtype)
    except UnsupportedModelError as error:
        if model is not None:
            raise
        raise UnsupportedModelError(f"{error} {neurons} names it; say where it is now with --model.") from error
    here = ModelIdentity.of(loaded, with_digest=found_in.digest is not None)
    if (difference := found_in.difference(here)) is not None:
        if force:
            said = f"{neurons} holds neurons of {found_in.name}, and the model is {here.name}: {difference}."
            err.print(said, soft_wrap=True)
        else:
            raise DataError(
                f"{neurons} holds neurons of {found_in.name}, and the model is {here.name}: {difference}. A neuron's "
                "index means nothing in another model: find them in this one with `kn-lens find`, leave --model out, "
                "or give --force."
            )
    return loaded


def in_bytes(gib: float | None) -> float | None:
    """Return what ``--memory`` says, as ``memory_budget``."""
    if gib is not None and not gib > 0:
        raise ArgumentError(f"--memory {gib}; expected a positive number of GiB, such as 2.")
    return None if gib is None else gib * 2**30


def described(model: Any) -> dict[str, Any]:
    """Return what identifies a loaded model, for the results."""
    from kn_lens.hosts import host_of

    host = host_of(model)
    return {
        "name": host.name,
        "architecture": host.architecture,
        "kind": host.kind,
        "n_layers": host.n_layers,
        "d_mlp": host.d_mlp,
        "d_model": host.d_model,
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": str(host.device),
    }


def ask(
    model: Any, facts: Iterable[Fact], *, leave_out: bool, contrast: str | None = None, min_prompts: int = 1
) -> "PromptBatch":
    """Make the prompts of all facts that have so many."""
    from kn_lens.prompts import make_prompts

    facts = list(facts)
    with working(f"Writing the prompts of {len(facts):,} facts"):
        return make_prompts(
            model,
            facts,
            contrast=contrast,
            unknown_answers="leave_out" if leave_out else "error",
            min_prompts=min_prompts,
        )


def attributed(
    model: Any, prompts: "PromptBatch", what: str, *, whole_relations: bool = False, **how: Any
) -> Iterator["Attribution"]:
    """Attribute the prompts fact by fact, in parts that hold all the prompts of their facts.

    Args:
        model: the model.
        prompts: of any number of facts.
        what: shown on the progress bar.
        whole_relations: whether a part holds whole relations; then it is as large as the largest of them needs.
        **how: for ``attribute``.

    Yields:
        One attribution a part; hold on to what is needed of it, not to it.
    """
    import torch

    from kn_lens.attribution import attribute
    from kn_lens.hosts import host_of

    host = host_of(model)
    counts = prompts.prompts_per_fact()
    group = torch.zeros(len(counts), dtype=torch.long)  # the part that each fact goes to
    n_parts, room, last = 0, 0, None
    for i, fact in sorted(enumerate(counts), key=lambda item: item[1].relation if whole_relations else ""):
        size = counts[fact] * host.n_layers * host.d_mlp
        if size > room and not (whole_relations and fact.relation == last):
            n_parts, room = n_parts + 1, SCORES_AT_ONCE
        group[i], room, last = n_parts, room - size, fact.relation
    part_of_prompt = group.to(prompts.fact_index.device)[prompts.fact_index]
    total, before = len(prompts) * host.n_layers, 0
    with working(what, unit="prompt-layers") as show:
        for part in part_of_prompt.unique().tolist():
            chosen = prompts.select((part_of_prompt == part).nonzero().squeeze(1))
            yield attribute(model, chosen, progress=lambda done, _, before=before: show(before + done, total), **how)
            before += len(chosen) * host.n_layers


def most_active(
    model: Any, prompts: "PromptBatch", neurons: "Mapping[Fact, NeuronSet]", **how: Any
) -> "dict[Fact, NeuronSet]":
    """Return for each fact as many neurons, those of highest activation: the control of ``controlled_effects``."""
    from kn_lens.neurons import activation_neurons

    active: dict[Fact, NeuronSet] = {}
    for attr in attributed(model, prompts, "Reading the activations", method="activation", **how):
        here = {attr.prompts.facts[number] for number in attr.prompts.fact_index.unique().tolist()}
        active |= activation_neurons(attr, {fact: neurons[fact] for fact in here})
    return active


def effect_records(effects: "pd.DataFrame", seed: int) -> list[dict[str, Any]]:
    """Return the rows of ``effect_table``."""
    from kn_lens.effects import effect_table

    return effect_table(effects, seed=seed).to_dict("records")
