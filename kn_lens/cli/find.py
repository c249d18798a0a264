"""``kn-lens find``: the knowledge neurons of facts, written to a file."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from rich.console import Group

from kn_lens._core import defaults
from kn_lens._core.names import OUTPUTS, POSITION_NAMES, PRESETS, QUADRATURES, STARTS, PositionName
from kn_lens._core.wording import counted
from kn_lens.cli import _options as options
from kn_lens.cli._facts import choose, read_facts
from kn_lens.cli._options import METHOD, check_output_path, choice, flag, option
from kn_lens.cli._run import build_prompts, describe_model, load, memory_budget_of, unqueried_facts
from kn_lens.cli._tables import ROWS_SHOWN, left_out_lines, neuron_names, number, table
from kn_lens.cli._terminal import out, print_json, show_progress
from kn_lens.errors import ArgumentError
from kn_lens.facts import Fact, relation_name

if TYPE_CHECKING:
    from kn_lens.neurons import Findings, NeuronSet


def find(
    model: options.Model = "world-bert",
    device: options.Device = None,
    dtype: options.Dtype = defaults.DTYPE,
    side: options.Side = None,
    check: options.Check = True,
    memory: options.Memory = None,
    facts: options.Facts = "world",
    format: options.Format = None,
    templates: options.Templates = None,
    split: options.Split = defaults.SPLIT,
    relation: options.Relations = None,
    subject: options.Subjects = None,
    limit: options.Limit = None,
    seed: options.Seed = 0,
    leave_out_unknown: options.LeaveOutUnknown = False,
    method: Annotated[str, choice(options.METHODS, "Attribution method", METHOD)] = defaults.METHOD,
    target: Annotated[
        str,
        choice(OUTPUTS, "What the scores explain, as a function of the answer's logits", METHOD),
    ] = defaults.OUTPUT,
    contrast: Annotated[
        str | None,
        option(METHOD, "TEXT", "Contrasting answer of --target logit_diff."),
    ] = None,
    preset: Annotated[
        str | None,
        choice(PRESETS, "Quadrature of the paper or of its released code", METHOD),
    ] = None,
    quadrature: Annotated[str, choice(QUADRATURES, "Quadrature rule", METHOD)] = defaults.QUADRATURE,
    n_steps: Annotated[
        int | None,
        option(METHOD, "N", f"Points of a fixed rule; {defaults.N_STEPS} by default.", min=1),
    ] = None,
    tolerance: Annotated[
        float,
        option(METHOD, "SHARE", "Tolerated completeness gap, relative to the clean output.", min=0),
    ] = defaults.TOLERANCE,
    start: Annotated[
        str | None,
        choice(STARTS, "Start of the path; by default mean in a model with a norm after W_out, else zero", METHOD),
    ] = None,
    attr_threshold: Annotated[
        float,
        option(
            METHOD,
            "SHARE",
            "Share of a prompt's largest score: threshold of its coarse set.",
            min=0,
            max=1,
        ),
    ] = defaults.ATTR_THRESHOLD,
    share_threshold: Annotated[
        float,
        option(
            METHOD,
            "SHARE",
            "Share of a fact's prompts whose coarse sets contain a neuron.",
            min=0,
            max=1,
        ),
    ] = defaults.SHARE_THRESHOLD,
    min_prompts: Annotated[
        int,
        option(METHOD, "N", "Minimum number of these prompts.", min=1),
    ] = defaults.MIN_PROMPTS,
    by_relation: Annotated[
        bool,
        flag(
            METHOD,
            "--by-relation",
            "Adaptation of --share-threshold, until a relation's facts have 2 to 5 neurons.",
        ),
    ] = False,
    position: Annotated[
        str,
        choice(POSITION_NAMES, "Token whose activations are attributed", METHOD),
    ] = "read",
    to: options.Out = None,
    json: options.Json = False,
) -> None:
    """Find the knowledge neurons of facts, with an error bar for each fact.

    Each fact is queried in all of its templates. Its neurons are those that carry the answer in most of them.

    Example:
        kn-lens find -r P36 --limit 20 --out neurons.json
    """
    _check_consistent(preset, quadrature, n_steps, tolerance, target, contrast)
    memory_budget = memory_budget_of(memory)
    check_output_path(to, facts, templates)
    chosen = choose(read_facts(facts, format, templates, split), relation, subject, limit, seed)
    loaded = load(model, device, dtype, side=side, check=check)
    from kn_lens.attribution import attribute_in_parts
    from kn_lens.neurons import Findings

    # A fact with fewer prompts cannot have neurons. Excluding it here avoids an error after the model has run.
    prompts = build_prompts(
        loaded,
        chosen,
        leave_out=leave_out_unknown,
        contrast=contrast,
        min_prompts=min_prompts,
    )
    prompts = prompts.at(cast("PositionName", position))

    attribution_options: dict[str, Any] = {
        "method": method,
        "output": target,
        "preset": preset,
        "quadrature": quadrature,
        "n_steps": n_steps,
        "tolerance": tolerance,
        "start": start,
    }
    thresholds: dict[str, Any] = {
        "attr_threshold": attr_threshold,
        "share_threshold": share_threshold,
        "min_prompts": min_prompts,
    }
    neurons: dict[Fact, NeuronSet] = {}
    shares: dict[str, float] = {}
    rows: dict[str, dict[str, Any]] = {}
    rule = path_start = ""
    with show_progress(f"Attributing {len(prompts):,} prompts", unit="prompt-layers") as show:
        parts = attribute_in_parts(
            loaded,
            prompts,
            together="relation" if by_relation else "fact",
            memory_budget=memory_budget,
            progress=show,
            **attribution_options,
        )
        for _, attr in parts:
            found = Findings.of(attr, by_relation=by_relation, **thresholds)
            neurons |= found.neurons_by_fact
            shares |= found.share_threshold
            rows |= _fact_rows(found)
            rule, path_start = attr.quadrature, attr.start
    # Parts may be in order of relations.
    ordered = {fact: neurons[fact] for fact in prompts.facts if fact in neurons}

    settings = {
        **attribution_options,
        **thresholds,
        "by_relation": by_relation,
        "position": position,
        "split": split,
        "seed": seed,
    }
    document = {
        "command": "find",
        "model": describe_model(loaded),
        "settings": settings,
        "quadrature": rule,
        "start": path_start,
        "n_prompts": len(prompts),
        "left_out": dict(prompts.left_out),
        "facts_without_prompts": [fact.key for fact in unqueried_facts(prompts)],
        "share_threshold_by_relation": shares if by_relation else None,
        "facts": [rows[fact.key] for fact in ordered],
        "out": None if to is None else str(to),
    }
    if to is not None:
        _write_neurons(to, ordered, loaded, document)
    if json:
        print_json(document)
        return
    out.print(_found_table(document))
    for line in left_out_lines(document["left_out"], document["facts_without_prompts"]):
        out.print(line, soft_wrap=True)
    if to is not None:
        out.print(f"Neurons written to {to}", soft_wrap=True)


def _check_consistent(
    preset: str | None,
    quadrature: str,
    n_steps: int | None,
    tolerance: float,
    target: str,
    contrast: str | None,
) -> None:
    """Check, before anything is loaded, that no options contradict each other.

    Raises:
        ArgumentError: Some do. The message names them.
    """
    if preset is not None and (quadrature != "adaptive" or n_steps is not None):
        raise ArgumentError(
            f"--preset {preset} fixes the quadrature. Omit either --preset, or --quadrature and --n-steps."
        )
    if n_steps is not None and quadrature == "adaptive":
        raise ArgumentError("--n-steps is for a fixed rule. Name one, such as --quadrature gauss-legendre.")
    if not 0 < tolerance < math.inf:
        raise ArgumentError(f"--tolerance {tolerance}; expected a positive number, such as 1e-3.")
    if (target == "logit_diff") != (contrast is not None):
        raise ArgumentError("--target logit_diff and --contrast ANSWER, the contrasting answer, require each other.")


def _write_neurons(
    path: Path,
    neurons: "dict[Fact, NeuronSet]",
    model: Any,
    document: dict[str, Any],
) -> None:
    """Write the neuron sets with the identity of the model and the settings."""
    from kn_lens.neurons import NeuronSet

    with show_progress("Computing the digest of the weights"):
        NeuronSet.write_many(
            path,
            neurons,
            model=model,
            settings=document["settings"],
            quadrature=document["quadrature"],
            share_threshold_by_relation=document["share_threshold_by_relation"],
        )


def _fact_rows(found: "Findings") -> dict[str, dict[str, Any]]:
    """Return the rows of the summary by fact, as JSON has them: neurons as keys, None in place of a missing gap."""
    rows = {}
    for row in found.summary().to_dict("records"):
        row["neurons"] = [list(neuron) for neuron in row["neurons"]]
        for name in ("largest_gap", "largest_routing_term"):
            if name in row and math.isnan(row[name]):
                row[name] = None
        rows[row["key"]] = row
    return rows


def _found_table(document: Mapping[str, Any]) -> Group:
    """Return one row for each fact, and totals."""
    facts = document["facts"]
    settings = document["settings"]
    n_unconverged = sum(row["n_unconverged"] for row in facts)
    n_pairs = sum(row["n_pairs"] for row in facts)
    numbers = ["prompts", settings["output"], "gap", "n"]
    if n_unconverged:
        numbers.insert(3, "unconverged")
    title = f"{document['model']['name']}: {settings['method']}, {document['quadrature']}"
    if document["start"] not in ("zero", "none"):
        title += f", start: {document['start']}"
    rows = table(title, "", "fact", *numbers, "neurons", right=numbers)
    for row in facts[:ROWS_SHOWN]:
        language = f" ({row['language']})" if row["language"] else ""
        cells = [
            relation_name(row["relation"], row["relation_label"]),
            f"{row['subject']}: {row['object']}{language}".removeprefix(": "),
            str(row["n_prompts"]),
            number(row["mean_output"], ".3f"),
            number(row["largest_gap"]),
            str(len(row["neurons"])),
            neuron_names(row["neurons"]),
        ]
        if n_unconverged:
            cells.insert(5, f"{row['n_unconverged']}/{row['n_pairs']}")
        rows.add_row(*cells)
    gaps = [row["largest_gap"] for row in facts if row["largest_gap"] is not None]
    mean = sum(len(row["neurons"]) for row in facts) / len(facts)
    n_without = sum(not row["neurons"] for row in facts)
    note = (
        f"{counted(len(facts), 'fact')}, {counted(document['n_prompts'], 'prompt')}; {mean:.2f} neurons per fact, "
        f"{counted(n_without, 'fact')} without neurons. "
    )
    if gaps or n_unconverged:
        note += (
            f"Completeness gap at most {number(max(gaps, default=None))}; {n_unconverged:,} of "
            f"{n_pairs:,} (prompt, layer) pairs above tolerance."
        )
        terms = [row["largest_routing_term"] for row in facts if row.get("largest_routing_term") is not None]
        if terms:
            note += f" Routing of later layers held; what it would add is at most {number(max(terms))}."
    else:
        note += f"Scores of {settings['method']} have no completeness gap."
    n_hidden = len(facts) - ROWS_SHOWN
    if n_hidden > 0:
        note += f"\n{n_hidden:,} more facts are not shown; --out and --json contain all."
    return Group(rows, note)
