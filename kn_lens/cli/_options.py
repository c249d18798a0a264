"""Options that several commands share, checked before anything heavy is imported."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from kn_lens.errors import ArgumentError, did_you_mean

FORMATS = ("world", "pararel", "official", "lama", "counterfact", "jsonl", "csv")
SPLITS = ("all", "trained", "held_out")
METHODS = ("integrated_gradients", "activation", "gradient_x_activation", "log_prob_gain", "ablation")
OUTPUTS = ("prob", "log_prob", "logit", "logit_diff")
PRESETS = ("paper", "official")
QUADRATURES = ("adaptive", "left", "right", "midpoint", "trapezoid", "gauss-legendre", "clenshaw-curtis")
DTYPES = ("float32", "float64", "bfloat16", "float16")


def one_of(names: Sequence[str]) -> Callable[[str | None], str | None]:
    """Return a callback that refuses what is not among ``names``, and says which of them is nearest."""

    def check(value: str | None) -> str | None:
        if value is not None and value not in names:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(names)}.{did_you_mean(value, names)}")
        return value

    return check


def choice(names: Sequence[str], what: str, panel: str | None = None) -> Any:
    """Return an option that takes one of ``names``, which its help lists."""
    listed = f"{what}: {', '.join(names)}."
    return typer.Option(metavar="NAME", help=listed, callback=one_of(names), rich_help_panel=panel)


def option(panel: str, metavar: str, help: str, **limits: float) -> Any:
    """Return an option of a panel of the help, named after its parameter, with ``min`` and ``max`` if it has them."""
    # The checker tries ``limits``, which holds ``min`` and ``max`` alone, against every keyword that typer has.
    return typer.Option(metavar=metavar, help=help, rich_help_panel=panel, **limits)  # type: ignore[arg-type]


def help_if_bare(context: typer.Context) -> None:
    """Show the help of a group of commands that was called without one, and exit."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)  # empty where rich has printed it
        raise typer.Exit


def check_out(path: Path | None, *others: Path | str | None) -> None:
    """Raise, before anything is computed, if a result could not be written to ``path``.

    Raises:
        ArgumentError: its directory does not exist, it is a directory itself, or it is a file that the command reads.
    """
    if path is None:
        return
    if not path.parent.is_dir():
        raise ArgumentError(f"--out {path}: there is no directory {path.parent}; make it first.")
    if path.is_dir():
        raise ArgumentError(f"--out {path} is a directory; expected the name of a file to write.")
    if any(path.exists() and os.path.exists(other) and path.samefile(other) for other in others if other is not None):
        raise ArgumentError(f"--out {path} is the file that is read; expected another name.")


FACTS, MODEL, METHOD, RESULT = "Which facts", "Which model", "How neurons are found", "Results"
"""Panels of the help."""

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", metavar="NAME", help="Embedded model, Hugging Face name or checkpoint directory.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
ModelOfNeurons = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="NAME", help="Which model; that of the neuron file unless given.",
        rich_help_panel=MODEL,
    ),
]  # fmt: skip
Force = Annotated[
    bool, typer.Option("--force", help="Also neurons that were found in another model.", rich_help_panel=MODEL)
]
Device = Annotated[str | None, option(MODEL, "NAME", "cpu, cuda, cuda:1, ...; CUDA where there is one.")]
Dtype = Annotated[str, choice(DTYPES, "Type to load the weights in", MODEL)]
DtypeOfNeurons = Annotated[
    str | None, choice(DTYPES, "Type to load the weights in; that of the neuron file unless given", MODEL)
]
Memory = Annotated[
    float | None, option(MODEL, "GIB", "Memory for the passes, on the model's device; half of what is free.", min=0)
]

Facts = Annotated[
    str,
    typer.Option(
        "--facts", "-f", metavar="PATH", help="File or folder of facts, or 'world': the embedded ones.",
        rich_help_panel=FACTS,
    ),
]  # fmt: skip
Source = Annotated[str, typer.Argument(metavar="PATH", help="File or folder of facts, or 'world': the embedded ones.")]
Format = Annotated[str | None, choice(FORMATS, "Their format, where the contents do not tell", FACTS)]
Templates = Annotated[
    Path | None, option(FACTS, "PATH", "Templates to use: ParaRel's folder of patterns, or LAMA's relations.jsonl.")
]
Split = Annotated[str, choice(SPLITS, "Which templates of the embedded facts", FACTS)]
Relations = Annotated[
    list[str] | None,
    typer.Option("--relation", "-r", metavar="NAME", help="Only this one; may be repeated.", rich_help_panel=FACTS),
]
Subjects = Annotated[
    list[str] | None,
    typer.Option("--subject", "-s", metavar="TEXT", help="Only this one; may be repeated.", rich_help_panel=FACTS),
]
Limit = Annotated[int | None, option(FACTS, "N", "At most so many, drawn at random.", min=1)]
Seed = Annotated[int, option(FACTS, "N", "Of everything drawn at random.", min=0)]
LeaveOutUnknown = Annotated[
    bool,
    typer.Option(
        "--leave-out-unknown", help="Leave out and count answers that the vocabulary cannot write; else an error.",
        rich_help_panel=FACTS,
    ),
]  # fmt: skip

Out = Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE", help="File to write.", rich_help_panel=RESULT)]
Json = Annotated[
    bool, typer.Option("--json", help="Write one JSON document to stdout, for machines.", rich_help_panel=RESULT)
]
