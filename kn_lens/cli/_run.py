"""Model runs of the commands: loading and prompts."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kn_lens._core import defaults
from kn_lens._core.names import DTYPES, TF32
from kn_lens._core.notation import neuron_key
from kn_lens.cli._options import LEAVE_OUT_OPTION
from kn_lens.cli._terminal import err, show_progress
from kn_lens.errors import ArgumentError, DataError, PromptError
from kn_lens.facts import Fact

if TYPE_CHECKING:
    import pandas as pd

    from kn_lens.neurons import NeuronSet
    from kn_lens.prompts import PromptBatch

_LIKE_A_NAME = re.compile(r"[Ll]?\d+\W?[Nn]?\d*")
"""What a user may write for a neuron."""


def load(
    name: str,
    device: str | None,
    dtype: str,
    revision: str | None = None,
    *,
    side: str | None = None,
    check: bool = True,
) -> Any:
    """Load a model, with a progress report if it takes long; with ``side`` the host of a stack of it.

    From now on the process takes products of float32 in TF32 or not, as the type says: it runs this command alone.
    """
    with show_progress(f"Loading {name}"):
        import torch

        from kn_lens._core.precision import weight_dtype
        from kn_lens.hosts import host_of, load_model

        torch.set_float32_matmul_precision("high" if dtype == TF32 else "highest")
        model = load_model(
            name,
            revision=revision,
            device=device,
            dtype=weight_dtype(dtype),
            check=check,
        )
        return model if side is None else host_of(model, side=side)


def one_neuron_source(values: Sequence[Path]) -> Path:
    """Return what ``--neurons``, which may be repeated, names: a neuron file, or all named neurons as one list.

    Raises:
        ArgumentError: Several files, a file beside names, or a text that is neither a file nor the name of a neuron.

    >>> print(one_neuron_source([Path("L2N7, L2N9"), Path("L3N5")]))
    L2N7,L2N9,L3N5
    """
    for value in values:
        names = _names_in(value)
        unknown = [name for name in names if neuron_key(name) is None]
        if unknown and not value.exists() and all(map(_LIKE_A_NAME.fullmatch, names)):
            raise ArgumentError(
                f"--neurons {unknown[0]} is neither a file nor the name of a neuron; "
                "expected names such as L2N7, for layer 2 and index 7."
            )
    if len(values) == 1 and not named_neurons(values[0]):
        return values[0]
    names = []
    for value in values:
        named = named_neurons(value)
        if not named:
            raise ArgumentError(
                f"--neurons is given {len(values)} times, and {value} is not the name of a neuron; "
                "expected one neuron file, or names of neurons: --neurons L2N7 --neurons L3N5."
            )
        names += named
    return Path(",".join(names))


def named_neurons(neurons: Path) -> list[str]:
    """Return the neurons that are given by name in the place of a file; none where it is a file.

    >>> named_neurons(Path("L2N7,L3N5")), named_neurons(Path("L2N7 L3N5")), named_neurons(Path("neurons.json"))
    (['L2N7', 'L3N5'], ['L2N7', 'L3N5'], [])
    """
    names = _names_in(neurons)
    if neurons.exists() or None in map(neuron_key, names):
        return []
    return names


def _names_in(neurons: Path) -> list[str]:
    """Return the parts of a list with commas or blanks."""
    return [name for name in re.split(r"[,\s]+", str(neurons)) if name]


def load_for_neurons(
    neurons: Path,
    model: str | None,
    device: str | None,
    dtype: str | None,
    *,
    side: str | None,
    force: bool,
    check: bool = True,
) -> Any:
    """Load the model of a neuron file, or the named model if it is the same one, or by force any model.

    Of an encoder-decoder it is the side that is given, or that of the file.

    Raises:
        ArgumentError: Neither the file nor the command names a model.
        DataError: The neurons were found in another model.
    """
    from kn_lens.errors import UnsupportedModelError
    from kn_lens.hosts import ModelIdentity, host_on_side
    from kn_lens.neurons import read_sets

    if named_neurons(neurons):
        if model is None:
            raise ArgumentError(f"--neurons {neurons} names neurons of no model. Name their model with --model.")
        return load(model, device, dtype or defaults.DTYPE, side=side, check=check)
    identity = ModelIdentity.read(read_sets(neurons)[1])
    if identity is None:
        if model is None:
            raise ArgumentError(
                f"{neurons} does not record the model in which its neurons were found. Name that model with --model."
            )
        return load(model, device, dtype or defaults.DTYPE, side=side, check=check)
    default_dtype = identity.dtype if identity.dtype in DTYPES else defaults.DTYPE
    try:
        loaded = load(model or identity.name, device, dtype or default_dtype, side=side, check=check)
        if side is None and identity.side == "encoder":
            loaded = host_on_side(loaded, identity.side)
    except UnsupportedModelError as error:
        if model is not None:
            raise
        raise UnsupportedModelError(
            f"{error} {neurons} names this model. Give its present location with --model."
        ) from error
    loaded_identity = ModelIdentity.of(loaded, with_digest=identity.digest is not None)
    difference = identity.difference(loaded_identity)
    if difference is None:
        return loaded
    mismatch = f"{neurons} contains neurons of {identity.name}, but the model is {loaded_identity.name}: {difference}."
    if not force:
        raise DataError(
            f"{mismatch} The index of a neuron has no meaning in another model. Find the neurons "
            "of this model with `kn-lens find`, omit --model, or give --force."
        )
    err.print(mismatch, soft_wrap=True)
    return loaded


def memory_budget_of(gib: float | None) -> float | None:
    """Return the value of ``--memory`` in bytes.

    Raises:
        ArgumentError: The value is not positive.
    """
    if gib is None:
        return None
    if not gib > 0:
        raise ArgumentError(f"--memory {gib}; expected a positive number of GiB, such as 2.")
    return gib * 2**30


def describe_model(model: Any) -> dict[str, Any]:
    """Return the name, architecture and sizes of a loaded model, for the JSON document of a command.

    Of an encoder-decoder also the side of it that layers and neurons are of.
    """
    from kn_lens.hosts import host_of

    host = host_of(model)
    side = {} if host.side is None else {"side": host.side}
    return {
        "name": host.name,
        "architecture": host.architecture,
        "kind": host.kind,
        **side,
        "n_layers": host.n_layers,
        "d_mlp": host.d_mlp,
        "d_model": host.d_model,
        "dtype": str(host.dtype).removeprefix("torch."),
        "device": str(host.device),
    }


def build_prompts(
    model: Any,
    facts: Iterable[Fact],
    *,
    leave_out: bool,
    contrast: str | None = None,
    min_prompts: int = 1,
) -> "PromptBatch":
    """Return the prompts of all facts; see ``make_prompts``.

    Args:
        model: the model.
        facts: facts with templates.
        leave_out: whether to exclude answers outside the vocabulary instead of raising.
        contrast: the other answer of the output ``logit_diff``.
        min_prompts: facts with fewer prompts are excluded.

    Raises:
        PromptError: as ``make_prompts``, with the option of the command in place of the argument.
    """
    from kn_lens.prompts import LEAVE_OUT, make_prompts

    facts = list(facts)
    with show_progress(f"Writing the prompts of {len(facts):,} facts"):
        try:
            return make_prompts(
                model,
                facts,
                contrast=contrast,
                unknown_answers="leave_out" if leave_out else "error",
                min_prompts=min_prompts,
            )
        except PromptError as error:
            raise type(error)(str(error).replace(LEAVE_OUT, LEAVE_OUT_OPTION)) from error


def unqueried_facts(prompts: "PromptBatch") -> list[Fact]:
    """Return the facts without any prompt."""
    return [fact for fact, n_prompts in prompts.prompts_per_fact().items() if not n_prompts]


def most_active_neurons(
    model: Any,
    prompts: "PromptBatch",
    neurons: "Mapping[Fact, NeuronSet]",
    memory_budget: float | None = None,
) -> "dict[Fact, NeuronSet]":
    """Return for each fact as many neurons of highest activation: the control of ``controlled_effects``."""
    from kn_lens.neurons import most_active_neurons

    with show_progress("Computing the activations", unit="prompt-layers") as progress:
        return most_active_neurons(
            model,
            prompts,
            neurons,
            memory_budget=memory_budget,
            progress=progress,
        )


def effect_records(effects: "pd.DataFrame", seed: int) -> list[dict[str, Any]]:
    """Return the rows of ``effect_table``."""
    from kn_lens.interventions import effect_table

    return effect_table(effects, seed=seed).to_dict("records")
