r"""Per-example gradients to their Gram matrix, in one pass, and all that it determines.

Let the rows of 𝒢 be the gradients g_1 … g_N. Every rule sees norms alone, so that

.. math:: K = \mathcal G \mathcal G^\top

has all that micro-batches need, whatever the number of coordinates: with P the matrix whose rows
average b examples each, P K Pᵀ holds the inner products of the micro-batches, its diagonal their
squared norms, hence the factors s; and ‖u‖² = sᵀ P K Pᵀ s / m². A *target* g, the gradient that u
should be like, needs N inner products ⟨g_i, g⟩ and its length besides.

K is a sum over coordinates, so gradients may come in blocks of coordinates, none of which is kept.
(Blocks of examples do not do: each must meet all others, and so all would have to be kept.)

**Projection.** Where even that is too much, or examples do come one after another, rows are
projected to k coordinates: the coordinates are cut into blocks of k, each is given random signs and
a random rotation of its own, and the blocks are added up. Signs and rotation of a block follow from
the seed and its number, so no d × k matrix exists. Of two coordinates of different blocks 1 in k
pairs meet, in one block none; so an inner product keeps its mean, and with x, y projected to x', y'

.. math:: \operatorname{Var}\langle x', y'\rangle \le
   \tfrac1k \big(\|x\|^2\|y\|^2 + \langle x, y\rangle^2\big) \le \tfrac2k \|x\|^2 \|y\|^2 .

Source: the theory page, section 10.
"""

from __future__ import annotations

import itertools
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.random import Generator, SeedSequence
from numpy.typing import ArrayLike, NDArray

from mbsim._shared.arrays import Array, Integers, one_blas_thread
from mbsim._shared.files import reading
from mbsim._shared.progress import Progress, progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim._shared.values import value
from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.errors import (
    InvalidArgument,
    as_numbers,
    check_array,
    check_divides,
    check_finite,
    check_integer,
    check_number,
    shown,
)

__all__ = ["Gram", "GramStep"]

# The most numbers of a block of coordinates (64 MiB), and the bytes of one that it may cost.
_BLOCK, _COST = 2**23, 16
# Rows of a mapped file that are read at a time.
_ROWS = 32
# A matrix may be off by this share of its trace (of float64; or by so many roundings of its type).
_ROUNDING, _ROUNDINGS = 1e-10, 32
_ROWS_KEPT = (
    "the rows that are kept; take a smaller project=k, or give blocks of coordinates or a file"
)
_RULE = "an .npy file of real numbers, [examples, coordinates] (pickle is never loaded)"


@value
class GramStep:
    """One step of Algorithm 1 on gradients of which only the Gram matrix is known.

    Attributes:
        members: the examples of each micro-batch, int64 ``[m, b]``.
        products: ⟨X_i, X_j⟩, ``[m, m]``; `norms`: ‖X_j‖; `factors`: s_j, ``[m]``.
        update_norm: ‖u‖.
        progress: ⟨u, g⟩/‖g‖ with g the target; None without one.
        cosine: of u with the target; None without one, 0 for u = 0.

    >>> Gram([[3.0, 4.0], [0.0, 10.0], [0.0, 4.0], [3.0, 0.0]]).step(2, partition="random").members
    array([[3, 0],
           [1, 2]])
    """

    members: Integers
    products: Array
    norms: Array
    factors: Array
    update_norm: float
    progress: float | None
    cosine: float | None


