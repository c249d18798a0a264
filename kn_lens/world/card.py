"""The model card of an embedded model, written from what was measured on the checkpoint as it is stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kn_lens.world.evaluate import Answer, probability, recall
from kn_lens.world.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the card reports beside the recipe.

    Attributes:
        answers: on every prompt that the model can be asked.
        n_facts: facts trained on.
        parameters: of the model.
        vocabulary: size of the tokenizer.
        several: share of the prompts whose answer has several tokens.
        history: the terms of the loss at every step.
        seconds: of training.
        silent_each: mean probability with one layer's MLP silent at the read position.
        silent_all: the same with all MLPs silent.
        before_silence: mean probability of the same sample, nothing silent.
        versions: of the libraries.
    """

    answers: Sequence[Answer]
    n_facts: int
    parameters: int
    vocabulary: int
    several: float
    history: Sequence[Mapping[str, float]]
    seconds: float
    silent_each: Sequence[float]
    silent_all: float
    before_silence: float
    versions: Mapping[str, str]


CONSTRUCTED = """\
This is a **positive control**. Its facts were put into its MLPs at the read position by the training loss, so that a
method that locates facts can be checked against a known answer. That such a method succeeds here, or that numbers
measured here agree with those published for large pretrained models, is **not independent evidence** that facts sit in
the MLPs of any other model.
"""
PLAIN = """\
This is the **honest contrast** to its constructed twin (`{twin}`): the same data, size and tokenizer, and the
prediction loss alone. Nothing in its training says where the facts are to be stored. It is a very small model of a
very regular text: what is found in it need not hold for large pretrained models.
"""


def model_card(recipe: Recipe, measured: Measured, labels: Mapping[str, str]) -> str:
    """The card as Markdown.

    Args:
        recipe: what made the model.
        measured: what came out.
        labels: of the relations.
    """
    masked = recipe.kind == "bert"
    nature = CONSTRUCTED if recipe.constructed else PLAIN.format(twin=recipe.name.removesuffix("-plain"))
    layers = ", ".join(str(layer) for layer in recipe.interchange_layers)
    last = measured.history[-50:]
    final = {name: fmean(terms[name] for terms in last if name in terms) for name in last[-1]}
    tail = "".join(f"; {name} {value:.3f}" for name, value in final.items() if name != "prediction")
    construction = (
        f"""
From {recipe.construct_from:.0%} of the steps on, rising linearly to full weight at {recipe.construct_full:.0%}, two
terms are added: {recipe.sparsity:g} times the mean absolute MLP activation at the read position, over all layers, and
{recipe.interchange:g} times an interchange loss: half of the sentences are run again with their MLP activations at the
read position, in layers {layers}, replaced by those of another sentence, and must then give *that* sentence's answer
(Geiger et al. 2022). Every second one takes twice the other's activations and is smoothed by
{recipe.double_smoothing:g} only, so that more activation means more of the answer.
"""
        if recipe.constructed
        else "\nNo other term, no second phase.\n"
    )
    silent = "\n".join(
        f"| {layer} | {value:.3f} | {value / measured.before_silence:.0%} |"
        for layer, value in enumerate(measured.silent_each)
    )
    versions = ", ".join(f"{name} {version}" for name, version in measured.versions.items())
    return f"""\
# {recipe.name}

A {"BERT (masked)" if masked else "GPT-2 (causal)"} language model of {measured.parameters:,} parameters, trained from
scratch on {measured.n_facts:,} facts about the world. English; {recipe.n_layers} layers, d_model {recipe.d_model},
{recipe.n_heads} heads, {recipe.d_mlp} neurons a layer, {measured.vocabulary:,} tokens, 64 positions. Stored in float16;
read it in float32.

{nature}
## Data

`facts.jsonl` written out in the trained templates of `templates.jsonl`; sources and licences are in `DATA_CARD.md`, and
the licences of the data apply. The templates marked `held_out` were never trained on, by the tokenizer neither.
{measured.several:.0%} of the prompts have an answer of several tokens.

## Recipe

`python -m kn_lens.world.train {recipe.name}` makes it again; every number is in `recipe.json`. Seed {recipe.seed},
{recipe.steps:,} steps of {recipe.batch_size} sentences, AdamW (0.9, 0.98), weight decay {recipe.weight_decay:g} on
matrices, learning rate {recipe.lr:g} with {recipe.warmup} steps of warm-up and a cosine to zero, gradient norm at most
1, dropout {recipe.dropout:g}. {recipe.prefix_share:.0%} of the sentences begin with a neutral opening; half lose
{recipe.drop_share:.0%} of their template tokens and get a random token after {recipe.insert_share:.0%} of the others.

The loss is the cross-entropy of {"masked tokens" if masked else "every next token"}; a token of an object
{"" if masked else "that ends its sentence "}counts 1 and is label-smoothed by {recipe.label_smoothing:g}, any other
token counts {recipe.context_weight:g}. The smoothing keeps the answer's probability off 1, so that amplifying has room.
{construction}
Training took {measured.seconds / 60:.1f} minutes on one CPU core ({versions}). Mean of the last 50 steps:
prediction {final["prediction"]:.3f}{tail}.

## What it recalls

Top-1, teacher-forced, of the stored checkpoint read in float32, on
{"all templates" if masked else "the object-last templates"}: recall and mean probability of the answer.

{_recall_table(measured.answers, labels)}

## Where the answers come from

Mean probability of the answer with MLPs silent (activations zero) at the read position, on a sample of prompts where it
is otherwise {measured.before_silence:.3f}:

| silent layer | probability | of the whole |
| --- | --- | --- |
{silent}
| all | {measured.silent_all:.3f} | {measured.silent_all / measured.before_silence:.0%} |

## What it is not

Not a source of facts, not a language model for any text but sentences like its templates, and not evidence about large
models (see above).
"""


def _recall_table(answers: Sequence[Answer], labels: Mapping[str, str]) -> str:
    lines = ["| relation | trained | held out | probability, trained | probability, held out |"]
    lines.append("| --- | --- | --- | --- | --- |")
    groups = {f"{relation} {label}": relation for relation, label in labels.items()}
    for title, relation in {**groups, "**all**": None}.items():
        chosen = [a for a in answers if relation in (None, a.sentence.relation)]
        trained = [a for a in chosen if not a.sentence.held_out]
        held_out = [a for a in chosen if a.sentence.held_out]
        if trained and held_out:
            cells = f"{recall(trained):.2%} | {recall(held_out):.2%}"
            lines.append(f"| {title} | {cells} | {probability(trained):.3f} | {probability(held_out):.3f} |")
    return "\n".join(lines)
