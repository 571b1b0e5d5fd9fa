r"""Algorithm 1 from the losses of one forward pass, for any micro-batch size.

With the factors held fixed, the update is the gradient of a reweighted loss,

.. math:: u = \frac1m \sum_j s_j X_j = \nabla \frac1B \sum_i s_{j(i)} \, \ell_i ,

so that only the norms x_j are needed beforehand. Where a layer multiplies its inputs a by its
weights, and h are the gradients of its outputs, :math:`X_j = \frac1b \sum h a^\top` and

.. math:: b^2 x_j^2 = \sum_{r, r'} (a_r \cdot a_{r'}) (h_r \cdot h_{r'})

over the rows r, r' of the micro-batch (Goodfellow 2015, arXiv 1510.01799; for sequences Li et al.
2021, arXiv 2110.05679): no gradient is kept. One backward pass gives h, a second one the update.

Inputs, and which parameter is used where, are read from the graph that autograd has kept of the
forward pass; so no layer is wrapped, and a parameter may be used by any function, and often. What
is not known here is done by a backward pass for each micro-batch, for these parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.autograd.graph import GradientEdge
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointError

from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.errors import InvalidArgument, check_divides, shown
from mbsim.extra.torch.accumulate import Step, check_dense, check_untied, enabled, overflow

__all__ = ["clipped_backward"]

# The most elements that a convolution's gradients, or the patches of its inputs, take at once.
_AT_ONCE = 2**20
# Sums of squares between these are as good in float32 as in float64.
_SAFE = (1e-20, 1e30)

# Of rows [n, ...], those of each micro-batch, [m, n/m, ...].
Group = Callable[[torch.Tensor], torch.Tensor]


def clipped_backward(
    losses: torch.Tensor,
    model: torch.nn.Module,
    micro_batch_size: int,
    rule: Rule | None = None,
    *,
    scaler: Any = None,
) -> Step:
    """Adds Algorithm 1's update to ``.grad`` of a model's parameters, in place of ``backward()``.

    Micro-batch j holds the examples j·b … (j+1)·b − 1, and its gradient X_j is that of their mean
    loss. Every rule is exact. Like ``backward()`` it adds to what ``.grad`` holds, and frees the
    graph. It costs two backward passes, whatever b; the first time for a model four, to see
    which rows of its layers are of which example.

    Args:
        losses: the B losses of the examples, from one forward pass: ``reduction="none"``, and for
            sequences the mean over their tokens.
        model: whose parameters are meant. Frozen and unused ones are passed over.
        micro_batch_size: b; it must divide B.
        rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given.
        scaler: a ``GradScaler``, which is then applied here and not to `losses`; norms and
            thresholds are without its factor, ``.grad`` is with it, for ``scaler.step``.

    Returns:
        The :class:`~mbsim.extra.torch.accumulate.Step`: norms, factors, fraction clipped.

    Raises:
        InvalidArgument: for losses that are no tensor ``[B]``, have no graph, or none to the
            model; for batch normalisation in training mode, which ties examples together; and for
            a micro-batch that is not finite, which cannot be left out of a pass of all. ``.grad``
            is as it was then.

    Source: [Wang2024] Algorithm 1.

    >>> w = torch.nn.Linear(2, 1, bias=False)
    >>> losses = w(torch.tensor([[3.0, 4.0], [0.0, 10.0]])).sum(1)
    >>> print(clipped_backward(losses, w, micro_batch_size=1))
    2 micro-batches (0 left out), norms 5 to 10, 50% clipped, exact
    >>> w.weight.grad
    tensor([[1.5000, 4.5000]])
    """
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    _check(losses, model)
    batch, scaler = len(losses), enabled(scaler)
    m = check_divides(micro_batch_size, batch)
    scale = float(scaler.get_scale()) if scaler else 1.0
    try:
        graph = _Graph(losses, model)
        squares = graph.squares(m, scale)
    except RuntimeError as error:
        if "second time" not in str(error) and "inplace" not in str(error):
            raise
        raise InvalidArgument(
            "losses must have their graph, unchanged: call clipped_backward once after each "
            "forward pass, and before the optimizer's step"
        ) from error
    norms = np.sqrt(squares) * m / batch / scale
    bad, ones = np.flatnonzero(~np.isfinite(norms)), np.ones(m)
    if bad.size and scaler:
        overflow(graph.params[:1], scaler)
        said = f"{bad.size} of {m} micro-batches are not finite; the scaler lowers its scale"
        return Step(norms=norms, factors=0 * ones, weights=ones, left_out=bad.size,
                    how="exact", skipped=said)  # fmt: skip
    if bad.size:
        raise InvalidArgument(
            f"losses must have finite gradients, and micro-batch {bad[0]} ({bad.size} of {m}) has "
            "not; leave these examples out, or take MicroBatchClipper, which does"
        )
    factors = np.asarray(rule.factors(norms))
    each = torch.as_tensor(np.repeat(factors, batch // m) * (scale / batch))
    torch.autograd.backward(losses, each.to(losses), inputs=graph.params)
    return Step(norms=norms, factors=factors, weights=ones, left_out=0, how=graph.how)


def _check(losses: Any, model: Any) -> None:
    if not isinstance(model, torch.nn.Module):
        raise InvalidArgument(f"model={shown(model)} must be a torch.nn.Module")
    if isinstance(model, DistributedDataParallel):
        raise InvalidArgument(
            "model must not be a DistributedDataParallel, which would average clipped gradients; "
            "take MicroBatchClipper under no_sync()"
        )
    if not isinstance(losses, torch.Tensor) or losses.ndim != 1 or not len(losses):
        found = tuple(losses.shape) if isinstance(losses, torch.Tensor) else shown(losses)
        raise InvalidArgument(
            f"losses={found} must be a tensor of shape (B,), one number for each example: take "
            "reduction='none', and the mean over all other axes"
        )
    if not losses.requires_grad:
        raise InvalidArgument("losses must have a graph: compute them with gradients enabled")
    check_untied(
        model,
        "its micro-batches have no gradients of their own; call eval() on it, or take GroupNorm",
    )


# ---------------------------------------------------------------------------- the graph

# What a weight may go through on its way to where it is used.
_COPIES = ("ToCopyBackward0",)
_SHAPES = ("TBackward0", "RepeatBackward0")
# Rows that are 0, or so many of them that both layouts fit: right for now, and for now only.
_UNSEEN = "either"
# Which layouts of rows were found, by model and by the form of its graph.
_LAYOUTS: WeakKeyDictionary[torch.nn.Module, dict[int, list[str]]] = WeakKeyDictionary()


@dataclass(eq=False)
class _Use:
    """A parameter where it is used: the node, as which of its operands, and by which way."""

    param: torch.nn.Parameter
    node: Any
    place: int
    way: tuple[str, ...]
    layout: str = ""


class _Graph:
    """The graph of some losses: where parameters are used, and the norms of their gradients."""

    def __init__(self, losses: torch.Tensor, model: torch.nn.Module) -> None:
        self.losses, self.model = losses, model
        self.nodes = _ordered(losses.grad_fn)
        mine = {id(p): p for p in model.parameters() if p.requires_grad}
        users: dict[Any, list[tuple[Any, int]]] = {}
        for node in self.nodes:
            if node.name() == "CheckpointFunctionBackward":
                raise InvalidArgument(
                    "model must not hide its graph: take checkpoint(..., use_reentrant=False)"
                )
            for place, (other, _) in enumerate(node.next_functions):
                users.setdefault(other, []).append((node, place))
        leaves = [n for n in self.nodes if id(getattr(n, "variable", None)) in mine]
        self.params = [n.variable for n in leaves]
        if not leaves:
            raise InvalidArgument("losses must depend on the model's parameters, and do not")
        found = {n.variable: [*_uses(n.variable, n, users, ())] for n in leaves}
        self.uses = [use for uses in found.values() for use in uses]
        batch = len(losses)
        known = _LAYOUTS.setdefault(model, {})
        form = hash((batch, tuple((n.name(), len(n.next_functions)) for n in self.nodes)))
        layouts = known.get(form) or self._layouts(batch)
        if _UNSEEN not in layouts:
            known[form] = layouts
        for use, layout in zip(self.uses, layouts, strict=True):
            use.layout = layout
        self.looped = {
            p for p, uses in found.items()
            if any(not use.layout or not _readable(use) for use in uses)
        }  # fmt: skip
        self.times = {p: len(uses) for p, uses in found.items()}

    @property
    def how(self) -> str:
        """How, and for which parameters slowly."""
        names = [name for name, p in self.model.named_parameters() if p in self.looped]
        slow = f", with a backward pass for each micro-batch for {', '.join(names)}"
        return "exact" + (slow if names else "")

    def squares(self, m: int, scale: float) -> Any:
        """The squared norms of the sums of the gradients of each micro-batch, ``[m]``."""
        try:
            return self._squares(m, scale)
        except CheckpointError:  # inputs that are worked out again can be read but once
            self.looped = set(self.params)
            return self._squares(m, scale)

    def _squares(self, m: int, scale: float) -> Any:
        total = np.zeros(m)
        waiting: dict[torch.nn.Parameter, list[Any]] = {}

        def visit(use: _Use, slopes: torch.Tensor) -> None:
            group = partial(_grouped, m=m, batch=len(self.losses), layout=use.layout)
            form = _KINDS[use.node.name()](use, slopes, group)
            forms = waiting.setdefault(use.param, [])
            forms.append(form)
            if len(forms) == self.times[use.param]:
                total[:] += _squares(waiting.pop(use.param))

        cotangent = torch.full_like(self.losses, scale)
        self._pass(cotangent, [u for u in self.uses if u.param not in self.looped], visit)
        for forms in waiting.values():  # where some uses had no gradient
            total += _squares(forms)
        if self.looped:
            total += self._one_by_one(m, cotangent)
        return total

    def _one_by_one(self, m: int, cotangent: torch.Tensor) -> Any:
        """The same by a backward pass for each micro-batch, of what is not known here."""
        found, params = [], [p for p in self.params if p in self.looped]
        for j in range(m):
            chosen = torch.zeros_like(cotangent).view(m, -1)
            chosen[j] = cotangent.view(m, -1)[j]
            parts = torch.autograd.grad(
                self.losses, params, chosen.view(-1), retain_graph=True, allow_unused=True
            )
            for part in parts:
                if part is not None:
                    check_dense(part)
            found.append(sum(float(p.double().square().sum()) for p in parts if p is not None))
        return np.array(found)

    def _pass(
        self,
        cotangent: torch.Tensor,
        uses: list[_Use],
        visit: Callable[[_Use, torch.Tensor], None],
    ) -> None:
        """A backward pass that stops at the uses, and shows each the gradient of its output."""
        wanted: dict[Any, list[_Use]] = {}
        for use in uses:
            wanted.setdefault(use.node, []).append(use)
        above = self._above(set(wanted))
        last = [node for node in wanted if node not in above]

        def show(of: list[_Use], slopes: Any) -> None:
            with torch.no_grad():
                for use in of if slopes is not None else ():
                    visit(use, slopes)

        handles = [
            node.register_prehook(lambda slopes, of=of: show(of, slopes[0]))
            for node, of in wanted.items()
            if node in above
        ]
        try:
            edges = [GradientEdge(node, 0) for node in last]
            if edges:
                found = torch.autograd.grad(
                    self.losses, edges, cotangent, retain_graph=True, allow_unused=True
                )
                for node, slopes in zip(last, found, strict=True):
                    show(wanted[node], slopes)
        finally:
            for handle in handles:
                handle.remove()

    def _above(self, wanted: set[Any]) -> set[Any]:
        """The nodes from which a backward pass goes on to one that is wanted."""
        above: set[Any] = set()
        for node in reversed(self.nodes):  # what is used comes before what uses it
            for other, _ in node.next_functions:
                if other in wanted or other in above:
                    above.add(node)
                    break
        return above

    def _layouts(self, batch: int) -> list[str]:
        """Which example each row of a use is of: in blocks ("major"), in turn ("minor"), or "".

        Two backward passes, the second with the losses times different numbers, show it: if rows
        are of one example each, they grow by the number of that example.
        """
        uses = [use for use in self.uses if use.node.name() in _KINDS]
        factors = torch.linspace(1, 2, batch, dtype=torch.float64)[torch.randperm(
            batch, generator=torch.Generator().manual_seed(0)
        )]  # fmt: skip
        seen: list[dict[int, torch.Tensor]] = []
        for cotangent in (torch.ones(batch, dtype=torch.float64), factors):
            sketch: dict[int, torch.Tensor] = {}

            def visit(use: _Use, slopes: torch.Tensor, sketch: Any = sketch) -> None:
                sketch[id(use)] = _sketch(use, slopes)

            self._pass(cotangent.to(self.losses), uses, visit)
            seen.append(sketch)
        layouts = []
        for use in self.uses:
            before, after = (sketch.get(id(use)) for sketch in seen)
            layouts.append(_layout(before, after, factors) if before is not None else "")
        return layouts


def _ordered(root: Any) -> list[Any]:
    """A node and all below it; reversed, what is used comes before what uses it."""
    order, done, stack = [], set(), [(root, iter(root.next_functions))]
    done.add(root)
    while stack:
        node, rest = stack[-1]
        for other, _ in rest:
            if other is not None and other not in done:
                done.add(other)
                stack.append((other, iter(other.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


def _uses(
    param: torch.nn.Parameter, node: Any, users: dict[Any, list[tuple[Any, int]]], way: Any
) -> Iterator[_Use]:
    for user, place in users.get(node, ()):
        if user.name() in _COPIES:
            yield from _uses(param, user, users, way)
        elif user.name() in _SHAPES:
            yield from _uses(param, user, users, (*way, user.name()))
        else:
            yield _Use(param, user, place, way)


def _sketch(use: _Use, slopes: torch.Tensor) -> torch.Tensor:
    """One number for each row: its product with a fixed direction."""
    rows, p = _rows(use, slopes), use.param
    if _KINDS[use.node.name()] is _elementwise and p.ndim >= rows.ndim and p.shape[0] > 1:
        rows = rows[:0]  # w is not the same for all rows
    rows = rows.reshape(len(rows), math.prod(rows.shape[1:])).double()
    ramp = torch.arange(rows.shape[1], device=rows.device, dtype=torch.float64)
    return (rows @ torch.cos(1 + 3 * ramp)).cpu()


def _layout(before: torch.Tensor, after: torch.Tensor, factors: torch.Tensor) -> str:
    rows, batch = len(before), len(factors)
    if not rows or rows % batch:
        return ""
    place, fits = torch.arange(rows), []
    before, after = (torch.where((before - after).isfinite(), one, 0) for one in (before, after))
    for layout, example in (("major", place // (rows // batch)), ("minor", place % batch)):
        error = (after - factors[example] * before).abs().max()
        if error <= 0.02 * before.abs().max():
            fits.append(layout)
    both = len(fits) == 2 and (rows > batch or not before.any())
    return _UNSEEN if both else fits[0] if fits else ""


def _rows(use: _Use, slopes: torch.Tensor) -> torch.Tensor:
    """The gradients of outputs with their rows on the first axis, ``[n, ...]``."""
    name = use.node.name()
    if name in ("EmbeddingBackward0", "LinearBackward0"):
        return slopes.reshape(-1, slopes.shape[-1])
    if name == "NativeLayerNormBackward0":
        return slopes.reshape(-1, *use.node._saved_normalized_shape)
    if name in ("AddBackward0", "MulBackward0") and slopes.ndim > use.param.ndim:
        return slopes.flatten(0, slopes.ndim - max(1, use.param.ndim) - 1)
    if name == "NativeBatchNormBackward0" and use.way:
        return slopes.reshape(-1, use.param.numel(), *slopes.shape[2:])
    return slopes if slopes.ndim else slopes[None]


def _grouped(rows: torch.Tensor, m: int, batch: int, layout: str) -> torch.Tensor:
    """Rows ``[n, ...]`` by micro-batch, ``[m, n/m, ...]``."""
    if layout != "minor":
        return rows.reshape(m, -1, *rows.shape[1:])
    parts = rows.reshape(-1, m, batch // m, *rows.shape[1:]).transpose(0, 1)
    return parts.reshape(m, -1, *rows.shape[1:])


# ---------------------------------------------------------------------------- kinds of use


@dataclass(eq=False)
class _Product:
    """Gradients Σ_r h_r a_rᵀ of each micro-batch: inputs ``[m, r, i]``, slopes ``[m, r, o]``."""

    inputs: torch.Tensor
    slopes: torch.Tensor

    def squares(self) -> torch.Tensor:
        a, h = self.inputs, self.slopes
        (rows, i), o = a.shape[-2:], h.shape[-1]
        if rows * (i + o) <= i * o:
            return _dot(a @ a.mT, h @ h.mT).clamp(min=0)
        gradients = h.mT @ a
        return _dot(gradients, gradients)

    def gradients(self) -> torch.Tensor:
        return (self.slopes.mT @ self.inputs).flatten(1)


@dataclass(eq=False)
class _Plain:
    """Gradients of each micro-batch, as they are, ``[m, coordinates]``."""

    values: torch.Tensor

    def squares(self) -> torch.Tensor:
        return self.values.square().sum(1)

    def gradients(self) -> torch.Tensor:
        return self.values


@dataclass(eq=False)
class _Lookup:
    """Gradients of a table, whose row index[m, r] gets slopes ``[m, r, o]``."""

    index: torch.Tensor
    slopes: torch.Tensor
    entries: int

    def squares(self) -> torch.Tensor:
        m = len(self.index)
        first = torch.arange(m, device=self.index.device)[:, None] * self.entries
        keys, place = torch.unique(self.index + first, return_inverse=True)
        sums = self.slopes.new_zeros(len(keys), self.slopes.shape[-1])
        sums.index_add_(0, place.flatten(), self.slopes.flatten(0, 1))
        found = sums.new_zeros(m)
        return found.index_add_(0, keys // self.entries, sums.square().sum(1))

    def gradients(self) -> torch.Tensor:
        m, _, width = self.slopes.shape
        table = self.slopes.new_zeros(m, self.entries, width)
        index = self.index[..., None].expand_as(self.slopes)
        return table.scatter_add_(1, index, self.slopes).flatten(1)


@dataclass(eq=False)
class _Convolved:
    """Gradients of a convolution's weight, some micro-batches at a time."""

    inputs: torch.Tensor  # [m, r, channels, *space]
    slopes: torch.Tensor  # [m, r, out, *space]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def squares(self) -> torch.Tensor:
        m, r, out, *space = self.slopes.shape
        rows, o = r * math.prod(space), out // self.groups
        i = self.inputs.shape[2] // self.groups * math.prod(self.kernel)
        if rows * (i + o) <= i * o:
            step = max(1, _AT_ONCE // (rows * i * self.groups))
            parts = [self._product(j, j + step).squares().sum(1) for j in range(0, m, step)]
        else:
            step = max(1, _AT_ONCE // (i * out))
            parts = [_Plain(self._gradients(j, j + step)).squares() for j in range(0, m, step)]
        return torch.cat(parts)

    def gradients(self) -> torch.Tensor:
        return self._gradients(0, len(self.slopes))

    def _gradients(self, first: int, last: int) -> torch.Tensor:
        """As PyTorch has them, each micro-batch being groups of channels of its own."""
        x, h = (one[first:last].transpose(0, 1).flatten(1, 2) for one in (self.inputs, self.slopes))
        groups = len(self.slopes[first:last]) * self.groups
        weight = x.new_empty(()).expand(h.shape[1], x.shape[1] // groups, *self.kernel)
        _, found, _ = torch.ops.aten.convolution_backward(
            h, x, weight, None, self.stride, self.padding, self.dilation, False,
            [0] * len(self.kernel), groups, [False, True, False],
        )  # fmt: skip
        return found.reshape(groups // self.groups, -1)

    def _product(self, first: int, last: int) -> _Product:
        """As a product with patches of the inputs, ``[m, groups, rows, ...]``."""
        x, h, d = self.inputs[first:last], self.slopes[first:last], len(self.kernel)
        sides = [side for k in reversed(self.padding) for side in (k, k)]
        x = torch.nn.functional.pad(x, sides)
        windows = zip(self.kernel, self.stride, self.dilation, strict=True)
        for axis, (k, s, gap) in enumerate(windows, start=3):
            x = x.unfold(axis, (k - 1) * gap + 1, s)[..., ::gap]
        # [m, r, groups, channels, places, kernel] to [m, groups, r places, channels kernel]
        x = x.unflatten(2, (self.groups, -1)).movedim(3, 3 + d)
        x = x.movedim(2, 1).flatten(3 + d).flatten(2, 2 + d)
        h = h.unflatten(2, (self.groups, -1)).movedim(2, 1).movedim(3, -1).flatten(2, 2 + d)
        return _Product(x, h)


def _dot(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Inner products of matrices, without the products of their entries in memory."""
    return (x.flatten(-2)[..., None, :] @ y.flatten(-2)[..., :, None])[..., 0, 0]


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _squares(forms: list[Any]) -> Any:
    """‖·‖² of the sums of one parameter's gradients in its uses, for each micro-batch."""
    if len(forms) > 1 and all(isinstance(form, _Product) for form in forms):
        whole: Any = _Product(
            torch.cat([form.inputs for form in forms], 1),
            torch.cat([form.slopes for form in forms], 1),
        )
    elif len(forms) > 1:
        whole = _Plain(sum(form.gradients() for form in forms))
    else:
        whole = forms[0]
    found = whole.squares().cpu().numpy()
    if not _SAFE[0] < found.min() <= found.max() < _SAFE[1]:
        found = _double(whole).squares().cpu().numpy()
    return found


def _double(form: Any) -> Any:
    """The same in float64, what is no index."""
    tensors = {name: x for name, x in vars(form).items() if isinstance(x, torch.Tensor)}
    wide = {name: x.double() for name, x in tensors.items() if x.is_floating_point()}
    return replace(form, **wide)


def _matrix(use: _Use, slopes: torch.Tensor, group: Group) -> Any:
    """``a @ w``, or ``a @ w.T`` as in a linear layer, and what may be added to it."""
    node, name = use.node, use.node.name()
    h = group(_wide(_rows(use, slopes)))
    bias = 0 if name == "AddmmBackward0" else 2 if name == "LinearBackward0" else None
    if use.place == bias:
        return _Plain(h.sum(1))
    a = {"AddmmBackward0": "_saved_mat1", "MmBackward0": "_saved_self"}.get(name, "_saved_input")
    inputs = getattr(node, a)
    inputs = group(_wide(inputs.reshape(-1, inputs.shape[-1])))
    # In the order of the parameter's own axes.
    straight = bool(use.way) != (name == "LinearBackward0")
    return _Product(inputs, h) if straight else _Product(h, inputs)


def _convolution(use: _Use, slopes: torch.Tensor, group: Group) -> Any:
    node = use.node
    if use.place == 2:
        return _Plain(group(_wide(slopes).flatten(2).sum(2)).sum(1))
    d = slopes.ndim - 2
    inputs, kernel = node._saved_input, tuple(use.param.shape[-d:])
    form = (tuple(node._saved_stride), tuple(node._saved_padding), tuple(node._saved_dilation))
    return _Convolved(group(_wide(inputs)), group(_wide(slopes)), kernel, *form, node._saved_groups)


def _embedding(use: _Use, slopes: torch.Tensor, group: Group) -> Any:
    index = use.node._saved_indices.reshape(-1)
    h = _wide(slopes.reshape(len(index), -1))
    padding = use.node._saved_padding_idx
    if 0 <= padding < len(use.param):
        h = h * (index != padding)[:, None]
    return _Lookup(group(index), group(h), len(use.param))


def _normalised(use: _Use, slopes: torch.Tensor, group: Group) -> Any:
    """Scale and shift after layer, group, instance and (with running statistics) batch norm."""
    node, h = use.node, _wide(slopes)
    if use.place == 1:
        x = _wide(node._saved_input)
        if node.name() == "NativeLayerNormBackward0":
            x = (x - node._saved_result1).mul_(node._saved_result2)
        elif node.name() == "NativeGroupNormBackward0":
            mean, inverse = (one[..., None] for one in (node._saved_result1, node._saved_result2))
            x = (x.reshape(*mean.shape[:2], -1) - mean).mul_(inverse).reshape(x.shape)
        else:
            mean, inverse = node._saved_result1, node._saved_result2
            if not node._saved_training:
                mean = node._saved_running_mean
                inverse = (node._saved_running_var + node._saved_eps).rsqrt()
            shape = (1, -1, *[1] * (x.ndim - 2))
            x = (x - mean.reshape(shape)).mul_(inverse.reshape(shape))
        h = x.mul_(h)
    h = _rows(use, h)
    if node.name() != "NativeLayerNormBackward0":
        h = h.reshape(*h.shape[:2], -1).sum(2)
    return _Plain(group(h).sum(1).flatten(1))


def _elementwise(use: _Use, slopes: torch.Tensor, group: Group) -> Any:
    """``x + w`` and ``x * w``, with w the same for all rows."""
    h = _wide(slopes)
    if use.node.name() == "MulBackward0":
        h = h * (use.node._saved_other if use.place == 0 else use.node._saved_self)
    h = group(_rows(use, h)).sum(1)
    shape = ((1,) * h.ndim + tuple(use.param.shape))[-h.ndim :]
    axes = [axis for axis in range(1, h.ndim) if shape[axis] == 1]
    return _Plain((h.sum(axes) if axes else h).reshape(len(h), -1))


_KINDS: dict[str, Callable[[_Use, torch.Tensor, Group], Any]] = {
    "AddmmBackward0": _matrix,
    "MmBackward0": _matrix,
    "LinearBackward0": _matrix,
    "ConvolutionBackward0": _convolution,
    "EmbeddingBackward0": _embedding,
    "NativeLayerNormBackward0": _normalised,
    "NativeGroupNormBackward0": _normalised,
    "NativeBatchNormBackward0": _normalised,
    "AddBackward0": _elementwise,
    "MulBackward0": _elementwise,
}


def _readable(use: _Use) -> bool:
    """Whether the form of this use is one that is known here."""
    node, name, place, way, p = use.node, use.node.name(), use.place, use.way, use.param
    if name == "AddmmBackward0":
        one = node._saved_alpha == 1 and node._saved_beta == 1
        return one and ((place == 0 and p.ndim == 1 and not way) or _weight(use, 2))
    if name == "MmBackward0":
        return _weight(use, 1)
    if name == "NativeBatchNormBackward0":
        return (way == ("RepeatBackward0",)) == bool(node._saved_training) and len(way) < 2
    if name == "ConvolutionBackward0":
        return not way and not node._saved_transposed and place > 0
    if name == "EmbeddingBackward0":
        return not (way or node._saved_scale_grad_by_freq or node._saved_sparse)
    if name in ("AddBackward0", "MulBackward0"):
        return not way and (name[0] == "M" or node._saved_alpha == 1)
    return not way and name in _KINDS and place > 0


def _weight(use: _Use, place: int) -> bool:
    return use.place == place and use.param.ndim == 2 and use.way in ((), ("TBackward0",))
