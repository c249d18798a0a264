"""Neurons: from scores to sets of neurons, their controls, their files, and the overlap of sets.

``neuron_set`` has ``Neuron`` and ``NeuronSet``, and ``files`` their files; ``refine`` goes from scores to neurons;
``find`` goes from facts to neurons in one call. ``controls`` has as many other neurons to compare them with;
``overlap`` compares the sets of facts, ``consistency`` those of a fact's prompts, and ``languages`` those of a fact in
several languages. ``dataset`` writes sets as a
folder for the Hugging Face hub; ``neuronpedia`` has the addresses of neurons on Neuronpedia.
"""

from kn_lens.neurons.consistency import ALPHA, Consistency, consistency, consistency_table
from kn_lens.neurons.controls import (
    activation_neurons,
    highest_neurons,
    matched_neurons,
    most_active_neurons,
    random_neurons,
)
from kn_lens.neurons.dataset import write_dataset
from kn_lens.neurons.files import read_sets
from kn_lens.neurons.find import Findings, find
from kn_lens.neurons.languages import LanguageNeurons, language_neurons
from kn_lens.neurons.neuron_set import (
    Neuron,
    NeuronSet,
    SetsByFact,
    check_neurons_by_fact,
    match_facts,
    neuron_set_of,
)
from kn_lens.neurons.neuronpedia import neuronpedia_url
from kn_lens.neurons.overlap import (
    OVERLAP_STATISTICS,
    Incidence,
    SetsByRelation,
    jaccard,
    overlap_statistics,
    relation_neurons,
    resampled_layer_counts,
    resampled_sums,
    sampled_across,
)
from kn_lens.neurons.refine import (
    Refined,
    RelationRefinement,
    coarse,
    coarse_thresholds,
    prompts_by_fact,
    prompts_needed,
    refine,
    refine_by_relation,
    refine_released,
)

__all__ = [
    "ALPHA",
    "OVERLAP_STATISTICS",
    "Consistency",
    "Findings",
    "Incidence",
    "LanguageNeurons",
    "Neuron",
    "NeuronSet",
    "Refined",
    "RelationRefinement",
    "SetsByFact",
    "SetsByRelation",
    "activation_neurons",
    "check_neurons_by_fact",
    "coarse",
    "coarse_thresholds",
    "consistency",
    "consistency_table",
    "find",
    "highest_neurons",
    "jaccard",
    "language_neurons",
    "match_facts",
    "matched_neurons",
    "most_active_neurons",
    "neuron_set_of",
    "neuronpedia_url",
    "overlap_statistics",
    "prompts_by_fact",
    "prompts_needed",
    "random_neurons",
    "read_sets",
    "refine",
    "refine_by_relation",
    "refine_released",
    "relation_neurons",
    "resampled_layer_counts",
    "resampled_sums",
    "sampled_across",
    "write_dataset",
]
