"""Options that several commands share. They are validated before PyTorch is imported."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from kn_lens._core.names import DTYPES, FACT_FORMATS, SIDES, SPLITS, Method
from kn_lens.errors import ArgumentError, did_you_mean

METHODS = tuple(name for name in get_args(Method) if name != "single_path")
"""The attribution methods that score all neurons of a layer."""

FACTS = "Facts"
MODEL = "Model"
METHOD = "Method"
RESULT = "Results"
"""Panels of the help."""


def option(panel: str | None, metavar: str, help: str, **limits: float) -> Any:
    """Return an option named after its parameter, in a panel of the help; ``limits`` are ``min`` and ``max``."""
    # Without this type, the type checker compares floats with every keyword of typer.
    keywords: dict[str, Any] = dict(limits)
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel, **keywords)


def named_option(panel: str | None, names: str, metavar: str, help: str) -> Any:
    """Return an option with the given names, such as ``"--out -o"``."""
    return typer.Option(*names.split(), metavar=metavar, help=help, rich_help_panel=panel)


def flag(panel: str | None, names: str, help: str) -> Any:
    """Return an option without a value."""
    # Newer releases of typer would show the type of a value, <bool>, which a flag does not take.
    return typer.Option(*names.split(), metavar="", help=help, rich_help_panel=panel)


def choice(names: Sequence[str], description: str, panel: str | None = None) -> Any:
    """Return an option whose value is one of ``names``. Its help lists them."""
    return typer.Option(
        metavar="NAME",
        help=f"{description}: {', '.join(names)}.",
        callback=_one_of(names),
        rich_help_panel=panel,
    )


def _one_of(names: Sequence[str]) -> Callable[[Any], Any]:
    """Return a callback that rejects any value outside ``names``, also in a list, and suggests the nearest name."""

    def check(value: Any) -> Any:
        values = value if isinstance(value, list) else [value]
        for name in values:
            if name is not None and name not in names:
                hint = did_you_mean(name, names)
                raise typer.BadParameter(f"{name!r} is not one of {', '.join(names)}.{hint}")
        return value

    return check


def check_output_path(path: Path | None, *inputs: Path | str | None) -> None:
    """Check, before anything is computed, that a result can be written to ``path``.

    Raises:
        ArgumentError: Its directory does not exist, it is a directory itself, or it is one of the input files.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ArgumentError(f"--out {path}: there is no directory {path.parent}. Create it first.")
    if path.is_dir():
        raise ArgumentError(f"--out {path} is a directory; expected a file name.")
    for source in inputs:
        if source is not None and path.exists() and os.path.exists(source) and path.samefile(source):
            raise ArgumentError(f"--out {path} is an input file of this command; expected another name.")


Model = Annotated[
    str,
    named_option(MODEL, "--model -m", "NAME", "Embedded model, Hugging Face name or checkpoint directory."),
]
ModelOfNeurons = Annotated[
    str | None,
    named_option(MODEL, "--model -m", "NAME", "Model; that of the neuron file by default."),
]
Force = Annotated[bool, flag(MODEL, "--force", "Use of neurons that were found in another model.")]
Device = Annotated[
    str | None,
    option(MODEL, "NAME", "Device: cpu, cuda, cuda:1, ...; CUDA if available by default."),
]
Dtype = Annotated[str, choice(DTYPES, "Data type of the weights", MODEL)]
DtypeOfNeurons = Annotated[
    str | None,
    choice(DTYPES, "Data type of the weights, that of the neuron file by default", MODEL),
]
Side = Annotated[
    str | None,
    choice(SIDES, "Stack of an encoder-decoder whose neurons are meant; decoder by default", MODEL),
]
Check = Annotated[
    bool,
    flag(
        MODEL,
        "--check/--no-check",
        "Comparison of the loaded model's logits with those of transformers.",
    ),
]
Memory = Annotated[
    float | None,
    option(
        MODEL,
        "GIB",
        "Memory for passes on the model's device; half of the free memory by default.",
        min=0,
    ),
]

Facts = Annotated[
    str,
    named_option(
        FACTS,
        "--facts -f",
        "PATH",
        "File or folder of facts; 'world' for the embedded facts, 'world:de,fr' for translations.",
    ),
]
Source = Annotated[
    str,
    typer.Argument(metavar="PATH", help="File or folder of facts; 'world' for the embedded facts."),
]
Format = Annotated[str | None, choice(FACT_FORMATS, "Format of the facts, detected by default", FACTS)]
Templates = Annotated[
    Path | None,
    option(
        FACTS,
        "PATH",
        "Source of templates: ParaRel's folder of patterns, LAMA's relations.jsonl, or 'kn_lens' "
        "for templates of ParaRel's relations that end with the object, as causal models need.",
    ),
]
Split = Annotated[str, choice(SPLITS, "Templates of the embedded facts", FACTS)]
Neurons = Annotated[
    list[Path],
    named_option(
        None,
        "--neurons -n",
        "FILE",
        "Neuron file, as `kn-lens find` writes it; or neurons, such as L2N7,L3N5; repeatable.",
    ),
]
Relations = Annotated[
    list[str] | None,
    named_option(
        FACTS,
        "--relation -r",
        "NAME",
        "Relation of the facts, such as P36 or capital; repeatable, all by default.",
    ),
]
Subjects = Annotated[
    list[str] | None,
    named_option(FACTS, "--subject -s", "TEXT", "Subject of the facts; repeatable, all by default."),
]
Limit = Annotated[
    int | None,
    option(FACTS, "N", "Maximum number of facts of each relation, drawn at random.", min=1),
]
Seed = Annotated[int, option(FACTS, "N", "Seed of all random draws.", min=0)]
LEAVE_OUT_OPTION = "--leave-out-unknown"
LeaveOutUnknown = Annotated[
    bool,
    flag(
        FACTS,
        LEAVE_OUT_OPTION,
        "Exclusion of answers outside the vocabulary; an error by default.",
    ),
]

Out = Annotated[Path | None, named_option(RESULT, "--out -o", "FILE", "Output file.")]
Json = Annotated[bool, flag(RESULT, "--json", "One JSON document on stdout instead of tables.")]
