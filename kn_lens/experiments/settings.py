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

``baseline`` says which neurons of high activation stand beside the found ones when neurons are switched off and up:
``matched`` are as many as the found ones, ``refined`` come out of refining the activations (``baseline_threshold``
0.5), and are many more.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from kn_lens.errors import ArgumentError, did_you_mean
from kn_lens.experiments.corpora import digest_of_texts
from kn_lens.experiments.minimal_pairs import digest_of_pairs

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
        max_share: neurons in more than this share of a relation's facts are not updated.
        inverses: relations and their inverse, ``"P36=P1376"``: updates are asked the other way round.
        synonyms: names and another name of the same, ``"Tokyo=Edo"``: updates to the first are asked for the second.
        erase_top: so many of a relation's most frequent neurons are erased.
        erase_value: what their rows become; see ``erase_neurons``.
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
    update_others: int = 20
    lambdas: tuple[float, float] = (1.0, 8.0)
    update_scaling: Literal["norm", "plain"] = "norm"
    max_share: float = 0.1
    inverses: tuple[str, ...] = ("P36=P1376", "P1376=P36")
    synonyms: tuple[str, ...] = ()
    erase_top: int = 20
    erase_value: str = "zero"
    erase_others: int = 100
    texts: str | None = None
    texts_digest: str = ""
    text_sentences: int = 10
    check_facts: int = 10
    check_draws: int = 3
    syntax: str | None = None
    syntax_digest: str = ""
    syntax_forms: int = 10
    syntax_sentences: int = 30
    syntax_facts: int = 40

    def __post_init__(self) -> None:
        """Refuse pairs that are none."""
        for text in (*self.inverses, *self.synonyms):
            if not all(text.partition("=")):
                raise ArgumentError(f"{text!r} is no pair; expected such as 'P36=P1376' (inverses) or 'Tokyo=Edo'.")

    @classmethod
    def of(cls, preset: str = "kn_lens", **changed: Any) -> "Settings":
        """Return the settings of a preset, with some of them changed.

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
        return cls(**{"preset": preset, **PRESETS[preset], **changed})

    def as_dict(self) -> dict[str, Any]:
        """Return the settings as JSON has them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


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
        "update_scaling": "plain",
    },
    "official": {
        "quadrature": "left",
        "n_steps": 20,
        "max_moves": 5,
        "baseline": "refined",
        "across_samples": 100,
    },
}
