"""Words for readers: titles of tables and columns, labels of their cells, the name of a model.

Tables of a run have short names for code: ``figures4_5``, ``neuron_set``, ``own``. A page shows these words in their
place.
"""

import re
from collections.abc import Mapping

from kn_lens._core.names import EDITORS, editor_statistic
from kn_lens.reports.style import NEURON_SETS, SCOPES

TITLES = {
    "answer_readouts": "Neurons that promote their fact's answer",
    "answer_readouts_by_relation": "Neurons that promote their fact's answer, by relation",
    "answers": "Answers of the model",
    "answers_by_relation": "Answers of the model, by relation",
    "contrasts": "Differences of runs that differ in one tag",
    "correlations": "Rank correlations of effects",
    "depth": "Distribution over depth",
    "differences": "Differences between runs",
    "distances": "Distances between distributions over depth",
    "runs": "Runs",
    "values": "Statistics of each run",
    "activation_on_texts": "Activation on texts (Table 3)",
    "activation_on_texts_by_relation": "Activation on texts, by relation",
    "circuit_sizes": "Circuits: nodes that keep 80% of the logit difference",
    "circuits": "Circuits by size",
    "completeness": "Completeness gaps",
    "consistency": "Consistency over wordings",
    "consistency_by_relation": "Consistency over wordings, by relation",
    "coverage": "Queried facts",
    "degenerate": "Facts with more than one home",
    "dose_response": "Dose response",
    "editors": "Editors beside one another",
    "editors_refused": "Edits that editors refused",
    "erased": "Neurons erased",
    "experts": "Distribution over experts",
    "figure3": "Distribution over layers (Figure 3)",
    "figures4_5": "Suppressing and amplifying (Figures 4 and 5)",
    "figures4_5_by_relation": "Suppressing and amplifying, by relation",
    "methods": "Other attribution methods",
    "neuron_relation_map": "Neurons and relations",
    "neuron_scores": "Scores of the neurons",
    "neuron_scores_by_relation": "Scores of the neurons, by relation",
    "position_effects": "Neurons found at two positions",
    "positions": "Where the answer comes about",
    "query_neurons": "Query neurons: distribution over layers",
    "stability": "Stability of the neurons",
    "syntax": "Grammar: effects of its neurons",
    "syntax_against_facts": "Grammar beside facts",
    "syntax_by_phenomenon": "Grammar: effects of its neurons, by phenomenon",
    "syntax_coverage": "Grammar: queried pairs of sentences",
    "syntax_table2": "Grammar: neurons per form and shared",
    "syntax_table2_by_relation": "Grammar: neurons per form and shared, by phenomenon",
    "table2": "Neurons per fact and shared (Table 2)",
    "table2_by_relation": "Neurons per fact and shared, by relation",
    "table5": "Erasing relations (Table 5)",
    "table5_by_relation": "Erasing relations, by relation",
    "table6": "Updating facts (Table 6)",
    "table6_by_relation": "Updating facts, by relation",
    "texts_of_most_and_least": "Texts of highest and lowest activation, for a fact of each relation",
    "updated": "Facts updated",
}
"""Titles of tables."""

