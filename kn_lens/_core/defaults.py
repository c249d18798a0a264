"""Defaults that commands, settings and functions share, without PyTorch: one home for each."""

from kn_lens._core.names import Method, OutputName, Scaling, Split

DTYPE = "float32"
"""Type of the weights of a model that is loaded by name."""
SPLIT: Split = "all"
"""Templates of the embedded facts."""

METHOD: Method = "integrated_gradients"
OUTPUT: OutputName = "prob"
QUADRATURE = "adaptive"
N_STEPS = 20
"""Number of points of a fixed rule: that of the paper."""
TOLERANCE = 1e-3
"""Completeness gap up to which ``adaptive`` refines, relative to the clean output."""

ATTR_THRESHOLD = 0.2
"""``t`` of the coarse sets: that of the paper."""
SHARE_THRESHOLD = 0.7
"""``p`` of the refined sets: that of the paper."""
MIN_PROMPTS = 3
"""Least number of a fact's prompts that share a neuron: that of the paper's released code."""

LAMBDAS = (1.0, 2.0)
"""Strength of updates: the choice of ``choose_lambdas`` in world-gpt2.

On 12 facts there, it has the highest success in held-out wordings (92%) of all strengths of the grid that take away at
most a tenth of the right answers to other facts (it takes 3%). On 12 more facts it reaches as many as (1, 8), and takes
away an eighth of what (1, 8) does. The tables are in docs/editing.md, with other models: one tolerates more, one less.
``choose_lambdas`` measures what a model tolerates.
"""
SCALING: Scaling = "norm"
"""Unit of the lambdas."""
SIGNED = True
"""Whether the change of a row has the sign of its neuron's activation."""
MAX_SHARE = 0.1
"""Largest share of a relation's facts whose neurons may include one that an update changes: that of the paper."""

ERASED_NEURONS = 20
"""Number of a relation's most frequent neurons that are erased: that of the paper."""
ERASED_VALUE = "zero"
"""Value of erased rows."""

N_RESAMPLES = 1000
"""Number of bootstrap samples."""
N_PERMUTATIONS = 10_000
"""Number of permutations of a test."""
