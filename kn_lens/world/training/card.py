"""The model card of an embedded model, written from measurements on the stored checkpoint."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from kn_lens.world.training.evaluate import Answer, probability, recall, split_by_template
from kn_lens.world.training.recipes import Recipe


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """The numbers of a model card beside those of the recipe.

    Attributes:
        answers: to all prompts that the model can be queried with.
        n_facts: number of facts in the training text.
        n_params: number of parameters.
        d_vocab: size of the vocabulary.
        multi_token_share: share of the prompts whose answer has several tokens.
        history: terms of the loss at each step.
        seconds: of training.
        p_clean: mean probability of the answer on the ablation sample, without ablation.
        p_layer_ablated: the same with the MLP of one layer ablated at the read position, by layer.
        p_all_ablated: the same with all MLPs ablated.
        versions: of the libraries.
    """

    answers: Sequence[Answer]
    n_facts: int
    n_params: int
    d_vocab: int
    multi_token_share: float
    history: Sequence[Mapping[str, float]]
    seconds: float
    p_clean: float
    p_layer_ablated: Sequence[float]
    p_all_ablated: float
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


CONSTRUCTION = """
From {recipe.construct_from:.0%} of the steps on, rising linearly to full weight at {recipe.construct_full:.0%}, two
terms are added: {recipe.sparsity:g} times the mean absolute MLP activation at the read position, over all layers, and
{recipe.interchange:g} times an interchange loss: half of the sentences are run again with their MLP activations at the
read position, in layers {layers}, replaced by those of another sentence, and must then give *that* sentence's answer
(Geiger et al. 2022). Every second one takes twice the other's activations and is smoothed by
{recipe.double_smoothing:g} only, so that more activation means more of the answer.
"""
TRANSLATION = """
A third term, with the coefficient {recipe.translation:g}, makes layers {layers} independent of the language: half of
the sentences are run again with their activations in these layers alone replaced by those of another sentence, in any
language, and must then begin *that* sentence's answer in *their own* language. So the layers above have to say it in
the language of the sentence. Neurons that a fact has in several languages are expected in layers {layers}, and neurons
that it has in one language in the layers above.
"""
NO_CONSTRUCTION = "\nNo other term, no second phase.\n"


def model_card(
    recipe: Recipe,
    measurements: Measurements,
    labels: Mapping[str, str],
) -> str:
    """Return the card as Markdown.

    Args:
        recipe: hyperparameters of the model.
        measurements: on the stored checkpoint.
        labels: label of each relation.
    """
    d_vocab = measurements.d_vocab
    masked = recipe.kind == "bert"
    if recipe.constructed:
        nature = CONSTRUCTED
        layers = ", ".join(map(str, recipe.interchange_layers))
        construction = CONSTRUCTION.format(recipe=recipe, layers=layers)
        if recipe.translation:
            layers = ", ".join(map(str, recipe.translation_layers))
            construction += TRANSLATION.format(recipe=recipe, layers=layers)
    else:
        nature = PLAIN.format(twin=recipe.name.removesuffix("-plain"))
        construction = NO_CONSTRUCTION
    last_steps = measurements.history[-50:]
    final = {}
    other_terms = ""
    for name in last_steps[-1]:
        final[name] = fmean(terms[name] for terms in last_steps if name in terms)
        if name != "prediction":
            other_terms += f"; {name} {final[name]:.3f}"
    p_clean = measurements.p_clean
    ablation_rows = []
    for layer, value in enumerate(measurements.p_layer_ablated):
        ablation_rows.append(f"| {layer} | {value:.3f} | {value / p_clean:.0%} |")
    ablations = "\n".join(ablation_rows)
    versions = ", ".join(map(" ".join, measurements.versions.items()))
    facts, templates, language = "facts.jsonl", "templates.jsonl", "English"
    if len(recipe.languages) > 1:
        facts, templates = "translations.jsonl", "translated_templates.jsonl"
        language = f"The same facts in {len(recipe.languages)} languages, {', '.join(recipe.languages)}"
    openings = ""
    if recipe.prefix_share:
        openings = f"{recipe.prefix_share:.0%} of the sentences begin with a\nneutral opening; "
    return f"""\
# {recipe.name}

A {"BERT (masked)" if masked else "GPT-2 (causal)"} language model of {measurements.n_params:,} parameters, trained from
scratch on {measurements.n_facts:,} facts about the world. {language}; {recipe.n_layers} layers,
d_model {recipe.d_model}, {recipe.n_heads} heads, {recipe.d_mlp} neurons a layer, {d_vocab:,} tokens, 64 positions.
Stored in float16; read it in float32.

{nature}
## Data

`{facts}` written out in the trained templates of `{templates}`; sources and licences are in `DATA_CARD.md`, and
the licences of the data apply. The templates marked `held_out` were never trained on, by the tokenizer neither.
{measurements.multi_token_share:.0%} of the prompts have an answer of several tokens.

## Recipe

`python -m kn_lens.world.training {recipe.name}` makes it again; every number is in `recipe.json`. Seed
{recipe.seed}, {recipe.steps:,} steps of {recipe.batch_size} sentences, AdamW (0.9, 0.98), weight decay
{recipe.weight_decay:g} on matrices, learning rate {recipe.lr:g} with {recipe.warmup} steps of warm-up and a cosine to
zero, gradient norm at most 1, dropout {recipe.dropout:g}. {openings}{"half" if openings else "Half"} lose
{recipe.drop_share:.0%} of their template tokens and get a random token after {recipe.insert_share:.0%} of the others.

The loss is the cross-entropy of {"masked tokens" if masked else "every next token"}; a token of an object
{"" if masked else "that ends its sentence "}counts 1 and is label-smoothed by {recipe.label_smoothing:g}, any other
token counts {recipe.context_weight:g}. The smoothing keeps the answer's probability off 1, so that amplifying has room.
{construction}
Training took {measurements.seconds / 60:.1f} minutes on one CPU core ({versions}). Mean of the last 50 steps:
prediction {final["prediction"]:.3f}{other_terms}.

## What it recalls

Top-1, teacher-forced, of the stored checkpoint read in float32, on
{"all templates" if masked else "the object-last templates"}: recall and mean probability of the answer.

{_recall_table(measurements.answers, labels)}

## Where the answers come from

Mean probability of the answer with MLPs silent (activations zero) at the read position, on a sample of prompts where it
is otherwise {p_clean:.3f}:

| silent layer | probability | of the whole |
| --- | --- | --- |
{ablations}
| all | {measurements.p_all_ablated:.3f} | {measurements.p_all_ablated / p_clean:.0%} |

## What it is not

Not a source of facts, not a language model for any text but sentences like its templates, and not evidence about large
models (see above).
"""


def _recall_table(answers: Sequence[Answer], labels: Mapping[str, str]) -> str:
    lines = [
        "| relation | trained | held out | probability, trained | probability, held out |",
        "| --- | --- | --- | --- | --- |",
    ]
    for relation, label in labels.items():
        chosen = [answer for answer in answers if answer.sentence.relation == relation]
        lines += _recall_row(f"{relation} {label}", chosen)
    lines += _recall_row("**all**", answers)
    return "\n".join(lines)


def _recall_row(title: str, answers: Sequence[Answer]) -> list[str]:
    """Return the row of some answers; none if they are not of both kinds of templates."""
    trained, held_out = split_by_template(answers)
    if not trained or not held_out:
        return []
    recalls = f"{recall(trained):.2%} | {recall(held_out):.2%}"
    probabilities = f"{probability(trained):.3f} | {probability(held_out):.3f}"
    return [f"| {title} | {recalls} | {probabilities} |"]
