r"""Multinomial logistic regression by clipped mini-batches, as an estimator of scikit-learn.

The gradient of example i is the outer product r_i x_iᵀ of its residual r = softmax(W x) − onehot(y)
and its inputs, so the mean over a micro-batch S is

.. math:: X_S = \frac1b \sum_{i \in S} r_i x_i^T:

no gradient of an example is ever formed, and one sum serves all micro-batches, one after
another. It needs scikit-learn, which the extra ``data`` brings.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mbsim._shared.arrays import Array
from mbsim._shared.extras import needed

with needed("mbsim.extra.sklearn", "scikit-learn", extra="data", name="sklearn"):
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from mbsim.clipping import Rule, SmallestNorm, check_rule_argument
from mbsim.compiled.softmax import gather, look, move
from mbsim.errors import InvalidArgument, check_divides, check_integer, check_number, shown
from mbsim.gradients.advice import advise
from mbsim.gradients.gram import Gram
from mbsim.gradients.training import look_at

__all__ = ["MicroBatchClippingClassifier"]


# "auto" looks at so many gradients, at most, and asks about training of so many steps.
_ADVISED, _STEPS = 512, 300


class MicroBatchClippingClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Softmax regression whose mini-batches are clipped by Algorithm 1.

    An epoch goes through the examples in a new random order, in mini-batches of B and, in these,
    micro-batches of b. The last ones hold what is left, and count by their size. The intercept is
    a coordinate of the gradient like any other.

    A weight is a number of repetitions: an epoch draws every example so many times. Weights that
    are not integers are scaled to a mean of 1 over those above 0, and an example is then drawn
    its weight times on average. Their greatest common divisor does not count; neither does the
    order of the rows.

    Args:
        batch_size: B.
        micro_batch_size: b, which must divide B; or "auto": :func:`mbsim.advise` says it after one
            epoch that is not clipped, its target from a share `validation_fraction` held out.
        rule: the clipping rule; :class:`~mbsim.clipping.SmallestNorm` if none is given.
        step_size: η, constant.
        fit_intercept: whether there is one.
        max_iter: the most epochs of ``fit``.
        tol: ``fit`` ends when the loss of an epoch (or with early stopping the held-out accuracy)
            was not better than the best by `tol` for `n_iter_no_change` epochs; None: never.
        shuffle: whether the order is random; otherwise it is of no meaning, but always the same.
        early_stopping: whether `validation_fraction` of the examples is held out for that.
        validation_fraction: of the examples, held out.
        n_iter_no_change: epochs.
        random_state: seed, RandomState or None.

    Attributes:
        classes_: the labels, ``[K]``.
        coef_: ``[K, D]``; for two classes their difference ``[1, D]``.
        intercept_: ``[K]`` or ``[1]``.
        n_iter_: the epochs of ``fit``.
        loss_: the mean loss of the examples during the last epoch, each before its own step.
        micro_batch_size_: the b that was taken.

    >>> from sklearn.datasets import load_digits
    >>> x, y = load_digits(return_X_y=True)
    >>> model = MicroBatchClippingClassifier(micro_batch_size=16, random_state=0)
    >>> model.fit(x / 16, y).score(x / 16, y) > 0.9
    True
    """

    def __init__(
        self,
        *,
        batch_size: int = 64,
        micro_batch_size: int | str = 8,
        rule: Rule | None = None,
        step_size: float = 0.1,
        fit_intercept: bool = True,
        max_iter: int = 1000,
        tol: float | None = 1e-3,
        shuffle: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 5,
        random_state: Any = None,
    ) -> None:
        self.batch_size = batch_size
        self.micro_batch_size = micro_batch_size
        self.rule = rule
        self.step_size = step_size
        self.fit_intercept = fit_intercept
        self.max_iter = max_iter
        self.tol = tol
        self.shuffle = shuffle
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> MicroBatchClippingClassifier:
        """Fit from W = 0.

        Args:
            X: inputs, ``[N, D]``.
            y: labels, ``[N]``, of at least two classes.
            sample_weight: numbers of at least 0, ``[N]``, not all 0.

        Returns:
            The estimator itself.

        Raises:
            InvalidArgument: a ValueError, for parameters out of range, weights that are negative or
                all 0, labels of one class, and a step size that makes the coefficients overflow.
        """
        self._check_parameters()
        X, y = validate_data(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        classes, codes = np.unique(y, return_inverse=True)
        if len(classes) < 2:
            raise InvalidArgument(f"y has the one class {classes[0]!s} and must have two classes")
        x, codes, counts = self._rows(X, codes, sample_weight)
        random = check_random_state(self.random_state)
        held: tuple[Any, ...] | None = None
        size = self.micro_batch_size
        if size == "auto":
            size = self._advised(x, codes, len(classes), random)
        if self.early_stopping:
            x, held_x, codes, held_codes, counts, held_counts = train_test_split(
                x, codes, counts, test_size=self.validation_fraction, random_state=random,
                stratify=codes,
            )  # fmt: skip
            held = held_x, held_codes, held_counts
        weights = np.zeros((len(classes), x.shape[1]))
        best, waited = -math.inf, 0
        for epoch in range(1, int(self.max_iter) + 1):  # noqa: B007
            loss = self._epoch(weights, x, codes, counts, size, random)
            goal = -loss
            if held:
                hits = (held[0] @ weights.T).argmax(axis=1) == held[1]
                goal = np.average(hits, weights=held[2]) if held[2].any() else 0.0
            waited = 0 if self.tol is None or goal > best + self.tol else waited + 1
            best = max(best, goal)
            if waited >= self.n_iter_no_change:
                break
        else:
            if self.tol is not None:
                warnings.warn(
                    f"max_iter={self.max_iter} epochs were not enough for tol={self.tol}",
                    ConvergenceWarning,
                    stacklevel=2,
                )
        self.classes_, self.n_iter_, self.loss_, self.micro_batch_size_ = classes, epoch, loss, size
        self._keep(weights)
        return self

    def partial_fit(
        self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None
    ) -> MicroBatchClippingClassifier:
        """One epoch over these examples, from where the estimator is.

        Args:
            X: inputs, ``[N, D]``.
            y: labels, ``[N]``.
            classes: all labels that may come; the first call needs them.
            sample_weight: as for :meth:`fit`.

        Returns:
            The estimator itself.

        Raises:
            InvalidArgument: as for :meth:`fit`, for labels that are not among `classes`, and for
                ``micro_batch_size="auto"``, which is for :meth:`fit`.
        """
        self._check_parameters()
        if self.micro_batch_size == "auto":
            raise InvalidArgument(
                "micro_batch_size='auto' must be a number for partial_fit, which sees a part only"
            )
        first = not hasattr(self, "classes_")
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        check_classification_targets(y)
        if first and classes is None:
            raise InvalidArgument("classes must be given to the first call of partial_fit")
        known = self.classes_ if not first else np.unique(classes)
        if classes is not None and not np.array_equal(known, np.unique(classes)):
            raise InvalidArgument(f"classes={shown(classes)} must be those of before, {known!s}")
        if len(known) < 2:
            raise InvalidArgument(f"classes={shown(classes)} must be two classes or more")
        if (strange := np.setdiff1d(y, known)).size:
            raise InvalidArgument(f"y has the label {strange[0]!s}, which is not among the classes")
        x, codes, counts = self._rows(X, np.searchsorted(known, y), sample_weight)
        weights = np.zeros((len(known), x.shape[1])) if first else self._weights.copy()
        random = check_random_state(self.random_state)
        loss = self._epoch(weights, x, codes, counts, self.micro_batch_size, random)
        self.classes_, self.loss_, self.micro_batch_size_ = known, loss, self.micro_batch_size
        self.n_iter_ = 1
        self._keep(weights)
        return self

    def decision_function(self, X: Any) -> Array:
        """Logits ``[N, K]``; for two classes the second less the first, ``[N]``."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, reset=False)
        logits: Array = x @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.classes_) == 2 else logits

    def predict_proba(self, X: Any) -> Array:
        """Softmax of the logits, ``[N, K]``, columns in the order of ``classes_``."""
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithms of :meth:`predict_proba`."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            logits = np.stack([np.zeros_like(logits), logits], axis=1)
        logits = logits - logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> NDArray[Any]:
        """The likeliest label of every row."""
        logits = self.decision_function(X)
        chosen = (logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)
        return self.classes_[chosen]

    # ------------------------------------------------------------------------ parts of a fit

    def _check_parameters(self) -> None:
        check_integer("batch_size", self.batch_size, minimum=1)
        if self.micro_batch_size != "auto":
            check_divides(self.micro_batch_size, self.batch_size)
        if self.rule is not None:
            check_rule_argument(self.rule)
        check_number("step_size", self.step_size, above=0)
        check_integer("max_iter", self.max_iter, minimum=1)
        check_integer("n_iter_no_change", self.n_iter_no_change, minimum=1)
        check_number("validation_fraction", self.validation_fraction, above=0, below=1)
        if self.tol is not None:
            check_number("tol", self.tol)

    def _rows(self, X: Array, codes: Any, sample_weight: Any) -> tuple[Array, Any, Array]:
        """Inputs with a column of ones, labels, weights above 0: in an order of their own."""
        counts = _check_sample_weight(sample_weight, X, dtype=np.float64)
        if (counts < 0).any() or not counts.any():
            rule = "must be at least 0" if (counts < 0).any() else "must not be all 0"
            raise InvalidArgument(f"sample_weight={shown(counts.tolist())} {rule}")
        if not (counts == np.floor(counts)).all() or counts.sum() > 2**53:
            counts = counts * (np.count_nonzero(counts) / counts.sum())
        else:
            counts = counts / np.gcd.reduce(counts.astype(np.int64))
        x = np.hstack([X, np.ones((len(X), 1))]) if self.fit_intercept else X
        # Rows by a projection: equal ones are side by side, wherever they stood.
        key = X @ np.random.default_rng(0).standard_normal(X.shape[1]) + math.pi * codes
        order = np.argsort(key, kind="stable")
        order = order[counts[order] > 0]
        return np.ascontiguousarray(x[order]), codes[order], counts[order]

    def _epoch(
        self, weights: Array, x: Array, codes: Any, counts: Array, size: Any, random: Any
    ) -> float:
        """Train `weights` in place; the mean loss of the examples."""
        rule = SmallestNorm() if self.rule is None else self.rule
        # Systematic sampling: every unit of weight has one of these places.
        ends = np.cumsum(counts)
        places = np.arange(math.floor(ends[-1] + 0.5)) + random.uniform()
        order = np.searchsorted(ends, places, side="right").clip(max=len(x) - 1)
        if self.shuffle:
            order = random.permutation(order)
        total = 0.0
        with np.errstate(all="ignore"):  # looked at below
            for i in range(0, len(order), int(self.batch_size)):
                rows = order[i : i + int(self.batch_size)]
                total += _step(weights, x, codes, rows, size, rule, self.step_size)
        if not np.isfinite(weights).all() or not np.isfinite(total):
            raise InvalidArgument(
                f"step_size={self.step_size} makes the coefficients overflow; take a smaller one, "
                "or scale X"
            )
        return total / len(order)

    def _advised(self, x: Array, codes: Any, classes: int, random: Any) -> int:
        """The b of :func:`mbsim.advise` for gradients after one epoch of SGD."""
        parts = train_test_split(x, codes, test_size=self.validation_fraction, random_state=random)
        train, held, train_codes, held_codes = parts
        weights = np.zeros((classes, x.shape[1]))
        self._epoch(weights, train, train_codes, np.ones(len(train)), self.batch_size, random)
        some = random.permutation(len(train))[:_ADVISED]
        if len(some) < self.batch_size:
            raise InvalidArgument(
                f"micro_batch_size='auto' needs at least batch_size={self.batch_size} examples "
                f"beside those held out, and looks at most at {_ADVISED}; there are {len(some)}"
            )
        inputs, r = train[some], look_at(weights, train[some], train_codes[some]).signals
        goal = look_at(weights, held, held_codes).signals.T @ held / len(held)
        gram = Gram.from_matrix(
            (r @ r.T) * (inputs @ inputs.T),
            target_products=np.einsum("ik,kd,id->i", r, goal, inputs, optimize=True),
            target_norm=float(np.linalg.norm(goal)),
        )
        seed = int(random.randint(2**31))
        return advise(gram, batch_size=self.batch_size, steps=_STEPS, rng=seed).micro_batch_size

    def _keep(self, weights: Array) -> None:
        """Show the weights as scikit-learn has coefficients."""
        self._weights = weights
        rows = weights[1:] - weights[:1] if len(weights) == 2 else weights
        self.coef_ = rows[:, :-1].copy() if self.fit_intercept else rows.copy()
        self.intercept_ = rows[:, -1].copy() if self.fit_intercept else np.zeros(len(rows))


def _step(
    weights: Array, x: Array, codes: Any, rows: Any, size: int, rule: Rule, step_size: float
) -> float:
    """One step of Algorithm 1, in place: η Σ n_j s_j X_j / Σ n_j of some rows; their losses."""
    none, inputs = np.empty((0, x.shape[1])), x[rows]
    residuals = np.empty((len(rows), len(weights)))
    norms, update = np.empty(-(-len(rows) // size)), np.empty_like(weights)
    losses = look(
        none, weights, codes[rows], size, inputs, inputs, residuals, norms, np.empty_like(norms)
    )
    scales = np.asarray(rule.factors(norms), np.float64) / len(rows)
    gather(size, inputs, inputs, residuals, scales, none, update)
    move(weights, update, step_size, 0.0, 0, update, update)
    return losses
