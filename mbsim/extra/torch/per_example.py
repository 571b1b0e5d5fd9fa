r"""Per-example gradients of a PyTorch model, straight into their Gram matrix.

Where w are the parameters that are trained and ℓ(w; x, y) is the loss of one example, row i of 𝒢 is
∇ℓ(w; x_i, y_i). Rows are computed in chunks of examples, by ``vmap`` of ``grad``, and K = 𝒢𝒢ᵀ is a
sum over coordinates (:mod:`mbsim.gradients.gram`). So as many coordinates are kept for all examples
as the budget allows, and where these are not all, gradients are computed again for the next ones,
of the parameters that these belong to: memory is bounded, and K is exact, at the price of passes.

An example goes through the model alone, as a batch of one. What ties examples together, as batch
normalisation in training mode does, has no per-example gradients, and is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from warnings import catch_warnings, filterwarnings

import numpy as np
import torch
from numpy.random import Generator, SeedSequence
from numpy.typing import NDArray
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, Dataset

from mbsim._shared.progress import Progress, progress
from mbsim._shared.seeds import seed_sequence, stream
from mbsim.errors import InvalidArgument, check_integer, shown
from mbsim.extra.torch.accumulate import check_untied
from mbsim.gradients.gram import Gram, check_budget

__all__ = ["per_example_gradients"]

# Of a chunk, unless told: the most examples, and the most bytes of gradients unless one has more.
_EXAMPLES, _BYTES = 64, 2**26
# More passes than this are likelier a mistake than wanted.
_PASSES = 100
_WAYS = ("error", "same", "different")
_LOOP = "or take chunk=1, a plain loop without vmap"
_PAIR = "a pair (inputs, labels), of tensors or arrays"
# What PyTorch says, what that means, and what helps; the first that fits.
_REFUSALS = (
    (
        "randomness|draws random",
        "draws random numbers",
        "take randomness='same' (one draw for all examples) or 'different' (one for each), or call "
        "model.eval()",
    ),
    (
        "running_mean",
        "updates running statistics",
        "make it with track_running_stats=False, or call model.eval()",
    ),
    (
        "in-?place|out-of-place|broadcast shape",
        "changes a tensor in place, which vmap refuses,",
        f"write it out of place (x = x + y, inplace=False), {_LOOP}",
    ),
    (
        r"\.item\(\)|data-dependent",
        "branches on values, which vmap refuses,",
        f"use torch.where, {_LOOP}",
    ),
    (r"[Ss]parse", "has sparse gradients, which vmap refuses,", f"make it sparse=False, {_LOOP}"),
    (
        r"(?<!output type )Long\b|dtype int32",
        "needs integers",
        "give indices and classes as torch.int64",
    ),
    (
        "dtype|scalar type|same type|can't be cast",
        "gets numbers of unlike types",
        "give inputs, and labels that are no classes, in the type of the parameters, {}",
    ),
    ("out of memory|allocate memory", "has too little memory", "take a smaller chunk"),
)

Array = NDArray[np.floating[Any]]


def per_example_gradients(
    model: torch.nn.Module,
    loss_fn: Callable[[Any, Any], Any],
    data: Any,
    *,
    chunk: int | None = None,
    sketch: int | None = None,
    target: Any = None,
    randomness: str = "error",
    rows: bool = False,
    rng: int | SeedSequence | Generator = 0,
    budget: int = 2**30,
) -> Any:
    """The Gram matrix of the gradients of a model's loss, one for each example.

    Args:
        model: left as it is: its mode, its buffers and its ``.grad``. Coordinates are its
            parameters in the order of ``named_parameters()``. Frozen ones are left out, one that is
            shared counts once, one that is not used has zeros.
        loss_fn: ``loss_fn(output, label)``, one number. It is called as in training, on a batch of
            one example, so that it does not matter whether it reduces by a sum, a mean or not at
            all.
        data: a pair (inputs, labels) of tensors or arrays whose first axes are the N examples; or a
            ``Dataset``, a ``DataLoader`` or another iterable of such pairs, which is read once.
            Inputs may be a tuple (the model's arguments) or a mapping (its keyword arguments).
        chunk: how many examples are differentiated at once; unless told 64, or as many as have
            64 MiB of gradients. 1 is a plain loop without vmap: slow, for models that vmap refuses.
        sketch: k, to project every gradient to k coordinates in one pass, for models of which no
            budget holds all examples' gradients; see :class:`~mbsim.gradients.gram.Gram`.
        target: held-out examples, given as `data` is, whose mean gradient is the target; or an
            array of it.
        randomness: of dropout and its kind: "error" refuses it, "same" draws once for all
            examples, "different" for each (and then the draws depend on `chunk`).
        rows: whether to return the gradients themselves, for small models. A target or a sketch is
            then the caller's to make.
        rng: what random numbers and a sketch are drawn from; PyTorch's own generator is left alone.
        budget: the most bytes to hold beyond K, the target, and what PyTorch needs for one chunk.

    Returns:
        A :class:`~mbsim.gradients.gram.Gram`, in float64 whatever the gradients' type; or with
        `rows` the gradients, an array ``[N, d]`` of float64 if the model has any, else of float32,
        which holds float16 and bfloat16 exactly.

    Raises:
        InvalidArgument: for what has no per-example gradients and what vmap refuses, naming the
            module and the remedy; for parameters and gradients that are not finite; and for a
            budget that asks for more than 100 passes.

    >>> model = torch.nn.Linear(2, 1, bias=False).double()
    >>> _ = torch.nn.init.zeros_(model.weight)
    >>> inputs, labels = np.array([[3.0, 4.0], [0.0, 10.0]]), np.array([[-1.0], [-1.0]])
    >>> half_square = lambda output, label: (output - label).square() / 2
    >>> per_example_gradients(model, half_square, (inputs, labels)).matrix
    array([[ 25.,  40.],
           [ 40., 100.]])
    >>> per_example_gradients(model, half_square, (inputs, labels), rows=True)
    array([[ 3.,  4.],
           [ 0., 10.]])
    """
    _check_model(model)
    budget = check_integer("budget", budget, minimum=1)
    examples, seed = _examples("data", data), seed_sequence(rng)
    source = _Source(model, loss_fn, chunk, randomness, seed)
    held_out = None if target is None or hasattr(target, "shape") else _examples("target", target)
    n, width = len(examples), source.coordinates
    if rows:
        if not (target is None and sketch is None):
            raise InvalidArgument("rows=True must go without target and sketch")
        size = n * width * source.dtype.itemsize
        check_budget(budget, size, "all rows; leave out rows=True")
    elif sketch is not None:
        size = 8 * check_integer("sketch", sketch, minimum=1) * (n + 1)
        check_budget(budget, size, f"{n} gradients projected to sketch={sketch} coordinates")
    else:
        width = _width(n, source, budget)
    total = n * math.ceil(source.coordinates / width) + (len(held_out) if held_out else 0)
    with progress(total, "per-example gradients") as bar, source.watched(bar):
        if rows:
            return next(source.blocks(examples, width))
        goal = source.mean(held_out) if held_out else _array(target)
        if sketch is not None:
            chunks = source.chunks(examples, "data")
            return Gram(
                chunks, target=goal, along="examples", project=sketch, rng=seed, budget=budget
            )
        left = budget - n * width * source.dtype.itemsize
        return Gram(source.blocks(examples, width), target=goal, budget=left)


# ---------------------------------------------------------------------------- examples


@dataclass(frozen=True)
class _Examples:
    """Inputs and, at last, labels; inputs that have names are the model's keyword arguments."""

    tensors: list[torch.Tensor]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.tensors[-1])


