"""Knowledge neurons on TransformerLens: find, measure and edit the neurons of a language model that carry a fact."""

from . import figures as figures
from .attribution import Attribution, attribute, attribute_in_parts
from .compare import Comparison, compare_runs
from .edit_effects import erase_effects, update_effects
from .edit_questions import Question, inverse_questions, reworded
from .edit_strength import LambdaChoice, choose_lambdas
from .edit_tables import edit_table
from .edits import WeightEdit, erase_neurons, erase_relation, export, update_fact
from .effect_plots import Effect
from .effects import controlled_effects, effect_table, measure
from .errors import (
    ArgumentError,
    DataError,
    EditError,
    HookError,
    KNLensError,
    NoPromptError,
    PromptError,
    UnsupportedModelError,
)
from .facts import Fact, FactSet
from .hosts import host_of, load_model
from .interventions import Amplify, Intervention, SetTo, Suppress
from .neurons import (
    Neuron,
    NeuronSet,
    activation_neurons,
    coarse,
    match_facts,
    matched_neurons,
    random_neurons,
    refine,
    refine_by_relation,
    refine_released,
)
from .outputs import Output
from .prompts import PromptBatch, make_prompts, predict
from .report import write_figures, write_report, write_tables
from .reproduction import reproduce
from .score_files import attribute_to_file, read_attribution
from .study import run_study
from .study_config import StudyConfig, read_study

__version__: str

__all__ = [
    "Amplify",
    "ArgumentError",
    "Attribution",
    "Comparison",
    "DataError",
    "EditError",
    "Effect",
    "Fact",
    "FactSet",
    "HookError",
    "Intervention",
    "KNLensError",
    "LambdaChoice",
    "Neuron",
    "NeuronSet",
    "NoPromptError",
    "Output",
    "PromptBatch",
    "PromptError",
    "Question",
    "SetTo",
    "StudyConfig",
    "Suppress",
    "UnsupportedModelError",
    "WeightEdit",
    "activation_neurons",
    "attribute",
    "attribute_in_parts",
    "attribute_to_file",
    "choose_lambdas",
    "coarse",
    "compare_runs",
    "controlled_effects",
    "edit_table",
    "effect_table",
    "erase_effects",
    "erase_neurons",
    "erase_relation",
    "export",
    "figures",
    "host_of",
    "inverse_questions",
    "load_model",
    "make_prompts",
    "match_facts",
    "matched_neurons",
    "measure",
    "predict",
    "random_neurons",
    "read_attribution",
    "read_study",
    "refine",
    "refine_by_relation",
    "refine_released",
    "reproduce",
    "reworded",
    "run_study",
    "update_effects",
    "update_fact",
    "write_figures",
    "write_report",
    "write_tables",
]
