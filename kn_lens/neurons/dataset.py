"""Neuron sets as a folder that the ``datasets`` library and the Hugging Face hub read: a table and its card.

    neurons.parquet   one row a fact: key, relation, relation_label, subject, object, uid, language, templates,
                      neurons, model
    README.md         the card: YAML for the hub, the model with the digest of its weights, how to read the table

``neurons`` is a list of ``[layer, index]``, which ``NeuronSet`` takes as it is.
"""

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kn_lens._core.atomic import writing_folder
from kn_lens._core.checks import check_path
from kn_lens._core.escape import shown
from kn_lens._core.wording import counted
from kn_lens.errors import ArgumentError, DataError
from kn_lens.facts import Fact
from kn_lens.hosts import HookedModel, Host, ModelIdentity, exclusive, host_of
from kn_lens.neurons.neuron_set import NeuronSet, check_neurons_by_fact

TABLE = "neurons.parquet"
CARD = "README.md"
TAGS = ("knowledge-neurons", "mechanistic-interpretability", "transformer-lens")
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("relation", pa.string()),
        ("relation_label", pa.string()),
        ("subject", pa.string()),
        ("object", pa.string()),
        ("uid", pa.string()),
        ("language", pa.string()),
        ("templates", pa.list_(pa.string())),
        ("neurons", pa.list_(pa.list_(pa.int32()))),
        ("model", pa.string()),
    ]
)
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
"""The hub's categories of the number of rows, each with its upper limit."""


@exclusive
def write_dataset(
    folder: str | PathLike[str],
    neurons_by_fact: Mapping[Fact, NeuronSet],
    *,
    model: HookedModel | Host,
    license: str | None = None,
    **meta: Any,
) -> Path:
    """Write neuron sets as a new folder that ``datasets.load_dataset`` reads, with a card. Nothing is uploaded.

    Args:
        folder: the folder to make. It appears whole or not at all.
        neurons_by_fact: the sets, with their facts.
        model: the model of the neurons; its name, shape and the digest of its weights go into the card.
        license: the licence of the data, by the hub's identifier, such as ``"cc-by-4.0"``.
        **meta: how the sets were found, such as ``attr_threshold=0.2``: rows of the card.

    Returns:
        The folder.

    Raises:
        ArgumentError: another kind of argument, no facts, or a neuron that the model does not have.
        DataError: the folder exists or cannot be made.

    Example:
        >>> import tempfile, kn_lens as kn
        >>> model, fact = kn.load_model("world-bert"), kn.FactSet.world().find("Ireland", "P36")
        >>> folder = write_dataset(Path(tempfile.mkdtemp(), "sets"), {fact: kn.NeuronSet(["L2N7"])}, model=model)
        >>> sorted(path.name for path in folder.iterdir())
        ['README.md', 'neurons.parquet']
    """
    check_path(folder, "folder")
    check_neurons_by_fact(neurons_by_fact)
    if not neurons_by_fact:
        raise ArgumentError("There are no facts to write; expected a set for at least one: {fact: neurons}.")
    host = host_of(model)
    for neurons in neurons_by_fact.values():
        neurons.check(host)
    identity = ModelIdentity.of(host)
    folder = Path(folder)
    if folder.exists() or folder.is_symlink():
        raise DataError(f"{folder} exists; expected the name of a folder to make. Remove it, or take another name.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with writing_folder(folder) as part:
            pq.write_table(_table(neurons_by_fact, identity), part / TABLE)
            (part / CARD).write_text(_card(neurons_by_fact, identity, license, meta), encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{folder} cannot be written: {reason}.") from error
    return folder


def _table(neurons_by_fact: Mapping[Fact, NeuronSet], identity: ModelIdentity) -> pa.Table:
    rows = []
    for fact, neurons in neurons_by_fact.items():
        row = {
            "key": fact.key,
            "relation": fact.relation,
            "relation_label": fact.relation_label,
            "subject": fact.subject,
            "object": fact.object,
            "uid": fact.uid,
            "language": fact.language,
            "templates": list(fact.templates),
            "neurons": list(map(list, neurons)),
            "model": shown(identity.name),
        }
        rows.append(row)
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _card(
    neurons_by_fact: Mapping[Fact, NeuronSet],
    identity: ModelIdentity,
    license: str | None,
    meta: Mapping[str, Any],
) -> str:
    """Return the text of the card: YAML between rules, then Markdown."""
    name = shown(identity.name)
    header: dict[str, Any] = {"pretty_name": f"Knowledge neurons of {name}"}
    if license is not None:
        header["license"] = license
    header["tags"] = list(TAGS)
    header["size_categories"] = [_size_category(len(neurons_by_fact))]
    header["configs"] = [{"config_name": "default", "data_files": [{"split": "train", "path": TABLE}]}]
    yaml = []
    for key, value in header.items():
        # A JSON value is a YAML value, with every text quoted.
        yaml.append(f"{key}: {json.dumps(value, ensure_ascii=False)}")
    n_neurons = sum(len(neurons) for neurons in neurons_by_fact.values())
    relations = dict.fromkeys(fact.relation_name for fact in neurons_by_fact)
    rows: dict[str, Any] = {
        "model": name,
        "architecture": identity.architecture,
        "layers, neurons in each": f"{identity.n_layers}, {identity.d_mlp}",
        "digest of the weights": identity.digest or "none: the weights have been processed",
        "facts": f"{len(neurons_by_fact):,}, with {n_neurons / len(neurons_by_fact):.1f} neurons each",
        "relations": ", ".join(relations),
        **meta,
    }
    lines = ["---", *yaml, "---", "", f"# Knowledge neurons of {name}", ""]
    lines += [
        f"The neurons of {counted(len(neurons_by_fact), 'fact')} in the MLPs of `{name}`, written by kn_lens. A neuron",
        "`[layer, index]` is the row `index` of the layer's `W_out` and the entry `index` of `mlp.hook_post`; it means",
        "nothing in another model.",
        "",
        "| | |",
        "|---|---|",
    ]
    for label, value in rows.items():
        lines.append(f"| {_cell(label)} | {_cell(value)} |")
    lines += [
        "",
        "```python",
        "import datasets",
        "import kn_lens as kn",
        "",
        'rows = datasets.load_dataset("PATH OR NAME OF THIS DATASET", split="train")',
        'sets = {row["key"]: kn.NeuronSet(row["neurons"]) for row in rows}',
        "```",
        "",
        "`key` names the fact: `kn.match_facts(sets, facts)` finds it among facts of your own.",
        "",
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return shown(str(value)).replace("|", "\\|")


def _size_category(n_rows: int) -> str:
    for limit, category in SIZES:
        if n_rows < limit:
            return category
    return "1M<n<10M"
