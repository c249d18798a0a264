"""How long the demo takes as a whole process, imports included, and the memory it needs at most.

python -m tests.benchmarks.demo [MODEL ...]
"""

import resource
import subprocess
import sys
import time


def main() -> None:
    """Run ``kn-lens demo`` for each model and print seconds and megabytes."""
    for model in sys.argv[1:] or ("world-bert", "world-gpt2"):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "kn_lens.cli", "demo", "--model", model, "--json"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024  # of the largest child so far; Linux: KiB
        print(f"{model}: {seconds:.1f} s, at most {peak:.0f} MiB", flush=True)


if __name__ == "__main__":
    main()
