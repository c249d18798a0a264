"""The command line as these tests run it: in this process, with its streams and its exit code caught."""

import io
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout

import pytest
from transformers.utils import logging as transformers_logging

from kn_lens.cli import main


@pytest.fixture(scope="module")
def cli():
    """Run ``kn-lens``; returns exit code, stdout and stderr."""

    def run(*args):
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            patch.setattr("kn_lens.cli._prepare_process", lambda: None)  # it is for a process of its own
            patch.setattr(sys, "argv", ["kn-lens", *map(str, args)])
            with warnings.catch_warnings(), pytest.raises(SystemExit) as exit_info:
                main()
        return exit_info.value.code, *(stream.buffer.getvalue().decode() for stream in streams)

    # What the entry point does by what is in the environment when transformers is imported.
    transformers_logging.disable_progress_bar()
    yield run
    transformers_logging.enable_progress_bar()
