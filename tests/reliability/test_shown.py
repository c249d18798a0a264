"""Names from data files and checkpoints cannot control the terminal on which a command prints them."""

import io
import json
import re
import shutil
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from unicodedata import category

import pytest
from hypothesis import given
from hypothesis import strategies as st

import kn_lens as kn
from kn_lens._core import escape as _shown
from kn_lens.cli import _terminal
from tests.reliability.commands import COMMANDS
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
SOME = dict(list(COUNTRIES.items())[:3])
FEW_OF_THEM = "\x1b[2J\x07\x00\n\t\x9b\u202e\u2066\u2028x"
"""In names of relations, which are names of files too."""
ACTS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""What must not leave: written out, not taken from the library."""
FEW = (
    "--stage", "answers", "--stage", "effects", "--stage", "predictions", "--stage", "readouts",
    "--stage", "answer_readouts", "--stage", "texts", "--stage", "updates", "--stage", "erasures", "--limit", "2",
    "--set", "n_resamples=5", "--set", "update_facts=1", "--set", "update_others=2", "--set", "erase_facts=2",
    "--set", "erase_others=2", "--set", "text_sentences=3", "--set", "max_share=1", "--set", "quadrature=left",
    "--set", "n_steps=2",
)  # fmt: skip
"""All stages that show names, with few samples."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Facts and a checkpoint with control characters in names, tokens, relations and paths, and their files."""

    folder: Path
    facts: Path
    model: Path
    ask: Callable[..., tuple[int, str, str]]

    @property
    def inputs(self):
        """Return the options that name the model and the facts."""
        return "-m", self.model, "-f", self.facts

    @cached_property
    def neurons(self):
        """Return a file of the neurons of three facts of the first relation."""
        path = self.folder / "neurons.json"
        sets = {
            f"P36{FEW_OF_THEM}/{country}{ALL}/{capital}": kn.NeuronSet([(0, number), (2, number)])
            for number, (country, capital) in enumerate(SOME.items())
        }
        kn.NeuronSet.write_many(path, sets)
        return path

    def update(self, to):
        """Return the arguments that update one of these facts."""
        one = ("-r", f"P36{FEW_OF_THEM}", "-s", f"Ireland{ALL}", "--object", "Tokyo")
        how = ("--allow-unknown", "--max-share", "1")
        return "edit", "update", *self.inputs, "-n", self.neurons, *one, *how, "-o", to

    @cached_property
    def edit(self):
        """Return the file of such an update."""
        assert self.ask(*self.update(self.folder / "edit.safetensors"))[0] == 0
        return self.folder / "edit.safetensors"

    @cached_property
    def run(self):
        """Return the directory of a run."""
        code, out, err = self.ask("reproduce", *self.inputs, "-o", self.folder / "run", *FEW)
        assert code == 0, err[-600:]
        assert not ACTS.search(out + err)
        return self.folder / "run"

    @cached_property
    def run_2(self):
        """Return the directory of the same run, made again."""
        return shutil.copytree(self.run, self.folder / "run 2")


