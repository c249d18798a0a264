"""Credentials appear in no file of a run, no output and no error."""

import json

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import kn_lens as kn
from kn_lens._core.redact import without_secrets
from kn_lens.runs.studies.mirror import working_copy
from tests.reliability.tries import TRIED, timed
from tests.tiny import tiny_checkpoint

SECRET = "s3cr3tPassw0rd"
TOKEN = "hf_" + "aB3" * 12
FACTS = [
    {"subject": country, "relation": relation, "object": answer, "templates": templates}
    for country, capital in {"Ireland": "Dublin", "Peru": "Lima"}.items()
    for relation, answer, templates in (
        ("P36", capital, ["The capital of [X] is [Y].", "[X] is led from [Y].", "[X]: [Y]"]),
        ("P9", country, ["[X] is [Y].", "[X], that is [Y]", "[X]: [Y]"]),
    )
]


class Vault(MemoryFileSystem):
    """A store whose addresses carry a user name and a password; it can be made to fail."""

    protocol = "vault"
    store, pseudo_dirs = {}, [""]
    cachable = False
    broken = False

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.rpartition("@")[2])

    @staticmethod
    def _get_kwargs_from_urls(path):
        user, _, password = path.partition("://")[2].partition("@")[0].partition(":")
        return {"user": user, "password": password}

    def _open(self, path, mode="rb", **options):
        if self.broken and "w" in mode:
            raise OSError(f"403 for vault://key:{SECRET}@host/{path}?sig={SECRET}&token={TOKEN}")
        return super()._open(path, mode, **options)


@pytest.fixture
def vault(monkeypatch):
    fsspec.register_implementation("vault", Vault, clobber=True)
    monkeypatch.setattr(Vault, "store", {})
    monkeypatch.setattr(Vault, "pseudo_dirs", [""])
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, TOKEN)
    return f"vault://key:{SECRET}@host/study"


@pytest.fixture
def study(tmp_path):
    tiny_checkpoint("BertForMaskedLM", tmp_path / "tiny")
    (tmp_path / "facts.jsonl").write_text("".join(json.dumps(fact) + "\n" for fact in FACTS))
    path = tmp_path / "study.toml"
    path.write_text(
        'stages = ["answers"]\n[[facts]]\nsource = "facts.jsonl"\n[[models]]\nmodel = "tiny"\n'
        '[[models]]\nmodel = "none-such"\ntags = { size = "small" }\n'
    )
    return path


def leaks(*texts):
    return [text for text in texts if SECRET in text or TOKEN in text]


def test_a_study_in_a_store_with_a_password_does_not_reveal_it(cli, vault, study, tmp_path):
    said = [cli("study", study, "--out", vault), cli("study", study, "--out", vault, "--json")]
    assert [code for code, _, _ in said] == [1, 1]  # one of the models is not there
    stored = {name: bytes(file.getvalue()) for name, file in Vault.store.items()}
    assert any(name.endswith("answers.csv") for name in stored)
    assert not leaks(*(text for _, *streams in said for text in streams), *stored)
    assert not leaks(*(content.decode("utf-8", "replace") for content in stored.values()))
    assert "vault://***@host/study" in said[0][1]
    TRIED["secrets: addresses and texts", "kept to themselves"] += 2


def test_errors_of_a_store_do_not_reveal_credentials(cli, vault, study, monkeypatch):
    monkeypatch.setattr(Vault, "broken", True)
    code, out, err = cli("study", study, "--out", vault)
    assert code == 2 and "403 for vault://***@host" in err and not leaks(out, err)
    TRIED["secrets: addresses and texts", "kept to themselves"] += 1


@pytest.mark.parametrize(
    "address", [f"s3://key:{SECRET}@bucket/x", f"nosuch://{SECRET}@host", f"http://u:{SECRET}@[bad/x?token={TOKEN}"]
)
def test_errors_of_unopenable_addresses_do_not_reveal_credentials(cli, study, address):
    code, out, err = cli("study", study, "--out", address)
    assert code == 2 and err.startswith("kn-lens: error:") and not leaks(out, err)
    TRIED["secrets: addresses and texts", "kept to themselves"] += 1


