"""The settings of a run, and the presets that fix them.

``kn_lens`` is the library's own choice, ``paper`` follows the text of Dai et al. (2022), and ``official`` follows their
released code. Where they differ:

    setting              kn_lens     paper              official
    quadrature           adaptive    right, 20 points   left, 20 points
    share_threshold      0.7         "more than 70%"    0.7
    min_prompts          3           1                  3
    max_moves            6           no limit           5 (its sixth changes nothing)
    baseline             matched     refined            refined
    across_samples       all pairs   100 a fact         100 a fact
    update_scaling       norm        plain              norm
    update_signed        true        false              false
    lambdas              1, 2        1, 8               1, 8

``baseline`` chooses the neurons of high activation that are suppressed and amplified for comparison with the found
ones: ``matched`` takes as many as were found, ``refined`` those that refining the activations gives
(``baseline_threshold`` 0.5), which are many more.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from kn_lens._core import defaults
from kn_lens._core.checks import is_list_of
from kn_lens._core.names import EDITOR_NAMES, QUADRATURES, SIDES, STARTS, UPDATE_FORMS, Scaling, Side, StartName
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.runs.corpora import digest_of_texts
from kn_lens.runs.minimal_pairs import digest_of_pairs

Baseline = Literal["matched", "refined"]
RunStart = Literal["auto", StartName]

MORE_THAN = 1e-4
"""Added to a share makes "at least" of it "more than", for facts of up to 500 prompts and shares in steps of 0.05."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that records depend on besides the model and the data.

    Attributes:
        preset: the preset that the other settings start from.
        seed: seed of all random draws.
        limit: largest number of facts of each relation, drawn at random; None takes all.
        relations: the relations; empty takes all.
        held_out: number of templates of each fact, drawn at random, that are not attributed but query updates.
        quadrature: a rule of ``attribute``.
        n_steps: number of its points; None with ``adaptive``.
        tolerance: largest completeness gap of ``adaptive``, as a share.
        start: where paths start: ``zero``, ``mean``, or ``auto``: ``mean`` in a model with a norm after ``W_out``, for
            relations of several subjects, unless a preset follows the paper.
        side: the stack of an encoder-decoder whose neurons are scored; not used in other models.
        keep: scores are stored from this share of the prompt's largest score on.
        attr_threshold: ``t`` of the coarse sets.
        share_threshold: where ``p`` of the refined sets starts, for each relation.
        share_step: step by which it moves.
        max_moves: largest number of steps.
        min_prompts: number of prompts that must share a neuron; facts with fewer prompts are not queried.
        baseline_threshold: ``t`` for activations.
        baseline: see above.
        across_samples: facts of other relations that each fact is compared with; 0 takes the mean over all of them.
        doses: factors of the dose-response curve; 1 changes nothing and need not be among them.
        dose_facts: largest number of facts of each relation that the curve is measured on.
        n_resamples: number of bootstrap resamples.
        update_facts: largest number of known facts of each relation that are updated.
        update_others: other facts of the relation, and as many of other relations, that each update is measured on.
        lambdas: strengths of the old and of the new answer; see ``update_fact``.
        update_scaling: see ``update_fact``.
        update_signed: see ``signed`` of ``update_fact``.
        max_share: neurons in more than this share of a relation's facts are not updated.
        inverses: relations with their inverse, ``"P36=P1376"``, in which updates are queried too.
        synonyms: names with a synonym, ``"Tokyo=Edo"``: updates to the first are queried for the second too.
        erase_top: number of a relation's most frequent neurons to erase.
        erase_value: the new value of their rows; see ``erase_neurons``.
        erase_facts: largest number of facts of the relation that its erasure is measured on.
        erase_others: facts of other relations that each erasure is measured on.
        editors: the editors that are compared, such as ``["KN", "ROME"]``; empty takes all that the kind of model has.
        editor_facts: largest number of known facts of each relation that editors are compared on.
        editor_wordings: largest number of templates of each fact that editors see; the others are held-out wordings.
        editor_others: other facts of the relation, and as many of other relations, that each edit is measured on, in
            one template each.
        rome_layer: the layer of ROME; None takes the default of the editor.
        memit_layers: the layers of MEMIT and AlphaEdit; empty takes their default.
        texts: a folder in the format of BingRel or a file of plain text; None takes the facts' own sentences.
        texts_digest: digest of these texts; set by ``of``.
        text_sentences: largest number of sentences of each kind for each fact.
        check_facts: largest number of facts of each relation for stability and for other methods.
        check_draws: number of random draws of a share of a fact's prompts.
        syntax: a file or folder of minimal pairs in the format of BLiMP; None takes the embedded ones.
        syntax_digest: digest of these pairs; set by ``of``.
        syntax_forms: largest number of forms of each phenomenon; those with the most sentences are taken.
        syntax_sentences: largest number of sentences of each form, drawn at random.
        syntax_facts: largest number of facts of all relations together that phenomena are compared with.
    """

    preset: str = "kn_lens"
    seed: int = 0
    limit: int | None = None
    relations: tuple[str, ...] = ()
    held_out: int = 0
    quadrature: str = defaults.QUADRATURE
    n_steps: int | None = None
    tolerance: float = defaults.TOLERANCE
    start: RunStart = "auto"
    side: Side = "decoder"
    keep: float = 0.1
    attr_threshold: float = defaults.ATTR_THRESHOLD
    share_threshold: float = defaults.SHARE_THRESHOLD
    share_step: float = 0.05
    max_moves: int = 6
    min_prompts: int = defaults.MIN_PROMPTS
    baseline_threshold: float = 0.5
    baseline: Baseline = "matched"
    across_samples: int = 0
    doses: tuple[float, ...] = (0.0, 0.5, 1.5, 2.0, 2.5, 3.0)
    dose_facts: int = 20
    n_resamples: int = defaults.N_RESAMPLES
    update_facts: int = 10
    update_others: int = 10
    lambdas: tuple[float, float] = defaults.LAMBDAS
    update_scaling: Scaling = defaults.SCALING
    update_signed: bool = defaults.SIGNED
    max_share: float = defaults.MAX_SHARE
    inverses: tuple[str, ...] = ("P36=P1376", "P1376=P36")
    synonyms: tuple[str, ...] = ()
    erase_top: int = defaults.ERASED_NEURONS
    erase_value: str = defaults.ERASED_VALUE
    erase_facts: int = 200
    erase_others: int = 100
    editors: tuple[str, ...] = ()
    editor_facts: int = 3
    editor_wordings: int = 4
    editor_others: int = 20
    rome_layer: int | None = None
    memit_layers: tuple[int, ...] = ()
    texts: str | None = None
    texts_digest: str = ""
    text_sentences: int = 10
    check_facts: int = 5
    check_draws: int = 3
    syntax: str | None = None
    syntax_digest: str = ""
    syntax_forms: int = 10
    syntax_sentences: int = 30
    syntax_facts: int = 40

    def __post_init__(self) -> None:
        """Check types and ranges.

        Raises:
            ArgumentError: a value of another type or out of its range, or a threshold below the stored scores.
        """
        for field in fields(self):
            value = getattr(self, field.name)
            expected = "" if value is None and field.default is None else _expected(field.name, value)
            if expected:
                raise ArgumentError(f"{field.name} is {value!r}; expected {expected}")
        if self.quadrature == "adaptive" and self.n_steps is not None:
            raise ArgumentError(f"n_steps is {self.n_steps}, but adaptive quadrature chooses it: set n_steps=null.")
        if self.attr_threshold < self.keep:
            raise ArgumentError(
                f"attr_threshold is {self.attr_threshold}, but only scores from keep={self.keep} times the prompt's "
                "largest on are stored; lower keep likewise."
            )
        for text in (*self.inverses, *self.synonyms):
            if not all(text.partition("=")):
                raise ArgumentError(f"{text!r} is no pair; expected such as 'P36=P1376' (inverses) or 'Tokyo=Edo'.")
        for name in self.editors:
            if name not in EDITOR_NAMES or self.editors.count(name) > 1:
                near = did_you_mean(name, EDITOR_NAMES)
                raise ArgumentError(
                    f"editors has {name!r}; expected some of {', '.join(EDITOR_NAMES)}, each once.{near}"
                )

    @classmethod
    def of(cls, preset: str = "kn_lens", **changed: Any) -> "Settings":
        """Return a preset with some settings changed; lists may stand for tuples, as in JSON.

        Raises:
            ArgumentError: no such preset or setting.
            DataError: the texts or minimal pairs do not exist.

        >>> Settings.of("official", seed=3).quadrature
        'left'
        """
        if preset not in PRESETS:
            raise ArgumentError(
                f"Unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
            )
        known = [field.name for field in fields(cls)]
        values: dict[str, Any] = {"preset": preset, **PRESETS[preset]}
        for name, value in changed.items():
            if name not in known:
                raise ArgumentError(f"Unknown setting {name!r}.{did_you_mean(name, known)}")
            values[name] = tuple(value) if isinstance(value, list) else value
        if texts := changed.get("texts"):
            values["texts_digest"] = digest_of_texts(texts)
        if syntax := changed.get("syntax"):
            values["syntax_digest"] = digest_of_pairs(syntax)
        return cls(**values)

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        settings: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            settings[field.name] = list(value) if isinstance(value, tuple) else value
        return settings


COUNTS = {
    "seed": 0,
    "held_out": 0,
    "max_moves": 0,
    "across_samples": 0,
    "limit": 1,
    "n_steps": 1,
    "min_prompts": 1,
    "n_resamples": 1,
    "check_draws": 1,
    "erase_top": 1,
    "dose_facts": 1,
    "update_facts": 1,
    "update_others": 1,
    "erase_facts": 1,
    "erase_others": 1,
    "editor_facts": 1,
    "editor_wordings": 1,
    "editor_others": 1,
    "rome_layer": 0,
    "text_sentences": 1,
    "check_facts": 1,
    "syntax_forms": 1,
    "syntax_sentences": 1,
    "syntax_facts": 1,
}
"""Smallest value of settings that are whole numbers."""
SHARES = ("keep", "attr_threshold", "share_threshold", "baseline_threshold", "max_share")
POSITIVE = ("tolerance", "share_step")
NUMBERS = {"doses": None, "lambdas": 2}
"""Lists of numbers, and how many they hold."""
TEXTS = ("relations", "inverses", "synonyms", "editors")
LAYERS = ("memit_layers",)
FLAGS = ("update_signed",)
CHOICES = {
    "quadrature": QUADRATURES,
    "baseline": get_args(Baseline),
    "start": ("auto", *STARTS),
    "side": SIDES,
    "update_scaling": get_args(Scaling),
}


def _expected(name: str, value: Any) -> str:
    """Return a description of the values that a setting may have; empty if the value is one of them."""
    if name in COUNTS:
        smallest = COUNTS[name]
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if is_whole and value >= smallest else f"a whole number from {smallest}."
    if name in SHARES:
        return "" if _is_number(value) and 0 <= value <= 1 else "a share from 0 to 1."
    if name in POSITIVE:
        return "" if _is_number(value) and value > 0 else "a positive number."
    if name in NUMBERS:
        fitting = isinstance(value, tuple) and value and all(map(_is_number, value))
        n_numbers = NUMBERS[name]
        if fitting and n_numbers in (None, len(value)):
            return ""
        return f"{n_numbers or ''} numbers, such as [0.5, 2].".lstrip()
    if name in TEXTS:
        fitting = isinstance(value, tuple) and is_list_of(str, value)
        return "" if fitting else "a list of texts."
    if name in LAYERS:
        fitting = isinstance(value, tuple) and is_list_of(int, value) and all(layer >= 0 for layer in value)
        return "" if fitting and len(set(value)) == len(value) else "different layers, such as [3, 4, 5]."
    if name in FLAGS:
        return "" if isinstance(value, bool) else "true or false."
    if name in CHOICES:
        known = CHOICES[name]
        if value in known:
            return ""
        return f"one of {', '.join(known)}.{did_you_mean(str(value), known)}"
    return "" if isinstance(value, str) else "a text."


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that a float holds."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return abs(value) <= sys.float_info.max


def _updates(preset: str) -> dict[str, Any]:
    """Return the settings of updates in a preset."""
    lambdas, scaling, signed = UPDATE_FORMS[preset]
    return {"lambdas": lambdas, "update_scaling": scaling, "update_signed": signed}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "kn_lens": {},
    "paper": {
        "quadrature": "right",
        "n_steps": 20,
        "share_threshold": defaults.SHARE_THRESHOLD + MORE_THAN,
        "min_prompts": 1,
        "max_moves": 20,  # from 0.7 no share is further away
        "baseline": "refined",
        "across_samples": 100,
        **_updates("paper"),
    },
    "official": {
        "quadrature": "left",
        "n_steps": 20,
        "max_moves": 5,
        "baseline": "refined",
        "across_samples": 100,
        **_updates("official"),
    },
}
