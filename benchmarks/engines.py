"""mbsim's engines against the programs a user would otherwise write, on the same work, in one run.

    pip install ".[bench]"
    python benchmarks/engines.py            # prints the tables of benchmarks/README.md
    python benchmarks/engines.py parts      # what it costs if a part is not compiled

Every program simulates Algorithm 1 on the same workload and reports the mean of ‖∇L‖² over the
run, which must agree. Programs take turns, so that a machine whose speed drifts slows all of
them; the figures are medians of five turns, in replicate-steps per second, compilation excluded.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import numpy as np
import outside
from numba import njit
from numpy.random import SFC64, Generator
from outside import Workload

import mbsim
from mbsim._shared.seeds import states
from mbsim.compiled import draws
from mbsim.compiled.step import draw_counts
from mbsim.problems.micro_batches import numbers_of, table_of

TURNS = 5
# Replicates and steps of one timed run of each engine: about a second on two cores.
EXACT_LAW_SIZES = {"W1": (512, 2000), "W2": (256, 500)}
REFERENCE_SIZES = {"W1": (128, 200), "W2": (16, 12)}


def problem_of(workload: Workload) -> mbsim.Problem:
    """The workload as a problem."""
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(workload.eigenvalues),
        noise=mbsim.noise.Gaussian(sigma=workload.sigma),
        draggers=mbsim.Draggers(probability=workload.probability, norm_ratio=workload.norm_ratio),
        benign_dim=workload.benign_dim,
        start=np.full(workload.dim, workload.start),
    )


def mbsim_program(
    workload: Workload,
    engine: str,
    replicates: int,
    steps: int,
    threads: int = 2,
    problem: mbsim.Problem | None = None,
    rule: object = None,
) -> Callable[[int], np.ndarray]:
    """mbsim.simulate on a workload: a seed to the mean of ‖∇L‖² of every replicate."""
    problem = problem or problem_of(workload)
    rule = rule or mbsim.clipping.SmallestNorm()

    def run(seed: int) -> np.ndarray:
        return mbsim.simulate(
            problem,
            mbsim.MicroBatchClipping(workload.micro_batch_size, rule=rule),
            batch_size=workload.batch_size,
            step_size=workload.step_size,
            steps=steps,
            replicates=replicates,
            record_every=steps,
            engine=engine,
            threads=threads,
            rng=seed,
        ).mean_grad_norm_sq

    return run


def programs(
    label: str, workload: Workload
) -> dict[str, tuple[Callable[[int], np.ndarray], int, int]]:
    """Every program on one workload, with the replicates and steps of a timed run."""
    sizes = {
        "exact_law": EXACT_LAW_SIZES[label],
        "exact_law, one thread": EXACT_LAW_SIZES[label],
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
            engine, *one = name.split(",")
            program = mbsim_program(workload, engine, replicates, steps, 1 if one else 2)
            made[name] = (program, replicates, steps)
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


@njit(nogil=True)
def _numbers_of_exact_law(state, values, chances, sizes, steps):
    """Draw the random numbers of so many steps of one replicate, and nothing else."""
    m, b, n, frame, _ = sizes
    counts, total = np.empty(m, np.int64), 0.0
    for _ in range(steps):
        draw_counts(state, values, chances, counts)
        with_draggers = 0
        for j in range(m):
            # Noise along e, and length and coordinate across it.
            total += draws.normal(state) + draws.normal(state) + draws.chi_square(state, n - 2)
            with_draggers += counts[j] < b
            for _ in range(b - counts[j] - 1):
                total += draws.normal(state) + draws.chi_square(state, frame - 1)
        for _ in range(with_draggers - 1):
            total += draws.normal(state) + draws.chi_square(state, frame - 1)
        for _ in range(n - 1 + (frame if with_draggers else 0)):
            total += draws.normal(state)
    return total


@njit
def _count_of_exact_law(state, values, chances, sizes, steps):
    """How many numbers that is in a step, in the mean."""
    m, b, n, frame, _ = sizes
    counts, total = np.empty(m, np.int64), 0
    for _ in range(steps):
        draw_counts(state, values, chances, counts)
        total += m + 3 * m + n - 1
        for j in range(m):
            total += 2 * max(0, b - counts[j] - 1)
        with_draggers = (counts < b).sum()
        total += 2 * max(0, with_draggers - 1) + (frame if with_draggers else 0)
    return total / steps


def random_number_limit(workload: Workload, engine: str) -> tuple[float, float]:
    """Replicate-steps per second of one thread that does nothing but draw the random numbers.

    Returns:
        That, and how many numbers a step takes.
    """
    m, d, n, big = workload.micro_batches, workload.dim, workload.benign_dim, workload.batch_size
    if engine == "exact_law":
        whole = problem_of(workload)
        sizes, _ = numbers_of(whole, m, workload.micro_batch_size)
        table = table_of(workload.micro_batch_size, workload.probability)
        (state,), steps = states(Generator(SFC64(0)), 1), 2**22 // (d + 5 * m)

        def draw():
            _numbers_of_exact_law(state, *table, sizes, steps)

        draw()  # compiles
        number = _count_of_exact_law(state, *table, sizes, steps)
    else:
        steps = max(1, 2**20 // (big * n))
        number = big + big * n + round(big * workload.probability) * (d - n - 1)
        rng = Generator(SFC64(0))

        def draw():
            rng.random(big * steps)
            rng.standard_normal((number - big) * steps)

    times = []
    for _ in range(20):
        began = time.perf_counter()
        draw()
        times.append(time.perf_counter() - began)
    return steps / median(times), number


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


def uncompiled(part: object) -> object:
    """The same loss, law or rule, of a class that does not say how it is compiled."""
    own = copy.copy(part)
    object.__setattr__(own, "__class__", type(type(part).__name__, (type(part),), {}))
    return own


def parts(workload: Workload, replicates: int, steps: int) -> None:
    """What a replicate-step takes on one thread if loss, law or rule are not compiled."""
    whole, rule = problem_of(workload), mbsim.clipping.SmallestNorm()
    settings = {
        "nothing": (whole, rule),
        "the loss": (replace(whole, loss=uncompiled(whole.loss)), rule),
        "the noise law": (replace(whole, noise=uncompiled(whole.noise)), rule),
        "the rule": (whole, uncompiled(rule)),
    }
    made = {
        name: mbsim_program(workload, "exact_law", replicates, steps, 1, *both)
        for name, both in settings.items()
    }
    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(TURNS + 1):
        for name, program in made.items():
            began = time.perf_counter()
            program(turn)
            times[name].append(time.perf_counter() - began)
    print("| not compiled | µs per replicate-step, one thread, median of 5 |\n|---|---|")
    for name, found in times.items():
        print(f"| {name} | {median(found[1:]) / (replicates * steps) * 1e6:.2f} |")


def main() -> None:
    """Print the tables."""
    if sys.argv[1:] == ["parts"]:
        parts(outside.W1, 256, 400)
        return
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
        one, two = (median(rates[f"exact_law{kind}"]) for kind in (", one thread", ""))
        print(f"\nexact_law: two threads are {two / one:.2f} times one")
        for name, rate in (("exact_law", one), ("reference", median(rates["reference"]) / 2)):
            limit, number = random_number_limit(workload, name)
            print(
                f"{name}: its {number:,.0f} random numbers a step alone, on one thread, "
                f"{limit:,.0f}/s; it is {limit / rate:.2f} times as slow"
            )


if __name__ == "__main__":
    main()