COLUMNS = {
    "above_tolerance": "above the tolerance",
    "before": "mean probability before",
    "change": "mean change of the probability",
    "control": "control",
    "criterion": "the answer is given while",
    "editor": "editor",
    "end": "activation is",
    "factor": "factor of the activations",
    "found": "mean activation",
    "index": "neuron's index",
    "key": "fact",
    "largest_gap": "largest gap",
    "layer": "layer",
    "mean_gap": "mean gap",
    "mean_output": "mean probability of the answer",
    "mean_points": "mean number of quadrature points",
    "measure": "measure",
    "n": "sample size (n)",
    "n_disturbing": "facts updated with side effects",
    "n_facts": "facts",
    "n_forms": "forms",
    "n_known": "facts known",
    "n_left_out": "facts left out",
    "n_neurons": "neurons per fact",
    "n_pairs": "prompts and layers",
    "n_prompts": "prompts queried",
    "n_queried": "facts queried",
    "n_queried_forms": "forms queried",
    "n_queried_pairs": "pairs queried",
    "n_refused": "edits refused",
    "n_rows": "sequences read by the model",
    "n_templates": "templates of all facts",
    "n_updated": "facts updated",
    "neuron_set": "neurons",
    "neurons_of": "neurons of",
    "not_drawn": "left out: not drawn",
    "not_one_word": "left out: not one word",
    "not_writable": "left out: not in the vocabulary",
    "paper": "Dai et al. (2022)",
    "phenomenon": "phenomenon",
    "question": "queried about",
    "read_on": "measured on",
    "same_prompt": "left out: same prompt",
    "scope": "measured on",
    "share": "share of the relation's facts",
    "role": "token",
    "start": "paths start at",
    "statistic": "statistic",
    "text": "text",
    "texts": "kind of text",
    "told_behind": "left out: deciding text after the word",
    "too_few": "left out: too few pairs",
    "too_long": "left out: too long",
    "architecture": "architecture",
    "between_seeds": "mean difference between seeds",
    "d_mlp": "MLP neurons of a layer",
    "depth": "depth",
    "differs_in": "differ in",
    "equal": "facts in all runs",
    "fact_set": "facts",
    "facts": "facts of the run",
    "from": "from",
    "kind": "kind",
    "known_by_all": "facts known by all",
    "largest": "largest",
    "model": "model",
    "n_layers": "layers",
    "n_params": "parameters",
    "of": "tag",
    "own": "facts known",
    "p": "p of facts",
    "p_holm": "p of facts (Holm)",
    "p_relations": "p of relations",
    "p_relations_holm": "p of relations (Holm)",
    "resolution": "resolution",
    "run": "run",
    "run_a": "first run",
    "run_b": "second run",
    "shared": "facts queried in all",
    "smallest": "smallest",
    "tags": "tags",
    "to": "to",
    "value": "value",
    "varied": "varied",
    "why": "why others are left out",
    "word": "word not read",
}
"""Titles of columns."""

COLUMNS_OF: Mapping[str, Mapping[str, str]] = {
    "editors": {"neuron_set": "rows of change"},
    "editors_refused": {"n_facts": "edits", "why": "why the first was refused"},
    "erased": {"n_neurons": "neurons erased"},
    "experts": {"n_facts": "facts that have any", "n_neurons": "neurons in the expert"},
    "figure3": {"n_neurons": "neurons in the layer"},
    "methods": {"neuron_set": "method"},
    "neuron_relation_map": {"n_facts": "facts that have it"},
    "syntax_coverage": {"n_pairs": "pairs of sentences"},
    "syntax_table2_by_relation": {"relation": "phenomenon"},
    "table6": {"neuron_set": "neurons updated"},
}
"""Titles of columns that differ from one table to another."""

METHODS = {
    "ablation": "ablation",
    "gradient_x_activation": "gradient times activation",
    "integrated_gradients": "integrated gradients",
    "log_prob_gain": "gain in log probability",
    "refined": "knowledge neurons",
}
"""Labels of attribution methods, beside those of neuron sets."""


def _of_editors() -> dict[str, str]:
    """Return the labels of the statistics of editors in comparisons."""
    labels = {}
    for name, label in EDITORS.items():
        labels[editor_statistic("success", name)] = f"{label}: new answer on top, held-out wordings"
        labels[editor_statistic("kept", name)] = f"{label}: right answers to other facts that stay right"
    return labels


