"""What workers cost: the same study in this process, in two processes and on Ray, in processor time and by the clock.

    HF_HUB_OFFLINE=1 python -m tests.benchmarks.study [--models world-bert world-gpt2 ...] [--limit N] [--stages ...]
        [--engines in-process processes ray]

Processor time is that of this process and of every process that it has started, Ray's own included. The clock says
something only on a machine with nothing else to do. The studies are compared with the first one, file by file.
"""

import argparse
import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

import kn_lens as kn
from kn_lens.runs import ModelEntry, StudyConfig
from kn_lens.runs.studies.study import run_study
from kn_lens.runs.workers.engine import Engine, InProcess
from kn_lens.runs.workers.processes import Processes
from kn_lens.runs.workers.ray_workers import RayEngine

ENGINES: dict[str, Engine] = {
    "in-process": InProcess(),
    "processes": Processes(workers=2),
    "ray": RayEngine(workers=2),
}


class Clock:
    """Adds up the processor time of this process and all below it, also of those that have ended since."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._before = psutil.Process().cpu_times()
        self._spent: dict[tuple[int, float], float] = {}

    def look(self, *args: object) -> None:
        """See what the processes below have spent until now."""
        for process in psutil.Process().children(recursive=True):
            try:
                times = process.cpu_times()
                self._spent[process.pid, process.create_time()] = times.user + times.system
            except psutil.NoSuchProcess:
                continue

    def read(self) -> tuple[float, float]:
        """Return seconds of processors, and by the clock."""
        now = psutil.Process().cpu_times()
        mine = now.user + now.system - self._before.user - self._before.system
        return mine + sum(self._spent.values()), time.perf_counter() - self._began


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="+", default=["world-bert", "world-gpt2"])
    parser.add_argument("--limit", type=int)
    parser.add_argument("--stages", nargs="+", default=["effects", "answers"])
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES])
    given = parser.parse_args()
    settings = {} if given.limit is None else {"limit": given.limit}
    models = [ModelEntry(name=Path(one).name, model=one) for one in given.models]
    config = StudyConfig(models=models, stages=given.stages, settings=settings)
    facts = {"world": kn.FactSet.world()}
    print(f"{len(models)} models, {len(facts['world'])} facts, {given}; {os.cpu_count()} processors")
    with TemporaryDirectory() as folder:
        files = []
        for name in given.engines:
            clock = Clock()
            rows = run_study(config, facts, Path(folder, name), engine=ENGINES[name], watch=clock.look)
            assert (rows["state"] == "done").all(), rows["reason"].tolist()
            processors, seconds = clock.read()
            print(f"{name:10}  {processors:7.0f} s of processors  {seconds:7.0f} s", flush=True)
            there = Path(folder, name).rglob("*")
            files.append({one.relative_to(Path(folder, name)): one.read_bytes() for one in there if one.is_file()})
        for name, other in zip(given.engines[1:], files[1:], strict=True):
            differing = [str(one) for one in files[0] if one.name != "lock" and files[0][one] != other.get(one)]
            print(f"{name}: {len(files[0])} files, {len(differing)} differ", *differing[:5])


if __name__ == "__main__":
    main()