SHOWN = {
    "data read": lambda it: ("data", "read", it.facts),
    "data check": lambda it: ("data", "check", it.facts, "-m", it.model),
    "data convert": lambda it: ("data", "convert", it.facts, "-o", it.folder / "again.jsonl"),
    "find": lambda it: ("find", *it.inputs, "-o", it.folder / "found.json", "--method", "activation"),
    "intervene": lambda it: ("intervene", *it.inputs, "-n", it.neurons),
    "intervene without controls": lambda it: ("intervene", *it.inputs, "-n", it.neurons, "--no-controls"),
    "edit update": lambda it: it.update(it.folder / "updated.safetensors"),
    "edit erase": lambda it: (
        "edit", "erase", *it.inputs, "-n", it.neurons, "-r", f"P36{FEW_OF_THEM}", "-o", it.folder / "erased.safetensors"
    ),
    "edit show": lambda it: ("edit", "show", it.edit),
    "edit apply": lambda it: ("edit", "apply", it.edit, *it.inputs, "-o", it.folder / "applied.csv"),
    "edit compare": lambda it: (
        "edit", "compare", *it.inputs, "--editor", "KN", "--limit", "1", "--leave-out-unknown",
        "-o", it.folder / "compared.csv",
    ),
    "edit export": lambda it: ("edit", "export", it.edit, "-m", it.model, "-o", it.folder / "exported"),
    "reproduce": lambda it: ("reproduce", *it.inputs, "-o", it.run, *FEW),
    "reproduce --dry-run": lambda it: ("reproduce", *it.inputs, "-o", it.folder / "none", "--dry-run", *FEW),
    "report": lambda it: ("report", it.run),
    "models": lambda it: ("models",),
    "compare": lambda it: ("compare", f"a\x1b[2J={it.run}", f"b={it.run_2}", "-o", it.folder / "tables"),
    "study --dry-run": lambda it: ("study", it.folder / "study.toml", "-o", it.folder / "none", "--dry-run"),
}  # fmt: skip
REFUSED = {
    "data read a file": lambda it: ("data", "read", it.folder / "none\x1b[2J.jsonl"),
    "data read a relation": lambda it: ("data", "read", it.facts, "-r", "\x1b[2J"),
    "data check": lambda it: ("data", "check", it.facts, "-m", it.folder / "none\x1b[2J"),
    "data convert": lambda it: ("data", "convert", it.facts, "-o", it.folder / ALL / "x"),
    "find a subject": lambda it: ("find", *it.inputs, "-s", "\x1b]52;c;\x07"),
    "find into a file": lambda it: ("find", *it.inputs, "-o", it.folder / ALL / "x"),
    "find in a model": lambda it: ("find", "-m", "none\x1b[2J"),
    "find with too few prompts": lambda it: ("find", *it.inputs, "--min-prompts", "9"),
    "find by a method": lambda it: ("find", "--method", "\x1b[2J"),
    "intervene": lambda it: ("intervene", *it.inputs, "-n", it.facts),
    "edit show": lambda it: ("edit", "show", it.facts),
    "edit apply": lambda it: ("edit", "apply", it.model / "config.json"),
    "edit update": lambda it: (
        "edit", "update", *it.inputs, "-n", it.neurons, "-r", f"P36{FEW_OF_THEM}", "-s", f"Ireland{ALL}", "--object",
        f"{ALL}Tokio", "-o", it.folder / "x",
    ),
    "edit erase": lambda it: ("edit", "erase", *it.inputs, "-n", it.neurons, "-r", "P1376", "-o", it.folder / "x"),
    "edit export": lambda it: ("edit", "export", it.edit, "-m", it.model, "-o", it.folder),
    "demo": lambda it: ("demo", "--fact", f"{ALL}/P36"),
    "reproduce a setting": lambda it: ("reproduce", *it.inputs, "-o", it.folder / "x", *FEW, "--set", f"keep={ALL}"),
    "reproduce a relation": lambda it: ("reproduce", *it.inputs, "-o", it.folder / "x", *FEW, "--relation", "\x9b2J"),
    "report": lambda it: ("report", it.folder),
    "compare": lambda it: ("compare", it.folder, it.folder / "x"),
    "study": lambda it: ("study", it.facts, "-o", it.folder / "x"),
    "a command": lambda it: ("\x1b[2J",),
    "an argument": lambda it: ("models", "\x1b[2J"),
    "an option": lambda it: ("models", "--\x1b[2J"),
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory, cli):
    folder = tmp_path_factory.mktemp("naughty") / ("in" + ALL.replace("\x00", ""))
    folder.mkdir()
    templates = [f"The capital{ALL} of [X] is [Y].", "In fact, [X] has its seat in [Y]", "[X], [Y]."]
    backwards = [f"[X]{ALL} is the capital of [Y].", "The capital [X] of [Y].", "[X] lies in [Y]."]
    marks = list(NAUGHTY.values())
    rows = []
    for number, (country, capital) in enumerate(SOME.items()):
        rows.append(
            {"subject": f"{country}{ALL}", "relation": f"P36{FEW_OF_THEM}", "object": capital, "templates": templates}
        )
        mine = "".join(marks[number :: len(SOME)])
        rows.append({"subject": f"{capital}{mine}", "relation": "P1376", "object": country, "templates": backwards})
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_checkpoint("GPT2LMHeadModel", folder / f"model{ALL}", n_positions=512)
    _rename_tokens(model / "tokenizer.json")
    (folder / "study.toml").write_text(
        'stages = ["answers"]\n[settings]\nlimit = 2\n[[facts]]\nname = "f"\nsource = "facts.jsonl"\n'
        f"[[models]]\nname = {_in_toml('m' + FEW_OF_THEM)}\nmodel = {_in_toml(str(model))}\n"
        '[[models]]\nname = "none"\nmodel = "none-such\\u001b[2J"\n'
    )
    return Place(folder=folder, facts=folder / "facts.jsonl", model=model, ask=cli)


def _in_toml(text):
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


