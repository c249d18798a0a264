"""What the attribution of a pretrained model costs: seconds of loading, seconds a prompt, and memory at most.

python -m tests.benchmarks.real_model [MODEL] [N_PROMPTS]

Seconds are those of the processor, so that other work on the machine changes them little.
"""

import resource
import sys
import time

import kn_lens as kn

TEMPLATES = (
    "The capital of [X] is [Y].",
    "The capital city of [X] is [Y].",
    "The country [X] has the capital [Y].",
    "The seat of the government of [X] is in the city of [Y].",
)


def main() -> None:
    """Load the model, attribute capitals in four templates, and print seconds and megabytes."""
    name = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m"
    n_prompts = int(sys.argv[2]) if len(sys.argv) > 2 else 4
    started = time.process_time()
    model = kn.load_model(name, device="cpu")
    print(f"{name}: loaded in {time.process_time() - started:.1f} s, at most {_peak():.0f} MiB", flush=True)
    facts = [kn.Fact("France", "P36", "Paris", TEMPLATES), kn.Fact("Japan", "P36", "Tokyo", TEMPLATES)]
    prompts = kn.make_prompts(model, facts)
    prompts = prompts.select(range(min(n_prompts, len(prompts))))
    started = time.process_time()
    attribution = kn.attribute(model, prompts)
    seconds = (time.process_time() - started) / len(prompts)
    points = attribution.n_points.double().mean().item()
    print(
        f"{len(prompts)} prompts: {seconds:.2f} s each, {points:.1f} points a layer, "
        f"{len(attribution.unconverged)} of {attribution.n_points.numel()} above the tolerance, "
        f"at most {_peak():.0f} MiB",
        flush=True,
    )


def _peak() -> float:
    """Return the memory of the process at most, so far, in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
