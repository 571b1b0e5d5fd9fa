"""Algorithm 1 as a user would write it without mbsim: in JAX, in PyTorch, and plainly in NumPy.

Nothing here imports mbsim. The three programs simulate the same model (the theory page, section
2) on a quadratic and know nothing of each other, so they serve twice: the JAX and the PyTorch
program as the yardsticks of `benchmarks/engines.py`, and all three as outside witnesses of the law
that mbsim's engines claim to draw.

Run it to see that they agree with one another, and how fast they are here:

    python benchmarks/outside.py            # law, then speed
    python benchmarks/outside.py law        # law alone

The model. At w, with g = ∇L(w), r = ‖g‖, e = g/r, the first n = benign_dim axes are V and the
others U. A benign example's gradient is g + ξ, ξ Gaussian and isotropic in span(e) ⊕ (V ⊖ P_V g)
with E‖ξ‖² = σ². With probability p an example is a dragger instead: its gradient is uniform on the
sphere of radius c √(r² + σ²) in U ⊖ P_U g. Micro-batches of b are averaged, scaled down to the
smallest of their norms, and averaged again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Array = NDArray[np.floating]
#: A seed to final w ``[replicates, d]`` and, for each replicate, the mean of ‖g‖² over t < T.
Program = Callable[[int], tuple[Array, Array]]
#: Noise of one example with E‖ξ‖² = 1 in n dimensions, the first of them along e.
Noise = Callable[[Generator, int], Array]


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A quadratic ½ Σ λ_i w_i², λ geometric from 0.1 to 1, its noise, draggers and method."""

    batch_size: int
    micro_batch_size: int
    dim: int
    benign_dim: int
    probability: float = 0.05
    norm_ratio: float = 10.0
    sigma: float = 1.0
    step_size: float = 0.05
    start: float = 1.0  # every coordinate of w₀

    @property
    def micro_batches(self) -> int:
        """The number of micro-batches, m = B/b."""
        return self.batch_size // self.micro_batch_size

    @property
    def eigenvalues(self) -> Array:
        """λ, shape ``[d]``."""
        return np.geomspace(0.1, 1.0, self.dim)


W1 = Workload(batch_size=128, micro_batch_size=8, dim=64, benign_dim=32)
W2 = Workload(batch_size=1024, micro_batch_size=64, dim=1024, benign_dim=512)

#: Replicates and steps of one timed run: one to three seconds on two idle cores, with as many
#: replicates as each program was fastest at in trials (too many spill out of the cache).
JAX_SIZES = {W1: (256, 150), W2: (2, 150)}
TORCH_SIZES = {W1: (256, 200), W2: (8, 40)}


# --- the two programs that are timed --------------------------------------------------------
#
# Both draw one isotropic vector z per example, of which a benign example is the noise in V and a
# dragger the direction in U: an example is one or the other, so drawing both would cost twice.
# Both project on the frame after averaging, which is linear. Only a dragger's length needs its
# own projection.


def jax_program(workload: Workload, replicates: int, steps: int) -> Program:
    """One step, vmapped over replicates, scanned over steps, jitted; float32."""
    import jax
    import jax.numpy as jnp
    from jax import lax, random

    m, b = workload.micro_batches, workload.micro_batch_size
    d, n = workload.dim, workload.benign_dim
    sigma = workload.sigma
    eigenvalues = jnp.asarray(workload.eigenvalues, dtype=jnp.float32)

    def step(w, key):
        g = eigenvalues * w
        r_sq = g @ g
        e = g / jnp.sqrt(r_sq)
        e_v, e_u = g[:n] / jnp.linalg.norm(g[:n]), g[n:] / jnp.linalg.norm(g[n:])

        which, directions = random.split(key)
        dragger = random.bernoulli(which, workload.probability, (m, b))
        z = random.normal(directions, (m, b, max(n, d - n)))

        z_u = z[..., : d - n]
        length = jnp.sqrt(jnp.sum(z_u * z_u, axis=-1) - (z_u @ e_u) ** 2)
        weights = jnp.stack([1.0 - dragger, dragger / length], axis=1)
        noise, dragged = jnp.moveaxis(weights @ z, 1, 0) / b
        noise = noise[:, :n] * (sigma / n**0.5)
        dragged = dragged[:, : d - n] * (workload.norm_ratio * jnp.sqrt(r_sq + sigma**2))

        along = noise @ e_v
        in_v = noise - jnp.outer(along, e_v)
        in_u = dragged - jnp.outer(dragged @ e_u, e_u)
        benign = 1.0 - dragger.mean(axis=1)
        x = jnp.outer(benign, g) + jnp.outer(along, e) + jnp.concatenate([in_v, in_u], axis=1)

        norms = jnp.linalg.norm(x, axis=1)
        update = (norms.min() / norms) @ x / m
        return w - workload.step_size * update, r_sq

    def trajectory(key):
        start = jnp.full(d, workload.start, dtype=jnp.float32)
        w, r_sq = lax.scan(step, start, random.split(key, steps))
        return w, r_sq.mean()

    trajectories = jax.jit(lambda key: jax.vmap(trajectory)(random.split(key, replicates)))

    def run(seed: int) -> tuple[Array, Array]:
        w, mean_sq = jax.block_until_ready(trajectories(random.key(seed)))
        return np.asarray(w), np.asarray(mean_sq)

    return run