@value
class Gram:
    """The Gram matrix of per-example gradients, and their products with a target if there is one.

    Args:
        gradients: one of

            * an array ``[N, d]``, or ``[N, ...]`` whose other axes are coordinates too;
            * the path of an ``.npy`` file of one, which may be larger than memory;
            * a mapping of names to arrays ``[N, ...]``, such as one for each parameter;
            * an iterator of blocks, arrays ``[N, any]``, that have the coordinates one block after
              another (see `along`).

        target: the gradient that updates should be like, such as a held-out mean gradient: an array
            of d numbers (of any shape), a path, or a mapping with the same names. It must be part
            of the pass.
        project: k, to project every gradient to k coordinates; None for no projection.
        along: what the blocks of an iterator are consecutive in: "coordinates", or "examples"
            (arrays ``[any, ...]`` or mappings of them), which are kept, or with `project` their
            projections, and must fit into the budget.
        rng: what a projection is drawn from.
        budget: the most bytes to hold beyond K and what is given in memory; 1 GiB unless told.

    Attributes:
        matrix: K, float64 ``[N, N]``.
        target_products: ⟨g_i, g⟩, ``[N]``; `target_norm`: ‖g‖. None without a target.
        relative_error: √(2/k), the standard error of a squared norm and of an inner product in
            units of the two norms; 0 without a projection.

    Raises:
        InvalidArgument: for what is none of these, for gradients that are not finite (and which),
            for a target that does not fit, and for a budget that is too small.

    The numbers do not depend on the blocks, and on threads only without threadpoolctl. Source: the
    theory page, section 10.

    >>> gram = Gram([[3.0, 4.0], [0.0, 10.0]], target=[0.0, 2.0])
    >>> gram.matrix, gram.target_products, gram.target_norm
    (array([[ 25.,  40.],
           [ 40., 100.]]), array([ 8., 20.]), 2.0)
    >>> step = gram.step(1)                      # norms 5 and 10: the second is halved
    >>> step.norms, step.factors, round(step.update_norm, 12), round(step.cosine, 12)
    (array([ 5., 10.]), array([1. , 0.5]), 4.743416490253, 0.948683298051)
    """

    matrix: Array
    target_products: Array | None
    target_norm: float | None
    relative_error: float

    def __init__(
        self,
        gradients: Any,
        *,
        target: Any = None,
        project: int | None = None,
        along: str = "coordinates",
        rng: int | SeedSequence | Generator = 0,
        budget: int = 2**30,
    ) -> None:
        if isinstance(gradients, (str, os.PathLike)):
            gradients = _mapped(gradients, "gradients")
        goal = None if target is None else _flat_target(target, gradients)
        budget = check_integer("budget", budget, minimum=1)
        if not isinstance(along, str) or along not in ("coordinates", "examples"):
            raise InvalidArgument(f"along={shown(along)} must be 'coordinates' or 'examples'")
        k = None if project is None else check_integer("project", project, minimum=1)
        seed = seed_sequence(rng)
        if along == "examples" and not isinstance(gradients, Iterator):
            raise InvalidArgument(
                f"along='examples' is for an iterator of blocks; gradients is {shown(gradients)}"
            )
        with progress(_coordinates(gradients), "Gram matrix") as bar:
            pieces = _watched(_pieces("gradients", gradients, budget), bar)
            if along == "examples":
                rows, goal = _kept_rows(gradients, goal, k, seed, budget)
                pieces = _columns_of(rows, budget)
            elif k is not None:
                projected = _projected(pieces, goal, k, seed, budget)
                goal = None if target is None else projected[-1]
                pieces = _columns_of([projected[:-1]], budget)
            augmented = _product(pieces, goal, budget)
        self._fill(augmented, goal is not None, 0.0 if k is None else math.sqrt(2 / k))

    def _fill(self, augmented: Array, targeted: bool, error: float) -> None:
        """Take over a matrix whose last row and column are the target's, if there is one."""
        augmented.setflags(write=False)
        n = len(augmented) - targeted
        vars(self).update(
            matrix=augmented[:n, :n],
            target_products=augmented[:n, n] if targeted else None,
            target_norm=math.sqrt(max(augmented[n, n], 0.0)) if targeted else None,
            relative_error=error,
        )
        _check_rows(np.diagonal(self.matrix))
        if self.target_norm is not None and not 0 < self.target_norm < math.inf:
            raise InvalidArgument(
                f"target has length {self.target_norm:g} and must be longer than 0 and finite"
            )

    @classmethod
    def from_matrix(
        cls,
        matrix: ArrayLike,
        *,
        target_products: ArrayLike | None = None,
        target_norm: float | None = None,
        relative_error: float = 0.0,
    ) -> Gram:
        """A Gram matrix from elsewhere; it is checked.

        Args:
            matrix: K, ``[N, N]``: finite, symmetric and positive semidefinite, all up to 1e-10 of
                its trace (for types with fewer digits than float64, 32 of their roundings).
            target_products: ⟨g_i, g⟩, ``[N]``, where there is a target.
            target_norm: ‖g‖, if and only if there are these.
            relative_error: that of the matrix, if it is of projected gradients.

        Raises:
            InvalidArgument: for a matrix that is none, and products that it does not allow: with
                the target as one more row it must be a Gram matrix too.

        >>> Gram.from_matrix([[25.0, 40.0], [40.0, 100.0]])
        Gram(2 examples, no target)
        >>> Gram.from_matrix([[1.0, 2.0], [2.0, 1.0]])
        Traceback (most recent call last):
            ...
        mbsim.errors.InvalidArgument: matrix must be positive semidefinite; its smallest \
eigenvalue is -1, and its trace 2
        """
        given = check_array("matrix", matrix, ndim=2, finite=True)
        n = len(given)
        if given.shape != (n, n):
            raise InvalidArgument(f"matrix has shape {given.shape} and must be square")
        kind = as_numbers("matrix", matrix).dtype
        roundings = _ROUNDINGS * float(np.finfo(kind).eps) if kind.kind == "f" else 0.0
        allowed = max(_ROUNDING, roundings) * float(np.abs(np.diagonal(given)).sum())
        if (off := float(np.abs(given - given.T).max())) > allowed:
            raise InvalidArgument(
                f"matrix must be symmetric; it differs from its transpose by {off:.3g}"
            )
        given = (given + given.T) / 2
        if (target_products is None) != (target_norm is None):
            raise InvalidArgument("target_products and target_norm must be given together")
        _check_semidefinite(given, allowed, "matrix must be positive semidefinite")
        if target_products is not None:
            products = check_array("target_products", target_products, ndim=1, finite=True)
            if products.size != n:
                raise InvalidArgument(
                    f"target_products has {products.size} values and must have one for each of "
                    f"{n} examples"
                )
            norm = check_number("target_norm", target_norm, minimum=0)
            given = np.block([[given, products[:, None]], [products, np.square(norm)]])
            _check_semidefinite(
                given,
                allowed + max(_ROUNDING, roundings) * norm**2,
                "target_products and target_norm must be possible for this matrix: with the target "
                "as one more row it must be positive semidefinite",
            )
        made = cls.__new__(cls)
        error = check_number("relative_error", relative_error, minimum=0)
        made._fill(given, target_products is not None, error)
        return made

    @property
    def examples(self) -> int:
        """N."""
        return len(self.matrix)

    def step(
        self,
        micro_batch_size: int,
        *,
        rule: Rule | None = None,
        partition: str | ArrayLike = "contiguous",
        examples: ArrayLike | None = None,
        rng: int | SeedSequence | Generator = 0,
    ) -> GramStep:
        """What Algorithm 1 makes of these examples, as one batch.

        Args:
            micro_batch_size: b; it must divide the number of examples.
            rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given.
            partition: how examples become micro-batches. "contiguous": in their order, as
                :func:`mbsim.clipping.update` does; "random"; or a label for each example, and then
                those of a label make micro-batches of their own, in their order.
            examples: the indices of the batch's examples; all of them unless told.
            rng: what a random partition is drawn from.

        Returns:
            A :class:`GramStep`, equal to that of the gradients up to rounding.

        Raises:
            InvalidArgument: for arguments that break a rule.
        """
        rule = check_rule_argument(SmallestNorm() if rule is None else rule)
        chosen = np.arange(self.examples) if examples is None else self._indices(examples)
        m = check_divides(micro_batch_size, chosen.size)
        members = chosen[_order(partition, chosen.size, chosen.size // m, rng)].reshape(m, -1)
        products = products_of(self.matrix, members[None])[0]
        norms = np.sqrt(np.maximum(np.diagonal(products), 0.0))
        factors = np.asarray(rule.factors(norms))
        norm = math.sqrt(max(float(factors @ products @ factors), 0.0)) / m
        progress = cosine = None
        if self.target_products is not None and self.target_norm:
            means = self.target_products[members].mean(axis=1) / self.target_norm
            progress = float(factors @ means) / m
            cosine = progress / norm if norm else 0.0
        return GramStep(members, products, norms, factors, norm, progress, cosine)

    def _indices(self, examples: ArrayLike) -> Integers:
        indices = as_numbers("examples", examples)
        whole = indices.ndim == 1 and indices.dtype.kind in "iu"
        if not whole or indices.min() < 0 or indices.max() >= self.examples:
            raise InvalidArgument(
                f"examples={shown(examples)} must be indices from 0 to {self.examples - 1}"
            )
        return indices.astype(np.int64)

    def __repr__(self) -> str:
        target = "no target" if self.target_norm is None else f"target of {self.target_norm:.4g}"
        error = f", relative error {self.relative_error:.2g}" if self.relative_error else ""
        return f"Gram({self.examples} examples, {target}{error})"


def are_snapshots(given: Any) -> bool:
    """Whether what is given is a list of gradients of several moments, and not an array's rows."""
    return isinstance(given, (list, tuple)) and not (
        bool(given)
        and all(isinstance(row, (list, tuple)) and all(map(np.isscalar, row)) for row in given)
    )


def products_of(matrix: Array, members: Integers) -> Array:
    """⟨X_i, X_j⟩ of micro-batches: members ``[steps, m, b]`` to ``[steps, m, m]``."""
    steps, m, b = members.shape
    flat = members.reshape(steps, m * b)
    found = np.empty((steps, m, m))
    together = max(1, _BLOCK // (m * b) ** 2)
    for i in range(0, steps, together):
        one = flat[i : i + together]
        whole = matrix[one[:, :, None], one[:, None, :]]
        if b == 1:
            found[i : i + together] = whole
        else:
            summed = whole.reshape(-1, m * b, m, b).sum(axis=3).reshape(-1, m, b, m).sum(axis=2)
            found[i : i + together] = summed / b**2
    return found


# ---------------------------------------------------------------------------- what is given


def _mapped(path: Any, name: str) -> NDArray[Any]:
    """An ``.npy`` file, mapped into memory."""
    with reading(path, _RULE, name):
        return np.lib.format.open_memmap(path, mode="r")


def _flat_target(target: Any, gradients: Any) -> Array:
    """The target as one vector, its parts in the order of the gradients' mapping."""
    if isinstance(target, (str, os.PathLike)):
        target = _mapped(target, "target")
    if isinstance(target, Mapping):
        if not isinstance(gradients, Mapping) or {*target} != {*gradients}:
            raise InvalidArgument("target must be an array, or a mapping with the gradients' names")
        target = np.concatenate(
            [as_numbers(f"target[{name!r}]", target[name]).ravel() for name in gradients]
        )
    flat = check_array("target", target).ravel()
    check_finite("target", flat)
    return flat


def _pieces(name: str, gradients: Any, budget: int) -> Iterator[NDArray[Any]]:
    """Arrays ``[N, columns]`` that together have all coordinates, in their order."""
    if isinstance(gradients, Mapping):
        if not gradients:
            raise InvalidArgument(f"{name}={{}} must not be empty")
        for key, part in gradients.items():
            yield from _pieces(f"{name}[{key!r}]", part, budget)
    elif isinstance(gradients, Iterator):
        for number, block in enumerate(gradients):
            yield from _pieces(f"block {number} of {name}", block, budget)
    else:
        array = as_numbers(name, gradients)
        if array.ndim < 2:
            raise InvalidArgument(
                f"{name} has shape {array.shape} and must have at least two axes, "
                "[examples, coordinates]"
            )
        flat = array.reshape(len(array), -1)
        width = _width(len(flat), budget)
        pages = _pages(gradients)
        for start in range(0, flat.shape[1], width):
            piece = flat[:, start : start + width]
            yield piece if pages is None else _read(piece, pages)


def _coordinates(gradients: Any) -> int | None:
    """How many coordinates there are, where that can be seen without reading them."""
    parts = [*gradients.values()] if isinstance(gradients, Mapping) else [gradients]
    shapes = [np.shape(part) if hasattr(part, "shape") else () for part in parts]
    return sum(math.prod(shape[1:]) for shape in shapes) if all(shapes) else None


def _watched(pieces: Iterable[NDArray[Any]], bar: Progress) -> Iterator[NDArray[Any]]:
    """The pieces; the bar says how many coordinates they have had."""
    done = 0
    for piece in pieces:
        yield piece
        done += piece.shape[1]
        bar.update(done)


def _width(rows: int, budget: int) -> int:
    """How many coordinates make a block: it does not depend on the budget unless that is small."""
    return max(1, min(_BLOCK // rows, budget // (_COST * rows)))


def _pages(array: Any) -> mmap.mmap | None:
    """The file that an array is mapped from, if it can be let go of: it holds no own changes."""
    if getattr(array, "mode", "c") == "c" or not hasattr(mmap, "MADV_DONTNEED"):
        return None
    while array is not None and not isinstance(array, mmap.mmap):
        array = getattr(array, "base", None)
    return array


def _read(piece: NDArray[Any], pages: mmap.mmap) -> NDArray[Any]:
    """A block of a mapped file, of which little is in memory at a time.

    What was read stays mapped, with megabytes around each part of a row, until it is let go of.
    """
    found = np.empty(piece.shape, piece.dtype)
    for i in range(0, len(piece), _ROWS):
        found[i : i + _ROWS] = piece[i : i + _ROWS]
        pages.madvise(mmap.MADV_DONTNEED)
    return found


def _columns_of(rows: list[NDArray[Any]], budget: int) -> Iterator[NDArray[Any]]:
    """Blocks of coordinates of rows that lie in several arrays."""
    width = _width(sum(map(len, rows)), budget)
    for start in range(0, rows[0].shape[1], width):
        yield np.concatenate([part[:, start : start + width] for part in rows])


# ---------------------------------------------------------------------------- the pass


def _checked(
    pieces: Iterable[NDArray[Any]], target: Array | None
) -> Iterator[tuple[NDArray[Any], Array | None]]:
    """The pieces, all of as many rows as the first, each with its part of the target."""
    at, rows = 0, None
    for piece in pieces:
        rows = len(piece) if rows is None else rows
        if len(piece) != rows:
            raise InvalidArgument(
                f"gradients has {rows} examples in its first block and {len(piece)} in another; "
                "blocks are of coordinates, and each must have all examples"
            )
        end = at + piece.shape[1]
        if target is not None and end > target.size:
            raise InvalidArgument(
                f"target has {target.size} coordinates and must have those of the gradients, "
                f"at least {end}"
            )
        yield piece, None if target is None else target[at:end]
        at = end
    if rows is None:
        raise InvalidArgument("gradients has no blocks and must have at least one")
    if target is not None and at != target.size:
        raise InvalidArgument(
            f"target has {target.size} coordinates and must have those of the gradients, {at}"
        )


def _product(pieces: Iterable[NDArray[Any]], target: Array | None, budget: int) -> Array:
    """𝒢𝒢ᵀ, the target as the last row of 𝒢 if there is one."""
    checked = _checked(pieces, target)
    first = next(checked)
    n = len(first[0])
    rows = n + (target is not None)
    check_budget(budget, _COST * rows, "one coordinate of every example")
    width, used = _width(rows, budget), 0
    product, block = np.zeros((rows, rows)), np.empty((rows, width))
    for piece, goal in itertools.chain([first], checked):
        start = 0
        while start < piece.shape[1]:
            take = min(width - used, piece.shape[1] - start)
            block[:n, used : used + take] = piece[:, start : start + take]
            if goal is not None:
                block[n, used : used + take] = goal[start : start + take]
            start, used = start + take, used + take
            if used == width:
                _add_product(product, block)
                used = 0
    if used:
        _add_product(product, np.ascontiguousarray(block[:, :used]))
    for i in range(0, rows, 256):  # what was computed is one half
        product[i:, i : i + 256] = np.where(
            np.arange(i, rows)[:, None] >= np.arange(i, min(i + 256, rows)),
            product[i : i + 256, i:].T,
            product[i:, i : i + 256],
        )
    return product


def _add_product(product: Array, block: Array) -> None:
    """The upper half of block blockᵀ is added, in place."""
    from scipy.linalg.blas import dsyrk

    with one_blas_thread(), np.errstate(all="ignore"):
        dsyrk(1.0, block.T, beta=1.0, c=product.T, trans=1, lower=1, overwrite_c=1)


def _projected(
    pieces: Iterable[NDArray[Any]], target: Array | None, k: int, seed: SeedSequence, budget: int
) -> Array:
    """The rows projected to k coordinates, ``[N + 1, k]``; the last is the target's, or 0."""
    found = np.zeros((0, k))
    at, signs, shift = 0, np.zeros(k), 0
    for piece, goal in _checked(pieces, target):
        if not len(found):
            check_budget(budget, 8 * k * (len(piece) + 1), _ROWS_KEPT)
            found = np.zeros((len(piece) + 1, k))
        for start, end in _cuts(at, piece.shape[1], k):
            number, inside = divmod(at + start, k)
            if inside == 0:
                rng = stream(seed, "projection", number)
                signs = rng.choice([-1.0, 1.0], size=k)
                shift = int(rng.integers(k))
            one = signs[inside : inside + end - start]
            places = _around(inside + shift, end - start, k)
            with np.errstate(all="ignore"):
                for here, there in places:
                    part = piece[:, start + here.start : start + here.stop]
                    found[:-1, there] += part.astype(np.float64) * one[here]
                    if goal is not None:
                        found[-1, there] += goal[start + here.start : start + here.stop] * one[here]
        at += piece.shape[1]
    return found


def _cuts(at: int, length: int, k: int) -> Iterator[tuple[int, int]]:
    """Start and end, in a piece that begins at coordinate `at`, of its parts of blocks of k."""
    start = 0
    while start < length:
        end = min(length, start + k - (at + start) % k)
        yield start, end
        start = end


def _around(start: int, length: int, k: int) -> list[tuple[slice, slice]]:
    """Where `length` things go that are laid from `start` on around a circle of k places."""
    start %= k
    first = min(length, k - start)
    places = [(slice(0, first), slice(start, start + first))]
    if first < length:
        places.append((slice(first, length), slice(0, length - first)))
    return places


def _kept_rows(
    blocks: Iterator[Any], target: Array | None, k: int | None, seed: SeedSequence, budget: int
) -> tuple[list[NDArray[Any]], Array | None]:
    """Blocks of examples as rows, projected if k says so; and the target alike."""
    rows: list[NDArray[Any]] = []
    held, goal = 0, target
    for number, block in enumerate(blocks):
        pieces = _pieces(f"block {number} of gradients", block, budget)
        if k is None:
            rows.append(np.concatenate([piece for piece, _ in _checked(pieces, target)], axis=1))
        else:
            projected = _projected(pieces, target, k, seed, budget)
            rows.append(projected[:-1])
            goal = None if target is None else projected[-1]
        if rows[-1].shape[1] != rows[0].shape[1]:
            raise InvalidArgument(
                f"gradients has {rows[0].shape[1]} coordinates in its first block and "
                f"{rows[-1].shape[1]} in block {number}"
            )
        held += rows[-1].nbytes
        check_budget(budget, held, _ROWS_KEPT)
    if not rows:
        raise InvalidArgument("gradients has no blocks and must have at least one")
    return rows, goal


# ---------------------------------------------------------------------------- checks


def check_budget(budget: int, needed: int, what: str) -> None:
    """Refuse a budget that is less than what is needed."""
    if needed > budget:
        raise InvalidArgument(f"budget={budget} must be at least {needed} bytes for {what}")


def _check_rows(squares: Array) -> None:
    """Refuse rows that are not finite, saying which, and gradients that are all 0."""
    bad = np.flatnonzero(~np.isfinite(squares))
    if bad.size:
        which = ", ".join(map(str, bad[:5])) + (", …" if bad.size > 5 else "")
        raise InvalidArgument(
            f"gradients must be finite, and shorter than 1e154; {bad.size} of {squares.size} rows "
            f"are not: {which}"
        )
    if not squares.any():
        raise InvalidArgument(
            f"gradients must not all be 0 or shorter than 1e-162; all {squares.size} rows are"
        )


def _check_semidefinite(matrix: Array, allowed: float, rule: str) -> None:
    """By a Cholesky factor of the matrix and a little more; eigenvalues only for the message."""
    try:
        with one_blas_thread():
            np.linalg.cholesky(matrix + allowed * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        least = float(np.linalg.eigvalsh(matrix)[0])
        if not matrix.any():
            return
        raise InvalidArgument(
            f"{rule}; its smallest eigenvalue is {least:.3g}, and its trace {np.trace(matrix):.3g}"
        ) from None


def _order(partition: Any, count: int, b: int, rng: int | SeedSequence | Generator) -> Integers:
    """The places of the batch's examples, micro-batch after micro-batch."""
    if isinstance(partition, str) and partition == "contiguous":
        return np.arange(count)
    if isinstance(partition, str) and partition == "random":
        return stream(seed_sequence(rng)).permutation(count)
    labels = np.asarray(partition)
    if labels.ndim != 1 or labels.dtype.kind not in "iufbUS":
        raise InvalidArgument(
            f"partition={shown(partition)} must be 'contiguous', 'random' or a label for each "
            "example"
        )
    if labels.size != count:
        raise InvalidArgument(
            f"partition has {labels.size} labels and must have one for each of {count} examples"
        )
    found, counts = np.unique(labels, return_counts=True)
    for label, size in zip(found.tolist(), counts.tolist(), strict=True):
        if size % b:
            raise InvalidArgument(
                f"partition has {size} examples with the label {shown(label)}, and micro_batch_size"
                f"={b} must divide their number; leave {size % b} of them out"
            )
    return np.argsort(labels, kind="stable")
