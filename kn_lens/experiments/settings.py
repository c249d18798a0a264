"""The settings of a reproduction, and the presets that fix them.

``kn_lens`` is the library's own choice; ``paper`` is what Dai et al. (2022) write; ``official`` what their released
code runs. Where the last two differ from ours, and from each other:

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

``baseline`` says which neurons of high activation stand beside the found ones when neurons are switched off and up:
``matched`` are as many as the found ones, ``refined`` come out of refining the activations (``baseline_threshold``
0.5), and are many more.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from kn_lens.edit_forms import CHOSEN_LAMBDAS, FORMS, Scaling
from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.experiments.corpora import digest_of_texts
from kn_lens.experiments.minimal_pairs import digest_of_pairs
from kn_lens.quadrature import RULES

Baseline = Literal["matched", "refined"]

MORE_THAN = 1e-4
"""Added to a share makes "at least" of it "more than", for facts of up to 500 prompts and shares in steps of 0.05."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the results depend on besides model and data.

    Attributes:
        preset: what the other settings start from.
        seed: of everything drawn at random.
        limit: facts of each relation at most, drawn at random; None takes all.
        relations: which; empty takes all.
        held_out: templates of each fact that nothing is found with and that updates are asked in, drawn at random.
        quadrature: a rule of ``attribute``.
        n_steps: its points; None with ``adaptive``.
        tolerance: of the completeness gap.
        keep: share of a prompt's largest score from which scores are stored.
        attr_threshold: ``t`` of the coarse sets.
        share_threshold: where ``p`` of the refined sets starts, for each relation.
        share_step: what it moves by.
        max_moves: how often.
        min_prompts: how many prompts a neuron must be shared by; facts with fewer are not asked.
        baseline_threshold: ``t`` for activations.
        baseline: see above.
        across_samples: facts of other relations that each fact is compared with; 0 takes the mean over all of them.
        doses: factors of the dose-response curve; 1 changes nothing and need not be among them.
        dose_facts: facts of each relation that it is measured on, at most.
        n_resamples: of the bootstrap.
        update_facts: known facts of each relation that are updated, at most.
        update_others: other facts of the relation, and as many of other relations, that each update is measured on.
        lambdas: of the old and of the new answer; see ``update_fact``.
        update_scaling: see ``update_fact``.
        update_signed: see ``signed`` of ``update_fact``.
        max_share: neurons in more than this share of a relation's facts are not updated.
        inverses: relations and their inverse, ``"P36=P1376"``: updates are asked the other way round.
        synonyms: names and another name of the same, ``"Tokyo=Edo"``: updates to the first are asked for the second.
        erase_top: so many of a relation's most frequent neurons are erased.
        erase_value: what their rows become; see ``erase_neurons``.
        erase_facts: facts of the relation that its erasure is measured on, at most.
        erase_others: facts of other relations that each erasure is measured on.
        texts: a folder in the format of BingRel or a file of plain text; None takes the facts' own sentences.
        texts_digest: of what is there; ``of`` puts it in.
        text_sentences: of each kind, read for each fact, at most.
        check_facts: facts of each relation that stability and other methods are looked at on, at most.
        check_draws: how often a share of a fact's prompts is drawn.
        syntax: a file or folder of minimal pairs in the format of BLiMP; None takes the embedded ones.
        syntax_digest: of what is there; ``of`` puts it in.
        syntax_forms: of each phenomenon, at most: those with the most sentences.
        syntax_sentences: of each form, at most, drawn at random.
        syntax_facts: facts, of all relations together, that phenomena are compared with, at most.
    """

    preset: str = "kn_lens"
    seed: int = 0
    limit: int | None = None
    relations: tuple[str, ...] = ()
    held_out: int = 0
    quadrature: str = "adaptive"
    n_steps: int | None = None
    tolerance: float = 1e-3
    keep: float = 0.1
    attr_threshold: float = 0.2
    share_threshold: float = 0.7
    share_step: float = 0.05
    max_moves: int = 6
    min_prompts: int = 3
    baseline_threshold: float = 0.5
    baseline: Baseline = "matched"
    across_samples: int = 0
    doses: tuple[float, ...] = (0.0, 0.5, 1.5, 2.0, 2.5, 3.0)
    dose_facts: int = 20
    n_resamples: int = 1000
    update_facts: int = 10
    update_others: int = 10
    lambdas: tuple[float, float] = CHOSEN_LAMBDAS
    update_scaling: Scaling = "norm"
    update_signed: bool = True
    max_share: float = 0.1
    inverses: tuple[str, ...] = ("P36=P1376", "P1376=P36")
    synonyms: tuple[str, ...] = ()
    erase_top: int = 20
    erase_value: str = "zero"
    erase_facts: int = 200
    erase_others: int = 100
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
        """Refuse what a stage would stumble over later.

        Raises:
            ArgumentError: a value of another type or out of its range, or scores that would be read and are not stored.
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

    @classmethod
    def of(cls, preset: str = "kn_lens", **changed: Any) -> "Settings":
        """Return the settings of a preset, with some of them changed; lists may stand for tuples, as in JSON.

        Raises:
            ArgumentError: no such preset or setting.
            DataError: there are no such texts or minimal pairs.

        >>> Settings.of("official", seed=3).quadrature
        'left'
        """
        if preset not in PRESETS:
            raise ArgumentError(
                f"Unknown preset {preset!r}; expected one of {', '.join(PRESETS)}.{did_you_mean(preset, PRESETS)}"
            )
        known = [field.name for field in fields(cls)]
        for name in changed:
            if name not in known:
                raise ArgumentError(f"Unknown setting {name!r}.{did_you_mean(name, known)}")
        if texts := changed.get("texts"):
            changed["texts_digest"] = digest_of_texts(texts)
        if syntax := changed.get("syntax"):
            changed["syntax_digest"] = digest_of_pairs(syntax)
        changed = {name: tuple(value) if isinstance(value, list) else value for name, value in changed.items()}
        return cls(**{"preset": preset, **PRESETS[preset], **changed})

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


