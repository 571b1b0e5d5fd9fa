r"""The quantities that formulas are made of, and the abbreviations of the theory page.

Every quantity has a name in code (:data:`QUANTITIES`), the paper's letter as its symbol, and the
range of values that make sense for it. :data:`ABBREVIATIONS` stand for expressions in them.
"""

from __future__ import annotations

import numbers
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import sympy
from numpy.typing import ArrayLike
from sympy.printing.pretty.pretty_symbology import pretty_symbol

from mbsim._shared.arrays import Array
from mbsim._shared.meant import meant
from mbsim.errors import (
    InvalidArgument,
    check_array,
    check_divides,
    check_finite,
    check_number,
    shown,
)

__all__ = ["ABBREVIATIONS", "QUANTITIES", "SETTINGS", "Quantity", "symbols"]


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A quantity with a name in code, a symbol, and the range of values that make sense for it.

    `whole` asks for whole numbers; the other rules are those of the range.
    """

    name: str
    symbol: sympy.Symbol
    meaning: str
    whole: bool = False
    above: float | None = None
    minimum: float | None = None
    below: float | None = None
    maximum: float | None = None

    def checked(self, value: ArrayLike) -> Array:
        """`value` as a finite float64 array within the range; the first that is not is named."""
        limits = {k: getattr(self, k) for k in ("above", "minimum", "below", "maximum")}
        if isinstance(value, numbers.Real):
            array = np.asarray(check_number(self.name, value, **limits))
        else:
            array = check_array(self.name, value)
            if array.ndim:
                check_finite(self.name, array)
            # The two ends stand for all: a range has no holes.
            for end in (array.min(), array.max()):
                check_number(self.name, end.item(), **limits)
        if self.whole and (broken := array[array != np.floor(array)]).size:
            raise InvalidArgument(f"{self.name}={shown(broken.flat[0])} must be a whole number")
        return array


def _symbol(name: str) -> sympy.Symbol:
    # Positive, although some may be 0 in numbers: the algebra may then take roots freely, and
    # every formula is continuous where a quantity reaches 0.
    return sympy.Symbol(name, positive=True)


def _quantity(name: str, symbol: str, meaning: str, **rules: Any) -> Quantity:
    return Quantity(name=name, symbol=_symbol(symbol), meaning=meaning, **rules)


_COUNT: dict[str, Any] = {"minimum": 1, "whole": True}
_SHARE: dict[str, Any] = {"minimum": 0, "maximum": 1}
_POSITIVE_SHARE: dict[str, Any] = {"above": 0, "maximum": 1}

# What a user's formula may contain: sections 1 and 2 of the theory page.
SETTINGS = (
    _quantity("initial_gap", "Delta", "the loss at the start minus its lower bound", minimum=0),
    _quantity("smoothness", "L", "Lipschitz constant of the gradient", above=0),
    _quantity("step_size", "eta", "the step size", above=0),
    _quantity("steps", "T", "number of steps (a curve may be drawn through fractions)", minimum=1),
    _quantity("batch_size", "B", "examples in a mini-batch", **_COUNT),
    _quantity("micro_batch_size", "b", "examples in a micro-batch", **_COUNT),
    _quantity("probability", "p", "probability of a dragger", minimum=0, below=1),
    _quantity("norm_ratio", "c", "dragger norm over root-mean-square benign norm", minimum=0),
    _quantity("coherence", "gamma", "mean cosine between two draggers of one step", **_SHARE),
    _quantity("sigma", "sigma", "square root of one benign example's variance E‖ξ‖²", minimum=0),
    _quantity("benign_dim", "n", "dimension of the benign frame", **_COUNT),
)

# What the theorems need besides: properties of a run or of its drift.
_MEASURED = (
    _quantity("grad_norm", "r", "norm of the true gradient", above=0),
    _quantity("dragger_count", "k", "draggers in one micro-batch", minimum=0, whole=True),
    _quantity(
        "sigma_along",
        "sigma_e",
        "standard deviation of one example's noise along the gradient (isotropic noise: σ/√n)",
        minimum=0,
    ),
    _quantity(
        "capped_threshold",
        "v",
        "E min(τ, 3r/4), where τ is the smallest norm among the other micro-batches",
        minimum=0,
    ),
    _quantity(
        "aligned_share", "a", "E[cos φ 1{x ≥ 3r/4}], x the norm of one micro-batch", **_SHARE
    ),
    _quantity(
        "mean_weight",
        "omegabar",
        "at most (1/T) Σ E ω_t, the average along the run of ω = E min(τ, 3r/4)/r",
        above=0,
        maximum=0.75,
    ),
    _quantity(
        "alignment", "lambda", "at most E[cos φ_j min_i a_i] at every r visited", **_POSITIVE_SHARE
    ),
    _quantity("mean_cosine", "lambdabar", "at least E cos φ_j at every r visited", **_SHARE),
    _quantity(
        "norm_spread",
        "varsigmabar",
        "at least the standard deviation of a micro-batch's benign norm, whatever k and r",
        minimum=0,
    ),
    _quantity(
        "shortest_benign_share",
        "q_star",
        "at most E[1 − k/b] of the shortest micro-batch at every r visited",
        **_POSITIVE_SHARE,
    ),
    _quantity("progress_rate", "Lambda", "at most A(r)/r at every r visited", **_POSITIVE_SHARE),
    _quantity(
        "tilt_against",
        "t",
        "minus the cosine of a dragger and the gradient: of draggers that point against it",
        minimum=0,
        below=1,
    ),
    _quantity(
        "relative_threshold",
        "nu",
        "E min(τ, R)/R with R² = r² + σ²/b; of a run, at most the average along it",
        **_POSITIVE_SHARE,
    ),
    _quantity(
        "clip_threshold",
        "C",
        "a fixed threshold, 0 for unit norm; of one that varies, √(Eτ³/Eτ) at most",
        minimum=0,
    ),
    _quantity(
        "noise_skew", "kappa_3", "E[⟨ξ, e⟩‖ξ‖²]/σ³: how far long noise pulls along g", minimum=0
    ),
    _quantity("fitted_share", "phi", "share of examples whose gradient is zero", **_SHARE),
)

#: Every quantity that a formula may contain, by its name in code, in the order they are listed.
QUANTITIES: dict[str, Quantity] = {quantity.name: quantity for quantity in SETTINGS + _MEASURED}

# What rate bounds ask about the steps of a run, and a sample of steps tells.
MEASURED = (
    "mean_weight",
    "alignment",
    "mean_cosine",
    "norm_spread",
    "shortest_benign_share",
    "progress_rate",
    "sigma_along",
)


def _abbreviations() -> dict[sympy.Symbol, sympy.Expr]:
    names = ("batch_size", "micro_batch_size", "probability", "norm_ratio", "coherence", "sigma")
    batch, size, p, c, gamma, sigma = (QUANTITIES[name].symbol for name in names)
    mean_cosine, norm_spread = (QUANTITIES[x].symbol for x in ("mean_cosine", "norm_spread"))
    t, n = (QUANTITIES[x].symbol for x in ("tilt_against", "benign_dim"))
    c_bar, zeta, psi_t, ones = map(_symbol, ("cbar", "zeta", "psi_t", "lambda_1"))
    others, capped, share = map(_symbol, ("rho_m", "beta_n", "Theta"))
    kept, lean = map(_symbol, ("alpha_n", "theta_b"))
    q, m, s, chi, psi = map(_symbol, ("q", "m", "s", "chi", "psi"))
    clean, none_clean, half_clean = map(_symbol, ("lambda_0", "Omega", "Omega_1"))
    k = sympy.Symbol("k", integer=True, nonnegative=True)
    weight = sympy.binomial(size, k) * p**k * q ** (size - k)
    return {
        q: 1 - p,
        m: batch / size,
        s: sigma / sympy.sqrt(size),
        _symbol("stilde"): sigma * sympy.sqrt(sympy.Sum(weight / (size - k), (k, 0, size - 1))),
        chi: p / batch + gamma * p**2 * (1 - 1 / batch),
        psi: p / size + gamma * p**2 * (1 - 1 / size),
        _symbol("K_g"): q**2 + p * q / batch + chi * c**2,
        _symbol("K_sigma"): q / batch + chi * c**2,
        clean: q**size,
        none_clean: (1 - clean) ** (m - 1),
        _symbol("N_1"): 1 + psi * c**2,
        _symbol("N_0"): s**2 + psi * c**2 * sigma**2,
        _symbol("M_1"): 1 + none_clean * psi * c**2,
        _symbol("M_0"): s**2 + none_clean * psi * c**2 * sigma**2,
        half_clean: (1 - clean / 2) ** (m - 1),
        _symbol("P_1"): 2 + half_clean * psi * c**2,
        _symbol("P_0"): 2 * s**2 + none_clean * psi * c**2 * (sigma**2 + 32 * s**2),
        _symbol("f"): mean_cosine * norm_spread * (m - 1) / sympy.sqrt(m),
        c_bar: c / sympy.sqrt(1 - t**2),
        zeta: p * t * c_bar,
        _symbol("q_t"): (q**2 - zeta**2) / q,
        _symbol("J_g"): (q + p * c_bar**2) / batch + (1 - 1 / batch) * (q**2 + gamma * p**2 * c**2),
        _symbol("J_sigma"): (q + p * c_bar**2) / batch
        + (1 - 1 / batch) * (zeta**2 + gamma * p**2 * c**2),
        ones: size * p * q ** (size - 1),
        share: t * ones + 1 - clean - ones,
        kept: 1 - 1 / n - sympy.sqrt(n + 1) / (2 * n),
        capped: sympy.sqrt(1 - 1 / n) - 1 / (2 * sympy.sqrt(n)),
        others: (1 - clean) / (clean * (m - 1) * capped),
        lean: ((1 + 1 / (2 * sympy.sqrt(n) * capped)) * share + others * sympy.sqrt(size) * zeta)
        / (clean * kept),
        _symbol("a_b"): kept * clean * (1 - lean**2) / 2,
        _symbol("d_b"): (2 * clean - 1) / 2 - 8 * zeta**2 / (9 * (2 * clean - 1)),
        psi_t: psi * c**2 + (p**2 + p * q / size) * t**2 * c_bar**2,
        _symbol("Q_1"): 1 + psi_t,
        _symbol("Q_0"): s**2 + psi_t * sigma**2,
    }


#: The abbreviations of the theory page (sections 1, 2, 4, 5, 12), each in terms of quantities and
#: of abbreviations before it.
ABBREVIATIONS: dict[sympy.Symbol, sympy.Expr] = _abbreviations()


def symbols(*names: str) -> tuple[sympy.Symbol, ...]:
    """The symbols of quantities, by their code names, and of abbreviations, by their letters.

    >>> symbols("norm_ratio", "q")
    (c, q)
    """
    known = {symbol.name: symbol for symbol in ABBREVIATIONS}
    known |= {name: quantity.symbol for name, quantity in QUANTITIES.items()}
    return tuple(known[name] for name in names)


@cache
def quantities_in(expressions: Collection[sympy.Basic]) -> tuple[Quantity, ...]:
    """The quantities that expressions are made of once abbreviations are unfolded."""
    meanings = definitions_in(expressions)
    everything = (*expressions, *meanings.values())
    found = set().union(*(each.free_symbols for each in everything)) - set(meanings)
    if strangers := found - {quantity.symbol for quantity in QUANTITIES.values()}:
        listed = ", ".join(sorted(map(str, strangers)))
        raise InvalidArgument(
            f"expression has symbols that stand for no quantity: {listed}; "
            "use those of mbsim.theory.QUANTITIES"
        )
    return tuple(quantity for quantity in QUANTITIES.values() if quantity.symbol in found)


def definitions_in(expressions: Collection[sympy.Basic]) -> dict[sympy.Symbol, sympy.Expr]:
    """The abbreviations that expressions use, directly or through each other, simple ones first."""
    found: dict[sympy.Symbol, sympy.Expr] = {}
    used = set().union(*(each.free_symbols for each in expressions))
    for symbol in reversed(ABBREVIATIONS):
        if symbol in used:
            found[symbol] = ABBREVIATIONS[symbol]
            used |= ABBREVIATIONS[symbol].free_symbols
    return dict(reversed(found.items()))


def specialised(expression: sympy.Expr, values: Mapping[sympy.Symbol, int]) -> sympy.Expr:
    """`expression` with symbols replaced by numbers; abbreviations that change are unfolded."""
    meanings = {
        symbol: specialised(meaning, values)
        for symbol, meaning in definitions_in([expression]).items()
        if symbol in expression.free_symbols
    }
    changed = {symbol: new for symbol, new in meanings.items() if new != ABBREVIATIONS[symbol]}
    return expression.xreplace(changed).subs(values)


@cache
def _by_letter() -> dict[str, str]:
    """The code name of every letter: ``eta`` and ``η``, ``omegabar`` and ``ω̄``."""
    letters = {name: each.symbol.name for name, each in QUANTITIES.items()}
    return {
        form: name
        for name, letter in letters.items()
        for form in (letter, str(pretty_symbol(letter)))
        if form not in QUANTITIES
    }


def letter_of(name: str) -> str:
    """The paper's letter of a quantity.

    >>> letter_of("step_size"), letter_of("mean_weight")
    ('η', 'ω̅')
    """
    return str(pretty_symbol(QUANTITIES[name].symbol.name))


def by_name(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by code name, which may be given by the letters of the paper.

    >>> by_name({"eta": 0.1, "Δ": 2, "batch_size": 64})
    {'step_size': 0.1, 'initial_gap': 2, 'batch_size': 64}
    """
    found: dict[str, Any] = {}
    for given, number in values.items():
        name = _by_letter().get(given, given)
        if name in found:
            raise InvalidArgument(f"{given}={shown(number)} must not be given twice: it is {name}")
        found[name] = number
    return found


