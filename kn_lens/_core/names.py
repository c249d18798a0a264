"""Names that commands, settings and functions share, without PyTorch: one home for each list of choices."""

from collections.abc import Mapping
from typing import Literal, NamedTuple, get_args

Rule = Literal["left", "right", "midpoint", "trapezoid", "gauss-legendre", "clenshaw-curtis"]
RULES: tuple[str, ...] = get_args(Rule)
"""The fixed quadrature rules."""
QUADRATURES = ("adaptive", *RULES)

Method = Literal[
    "integrated_gradients",
    "single_path",
    "activation",
    "gradient_x_activation",
    "log_prob_gain",
    "ablation",
]
"""The attribution methods; ``single_path`` scores chosen neurons alone."""

Side = Literal["decoder", "encoder"]
SIDES: tuple[Side, ...] = get_args(Side)
"""The stacks of an encoder-decoder."""

StartName = Literal["zero", "mean"]
STARTS: tuple[str, ...] = get_args(StartName)
"""The starts of paths that have a name."""

OutputName = Literal["prob", "log_prob", "logit", "logit_diff"]
OUTPUTS: tuple[str, ...] = get_args(OutputName)
"""The attributed outputs."""

Preset = Literal["paper", "official"]
PRESETS: tuple[str, ...] = get_args(Preset)
"""The paper, and its released code."""

Split = Literal["all", "trained", "held_out"]
PositionName = Literal["read", "subject_last"]
"""A position that every prompt has once: the read position, or the last token of its subject."""
POSITION_NAMES: tuple[str, ...] = get_args(PositionName)
SPLITS: tuple[str, ...] = get_args(Split)
"""Which templates of the embedded facts."""

FACT_FORMATS = ("world", "pararel", "official", "lama", "mlama", "mpararel", "counterfact", "jsonl", "csv")
"""The formats of fact files."""

FIGURE_FORMATS = ("html", "png", "svg")
"""The formats of figures in files."""

OWN_TEMPLATES = "kn_lens"
"""The templates that ship with the package for ParaRel's relations, for causal models: each ends with the object."""

TF32 = "tf32"
"""Weights in float32, of which an NVIDIA GPU takes products in TF32: operands have 10 bits of mantissa."""
DTYPES = ("float32", TF32, "float64", "bfloat16", "float16")
"""The types in which weights are loaded, by their names in PyTorch, and ``TF32``."""

EDITORS: Mapping[str, str] = {
    "KN": "KN",
    "KN-paper": "KN (paper)",
    "KN-official": "KN (official)",
    "KN-eleutherai": "KN (EleutherAI)",
    "KN-easyedit": "KN (EasyEdit)",
    "ROME": "ROME",
    "MEMIT": "MEMIT",
    "AlphaEdit": "AlphaEdit",
    "FT": "FT-L",
}
"""The editors as commands and settings name them, ``KN`` with or without a preset, and their names in tables."""
EDITOR_NAMES = tuple(EDITORS)


def editor_statistic(of: str, name: str) -> str:
    """Return the name of a statistic of an editor in comparisons.

    Args:
        of: ``success`` or ``kept``.
        name: the editor's, as settings have it.

    >>> editor_statistic("kept", "KN-easyedit")
    'kept_kn_easyedit'
    """
    return f"{of}_{name.lower().replace('-', '_')}"


Scaling = Literal["norm", "plain"]


class UpdateForm(NamedTuple):
    """The form of an update: its strength, its scaling and its signs.

    Attributes:
        lambdas: weights of the old answer's embedding, which is subtracted, and of the new one's, which is added.
        scaling: the unit of the lambdas: the length of the row (``"norm"``) or of the embedding (``"plain"``).
        signed: whether the change of a row has the sign of its neuron's activation.
    """

    lambdas: tuple[float, float]
    scaling: Scaling
    signed: bool


UPDATE_FORMS: Mapping[str, UpdateForm] = {
    "paper": UpdateForm((1.0, 8.0), "plain", False),
    "official": UpdateForm((1.0, 8.0), "norm", False),
}
"""The forms of the paper and of its released code."""