LABELS: Mapping[str, Mapping[str, str]] = {
    "criterion": {"answer": "it is the most probable one", "probability": "it keeps half of its probability"},
    "end": {"top": "highest", "bottom": "lowest"},
    "measure": {
        "changed": "answers changed",
        "consistent": "facts consistent",
        "degenerate": "facts with two or more subsets that each suffice",
        "jaccard": "Jaccard index of two prompts",
        "kept": "right answers that stay right",
        "mrr": "mean reciprocal rank",
        "smallest": "neurons of the smallest subset that takes the answer",
        "smallest_suffices": "facts whose smallest subset suffices too",
        "mrr_before": "mean reciprocal rank before",
        "success": "new answer on top",
        "taken": "facts whose answer all neurons take",
        "success_before": "new answer on top before",
        "top5": "new answer among the first 5",
        "top5_before": "new answer among the first 5 before",
        "rank": "rank of the new answer",
        "rank_before": "rank of the new answer before",
    },
    "neuron_set": {**METHODS, **NEURON_SETS},
    "read_on": {"own": "the form or fact itself", "other": "others", "own - other": "itself minus others"},
    "relation": {"all": "all relations"},
    "scope": SCOPES,
    "fact_set": {
        "shared": "queried in all models",
        "known_by_all": "known by all models",
        "known_by_both": "known by both models",
        "own": "known by the model",
        "measured": "measured in all models by stages on request",
    },
    "statistic": {
        "accuracy": "answers correct",
        "nll": "surprise at the answer, in nats",
        "known": "facts known",
        "mean_depth": "mean depth of the neurons",
        "suppress_own": "suppressed, the fact itself",
        "suppress_other": "suppressed, a fact of another relation",
        "amplify_own": "amplified, the fact itself",
        "amplify_other": "amplified, a fact of another relation",
        "neurons_per_fact": "neurons per fact",
        "shared_within": "neurons that two facts of a relation share",
        "shared_across": "neurons that facts of two relations share",
        "suppress_at_subject": "suppressed at the subject, neurons found there",
        "circuit_nodes": "nodes of the smallest circuit",
        "circuit_at_read": "of these, at the read position",
        "faithfulness_100": "faithfulness of 100 nodes",
        "completeness_100": "completeness of 100 nodes",
        "query_depth": "mean depth of the query neurons",
        "taken": "known facts whose answer all neurons take",
        "degenerate": "of known facts, with several subsets that each suffice",
        "smallest_set": "neurons of the smallest subset that takes the answer",
        "smallest_suffices": "facts whose smallest subset suffices too",
        "consistent": "facts with consistent neurons over wordings",
        "wordings_jaccard": "Jaccard index of two prompts of a fact",
        **_of_editors(),
    },
    "texts": {
        "head and tail": "with subject and answer",
        "head only": "with the subject only",
        "random": "random sentences",
    },
}
"""Labels of cells, by column."""

CODES = (
    "end",
    "fact_set",
    "measure",
    "neuron_set",
    "neurons_of",
    "phenomenon",
    "question",
    "read_on",
    "scope",
    "statistic",
)
"""Columns whose cells are names for code where they have no label; others hold names from the data."""

_RULE = re.compile(r"(left|right|midpoint|trapezoid|gauss-legendre|clenshaw-curtis) (\d+)")
_THRESHOLDS = {"attr_threshold": "attribution threshold", "share_threshold": "share threshold"}


def table_title(name: str) -> str:
    """Return the title of a table.

    >>> table_title("figures4_5")
    'Suppressing and amplifying (Figures 4 and 5)'
    """
    return TITLES.get(name, spaced(name).capitalize())


def column_title(column: str, table: str = "") -> str:
    """Return the title of a column, in a table with this name.

    >>> column_title("n_neurons"), column_title("n_neurons", "erased")
    ('neurons per fact', 'neurons erased')
    """
    own = COLUMNS_OF.get(table, {})
    return own.get(column) or COLUMNS.get(column) or spaced(column)


def cell_label(column: str, cell: object) -> str:
    """Return the label of a cell that holds no number. Names from the data stay as they are.

    >>> cell_label("scope", "own"), cell_label("varied", "left 20"), cell_label("relation", "place_of_birth")
    ('the fact itself', 'left rule, 20 steps', 'place_of_birth')
    """
    text = str(cell)
    label = LABELS.get(column, {}).get(text)
    if label is not None:
        return label
    if column == "varied":
        return varied_label(text)
    return spaced(text) if column in CODES else text


def varied_label(text: str) -> str:
    """Return the label of what the stage ``stability`` varies.

    >>> varied_label("attr_threshold 0.1"), varied_label("25% of the prompts")
    ('attribution threshold 0.1', '25% of the prompts')
    """
    rule = _RULE.fullmatch(text)
    if rule is not None:
        return f"{rule[1]} rule, {rule[2]} steps"
    name, blank, value = text.partition(" ")
    return f"{_THRESHOLDS.get(name, name)}{blank}{value}"


def spaced(name: str) -> str:
    """Return a name for code as words."""
    return name.replace("_", " ")


def model_name(model: str) -> str:
    """Return the name of a model without the path or the owner in front of it; it may be empty.

    >>> model_name("/home/someone/models/bert-base-cased/"), model_name("google-bert/bert-base-cased")
    ('bert-base-cased', 'bert-base-cased')
    >>> model_name("/hub/models--google-bert--bert-base-cased/snapshots/cd5ef92a9fb2f889e972770a36d4ed042daf221e")
    'bert-base-cased'
    """
    parts = [part for part in re.split(r"[/\\]", model) if part not in ("", ".", "..", "~")]
    for part in parts:
        if part.startswith("models--"):  # a folder of the Hugging Face cache
            return part.rpartition("--")[2]
    return parts[-1] if parts else ""
