"""``kn-lens find``: the knowledge neurons of facts, written to a file."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._options import METHOD, check_out, choice, option
from kn_lens.cli._run import ask, attributed, described, in_bytes, load
from kn_lens.cli._tables import found_table, left_out_lines
from kn_lens.cli._terminal import out, print_json, working
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact

if TYPE_CHECKING:
    from kn_lens.attribution import Attribution
    from kn_lens.neurons import NeuronSet


def find(
    model: options.Model = "world-bert",
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = "all",
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    leave_out_unknown: options.LeaveOutUnknown = False,
    method: Annotated[str, choice(options.METHODS, "How neurons are scored", METHOD)] = "integrated_gradients",
    output: Annotated[str, choice(options.OUTPUTS, "What the scores explain", METHOD)] = "prob",
    contrast: Annotated[str | None, option(METHOD, "TEXT", "The other answer of --output logit_diff.")] = None,
    preset: Annotated[str | None, choice(options.PRESETS, "Quadrature of the paper or of its code", METHOD)] = None,
    quadrature: Annotated[str, choice(options.QUADRATURES, "Rule for the integral", METHOD)] = "adaptive",
    n_steps: Annotated[int | None, option(METHOD, "N", "Points of a fixed rule; 20 unless given.", min=1)] = None,
    tolerance: Annotated[
        float, option(METHOD, "SHARE", "Completeness gap allowed, relative to the clean output.", min=0)
    ] = 1e-3,
    attr_threshold: Annotated[
        float, option(METHOD, "SHARE", "Of a prompt's largest score, to be in its coarse set.", min=0, max=1)
    ] = 0.2,
    share_threshold: Annotated[
        float, option(METHOD, "SHARE", "Of a fact's prompts that must have the neuron in their set.", min=0, max=1)
    ] = 0.7,
    min_prompts: Annotated[int, option(METHOD, "N", "And at least so many prompts.", min=1)] = 3,
    by_relation: Annotated[
        bool,
        typer.Option(
            "--by-relation",
            help="Move --share-threshold for each relation until its facts have 2 to 5 neurons.",
            rich_help_panel=METHOD,
        ),
    ] = False,
    to: options.Out = None,
    json: options.Json = False,
) -> None:
    """Find the knowledge neurons of facts, with an error bar for each fact.

    Every fact is asked in all of its templates; a neuron is a fact's when it carries the answer in most of them.
    """
    _check_consistent(preset, quadrature, n_steps, tolerance, output, contrast)
    memory_budget = in_bytes(memory)
    check_out(to, facts, templates)
    chosen = choose(read_facts(facts, format, templates, split), relation, subject, limit, seed)
    loaded = load(model, device, dtype)
    # Facts with fewer prompts could have no neurons, which refining would say after the model has run.
    prompts = ask(loaded, chosen, leave_out=leave_out_unknown, contrast=contrast, min_prompts=min_prompts)
    counts = prompts.prompts_per_fact()

    how: dict[str, Any] = {"method": method, "output": output, "preset": preset, "quadrature": quadrature}
    how |= {"n_steps": n_steps, "tolerance": tolerance}
    thresholds = {"attr_threshold": attr_threshold, "share_threshold": share_threshold, "min_prompts": min_prompts}
    neurons: dict[Fact, NeuronSet] = {}
    shares: dict[str, float] = {}
    rows: dict[Fact, dict[str, Any]] = {}
    rule = ""
    for attr in attributed(
        loaded, prompts, f"Attributing {len(prompts):,} prompts", whole_relations=by_relation,
        memory_budget=memory_budget, **how,
    ):  # fmt: skip
        found, moved = _refined(attr, thresholds, by_relation)
        neurons |= found
        shares |= moved
        rows |= _rows(attr, found)
        rule = attr.quadrature
    ordered = {fact: neurons[fact] for fact in counts if fact in neurons}  # parts may go through relations in turn

    settings = how | thresholds | {"by_relation": by_relation, "split": split, "seed": seed}
    document = {
        "command": "find",
        "model": described(loaded),
        "settings": settings,
        "quadrature": rule,
        "n_prompts": len(prompts),
        "left_out": dict(prompts.left_out),
        "facts_without_prompts": [fact.key for fact, n in counts.items() if not n],
        "share_threshold_by_relation": shares if by_relation else None,
        "facts": [rows[fact] for fact in ordered],
        "out": None if to is None else str(to),
    }
    if to is not None:
        write_neurons(to, ordered, loaded, document)
    if json:
        print_json(document)
        return
    out.print(found_table(document))
    for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Neurons written to {to}", soft_wrap=True)


def _check_consistent(
    preset: str | None, quadrature: str, n_steps: int | None, tolerance: float, output: str, contrast: str | None
) -> None:
    """Raise, before anything is loaded, when options contradict each other.

    Raises:
        ArgumentError: naming them.
    """
    if preset is not None and (quadrature != "adaptive" or n_steps is not None):
        raise ArgumentError(
            f"--preset {preset} fixes the quadrature; leave out --quadrature and --n-steps, or --preset."
        )
    if n_steps is not None and quadrature == "adaptive":
        raise ArgumentError("--n-steps is for a fixed rule; name one, such as --quadrature gauss-legendre.")
    if not 0 < tolerance < math.inf:
        raise ArgumentError(f"--tolerance {tolerance}; expected a positive number, such as 1e-3.")
    if (output == "logit_diff") != (contrast is not None):
        raise ArgumentError("--output logit_diff and --contrast ANSWER, the answer to compare with, need each other.")


def write_neurons(path: Any, neurons: "dict[Fact, NeuronSet]", model: Any, document: dict[str, Any]) -> None:
    """Write the sets with what they were found in and with."""
    from kn_lens.neurons import NeuronSet

    kept = ("settings", "quadrature", "share_threshold_by_relation")
    with working("Reading the weights for their digest"):
        NeuronSet.write_many(path, neurons, model=model, **{key: document[key] for key in kept})


def _refined(
    attr: "Attribution", thresholds: dict[str, Any], by_relation: bool
) -> "tuple[dict[Fact, NeuronSet], dict[str, float]]":
    from kn_lens.neurons import refine, refine_by_relation

    if not by_relation:
        return refine(attr, **thresholds), {}
    refinement = refine_by_relation(attr, **thresholds)
    return refinement.neurons, refinement.share_threshold


def _rows(attr: "Attribution", found: "dict[Fact, NeuronSet]") -> dict[Fact, dict[str, Any]]:
    """Sum up what was found of each fact; gaps are in the output's unit, and null where the method promises no sum."""
    prompts, gaps, unconverged = attr.prompts, attr.completeness_gap.abs(), ~attr.converged
    rows = {}
    for number in prompts.fact_index.unique().tolist():
        fact, mine = prompts.facts[number], prompts.fact_index == number
        gaps_here = gaps[mine]
        rows[fact] = {
            "key": fact.key,
            "subject": fact.subject,
            "relation": fact.relation,
            "object": fact.object,
            "n_prompts": int(mine.sum()),
            "mean_output": attr.clean[mine].mean().item(),
            "neurons": [[neuron.layer, neuron.index] for neuron in found[fact]],
            "largest_gap": None if gaps_here.isnan().all() else gaps_here.nan_to_num(0).max().item(),
            "n_pairs": gaps_here.numel(),
            "n_unconverged": int(unconverged[mine].sum()),
            "mean_points": attr.n_points[mine].double().mean().item(),
        }
    return rows
