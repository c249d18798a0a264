"""How long a report of many facts takes to write and to open, and how large it is.

    python -m tests.benchmarks.report [facts]

Made-up records of 34 relations with 10 prompts a fact. Opening is measured in a new Chromium, from the address to the
page being ready (``performance.now``), then searching, sorting by a column and opening a fact.
"""

import resource
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from kn_lens.reports.report import write_report
from tests.browser import browsing, opened
from tests.synthetic_run import write_run

N_RELATIONS, N_PROMPTS, TIMES = 34, 10, 5


def main(n_facts: int) -> None:
    """Print what was measured."""
    with TemporaryDirectory() as folder:
        run = write_run(
            Path(folder, "run"), n_relations=N_RELATIONS, n_facts=n_facts // N_RELATIONS, n_prompts=N_PROMPTS
        )
        began, processor = time.perf_counter(), time.process_time()
        path = write_report(run)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
        print(f"{N_RELATIONS * (n_facts // N_RELATIONS):,} facts, {N_PROMPTS} prompts each")
        print(f"written in {seconds:.1f} s ({processor:.1f} s of processor time)")
        print(f"size {path.stat().st_size / 1e6:.1f} MB")
        print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB, with making up the records")
        ready, steps = [], []
        for _ in range(TIMES):
            with browsing() as browser, opened(browser, path, viewport={"width": 1280, "height": 900}) as page:
                ready.append(page.evaluate("performance.now()"))
                steps.append(page.evaluate(STEPS))
        print(f"opened in {median(ready) / 1000:.2f} s (median of {TIMES}; at most {max(ready) / 1000:.2f} s)")
        for name in steps[0]:
            print(f"{name}: {median(step[name] for step in steps):.0f} ms")


STEPS = """async () => {
  const took = {};
  const time = async (name, work) => {
    const began = performance.now();
    await work();
    took[name] = performance.now() - began;
  };
  await time("search", () => facts.factTable.find("subject 77 P12"));
  facts.factTable.find("");
  await time("sort", () => facts.factTable.sort(facts.factTable.columns[5]));
  await time("open a fact", () => facts.page(facts.rows.length - 1));
  return took;
}"""

if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
