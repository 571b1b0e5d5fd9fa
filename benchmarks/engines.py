"""mbsim's engines against the programs a user would otherwise write, on the same work, in one run.

    pip install ".[bench]"
    python benchmarks/engines.py            # prints the tables of benchmarks/README.md

Every program simulates Algorithm 1 on the same workload and reports the mean of ‖∇L‖² over the
run, which must agree. Programs take turns, so that a machine whose speed drifts slows all of
them; the figures are medians of five turns, in replicate-steps per second, compilation excluded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import outside
from numpy.random import SFC64, Generator
from outside import Workload

import mbsim

TURNS = 5
# Replicates and steps of one timed run of each engine: about a second on two cores.
EXACT_LAW_SIZES = {"W1": (512, 800), "W2": (256, 250)}
REFERENCE_SIZES = {"W1": (128, 200), "W2": (16, 12)}


def mbsim_program(
    workload: Workload, engine: str, replicates: int, steps: int
) -> Callable[[int], np.ndarray]:
    """mbsim.simulate on a workload: a seed to the mean of ‖∇L‖² of every replicate."""
    problem = mbsim.Problem(
        loss=mbsim.losses.Quadratic(workload.eigenvalues),
        noise=mbsim.noise.Gaussian(sigma=workload.sigma),
        draggers=mbsim.Draggers(probability=workload.probability, norm_ratio=workload.norm_ratio),
        benign_dim=workload.benign_dim,
        start=np.full(workload.dim, workload.start),
    )

    def run(seed: int) -> np.ndarray:
        return mbsim.simulate(
            problem,
            mbsim.MicroBatchClipping(workload.micro_batch_size),
            batch_size=workload.batch_size,
            step_size=workload.step_size,
            steps=steps,
            replicates=replicates,
            record_every=steps,
            engine=engine,
            rng=seed,
        ).mean_grad_norm_sq

    return run


def programs(
    label: str, workload: Workload
) -> dict[str, tuple[Callable[[int], np.ndarray], int, int]]:
    """Every program on one workload, with the replicates and steps of a timed run."""
    sizes = {
        "exact_law": EXACT_LAW_SIZES[label],
        "reference": REFERENCE_SIZES[label],
        "JAX": outside.JAX_SIZES[workload],
        "PyTorch": outside.TORCH_SIZES[workload],
    }
    made: dict[str, tuple[Callable[[int], np.ndarray], int, int]] = {}
    for name, (replicates, steps) in sizes.items():
        if name in ("JAX", "PyTorch"):
            make = outside.jax_program if name == "JAX" else outside.torch_program
            program = make(workload, replicates, steps)
            made[name] = (lambda seed, p=program: p(seed)[1], replicates, steps)
        else:
            made[name] = (mbsim_program(workload, name, replicates, steps), replicates, steps)
    return made


def measure(label: str, workload: Workload) -> dict[str, list[float]]:
    """Replicate-steps per second of every program, in turns."""
    made = programs(label, workload)
    rates: dict[str, list[float]] = {name: [] for name in made}
    for program, _, _ in made.values():
        program(0)  # compiles, and warms the caches
    for turn in range(TURNS):
        for name, (program, replicates, steps) in made.items():
            began = time.perf_counter()
            program(1 + turn)
            rates[name].append(replicates * steps / (time.perf_counter() - began))
    return rates


def random_number_limit(workload: Workload, engine: str) -> float:
    """Replicate-steps per second of one thread that does nothing but draw the random numbers."""
    rng, steps = Generator(SFC64(0)), 200
    m, d, n, big = workload.micro_batches, workload.dim, workload.benign_dim, workload.batch_size
    if engine == "exact_law":
        draws = [
            lambda: rng.binomial(workload.micro_batch_size, workload.probability, m * steps),
            lambda: rng.standard_normal((m + d - 2) * steps),
            lambda: rng.standard_gamma((n - 1) / 2, m * steps),
            lambda: rng.random(2 * (m - 1) * steps),
            lambda: rng.standard_exponential(2 * (m - 1) * steps),
        ]
    else:
        steps = max(1, 2**20 // (big * n))
        per_step = big * n + round(big * workload.probability) * (d - n - 1)
        draws = [
            lambda: rng.random(big * steps),
            lambda: rng.standard_normal(per_step * steps),
        ]
    times = []
    for _ in range(20):
        began = time.perf_counter()
        for draw in draws:
            draw()
        times.append(time.perf_counter() - began)
    return steps / median(times)


def check_law(label: str, workload: Workload, steps: int = 100) -> None:
    """All programs on the same steps: the means of ‖∇L‖² must agree within their errors."""
    replicates = {"W1": 512, "W2": 24}[label]
    means = {}
    for name in ("exact_law", "reference", "JAX", "PyTorch"):
        if name in ("JAX", "PyTorch"):
            make = outside.jax_program if name == "JAX" else outside.torch_program
            sample = np.concatenate(
                [make(workload, replicates // 4, steps)(seed)[1] for seed in range(4)]
            )
        else:
            sample = mbsim_program(workload, name, replicates, steps)(7)
        means[name] = (float(sample.mean()), float(sample.std(ddof=1) / np.sqrt(sample.size)))
        mean, error = means[name]
        print(f"  {name:<10} mean ‖∇L‖² over {steps} steps {mean:.5f} ± {error:.5f}")
    centre = means["reference"]
    for name, (mean, error) in means.items():
        # Five standard errors: a false alarm in about two million.
        assert abs(mean - centre[0]) < 5 * np.hypot(error, centre[1]) + 1e-12, name


def main() -> None:
    """Print the tables."""
    for label, workload in (("W1", outside.W1), ("W2", outside.W2)):
        print(f"\n{label}: {workload}")
        check_law(label, workload)
        rates = measure(label, workload)
        jax = median(rates["JAX"])
        print("\n| program | replicate-steps/s, median of 5 | lowest to highest | times JAX |")
        print("|---|---|---|---|")
        for name, found in rates.items():
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            print(f"| {name} | {median(found):,.0f} | {spread} | {median(found) / jax:.3g} |")
        for engine in ("exact_law", "reference"):
            limit = random_number_limit(workload, engine)
            share = median(rates[engine]) / (2 * limit)
            print(
                f"{engine}: its random numbers alone, on two threads, {2 * limit:,.0f}/s; "
                f"it reaches {share:.0%} of that"
            )


if __name__ == "__main__":
    main()