def torch_program(workload: Workload, replicates: int, steps: int) -> Program:
    """All replicates at once, one step after another; float32, no autograd."""
    import torch

    m, b = workload.micro_batches, workload.micro_batch_size
    d, n = workload.dim, workload.benign_dim
    sigma = workload.sigma
    eigenvalues = torch.tensor(workload.eigenvalues, dtype=torch.float32)

    def unit(v: torch.Tensor) -> torch.Tensor:
        return v / v.norm(dim=-1, keepdim=True)

    @torch.no_grad()
    def run(seed: int) -> tuple[Array, Array]:
        rng = torch.Generator().manual_seed(seed)
        w = torch.full((replicates, d), workload.start)
        sum_sq = torch.zeros(replicates)
        z = torch.empty(replicates, m, b, max(n, d - n))
        dragger = torch.empty(replicates, m, b)
        for _ in range(steps):
            g = eigenvalues * w
            r_sq = (g * g).sum(dim=1)
            sum_sq += r_sq
            e, e_v, e_u = (unit(part)[:, None, :] for part in (g, g[:, :n], g[:, n:]))

            dragger.bernoulli_(workload.probability, generator=rng)
            z.normal_(generator=rng)

            z_u = z[..., : d - n]
            shadow = (z_u @ e_u[..., None]).squeeze(-1)
            length = (torch.linalg.vector_norm(z_u, dim=-1) ** 2 - shadow**2).sqrt()
            weights = torch.stack([1 - dragger, dragger / length], dim=2)
            noise, dragged = (weights @ z / b).unbind(dim=2)
            noise = noise[..., :n] * (sigma / n**0.5)
            dragged = dragged[..., : d - n]
            dragged = dragged * (workload.norm_ratio * (r_sq + sigma**2).sqrt())[:, None, None]

            along = (noise * e_v).sum(dim=-1, keepdim=True)
            in_v = noise - along * e_v
            in_u = dragged - (dragged * e_u).sum(dim=-1, keepdim=True) * e_u
            benign = 1 - dragger.mean(dim=2, keepdim=True)
            x = benign * g[:, None, :] + along * e + torch.cat([in_v, in_u], dim=2)

            norms = x.norm(dim=2, keepdim=True)
            update = (norms.amin(dim=1, keepdim=True) / norms * x).mean(dim=1)
            w = w - workload.step_size * update
        return w.numpy(), (sum_sq / steps).numpy()

    return run


def replicate_steps_per_second(
    program: Program, replicates: int, steps: int, *, repeats: int = 5
) -> list[float]:
    """The rate of each of `repeats` runs, after one more that compiles and warms the cache.

    A program returns NumPy arrays, so its clock stops only when its numbers are there.
    """
    program(0)
    rates = []
    for seed in range(1, repeats + 1):
        began = time.perf_counter()
        program(seed)
        rates.append(replicates * steps / (time.perf_counter() - began))
    return rates


# --- the plain program: float64, one example at a time, an explicit basis of the frame ------


def gaussian(rng: Generator, n: int) -> Array:
    """Isotropic in all n dimensions."""
    return rng.standard_normal(n) / np.sqrt(n)


def two_point(rare: float, isotropic_share: float = 0.0) -> Noise:
    """Along e, +√((1−π)/π) with probability π, else −√(π/(1−π)); a share of it isotropic."""
    high, low = np.sqrt((1 - rare) / rare), -np.sqrt(rare / (1 - rare))

    def draw(rng: Generator, n: int) -> Array:
        skewed = high if rng.random() < rare else low
        noise = np.sqrt(isotropic_share) * gaussian(rng, n)
        noise[0] += np.sqrt(1 - isotropic_share) * skewed
        return noise

    return draw


def exponential(isotropic_share: float = 0.0) -> Noise:
    """Along e, an exponential of mean 1 less 1; a share of it isotropic."""

    def draw(rng: Generator, n: int) -> Array:
        noise = np.sqrt(isotropic_share) * gaussian(rng, n)
        noise[0] += np.sqrt(1 - isotropic_share) * (rng.exponential() - 1)
        return noise

    return draw


