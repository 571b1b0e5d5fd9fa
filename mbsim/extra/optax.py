r"""Micro-batch clipping as a gradient transformation of optax: Algorithm 1 in one buffer.

Every call of ``update`` is given the mean gradient X_j of one micro-batch. From k of them comes

.. math:: u = \frac{\rho}{\sum_j n_j} \sum_j n_j \frac{X_j}{x_j}, \qquad \rho = \min_j x_j,

so unit gradients and the running minimum are all that is kept: one pass, one tree of the size of
the parameters, whatever k. It needs optax, which the extra ``jax`` brings.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mbsim._shared.extras import needed

with needed("mbsim.extra.optax", "JAX and optax", extra="jax", name="optax"):
    import jax
    import jax.numpy as jnp
    import optax

from mbsim.clipping import Rule, SmallestNorm, check_rule_argument, looks_at_own_norm, rank_of
from mbsim.clipping.algorithm import global_norms
from mbsim.errors import InvalidArgument, check_integer, check_number, shown

__all__ = ["MicroBatchClippingState", "micro_batch_clipping"]


class MicroBatchClippingState(NamedTuple):
    """What is known of the step that is being accumulated.

    Attributes:
        micro_step: the number of micro-batches seen of this step, below `every_k`.
        smallest: ρ among them, infinite if there is none yet.
        weight: Σ n_j of those that count.
        total: Σ n_j X_j/x_j, or Σ n_j s_j X_j for a rule that looks at a micro-batch's own norm.
        left_out: how many micro-batches were not finite, in all steps so far.
    """

    micro_step: Any
    smallest: Any
    weight: Any
    total: Any
    left_out: Any


def micro_batch_clipping(
    every_k: int, rule: Rule | None = None
) -> optax.GradientTransformationExtraArgs:
    """Algorithm 1 over every `every_k` micro-batches.

    As :func:`optax.apply_every` it returns zeros but for each k-th call, which returns Algorithm
    1's update u of the last k. Optimisers that keep a state, as Adam or momentum, should see the
    k-th calls only: :func:`optax.conditionally_transform` does that (see ``docs/use.md``).

    Micro-batches with a norm that is not finite are left out of ρ, of the sum and of the count, and
    counted in the state; if none is left, u is 0. ``update(..., weight=n)`` says n_j, the size of a
    micro-batch, where sizes differ; one of weight 0 is not there.

    Args:
        every_k: m, the number of micro-batches of a step.
        rule: :class:`~mbsim.clipping.SmallestNorm` if none is given; or one that looks at a
            micro-batch's own norm. A threshold that is known only after the last micro-batch, as a
            quantile, needs all of them at once: :func:`mbsim.clipping.apply`.

    Returns:
        The transformation; it sums in float32 or wider and keeps the types of the gradients.

    Raises:
        InvalidArgument: for an `every_k` below 1 and for rules of the second kind.

    >>> optimiser = optax.chain(micro_batch_clipping(2), optax.sgd(1.0))
    >>> state = optimiser.init(jnp.zeros(2))
    >>> for gradient in (jnp.array([3.0, 4.0]), jnp.array([0.0, 10.0])):
    ...     step, state = optimiser.update(gradient, state)
    ...     print(step.tolist())
    [-0.0, -0.0]
    [-1.5, -4.5]
    """
    every_k = check_integer("every_k", every_k, minimum=1)
    rule = check_rule_argument(SmallestNorm() if rule is None else rule)
    rank = rank_of(rule, every_k)
    if not looks_at_own_norm(rule) and rank not in (0, every_k - 1):
        raise InvalidArgument(
            f"rule={shown(rule)} has a threshold that is not known until the last micro-batch; "
            "take SmallestNorm, FixedNorm or UnitNorm, or keep them all for mbsim.clipping.apply"
        )

    def init(params: Any) -> MicroBatchClippingState:
        total = jax.tree.map(lambda p: jnp.zeros(jnp.shape(p), _wide(p)), params)
        none = jnp.zeros([], jnp.int32)
        smallest = jnp.full([], jnp.inf, jnp.result_type(*map(_wide, jax.tree.leaves(params))))
        return MicroBatchClippingState(none, smallest, jnp.zeros_like(smallest), total, none)

    def update(
        updates: Any,
        state: MicroBatchClippingState,
        params: Any = None,
        *,
        weight: Any = 1.0,
        **_: Any,
    ) -> tuple[Any, MicroBatchClippingState]:
        del params
        if jax.tree.structure(updates) != jax.tree.structure(state.total):
            raise InvalidArgument("updates must have the structure of the parameters given to init")
        if not isinstance(weight, jax.core.Tracer):
            weight = check_number("weight", float(weight), minimum=0)
        weight = jnp.asarray(weight, state.weight.dtype)
        wide = jax.tree.map(lambda x: jnp.asarray(x, _wide(x)), updates)
        norm = global_norms(jax.tree.leaves(wide), axis=None).astype(state.smallest.dtype)
        finite = jnp.isfinite(norm) & jnp.isfinite(weight)
        there = finite & (weight > 0)
        if looks_at_own_norm(rule):
            above, below = rule.factors(norm[None])[0], 1.0
        else:
            above, below = 1.0, norm if rank == 0 and every_k > 1 else 1.0
        below = jnp.where(there & (below > 0), below, 1.0)
        total = jax.tree.map(
            lambda kept, x: (
                kept + jnp.where(there, weight * above * (x / below), 0).astype(x.dtype)
            ),
            state.total,
            wide,
        )
        smallest = jnp.where(there, jnp.minimum(state.smallest, norm), state.smallest)
        weights = state.weight + jnp.where(there, weight, 0)
        last = state.micro_step + 1 == every_k
        scale = smallest if rank == 0 and every_k > 1 else jnp.ones_like(smallest)
        scale = jnp.where(last & (weights > 0), scale / jnp.where(weights > 0, weights, 1), 0)
        found = jax.tree.map(
            lambda kept, x: jnp.where(last, kept * scale, 0).astype(jnp.asarray(x).dtype),
            total,
            updates,
        )
        following = MicroBatchClippingState(
            micro_step=jnp.where(last, 0, state.micro_step + 1),
            smallest=jnp.where(last, jnp.inf, smallest),
            weight=jnp.where(last, 0, weights),
            total=jax.tree.map(lambda kept: jnp.where(last, 0, kept), total),
            left_out=state.left_out + ~finite,
        )
        return found, following

    return optax.GradientTransformationExtraArgs(init, update)


def _wide(array: Any) -> Any:
    """The type to add up in: float32 or wider."""
    return jnp.promote_types(jnp.result_type(array), jnp.float32)