@pytest.mark.parametrize("text", [f"https://me:{SECRET}@host/model", TOKEN, f"https://host/m?access_token={SECRET}"])
def test_a_study_file_with_credentials_is_refused(study, text):
    """The file is copied into the results."""
    study.write_text(study.read_text().replace('"none-such"', f'"{text}"'))
    with pytest.raises(kn.DataError, match="would be copied into the results") as caught:
        kn.read_study(study)
    assert not leaks(str(caught.value))
    TRIED["secrets: addresses and texts", "kept to themselves"] += 1


@pytest.mark.parametrize(
    "address",
    [
        f"https://user:{SECRET}@host/f", f"https:/user:{SECRET}@host/f", f"https:user:{SECRET}@host/f",
        f"HTTPS://USER:{SECRET}@HOST/F", f"s3:/key:{SECRET}/+=@bucket/x", f"s3://key:{SECRET}@more@bucket/x",
        f"https%3A%2F%2Fuser%3A{SECRET}%40host%2Ff", f"https://user:{SECRET}%40x@host", f"git+https://{SECRET}@host/x",
        f"https://host/f?token={SECRET}", f"https:/host/f?X-Amz-Signature={SECRET}&x=1", f"https://host/#key={SECRET}",
        f"https%3A%2F%2Fhost%2Ff%3Ftoken%3D{SECRET}%26a%3D1", f"az:user:{SECRET}@host", f"https://user:{SECRET}'x@host",
    ],
)  # fmt: skip
def test_no_command_prints_the_credentials_of_an_address(cli, study, address):
    for args in (
        ("data", "read", address), ("find", "--facts", address), ("find", "--model", address, "--subject", "Ireland"),
        ("intervene", "--neurons", address), ("edit", "show", address), ("reproduce", "--out", study, "-f", address),
        ("report", address), ("compare", address, study), ("study", address, "--out", study), ("demo", "-m", address),
        ("find", "--out", f"{address}/x"),
    ):  # fmt: skip
        code, out, err = cli(*args)
        assert code == 2 and not leaks(out, err), args
        TRIED["secrets: addresses and texts", "kept to themselves"] += 1
    with pytest.raises(kn.DataError) as caught:
        kn.FactSet.from_jsonl(address)
    assert not leaks(str(caught.value))
    for text in (address, f"'{address}': no such file", f"<{address}>, and me@host"):
        assert not leaks(without_secrets(text))


def test_redaction_of_long_texts_is_fast():
    for text in ("a://b:" * 20_000, "a." * 50_000, "ab://" + "%3a" * 30_000, "https:x" * 20_000, "&key" * 30_000):
        with timed("secrets: long texts"):
            without_secrets(text)


def test_redaction_keeps_other_text():
    for text in (
        "/home/a@b/run",
        "user@host.org",
        "C:/x",
        "C:\\a@b",
        "hf://datasets/me/x@main",
        "https://host/@scope/package",
        "https://host?author=me",
        "memory://study",
        "50% of 3, see https://x.org/a?page=3#key",
    ):
        assert without_secrets(text) == text


@pytest.mark.parametrize("key", ["../../escaped.txt", "/../escaped.txt", "runs/../../escaped.txt"])
def test_keys_of_a_store_cannot_leave_its_directory(vault, key, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "deep" / "temporary"))
    (tmp_path / "deep" / "temporary").mkdir(parents=True)
    fs, root = fsspec.core.url_to_fs(vault)
    fs.pipe(f"{root}/study.toml", b"")
    with working_copy(vault, "study.toml") as (_, mirror):
        monkeypatch.setattr(Vault, "find", lambda self, path: [f"{root}/{key}"])
        monkeypatch.setattr(Vault, "open", lambda self, *args: pytest.fail("it is opened"))
        with pytest.raises(kn.DataError, match="leads out of"):
            mirror.fetch("runs")
    assert not [path for path in tmp_path.rglob("*") if "escaped" in path.name]
    TRIED["secrets: keys of stores", "refused"] += 1