def _examples(name: str, data: Any) -> _Examples:
    """All examples, as one pair or gathered from many."""
    if _is_pair(data):
        found = [_pair(name, data)]
    else:
        if isinstance(data, Dataset):
            data = DataLoader(data, batch_size=_EXAMPLES)
        if not isinstance(data, Iterable) or isinstance(data, Mapping):
            raise InvalidArgument(f"{name}={shown(data)} must be {_PAIR}, or an iterable of such")
        found = [_pair(f"batch {number} of {name}", batch) for number, batch in enumerate(data)]
    if not found:
        raise InvalidArgument(f"{name} has no batches and must have at least one")
    if len({(part.names, len(part.tensors)) for part in found}) > 1:
        raise InvalidArgument(f"{name} must have the same inputs in every batch")
    whole = found[0]
    if len(found) > 1:
        try:
            joined = [torch.cat(parts) for parts in zip(*(p.tensors for p in found), strict=True)]
        except RuntimeError as error:
            raise InvalidArgument(f"{name} must have batches that fit: {_line(error)}") from error
        whole = _Examples(joined, whole.names)
    if not len(whole):
        raise InvalidArgument(f"{name} must not be empty")
    return whole


def _is_pair(data: Any) -> bool:
    """Two batches are none: where the labels would be there is a pair again, with an array last."""

    def of_two(some: Any) -> bool:
        return isinstance(some, (tuple, list)) and len(some) == 2

    return of_two(data) and not (of_two(data[1]) and _has_axes(data[1][1]))