def _rename_tokens(path):
    """Rename half of the words in the vocabulary to texts that decode to control characters."""
    from tokenizers.pre_tokenizers import ByteLevel

    spelled = ByteLevel(add_prefix_space=False, use_regex=False)
    document = json.loads(path.read_text(encoding="utf-8"))
    model = document["model"]
    names = {f"\u0120{name}" for pair in COUNTRIES.items() for name in pair}
    merged = {part for pair in model["merges"] for part in (pair if isinstance(pair, list) else pair.split(" "))}
    free = [token for token in model["vocab"] if len(token) > 1 and token not in names and token not in merged]
    renamed = dict(zip(free, (f"{number}{ALL}" for number in range(len(free))), strict=True))
    model["merges"] = [
        pair for pair in model["merges"] if "".join(pair if isinstance(pair, list) else pair.split(" ")) not in renamed
    ]
    model["vocab"] = {
        spelled.pre_tokenize_str(renamed[token])[0][0] if token in renamed else token: number
        for token, number in model["vocab"].items()
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def test_every_command_is_covered():
    tried = {tuple(name.split()) for name in SHOWN}
    assert {words for words in COMMANDS if not any(one[: len(words)] == words for one in tried)} == {("demo",)}


def shows(cli, args, code):
    """Run a command, check its exit code and that it prints no control characters, and return its stdout."""
    ended, out, err = cli(*args)
    told = f"{args[:2]}: {out[-300:]!r} {err[-600:]!r}"
    assert ended == code, told
    assert not ACTS.search(out + err), f"{ACTS.search(out + err)} {told}"
    assert not re.search("^(kn-lens: )?forged", err, re.M), told  # tables break long texts
    return out


@pytest.mark.parametrize("name", SHOWN)
def test_no_command_prints_control_characters_of_names(cli, place, name):
    args = SHOWN[name](place)
    shows(cli, args, 0)
    if name == "edit export":  # which writes no directory twice
        args = (*args[:-1], place.folder / "exported too")
    assert json.loads(shows(cli, (*args, "--json"), 0))
    TRIED["shown: commands", "shown"] += 2


def test_no_study_prints_control_characters_of_names(cli, place):
    args = ("study", place.folder / "study.toml", "-o", place.folder / "study")
    shows(cli, args, 1)  # as one of its models is not there
    assert json.loads(shows(cli, (*args, "--json"), 1))
    TRIED["shown: commands", "shown"] += 2


@pytest.mark.parametrize("name", REFUSED)
def test_no_error_prints_control_characters_of_names(cli, place, name):
    assert shows(cli, REFUSED[name](place), 2) == ""
    TRIED["shown: commands", "refused"] += 1


@pytest.mark.parametrize("command", ["study", "reproduce"])
def test_no_interrupted_command_prints_control_characters_of_names(cli, place, command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(
        {"study": "kn_lens.runs.studies.study.run_study", "reproduce": "kn_lens.runs.execute.run_stages"}[command],
        interrupt,
    )
    command_line = ("study", place.folder / "study.toml") if command == "study" else ("reproduce", *place.inputs)
    code, out, err = cli(*command_line, "-o", place.folder / "interrupted")
    assert code == 130 and not ACTS.search(out + err) and len(err.splitlines()) == 1 and "interrupted" in err


def test_json_output_and_converted_files_keep_the_names(cli, place):
    folder = place.folder
    code, out, _ = cli("data", "read", folder / "facts.jsonl", "--json")
    assert code == 0 and f"P36{FEW_OF_THEM}" in json.loads(out)["relations"]
    assert cli("data", "convert", folder / "facts.jsonl", "-o", folder / "same.jsonl")[0] == 0
    assert list(kn.FactSet.from_jsonl(folder / "same.jsonl")) == list(kn.FactSet.from_jsonl(folder / "facts.jsonl"))


def test_a_terminal_receives_styles_but_no_other_control_characters(monkeypatch):
    for what in NAUGHTY.values():
        written = io.StringIO()
        console = _terminal.EscapingConsole(file=written, force_terminal=True, width=100, height=40)
        monkeypatch.setattr(_terminal, "err", console)
        monkeypatch.setattr(_terminal, "SHOW_AFTER", 0.0)
        with _terminal.show_progress(f"Loading {what}", unit="rows") as show:
            show(1, 2, f"Loading {what}")
        _terminal.err.print(f"a {what}", soft_wrap=True)
        styles = re.compile(r"\x1b\[[\d;?]*[mAKhl]|\r")
        assert not ACTS.search(styles.sub("", written.getvalue())), repr(written.getvalue())


@pytest.mark.parametrize("what", NAUGHTY)
def test_tracebacks_and_lines_of_other_libraries_are_escaped(what, monkeypatch):
    """With the traceback of an internal error and a line of another library."""
    streams = io.StringIO(), io.StringIO()
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        monkeypatch.setattr(sys, "stdout", _terminal.EscapingStream(sys.stdout))
        monkeypatch.setattr(sys, "stderr", _terminal.EscapingStream(sys.stderr))
        print(NAUGHTY[what], file=sys.stderr)
        sys.stdout.writelines([NAUGHTY[what], "x"])
        try:
            raise RuntimeError(NAUGHTY[what])
        except RuntimeError:
            sys.excepthook(*sys.exc_info())
        monkeypatch.undo()
    assert not ACTS.search("".join(stream.getvalue() for stream in streams))


@pytest.mark.parametrize("what", NAUGHTY)
def test_messages_and_reprs_escape_names_in_python(what, tmp_path):
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


def test_joiners_within_words_are_kept():
    for word in (
        "\u0645\u06cc\u200c\u062e\u0648",
        "क\u094d\u200dष",
        "\U0001f469\u200d\U0001f52c",
        "Düblin\u00a0x",
        "東京\u3000都",
    ):
        assert _shown.escaped(word) == word


def test_a_report_holds_no_control_characters_outside_its_data(place):
    page = (place.run / "report.html").read_text(encoding="utf-8")
    assert re.search(r'<script type="application/json"', page)
    assert not ACTS.search(re.sub(r"<script.*?</script>", "", page, flags=re.S))
