"""Training recipes of the embedded models: all hyperparameters of a run in one frozen record."""

from dataclasses import dataclass, replace
from typing import Literal

from kn_lens.errors import ArgumentError, did_you_mean


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Hyperparameters of one training run.

    The loss is ``prediction + sparsity * S + interchange * I + translation * T`` (see ``objective``). The last three
    terms, zero for the plain models, put the facts into the MLPs at the read position.

    Attributes:
        name: of the model.
        kind: ``bert`` (masked) or ``gpt2`` (causal).
        languages: of the text. English alone is ``facts.jsonl``, several are ``translations.jsonl``.
        seed: of the weights, the dropout and the order of the text.
        steps: number of optimiser steps.
        batch_size: sentences per step.
        lr: peak learning rate (AdamW, cosine to zero).
        warmup: steps of linear warm-up.
        weight_decay: on matrices only.
        dropout: on the residual stream and the embeddings. Attention weights have no dropout.
        vocab_size: of the tokenizer; for a masked model, of the BPE tokenizer whose pieces form its vocabulary.
        n_layers: number of layers.
        d_model: width of the residual stream.
        n_heads: attention heads per layer.
        d_mlp: neurons per layer.
        init_std: standard deviation of the initial weights.
        branch_scale: masked only: factor on the initial output weights of attention and MLP. A post-norm model of this
            size hardly learns without it.
        label_smoothing: share of the target distribution spread over the vocabulary where the object is predicted. It
            keeps the answer's probability below 1, so that amplification has room.
        context_weight: loss weight of every other predicted token. Tokens of the object have weight 1.
        front_share: causal only: sampling weight of a sentence whose object is not last, relative to the others.
        prefix_share: share of the sentences with a neutral opening.
        drop_share: probability of dropping each template token, in half of the sentences.
        insert_share: probability of inserting a random token after each token, in the same half.
        sparsity: coefficient of ``S``.
        interchange: coefficient of ``I``.
        interchange_layers: layers whose MLPs are to carry the facts.
        double_smoothing: label smoothing where the interchanged activations are doubled.
        translation: coefficient of ``T``.
        translation_layers: layers whose MLPs are to carry the facts independently of the language.
        construct_from: share of the steps before ``S``, ``I`` and ``T`` have any weight.
        construct_full: share of the steps from which they have full weight; linear in between.
    """

    name: str
    kind: Literal["bert", "gpt2"]
    languages: tuple[str, ...] = ("en",)
    seed: int = 0
    steps: int
    batch_size: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.05
    dropout: float
    vocab_size: int
    n_layers: int = 4
    d_model: int = 128
    n_heads: int
    d_mlp: int = 512
    init_std: float
    branch_scale: float = 1.0
    label_smoothing: float
    context_weight: float = 0.1
    front_share: float = 0.2
    prefix_share: float = 0.25
    drop_share: float
    insert_share: float
    sparsity: float = 0.0
    interchange: float = 0.0
    interchange_layers: tuple[int, ...] = (2, 3)
    double_smoothing: float = 0.02
    translation: float = 0.0
    translation_layers: tuple[int, ...] = (2,)
    construct_from: float = 0.4
    construct_full: float = 0.7

    @property
    def constructed(self) -> bool:
        """Whether the loss puts the facts into the MLPs."""
        return self.sparsity > 0 or self.interchange > 0 or self.translation > 0

    def ramp(self, step: int) -> float:
        """Return the factor on the constructing terms at a step; 0 for a plain model."""
        if not self.constructed:
            return 0.0
        progress = (step / self.steps - self.construct_from) / (self.construct_full - self.construct_from)
        return min(1.0, max(0.0, progress))


BERT = Recipe(
    name="world-bert-plain",
    kind="bert",
    steps=5000,
    batch_size=64,
    lr=1e-3,
    dropout=0.0,
    vocab_size=2400,
    n_heads=8,
    init_std=0.06,
    branch_scale=0.2,
    label_smoothing=0.15,
    drop_share=0.05,
    insert_share=0.02,
)
GPT2 = Recipe(
    name="world-gpt2-plain",
    kind="gpt2",
    steps=2000,
    batch_size=128,
    lr=2e-3,
    dropout=0.1,
    vocab_size=2800,
    n_heads=4,
    init_std=0.02,
    label_smoothing=0.25,
    drop_share=0.15,
    insert_share=0.15,
)
MULTILINGUAL = replace(
    BERT,
    name="world-bert-multilingual",
    languages=("en", "de", "es", "fr"),
    steps=4000,
    vocab_size=4500,
    prefix_share=0.0,
    sparsity=20.0,
    interchange=0.5,
    translation=1.0,
)
_MODELS = (
    replace(BERT, name="world-bert", sparsity=20.0, interchange=0.5),
    BERT,
    replace(GPT2, name="world-gpt2", sparsity=20.0, interchange=0.5),
    GPT2,
    MULTILINGUAL,
)
RECIPES = {recipe.name: recipe for recipe in _MODELS}
"""Recipes of the models that ship, by name."""


def recipe_for(name: str) -> Recipe:
    """Return the recipe of an embedded model.

    >>> recipe_for("world-bert").kind
    'bert'

    Raises:
        ArgumentError: The name is not that of an embedded model.
    """
    if name not in RECIPES:
        hint = did_you_mean(name, RECIPES)
        raise ArgumentError(f"Unknown embedded model {name!r}.{hint} Available: {', '.join(RECIPES)}.")
    return RECIPES[name]