def _has_axes(one: Any) -> bool:
    return len(getattr(one, "shape", ())) > 0


def _pair(name: str, pair: Any) -> _Examples:
    if not _is_pair(pair):
        raise InvalidArgument(f"{name}={shown(pair)} must be {_PAIR}")
    inputs, labels = pair
    names: tuple[str, ...] = ()
    if isinstance(inputs, Mapping):
        names, inputs = tuple(inputs), tuple(inputs.values())
    # A DataLoader makes lists of tuples.
    several = isinstance(inputs, list) and all(map(_has_axes, inputs))
    inputs = inputs if isinstance(inputs, tuple) or several else (inputs,)
    tensors = [_tensor(f"inputs of {name}", one) for one in inputs]
    tensors.append(_tensor(f"labels of {name}", labels))
    sizes = [len(one) for one in tensors]
    if len({*sizes}) > 1:
        raise InvalidArgument(
            f"{name} has {sizes[-1]} labels and inputs of {', '.join(map(str, sizes[:-1]))} "
            "examples; each example must have all of them"
        )
    return _Examples(tensors, names)


def _tensor(name: str, array: Any) -> torch.Tensor:
    try:
        with catch_warnings():
            filterwarnings("ignore", "The given NumPy array is not writable")  # nor written to
            found = torch.as_tensor(array).detach()
        len(found)
    except (TypeError, ValueError, RuntimeError):
        raise InvalidArgument(
            f"{name}={shown(array)} must be a tensor or an array, with an example in each row"
        ) from None
    return found


def _array(target: Any) -> Any:
    """A tensor as an array, and everything else as it is."""
    return target.detach().cpu().double().numpy() if isinstance(target, torch.Tensor) else target


# ---------------------------------------------------------------------------- gradients