def student_t(df: float) -> Noise:
    """Multivariate t: a Gaussian vector over √(χ²/df), scaled to unit variance."""

    def draw(rng: Generator, n: int) -> Array:
        t = rng.standard_normal(n) / np.sqrt(rng.chisquare(df) / df)
        return t * np.sqrt((df - 2) / df / n)

    return draw


def smallest_norm(norms: Array) -> Array:
    """Algorithm 1's factors ρ/x_j, with 0/0 read as 0."""
    return np.array([norms.min() / x if x > 0 else 0.0 for x in norms])


def frame(g: Array, n: int) -> tuple[Array, Array, Array]:
    """The frame of the gradient: e, and orthonormal columns of V ⊖ P_V g and of U ⊖ P_U g."""

    def complement(v: Array) -> Array:
        if v.size == 0:
            return np.zeros((0, 0))
        if not v.any():
            v = np.eye(v.size)[0]
        return np.linalg.qr(v[:, None], mode="complete")[0][:, 1:]

    v, u = complement(g[:n]), complement(g[n:])
    e = g / np.linalg.norm(g) if g.any() else np.eye(g.size)[0]
    in_v = np.vstack([v, np.zeros((g.size - n, v.shape[1]))])
    in_u = np.vstack([np.zeros((n, u.shape[1])), u])
    return e, in_v, in_u


