"""No command lets a name in a file of facts or in a checkpoint act on the terminal that it is shown on."""

import io
import json
import os
import re
import shutil
import sys
from contextlib import redirect_stderr, redirect_stdout
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens import _shown
from kn_lens.cli import _terminal
from tests.reliability.test_command_line import COMMANDS
from tests.reliability.tries import TEXTS, TRIED, fuzz
from tests.tiny import COUNTRIES, tiny_checkpoint

NAUGHTY = {
    "clear": "\x1b[2J",
    "clipboard": "\x1b]52;c;ZXZpbA==\x07",
    "title": "\x1b]0;title\x1b\\",
    "bell": "\x07",
    "nothing": "\x08\x08",
    "return": "\rforged",
    "line": "\nkn-lens: forged",
    "tab": "\t",
    "delete": "\x7f",
    "C1": "\x9b2J\x90q\x9c",
    "directions": "\u202ekcab\u202c\u202a\u202b\u202d",
    "isolates": "\u2066\u2067\u2068\u2069",
    "marks": "\u200e\u200f\u061c",
    "separators": "\u2028\u2029",
    "invisible": "\ufeff\U000e0041",
}
ALL = "".join(NAUGHTY.values())
FEW_OF_THEM = "\x1b[2J\x07\x00\n\t\x9b\u202e\u2066\u2028x"
"""In names of relations, which are names of files too."""
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What must not leave: written out, not taken from the library."""
FEW = (
    "--limit", "2", "--set", "n_resamples=5", "--set", "doses=[0.5]", "--set", "dose_facts=1",
    "--set", "update_facts=1", "--set", "update_others=2", "--set", "erase_others=2", "--set", "check_facts=1",
    "--set", "text_sentences=3", "--set", "syntax_forms=1", "--set", "syntax_sentences=4", "--set", "syntax_facts=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Facts and a checkpoint whose names, tokens, relations and paths hold everything above."""
    folder = tmp_path_factory.mktemp("naughty") / ("in" + ALL.replace("\x00", ""))
    folder.mkdir()
    templates = [f"The capital{ALL} of [X] is [Y].", "In fact, [X] has its seat in [Y]", "[X], [Y]."]
    backwards = [f"[X]{ALL} is the capital of [Y].", "The capital [X] of [Y].", "[X] lies in [Y]."]
    rows = []
    for number, (country, capital) in enumerate(COUNTRIES.items()):
        mark = list(NAUGHTY.values())[number % len(NAUGHTY)]
        rows.append(
            {"subject": f"{country}{ALL}", "relation": f"P36{FEW_OF_THEM}", "object": capital, "templates": templates}
        )
        rows.append({"subject": f"{capital}{mark}", "relation": "P1376", "object": country, "templates": backwards})
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_checkpoint("GPT2LMHeadModel", folder / f"model{ALL}", n_positions=512)
    _rename_tokens(model / "tokenizer.json")
    (folder / "study.toml").write_text(
        'stages = ["answers"]\n[settings]\nlimit = 2\n[[facts]]\nname = "f"\nsource = "facts.jsonl"\n'
        f"[[models]]\nname = {_in_toml('m' + FEW_OF_THEM)}\nmodel = {_in_toml(str(model))}\n"
        '[[models]]\nname = "none"\nmodel = "none-such\\u001b[2J"\n'
    )
    return folder, model


def _in_toml(text):
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