class _Source:
    """The gradients of a model's loss: of any examples, in any range of coordinates."""

    def __init__(
        self,
        model: torch.nn.Module,
        loss_fn: Callable[[Any, Any], Any],
        chunk: int | None,
        randomness: str,
        seed: SeedSequence,
    ) -> None:
        if randomness not in _WAYS:
            raise InvalidArgument(
                f"randomness={shown(randomness)} must be 'error', 'same' or 'different'"
            )
        self.model, self.loss_fn, self.randomness, self.seed = model, loss_fn, randomness, seed
        every = dict(model.named_parameters())
        # Copies, for some layers (an embedding with max_norm) change their weights when used.
        self.fixed = {name: one.detach().clone() for name, one in every.items()}
        self.trained = {name: self.fixed[name] for name, one in every.items() if one.requires_grad}
        self.coordinates = sum(one.numel() for one in self.trained.values())
        double = any(one.dtype == torch.float64 for one in self.trained.values())
        self.dtype = np.dtype(np.float64 if double else np.float32)
        self.device = next(iter(self.trained.values())).device
        most = max(1, min(_EXAMPLES, _BYTES // (self.coordinates * self.dtype.itemsize)))
        self.chunk = most if chunk is None else check_integer("chunk", chunk, minimum=1)
        self.bar: Progress | None = None
        self.done = 0
        # The modules that are running, outermost first, with the state of the random numbers.
        self.running: list[tuple[str, Any]] = []
        self.after = "the model"

    def blocks(self, examples: _Examples, width: int) -> Iterator[Array]:
        """Arrays ``[N, at most width]`` of all examples, in one piece of memory."""
        kept = np.empty((len(examples), width), self.dtype)
        for first in range(0, self.coordinates, width):
            block = kept[:, : self.coordinates - first]
            for at in range(0, len(examples), self.chunk):
                self._fill(block[at : at + self.chunk], examples, "data", at, first)
            yield block

    def chunks(self, examples: _Examples, purpose: str) -> Iterator[Array]:
        """Arrays ``[at most chunk, d]``, all coordinates of some examples."""
        kept = np.empty((min(self.chunk, len(examples)), self.coordinates), self.dtype)
        for at in range(0, len(examples), self.chunk):
            part = kept[: len(examples) - at]
            self._fill(part, examples, purpose, at, 0)
            yield part

    def mean(self, examples: _Examples) -> Array:
        """The mean of the gradients, in float64."""
        total = np.zeros(self.coordinates)
        for part in self.chunks(examples, "target"):
            total += part.sum(axis=0, dtype=np.float64)
        return total / len(examples)

    def _fill(self, out: Array, examples: _Examples, purpose: str, at: int, first: int) -> None:
        """Write gradients of the examples from `at` on, their coordinates from `first` on."""
        rows, width = out.shape
        wanted, places, start = {}, [], 0
        for name, one in self.trained.items():
            low, high = max(start, first), min(start + one.numel(), first + width)
            if low < high:
                wanted[name] = one
                places.append(
                    (name, slice(low - first, high - first), slice(low - start, high - start))
                )
            start += one.numel()
        # Copies, for what a model changes in place are not the caller's numbers.
        tensors = [one[at : at + rows].to(self.device, copy=True) for one in examples.tensors]
        with self._refusals(), self._drawing(purpose, at):
            found = self._gradients(wanted, tensors, examples.names)
        for name, here, there in places:
            flat = found[name].reshape(rows, -1)[:, there]
            torch.from_numpy(out[:, here]).copy_(flat)
        self.done += rows
        if self.bar:
            self.bar.update(self.done)

    def _gradients(
        self, wanted: dict[str, torch.Tensor], tensors: list[torch.Tensor], names: tuple[str, ...]
    ) -> dict[str, torch.Tensor]:
        """Of all of these examples, ``[examples, ...]`` for each parameter."""
        buffers = {name: one.clone() for name, one in self.model.named_buffers()}

        def loss(values: dict[str, torch.Tensor], *example: torch.Tensor) -> torch.Tensor:
            *inputs, label = (one.unsqueeze(0) for one in example)
            arguments = ((), dict(zip(names, inputs, strict=True))) if names else (tuple(inputs),)
            self.running, self.after = [], "the model"
            output = functional_call(self.model, self.fixed | buffers | values, *arguments)
            self.after = "loss_fn"
            found = self.loss_fn(output, label)
            if not isinstance(found, torch.Tensor) or found.numel() != 1:
                raise InvalidArgument(
                    "loss_fn must return one number for an example, and returned "
                    + (f"{tuple(found.shape)}" if hasattr(found, "shape") else shown(found))
                    + "; take their mean or sum"
                )
            self.after = "the backward pass"
            return found.reshape(())

        if self.chunk > 1:
            batched = (None, *[0] * len(tensors))
            found = vmap(grad(loss), batched, randomness=self.randomness)(wanted, *tensors)
            return dict(found)
        leaves = {name: one.detach().requires_grad_() for name, one in wanted.items()}
        with torch.enable_grad():
            value = loss(leaves, *(one[0] for one in tensors))
        if not value.requires_grad:  # what is wanted is not used
            return {name: torch.zeros_like(one)[None] for name, one in leaves.items()}
        parts = torch.autograd.grad(
            value, [*leaves.values()], allow_unused=True, materialize_grads=True
        )
        return {name: one.to_dense()[None] for name, one in zip(leaves, parts, strict=True)}

    # ------------------------------------------------------------------------ refusals, randomness

    @contextmanager
    def watched(self, bar: Progress) -> Iterator[None]:
        """Know at each time which module is running, and show how much is done."""
        self.bar, handles = bar, []
        for name, module in self.model.named_modules():
            place = f"{name!r} ({type(module).__name__})" if name else type(module).__name__
            handles.append(module.register_forward_pre_hook(partial(self._enter, place)))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            self.bar = None
            for handle in handles:
                handle.remove()

    def _enter(self, place: str, *_: Any) -> None:
        self.running.append((place, self._state()))

    def _leave(self, *_: Any) -> None:
        state = self.running[-1][1]
        if state is not None and not torch.equal(state, self._state()):
            raise RuntimeError("draws random numbers")
        self.running.pop()

    def _state(self) -> Any:
        """Of the random numbers, where vmap does not look after them."""
        if self.chunk > 1 or self.randomness != "error":
            return None
        cuda = self.device.type == "cuda"
        return torch.cuda.get_rng_state(self.device) if cuda else torch.get_rng_state()

    @contextmanager
    def _drawing(self, purpose: str, at: int) -> Iterator[None]:
        """Random numbers of their own for each chunk, the same ones in each pass."""
        if self.randomness == "error":
            yield
            return
        key = ("same",) if self.randomness == "same" else (purpose, at)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(stream(self.seed, "torch", *key).integers(2**63)))
            yield

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        """Say in a line what PyTorch refuses, where, and what helps."""
        try:
            with catch_warnings():
                filterwarnings("ignore", "There is a performance drop")
                yield
        except InvalidArgument:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InvalidArgument(self._message(str(error))) from error

    def _message(self, said: str) -> str:
        """What PyTorch said, with the module that was running, and what helps."""
        place = self.running[-1][0] if self.running else self.after
        for pattern, what, remedy in _REFUSALS:
            if re.search(pattern, said) and not (self.chunk == 1 and _LOOP in remedy):
                kind = next(iter(self.trained.values())).dtype
                return f"model {what} in {place}; {remedy.format(kind)}"
        alone = "" if self.chunk == 1 else f"; if it can take one example at a time, {_LOOP[3:]}"
        return f"model fails in {place}: {_line(said)}{alone}"


def _line(said: Any) -> str:
    """The first sentence of what PyTorch says."""
    return re.split(r"\. |\n", str(said).strip())[0][:160]


# ---------------------------------------------------------------------------- checks


def _check_model(model: Any) -> None:
    """Refuse what has no gradients, and what has none for each example."""
    if not isinstance(model, torch.nn.Module):
        raise InvalidArgument(f"model={shown(model)} must be a torch.nn.Module")
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not trained:
        raise InvalidArgument("model must have a parameter with requires_grad=True; it has none")
    for name, one in trained.items():
        if torch.nn.parameter.is_lazy(one):
            raise InvalidArgument(f"model has not made {name!r} yet; run it once on a batch")
        if not one.is_floating_point():
            raise InvalidArgument(f"model must have real parameters; {name!r} is {one.dtype}")
        if not torch.isfinite(one).all():
            raise InvalidArgument(f"model must have finite parameters; {name!r} is not")
    check_untied(
        model,
        "one has no gradient of its own; call model.eval(), for the running statistics, or take "
        "GroupNorm",
    )


def _width(n: int, source: _Source, budget: int) -> int:
    """How many coordinates of all n gradients half of the budget holds."""
    size = n * source.dtype.itemsize
    needed = 2 * max(size * math.ceil(source.coordinates / _PASSES), 16 * (n + 1))
    what = f"{n} gradients of {source.coordinates} coordinates in {_PASSES} passes"
    check_budget(budget, needed, f"{what}; or take sketch=k")
    return min(source.coordinates, budget // 2 // size)