def filled(names: Collection[str], known: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by code name; those of `names` that are not among them from what is `known`.

    Args:
        names: what is wanted.
        known: None, a problem (which has `quantities`), or a mapping; it may have more.
        values: by code name or letter.
    """
    source = {} if known is None else known
    if callable(quantities := getattr(known, "quantities", None)):
        source = quantities()
    if not isinstance(source, Mapping):
        raise InvalidArgument(
            f"known={shown(known)} must be a problem, or quantities by name; numbers are given by "
            f"name, such as {next(iter(names), 'steps')}=..."
        )
    given, others = by_name(values), by_name(source)
    return {name: others[name] for name in names if name in others and name not in given} | given


def checked_values(
    owner: str, names: tuple[str, ...], values: Mapping[str, ArrayLike], *, partly: bool = False
) -> dict[sympy.Symbol, Array]:
    """Values by symbol, broadcast together.

    Names other than `names` are refused, and so are missing ones, unless `partly`.
    """
    missing = [] if partly else [name for name in names if name not in values]
    unknown = [name for name in values if name not in names]
    if missing or unknown:
        wanted = f"{owner} takes {', '.join(names) or 'no values'}"
        hints = {name: meant(name, [each for each in names if each not in values])
                 for name in unknown}  # fmt: skip
        unknown = [f"{name} ({hint}?)" if (hint := hints[name]) else name for name in unknown]
        faults = [
            f"{what} {', '.join(which)}"
            for what, which in (("missing:", missing), ("unknown:", unknown))
            if which
        ]
        if measured := [name for name in missing if name in MEASURED]:
            faults.append(f"mbsim.quantities measures {', '.join(measured)}")
        raise InvalidArgument("; ".join([wanted, *faults]))
    arrays = {name: QUANTITIES[name].checked(values[name]) for name in names if name in values}
    try:
        together = np.broadcast_arrays(*arrays.values())
    except ValueError:
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items() if array.ndim)
        raise InvalidArgument(f"the shapes of {shapes} do not broadcast together") from None
    checked = dict(zip(arrays, together, strict=True))
    if "batch_size" in checked and "micro_batch_size" in checked:
        sizes, totals = checked["micro_batch_size"], checked["batch_size"]
        for at in map(tuple, np.argwhere(totals % sizes != 0)[:1]):
            check_divides(int(sizes[at]), int(totals[at]))
    return {QUANTITIES[name].symbol: array for name, array in checked.items()}