def _rename_tokens(path):
    """Give half of the words that the model may answer other texts, which decode to what acts on a terminal."""
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False)
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document["model"]
    asked = {f"\u0120{name}" for pair in COUNTRIES.items() for name in pair}
    merged = {part for pair in model["merges"] for part in (pair if isinstance(pair, list) else pair.split(" "))}
    free = [token for token in model["vocab"] if len(token) > 1 and token not in asked and token not in merged]
    renamed = dict(zip(free, (f"{number}{ALL}" for number in range(len(free))), strict=True))
    model["merges"] = [
        pair for pair in model["merges"] if "".join(pair if isinstance(pair, list) else pair.split(" ")) not in renamed
    ]
    model["vocab"] = {
        spelled.pre_tokenize_str(renamed[token])[0][0] if token in renamed else token: number
        for token, number in model["vocab"].items()
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def test_no_command_lets_a_name_act(cli, place):
    folder, model = place
    facts, neurons, edit = folder / "facts.jsonl", folder / "neurons.json", folder / "edit.safetensors"
    with_model = ("-m", model, "-f", facts)
    relation = ("-r", f"P36{FEW_OF_THEM}")
    one = (*relation, "-s", f"Ireland{ALL}")
    kn.NeuronSet.write_many(
        neurons,
        {
            f"P36{FEW_OF_THEM}/{country}{ALL}/{capital}": kn.NeuronSet([(0, number), (2, number)])
            for number, (country, capital) in enumerate(COUNTRIES.items())
        },
    )
    done = [
        ("data", "read", facts), ("data", "check", facts, "-m", model),
        ("data", "convert", facts, "-o", folder / "again.jsonl"),
        ("find", *with_model, "-o", folder / "found.json"),
        ("intervene", *with_model, "-n", neurons), ("intervene", *with_model, "-n", neurons, "--no-controls"),
        ("edit", "update", *with_model, "-n", neurons, *one, "--object", "Tokyo", "--allow-unknown", "--max-share",
         "1", "-o", edit),
        ("edit", "erase", *with_model, "-n", neurons, *relation, "-o", folder / "erased.safetensors"),
        ("edit", "show", edit), ("edit", "apply", edit, *with_model, "-o", folder / "applied.csv"),
        ("edit", "export", edit, "-m", model, "-o", folder / "exported"),
        ("edit", "export", edit, "-m", model, "-o", folder / "exported too", "--json"),
        ("reproduce", *with_model, "-o", folder / "run", "--dry-run", *FEW),
        ("reproduce", *with_model, "-o", folder / "run", *FEW),
        ("report", folder / "run"), ("models",),
        ("compare", f"a\x1b[2J={folder / 'run'}", f"b={folder / 'run 2'}", "-o", folder / "tables"),
        ("study", folder / "study.toml", "-o", folder / "study"),
    ]  # fmt: skip
    refused = [
        ("data", "read", folder / "none\x1b[2J.jsonl"), ("data", "read", facts, "-r", "\x1b[2J"),
        ("data", "check", facts, "-m", folder / "none\x1b[2J"), ("data", "convert", facts, "-o", folder / ALL / "x"),
        ("find", *with_model, "-s", "\x1b]52;c;\x07"), ("find", *with_model, "-o", folder / ALL / "x"),
        ("find", "-m", "none\x1b[2J"), ("find", *with_model, "--min-prompts", "9"),
        ("intervene", *with_model, "-n", facts), ("edit", "show", facts), ("edit", "apply", model / "config.json"),
        ("edit", "update", *with_model, "-n", neurons, *one, "--object", f"{ALL}Tokio", "-o", folder / "x"),
        ("edit", "erase", *with_model, "-n", neurons, "-r", "P1376", "-o", folder / "x"),
        ("edit", "export", edit, "-m", model, "-o", folder), ("demo", "--fact", f"{ALL}/P36"),
        ("reproduce", *with_model, "-o", folder / "run", *FEW, "--set", f"keep={ALL}"),
        ("reproduce", *with_model, "-o", folder / "run", *FEW, "--relations", "\x9b2J"),
        ("report", folder), ("compare", folder / "run", folder), ("study", facts, "-o", folder / "study"),
        ("find", "--method", "\x1b[2J"), ("\x1b[2J",), ("models", "\x1b[2J"), ("models", "--\x1b[2J"),
    ]  # fmt: skip
    assert {words for words in COMMANDS if not any(args[: len(words)] == words for args in done)} == {("demo",)}
    for args in [*done, *refused]:
        if args[0] == "compare":
            shutil.copytree(folder / "run", folder / "run 2", dirs_exist_ok=True)
        json_too = [(*args, "--json")] if args in done and args[:2] != ("edit", "export") else []
        for asked in [args, *json_too]:
            code, out, err = cli(*asked)
            shown = f"{asked[:2]}: {out[-300:]!r} {err[-600:]!r}"
            assert code == (2 if args in refused else 1 if args[0] == "study" else 0), shown
            assert not ACTS.search(out + err), f"{ACTS.search(out + err)} {shown}"
            assert not re.search("^(kn-lens: )?forged", err, re.M), shown
            if asked in json_too:
                assert json.loads(out)
            TRIED["shown: commands", "refused" if args in refused else "shown"] += 1


def test_what_is_for_machines_is_the_same(cli, place):
    folder, _ = place
    code, out, _ = cli("data", "read", folder / "facts.jsonl", "--json")
    assert code == 0 and f"P36{FEW_OF_THEM}" in json.loads(out)["relations"]
    assert cli("data", "convert", folder / "facts.jsonl", "-o", folder / "same.jsonl")[0] == 0
    assert list(kn.FactSet.from_jsonl(folder / "same.jsonl")) == list(kn.FactSet.from_jsonl(folder / "facts.jsonl"))


def test_a_terminal_is_sent_the_styles_alone(monkeypatch):
    for what in NAUGHTY.values():
        written = io.StringIO()
        monkeypatch.setattr(_terminal, "err", _terminal.EscapingConsole(file=written, force_terminal=True, width=100))
        monkeypatch.setattr(_terminal, "SHOW_AFTER", 0.0)
        with _terminal.working(f"Loading {what}", unit="rows") as show:
            show(1, 2, f"Loading {what}")
        _terminal.err.print(f"a {what}", soft_wrap=True)
        styles = re.compile(r"\x1b\[[\d;?]*[mAKhl]|\r")
        assert not ACTS.search(styles.sub("", written.getvalue())), repr(written.getvalue())


@pytest.mark.parametrize("what", NAUGHTY)
def test_what_is_not_ours_is_escaped_too(what, monkeypatch):
    """A traceback of a fault, and a line of another library."""
    streams = io.StringIO(), io.StringIO()
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        monkeypatch.setattr(sys, "stdout", _terminal.Guarded(sys.stdout))
        monkeypatch.setattr(sys, "stderr", _terminal.Guarded(sys.stderr))
        print(NAUGHTY[what], file=sys.stderr)
        sys.stdout.writelines([NAUGHTY[what], "x"])
        try:
            raise RuntimeError(NAUGHTY[what])
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
        monkeypatch.undo()
    assert not ACTS.search("".join(stream.getvalue() for stream in streams))


@pytest.mark.parametrize("what", NAUGHTY)
def test_errors_and_objects_say_names_escaped_in_python_too(what, tmp_path):
    name = f"P{NAUGHTY[what]}36"
    facts = kn.FactSet([kn.Fact(name, name, name, (f"[X] {name} [Y]",))])
    with pytest.raises(kn.errors.KNLensError) as caught:
        facts.of("Q")
    said = [str(caught.value), repr(caught.value), repr(facts[0]), repr(facts)]
    with pytest.raises(kn.errors.DataError) as caught:
        kn.FactSet.from_jsonl(tmp_path / name / "none.jsonl")
    said += [str(caught.value), str(kn.errors.DataError(name))]
    assert not ACTS.search(" ".join(said).replace("\n", " "))


@fuzz(usually=300)
@given(st.text(st.characters(codec=None)) | TEXTS)
def test_texts_are_escaped_once_and_json_is_kept(text):
    escaped = _shown.escaped(text)
    assert not ACTS.search(escaped) and "\n" not in escaped and _shown.escaped(escaped) == escaped
    assert all(category(char) not in ("Cc", "Cs", "Zl", "Zp") for char in escaped)
    written = _shown.json_text({text: [text]}, indent=2)
    assert not ACTS.search(written) and json.loads(written) == json.loads(json.dumps({text: [text]}))
    if text.isprintable():
        assert escaped == text
    TRIED["shown: texts", "escaped" if escaped != text else "as they are"] += 1


def test_words_that_are_written_with_joiners_stay():
    for word in (
        "\u0645\u06cc\u200c\u062e\u0648",
        "क\u094d\u200dष",
        "\U0001f469\u200d\U0001f52c",
        "Düblin\u00a0x",
        "東京\u3000都",
    ):
        assert _shown.escaped(word) == word


def test_a_report_shows_names_in_the_order_that_they_have(cli, place):
    folder, _ = place
    if not (folder / "run").exists():
        pytest.skip("needs the run of the test above")
    page = (folder / "run" / "report.html").read_text(encoding="utf-8")
    data = [part for part in re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S)]
    assert not ACTS.search(re.sub(r"<script.*?</script>", "", page, flags=re.S)) and len(os.fspath(folder)) and data
