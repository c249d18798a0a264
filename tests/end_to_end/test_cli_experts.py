"""The command line on a mixture of experts: a run of all stages, whose records, tables and report name the experts."""

import pytest

import kn_lens as kn
from kn_lens._core.notation import keys_in_columns, neuron_name
from kn_lens.reports.html.neuron_columns import KEY_COLUMNS
from kn_lens.runs.reader import RunRecords, read_records
from kn_lens.runs.stages.order import STAGES
from tests.browser import browsing, opened
from tests.experts import tiny_experts
from tests.tiny import COUNTRIES, tiny_tokenizer

TEMPLATES = ("The capital of [X] is [Y]", "[X] has the capital [Y]")
FEW = (
    "--limit", "2", "--set", "min_prompts=1", "--set", "n_resamples=5", "--set", "doses=[0.5]", "--set", "dose_facts=1",
    "--set", "update_facts=1", "--set", "update_others=1", "--set", "erase_others=1", "--set", "check_facts=1",
    "--set", "text_sentences=1", "--set", "syntax_forms=1", "--set", "syntax_sentences=2", "--set", "syntax_facts=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(cli, folder):
    """A run on a model with dense layers, experts and shared experts."""
    hf_model = tiny_experts("Qwen2MoeForCausalLM")
    hf_model.float().save_pretrained(folder / "model")
    tiny_tokenizer("GPT2LMHeadModel").save_pretrained(folder / "model")
    facts = [kn.Fact(country, "P36", capital, TEMPLATES) for country, capital in list(COUNTRIES.items())[:3]]
    facts += [kn.Fact(fact.object, "P1376", fact.subject, ("[X] is the capital of [Y]",)) for fact in facts]
    kn.FactSet(facts).to_jsonl(folder / "facts.jsonl")
    arguments = ("reproduce", "--model", folder / "model", "--facts", folder / "facts.jsonl", "--out", folder / "run")
    code, _, err = cli(*arguments, *FEW)
    assert code == 0, err
    return RunRecords.read(folder / "run")


def test_all_stages_are_there(run):
    done = {path.name.partition(".")[0] for path in (run.path / "records").iterdir()}
    assert {stage.name for stage in STAGES} <= done


def test_the_neurons_of_the_records_are_those_of_the_calls(run, folder):
    model = kn.load_model(folder / "model")
    records = run.records("neurons")
    found = records.loc[records["neuron_set"] == "found"].set_index("key")
    all_facts = kn.FactSet.from_jsonl(folder / "facts.jsonl")
    some_expert = False
    for _, of_relation in found.groupby("relation"):
        facts = [fact for fact in all_facts if fact.key in of_relation.index]
        attr = kn.attribute(model, kn.make_prompts(model, facts))
        refinement = kn.refine_by_relation(attr, min_prompts=1)
        for fact, neurons in refinement.neurons.items():
            row = of_relation.loc[fact.key]
            assert keys_in_columns(row["layer"], row["expert"], row["index"]) == list(neurons)
            some_expert = some_expert or any(neuron.expert is not None for neuron in neurons)
    assert some_expert


def test_the_table_of_experts_counts_the_neurons_of_the_records(run):
    table = run.tables()["experts"]
    counts = {}
    for _, row in run.records("neurons").iterrows():
        neurons = kn.NeuronSet(keys_in_columns(row["layer"], row["expert"], row["index"]))
        for layer, by_expert in neurons.expert_counts().items():
            for expert, n_neurons in by_expert.items():
                key = row["neuron_set"], layer, str(expert)
                counts[key] = counts.get(key, 0) + n_neurons
    assert counts
    in_table = table.loc[table["n_neurons"] > 0].set_index(["neuron_set", "layer", "expert"])["n_neurons"]
    assert in_table.to_dict() == counts


def test_the_report_names_experts(cli, run):
    assert cli("report", run.path)[0] == 0
    records = run.records("neurons")
    found = records.loc[records["neuron_set"] == "found"].explode(KEY_COLUMNS).dropna(subset=["expert"])
    names = {neuron_name(*map(int, key)) for key in found[KEY_COLUMNS].itertuples(index=False)}
    with browsing() as browser, opened(browser, run.path / "report.html") as page:
        shown = page.locator("#neurons-table").inner_text()
        assert names and all(name in shown for name in names)
        assert "Distribution over experts" in page.locator("body").inner_text()


def test_records_of_a_version_without_experts_are_read(run, tmp_path):
    import pandas as pd

    for stage in ("neurons", "neuron_scores", "readouts"):
        path = next((run.path / "records").glob(f"{stage}*/*.parquet"))
        earlier = pd.read_parquet(path, partitioning=None).drop(columns="expert")
        earlier.to_parquet(tmp_path / "earlier.parquet")
        records = read_records(tmp_path / "earlier.parquet", stage)
        experts = records["expert"].explode() if stage == "neurons" else records["expert"]
        assert len(records) == len(earlier) and experts.isna().all()