COUNTS = {
    **dict.fromkeys(("seed", "held_out", "max_moves", "across_samples"), 0),
    **dict.fromkeys(("limit", "n_steps", "min_prompts", "n_resamples", "check_draws", "erase_top"), 1),
    **dict.fromkeys(("dose_facts", "update_facts", "update_others", "erase_facts", "erase_others"), 1),
    **dict.fromkeys(("text_sentences", "check_facts", "syntax_forms", "syntax_sentences", "syntax_facts"), 1),
}
"""The least that whole numbers may be."""
SHARES = ("keep", "attr_threshold", "share_threshold", "baseline_threshold", "max_share")
POSITIVE = ("tolerance", "share_step")
NUMBERS = {"doses": None, "lambdas": 2}
"""Lists of numbers, and how many they hold."""
TEXTS = ("relations", "inverses", "synonyms")
FLAGS = ("update_signed",)
CHOICES = {"quadrature": ("adaptive", *RULES), "baseline": get_args(Baseline), "update_scaling": get_args(Scaling)}


def _expected(name: str, value: Any) -> str:
    """Return what was expected of a setting, empty where the value is that."""
    if name in COUNTS:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return "" if whole and value >= COUNTS[name] else f"a whole number from {COUNTS[name]}."
    if name in SHARES:
        return "" if _is_number(value) and 0 <= value <= 1 else "a share from 0 to 1."
    if name in POSITIVE:
        return "" if _is_number(value) and value > 0 else "a positive number."
    if name in NUMBERS:
        fitting = isinstance(value, tuple) and value and all(map(_is_number, value))
        expected = f"{NUMBERS[name] or ''} numbers, such as [0.5, 2].".lstrip()
        return "" if fitting and len(value) == (NUMBERS[name] or len(value)) else expected
    if name in TEXTS:
        texts = isinstance(value, tuple) and all(isinstance(one, str) for one in value)
        return "" if texts else "a list of texts."
    if name in FLAGS:
        return "" if isinstance(value, bool) else "true or false."
    if name in CHOICES:
        known = CHOICES[name]
        return "" if value in known else f"one of {', '.join(known)}.{did_you_mean(str(value), known)}"
    return "" if isinstance(value, str) else "a text."


def _is_number(value: Any) -> bool:
    """Return whether a value is a number that a float holds."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _updates(preset: str) -> dict[str, Any]:
    """Return the settings of updates as a preset of theirs has them."""
    lambdas, scaling, signed = FORMS[preset]
    return {"lambdas": lambdas, "update_scaling": scaling, "update_signed": signed}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "kn_lens": {},
    "paper": {
        "quadrature": "right",
        "n_steps": 20,
        "share_threshold": 0.7 + MORE_THAN,
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
