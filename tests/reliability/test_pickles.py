"""Reading never runs code: neither that of a pickle nor that of a checkpoint."""

import ast
import json
from pathlib import Path

import pytest
import torch

import kn_lens
from kn_lens import UnsupportedModelError, load_model
from tests.reliability.tries import TRIED
from tests.tiny import tiny_checkpoint, tiny_model

ROOT = Path(kn_lens.__file__).parent
UNSAFE_MODULES = {"pickle", "cPickle", "shelve", "marshal", "dill", "cloudpickle", "joblib", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "os.system", "os.popen", "torch.load", "np.load", "pd.read_pickle"}


class Payload:
    """An object that writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def checkpoint(tmp_path):
    return tiny_checkpoint("BertForMaskedLM", tmp_path / "checkpoint")


def as_bin(checkpoint: Path, **added: object) -> None:
    """Write the weights in the older format, with another object beside them."""
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save({**weights, **added}, checkpoint / "pytorch_model.bin")


def test_older_checkpoints_are_read(checkpoint):
    """The control of the next test: files of plain tensors are read."""
    as_bin(checkpoint)
    mine, other = load_model(checkpoint, dtype=torch.float64), tiny_model("BertForMaskedLM")
    assert all(map(torch.equal, mine.original_model.parameters(), other.original_model.parameters()))


def test_a_pickle_that_would_run_code_is_refused_without_running_it(checkpoint, tmp_path):
    mark = tmp_path / "it ran"
    as_bin(checkpoint, payload=Payload(mark))
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load_model(checkpoint)
    assert not mark.exists()
    torch.load(checkpoint / "pytorch_model.bin", weights_only=False)
    assert mark.exists()  # it would have
    TRIED["checkpoints: with code", "refused"] += 1


def test_other_pickles_of_a_checkpoint_are_not_opened(checkpoint, tmp_path):
    mark = tmp_path / "it ran"
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"):
        torch.save({"payload": Payload(mark)}, checkpoint / name)
    load_model(checkpoint)
    assert not mark.exists()
    TRIED["checkpoints: with code", "taken, the code not run"] += 1


@pytest.mark.parametrize("known", [True, False])
def test_code_of_a_checkpoint_is_never_run_and_never_prompts_the_user(checkpoint, tmp_path, monkeypatch, known):
    mark = tmp_path / "it ran"
    (checkpoint / "evil.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers asked whether to trust it"))
    for name in ("config.json", "tokenizer_config.json"):
        content = json.loads((checkpoint / name).read_text())
        content["auto_map"] = {
            "AutoConfig": "evil.Config", "AutoModelForMaskedLM": "evil.Model",
            "AutoTokenizer": ["evil.Slow", "evil.Fast"],
        }  # fmt: skip
        if not known:
            content |= {"model_type": "evil", "architectures": ["EvilForMaskedLM"], "tokenizer_class": "EvilTokenizer"}
        (checkpoint / name).write_text(json.dumps(content))
    if known:
        load_model(checkpoint)
    else:
        with pytest.raises(UnsupportedModelError):
            load_model(checkpoint)
    assert not mark.exists()
    TRIED["checkpoints: with code", "taken, the code not run" if known else "refused"] += 1


def test_the_library_contains_no_unpickling_and_no_trust_remote_code():
    """No module imports or calls anything that runs code from a file, which the tests above check for some calls."""
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not UNSAFE_MODULES & {name.split(".")[0] for name in names}, place
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in UNSAFE_CALLS, place
                for keyword in node.keywords:
                    if keyword.arg in ("trust_remote_code", "allow_pickle"):
                        assert ast.unparse(keyword.value) == "False", place
                    if keyword.arg == "weights_only":
                        assert ast.unparse(keyword.value) == "True", place