def plain_step(
    w: Array,
    eigenvalues: Array,
    *,
    batch_size: int,
    micro_batch_size: int,
    benign_dim: int,
    probability: float,
    norm_ratio: float,
    step_size: float,
    rng: Generator,
    sigma: float = 1.0,
    coherence: float = 0.0,
    tilt: float = 0.0,
    noise: Noise = gaussian,
    factors: Callable[[Array], Array] = smallest_norm,
) -> Array:
    """One step w − η u of the whole model: any noise law, coherence, tilt and rule on the norms."""
    g = eigenvalues * w
    e, in_v, in_u = frame(g, benign_dim)
    benign_basis = np.column_stack([e, in_v])
    dragger_length = norm_ratio * np.sqrt(g @ g + sigma**2)

    def uniform_direction() -> Array:
        z = rng.standard_normal(in_u.shape[1])
        return z / np.linalg.norm(z)

    def dragger() -> Array:
        direction = uniform_direction()
        if coherence > 0:
            own = direction - (direction @ common) * common
            direction = np.sqrt(coherence) * common
            if coherence < 1:
                direction = direction + np.sqrt(1 - coherence) * own / np.linalg.norm(own)
        return dragger_length * (in_u @ direction + tilt / np.sqrt(1 - tilt**2) * e)

    if coherence > 0:
        common = uniform_direction()
    means = []
    for _ in range(batch_size // micro_batch_size):
        total = np.zeros_like(g)
        for _ in range(micro_batch_size):
            if rng.random() < probability:
                total += dragger()
            else:
                total += g + sigma * (benign_basis @ noise(rng, benign_dim))
        means.append(total / micro_batch_size)
    scales = factors(np.array([np.linalg.norm(x) for x in means]))
    update = sum(s * x for s, x in zip(scales, means, strict=True)) / len(means)
    return w - step_size * update


def plain_program(workload: Workload, replicates: int, steps: int) -> Program:
    """`plain_step` in a loop over replicates and steps."""

    def run(seed: int) -> tuple[Array, Array]:
        rng = np.random.default_rng(seed)
        finals, means = [], []
        for _ in range(replicates):
            w, sum_sq = np.full(workload.dim, workload.start), 0.0
            for _ in range(steps):
                sum_sq += float(np.sum((workload.eigenvalues * w) ** 2))
                w = plain_step(
                    w,
                    workload.eigenvalues,
                    batch_size=workload.batch_size,
                    micro_batch_size=workload.micro_batch_size,
                    benign_dim=workload.benign_dim,
                    probability=workload.probability,
                    norm_ratio=workload.norm_ratio,
                    sigma=workload.sigma,
                    step_size=workload.step_size,
                    rng=rng,
                )
            finals.append(w)
            means.append(sum_sq / steps)
        return np.array(finals), np.array(means)

    return run


# --- do they agree? -------------------------------------------------------------------------

#: Standard errors between two means at which they are said to differ: two-sided normal rate
#: 5.7e-7 for each comparison, below 1e-4 for all of them together.
LIMIT = 5.0
#: The part of u outside the three frames, over ‖u‖: float32 rounding, 6e-8 when it was measured.
LEFT_OVER = 1e-6

Statistics = dict[str, Array]


def step_statistics(
    program: Callable[[Workload, int, int], Program],
    workload: Workload,
    replicates: int,
    seed: int,
) -> Statistics:
    """One step's update along e, across it and in the dragger frame, a number per replicate."""
    start = np.full(workload.dim, workload.start)
    w, _ = program(workload, replicates, 1)(seed)
    update = (start - w.astype(np.float64)) / workload.step_size
    e, in_v, in_u = frame(workload.eigenvalues * start, workload.benign_dim)
    along, across, dragged = update @ e, update @ in_v, update @ in_u
    rest = update - np.outer(along, e) - across @ in_v.T - dragged @ in_u.T
    if np.linalg.norm(rest) > LEFT_OVER * np.linalg.norm(update):
        raise ArithmeticError(f"{program.__name__}: the update leaves the frame of the gradient")
    return {
        "along": along,
        "along²": along**2,
        "across, 1st": across[:, 0],  # one coordinate, 0 in the mean
        "across²": (across**2).sum(axis=1),
        "dragged, 1st": dragged[:, 0],  # one coordinate, 0 in the mean
        "dragged²": (dragged**2).sum(axis=1),
        "length": np.linalg.norm(update, axis=1),
        "length²": (update**2).sum(axis=1),
    }


def theorem_1(workload: Workload) -> Statistics:
    """The exact means of three of these for b = B, where Algorithm 1 is SGD (section 4)."""
    r_sq = np.sum((workload.eigenvalues * workload.start) ** 2)
    p, c, batch = workload.probability, workload.norm_ratio, workload.batch_size
    q, sigma_sq = 1 - p, workload.sigma**2
    dragged = p / batch * c**2 * (r_sq + sigma_sq)
    length_sq = (q**2 + p * q / batch) * r_sq + q / batch * sigma_sq + dragged
    exact = {"along": q * np.sqrt(r_sq), "dragged²": dragged, "length²": length_sq}
    return {name: np.array([value]) for name, value in exact.items()}


def comparisons(start: float, seed: int) -> Iterator[tuple[str, Statistics, Statistics]]:
    """Pairs of statistics with the same means, each with a title."""
    small = Workload(
        batch_size=12, micro_batch_size=4, dim=14, benign_dim=8, probability=0.2, norm_ratio=3.0
    )
    small = replace(small, start=start, step_size=1.0)
    sgd = replace(small, micro_batch_size=small.batch_size)
    large = replace(W1, start=start, step_size=1.0)

    plain = step_statistics(plain_program, small, 20_000, seed)
    for program in (jax_program, torch_program):
        there = step_statistics(program, small, 200_000, seed)
        yield f"plain_program - {program.__name__}", plain, there
    jax, torch = (step_statistics(f, large, 20_000, seed) for f in (jax_program, torch_program))
    yield "jax_program - torch_program, W1", jax, torch
    for program in (plain_program, jax_program, torch_program):
        there = step_statistics(program, sgd, 20_000, seed)
        yield f"{program.__name__} - theorem 1, b = B", there, theorem_1(sgd)


def worst_difference(title: str, ours: Statistics, theirs: Statistics) -> float:
    """Print the differences of the means in standard errors; return the largest."""
    z = {
        name: (ours[name].mean() - y.mean())
        / np.sqrt(ours[name].var() / ours[name].size + y.var() / y.size)
        for name, y in theirs.items()
    }
    shown = ", ".join(f"{name} {value:+.1f}" for name, value in z.items())
    print(f"{title:<52}{shown}", flush=True)
    return max(abs(value) for value in z.values())


def law() -> bool:
    """Compare one step of the programs at three sizes of g; true if they agree.

    The last line is a negative control: 2 % too much noise, which must be caught.
    """
    print("Differences of means, in standard errors")
    worst = max(
        worst_difference(f"w₀ = {start}: {title}", ours, theirs)
        for seed, start in enumerate((0.01, 0.3, 3.0))  # ‖g‖ far below, about, and above σ
        for title, ours, theirs in comparisons(start, seed)
    )
    right = replace(W1, step_size=1.0)
    control = worst_difference(
        "control: 2 % more noise in PyTorch",
        step_statistics(jax_program, right, 20_000, 8),
        step_statistics(torch_program, replace(right, sigma=1.02), 20_000, 9),
    )
    return worst < LIMIT < control


def speed() -> None:
    """Print the median of five rates of each timed program on each workload."""
    for label, workload in (("W1", W1), ("W2", W2)):
        for name, program, sizes in (
            ("JAX", jax_program, JAX_SIZES),
            ("PyTorch", torch_program, TORCH_SIZES),
        ):
            replicates, steps = sizes[workload]
            rates = replicate_steps_per_second(
                program(workload, replicates, steps), replicates, steps
            )
            print(
                f"{label} {name:<8}{median(rates):>10,.0f} replicate-steps/s "
                f"({min(rates):,.0f} to {max(rates):,.0f})",
                flush=True,
            )


if __name__ == "__main__":
    sound = law()
    print("the programs agree" if sound else "THE PROGRAMS DO NOT AGREE")
    if sys.argv[1:] != ["law"]:
        speed()
    sys.exit(not sound)
