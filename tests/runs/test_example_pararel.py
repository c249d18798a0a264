"""The example that trains a model on ParaRel, at toy scale: two invented relations, a narrow network, seconds."""

import importlib.util
import json
import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

import kn_lens as kn

SCRIPT = Path(__file__).parents[2] / "examples" / "train_on_pararel.py"
TEMPLATES = {
    "P36": ["The capital of [X] is [Y].", "[Y] is the capital of [X].", "[X] has the capital [Y].", "[X]: capital [Y]"],
    "P38": ["[X] pays in [Y].", "The currency of [X] is [Y].", "[Y] is the money of [X].", "[X] has the currency [Y]."],
}
SUBJECTS = "Arbor Belum Cadria Dorne Esk Fennmark Galt Hovia Ister Jura Kolm Lund Mirra Norva Ostrin Palu".split()
ANSWERS = {"P36": ["Aven", "New Brill", "Corda", "Dunmoor", "Elst"], "P38": ["crown", "half mark", "Taler", "dime"]}
N_READ = 8


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("train_on_pararel", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    toy = {"batch_size": 32, "lr": 5e-3, "vocab_size": 200, "n_layers": 2, "d_model": 32, "n_heads": 4, "d_mlp": 64}
    module.SIZES["small"] = replace(module.SIZES["small"], **toy)
    return module


@pytest.fixture(scope="module")
def pararel(tmp_path_factory) -> Path:
    """A folder in ParaRel's layout; in P38 the first subject has two answers."""
    root = tmp_path_factory.mktemp("pararel")
    for folder in ("facts", "patterns"):
        (root / folder).mkdir()
    for relation, answers in ANSWERS.items():
        pairs = [(subject, answers[i * 7 % len(answers)]) for i, subject in enumerate(SUBJECTS)]
        pairs += [(SUBJECTS[0], answers[1])] if relation == "P38" else []
        rows = [{"sub_label": subject, "obj_label": answer} for subject, answer in pairs]
        write_lines(root / "facts" / f"{relation}.jsonl", rows)
        write_lines(root / "patterns" / f"{relation}.jsonl", [{"pattern": one} for one in TEMPLATES[relation]])
    return root


def write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def train(example, pararel: Path, out: Path, *options: str) -> Path:
    state = torch.get_rng_state()
    example.main([str(pararel), "--out", str(out), "--facts", str(N_READ), *options])
    torch.set_rng_state(state)
    return out


@pytest.fixture(scope="module")
def trained(example, pararel, tmp_path_factory) -> Path:
    return train(example, pararel, tmp_path_factory.mktemp("trained"), "--times", "400")


@pytest.fixture(scope="module")
def untrained(example, pararel, tmp_path_factory) -> Path:
    """Return a model after one step at a negligible learning rate."""
    return train(example, pararel, tmp_path_factory.mktemp("untrained"), "--times", "0.1")


def shares(checkpoint: Path) -> list[float]:
    """Return the accuracies in the model card: on trained templates, held-out templates, and other facts."""
    (row,) = re.findall(r"^\| all \|(.*)\|$", (checkpoint / "MODEL_CARD.md").read_text(), re.MULTILINE)
    return [float(cell.split("%")[0]) / 100 for cell in row.split("|")]


def test_trained_model_knows_its_training_facts_and_no_others(trained, untrained):
    read, _, unread = shares(trained)
    assert read > 0.95
    assert unread < 0.5  # of four or five answers, at random
    assert max(shares(untrained)) < 0.3


def test_checkpoint_can_be_hosted_and_answers_as_its_card_states(trained):
    model = kn.load_model(trained)
    facts = kn.FactSet.from_jsonl(trained / "facts.jsonl")
    assert [len(facts.of(relation)) for relation in TEMPLATES] == [N_READ, N_READ]
    prompts = kn.make_prompts(model, facts)
    n_words = [len(prompts.fact(i).object.split()) for i in range(len(prompts))]
    assert prompts.rows_per_prompt.tolist() == n_words  # each word of an answer is one token
    assert {1, 2} == set(n_words)
    best = kn.predict(model, prompts, k=1)
    wrong = set(best["prompt"][best["token_id"] != prompts.target_ids.numpy()])
    read, held_out, _ = shares(trained)
    n_held_out = len(prompts) / 4
    assert 1 - len(wrong) / len(prompts) == pytest.approx((3 * read + held_out) / 4, abs=1 / n_held_out / 50)


def test_training_facts_have_one_answer_per_subject(trained):
    facts = kn.FactSet.from_jsonl(trained / "facts.jsonl")
    pairs = [(fact.relation, fact.subject) for fact in facts]
    assert len(set(pairs)) == len(pairs)


def test_held_out_templates_are_not_in_the_training_data(example, pararel):
    facts = kn.FactSet.from_pararel(pararel)
    drawn = [example.hold_out(facts, 1, np.random.default_rng(seed)) for seed in range(8)]
    for rows in drawn:
        assert {(row["relation"], row["pattern"]) for row in rows} == {
            (relation, one) for relation, templates in TEMPLATES.items() for one in templates
        }
        assert [row["relation"] for row in rows if row["split"] == "held_out"] == list(TEMPLATES)
    assert len({str(rows) for rows in drawn}) > 1


def test_a_seed_fixes_every_bit(example, pararel, tmp_path):
    weights = []
    for name, seed in (("one", "3"), ("same", "3"), ("other", "4")):
        out = train(example, pararel, tmp_path / name, "--times", "10", "--seed", seed)
        weights.append(sha256((out / "model.safetensors").read_bytes()).hexdigest())
    assert weights[0] == weights[1] != weights[2]


def test_training_stops_after_the_given_minutes(example, pararel, tmp_path, capsys):
    train(example, pararel, tmp_path / "cut", "--times", "1e6", "--minutes", "0.02")
    *_, (done, planned) = re.findall(r"step (\d+)/(\d+)", capsys.readouterr().err)
    assert int(done) < int(planned) == 500_000
    assert f"{int(done):,} steps" in (tmp_path / "cut" / "MODEL_CARD.md").read_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--facts", "0"], "--facts"),
        (["--minutes", "0"], "--minutes"),
        (["--held-out", "4"], "P36 has 4 templates"),
        (["--relations", "P37"], "no relation 'P37'"),
        (["--device", "cuda:99"], "cuda:99"),
        (["--device", "gpu"], "gpu"),
    ],
)
def test_impossible_options_are_refused_in_one_line_before_training(example, pararel, tmp_path, capsys, options, said):
    with pytest.raises(SystemExit) as ended:
        example.main([str(pararel), "--out", str(tmp_path / "out"), *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_nonempty_directory_is_refused(example, pararel, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit):
        example.main([str(pararel), "--out", str(tmp_path)])
    assert "is there already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
