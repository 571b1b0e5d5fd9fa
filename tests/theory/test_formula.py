"""Formulas: their numbers against mpmath, what users may type, and what is refused."""

import contextlib
import math
import time

import mpmath
import numpy as np
import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mbsim.errors import InvalidArgument
from mbsim.theory import (
    ABBREVIATIONS,
    QUANTITIES,
    Bound,
    Formula,
    formula_bound,
    parse_formula,
    symbols,
)
from mbsim.theory import parser as formula

SETTING = {
    "initial_gap": 1.5,
    "smoothness": 2.0,
    "step_size": 0.1,
    "steps": 100,
    "batch_size": 64,
    "micro_batch_size": 8,
    "probability": 0.05,
    "norm_ratio": 3.0,
    "coherence": 0.25,
    "sigma": 1.25,
    "benign_dim": 4,
}
# Relative error allowed against 50 digits. The largest exponent that counts is near 700, and
# exp(x) cannot be better than |x| times the unit roundoff, 8e-14.
EXACT = 1e-12


def number(text_or_expression, **values):
    expression = text_or_expression
    if isinstance(expression, str):
        expression = parse_formula(expression)
    made = Formula(name="a formula", expression=expression, source="a test")
    return made.evaluate(**{name: values[name] for name in made.names})


# ------------------------------------------------------------- numbers, against mpmath


def abbreviation(name):
    return symbols(name)[0]


def inverse_count(b, p):
    """E[1{k<b}/(b−k)] from a recurrence, S_b = p S_{b−1} + (1 − p^b)/b, at the working precision.

    (The code sums the binomial instead: E = ∫ ((p + qs)^b − p^b)/s ds gives this one.)
    """
    total = mpmath.mpf(0)
    # What came 400 steps earlier has been multiplied by p^400: nothing, at 50 digits and p <= 1/2.
    first = 1 if p > 0.5 else max(1, b - 400)
    for j in range(first, b + 1):
        total = p * total + (1 - p**j) / j
    return total


EXTREMES = [
    (p, b, m)
    for p in (0.0, 1e-20, 1e-12, 1e-9, 1e-3, 0.05, 0.5, 0.999, 1 - 1e-9)
    for b in (1, 2, 64, 1000, 10**6)
    for m in (1, 2, 1000, 10**6)
    if not (p > 0.5 and b > 1000)
]


def in_range(value):
    """Whether a float can hold the value with all its digits."""
    return value == 0 or 1e-290 < abs(value) < 1e290


@pytest.mark.parametrize(
    ("name", "direct"),
    [
        ("q", lambda q, b, m: q),
        ("lambda_0", lambda q, b, m: q**b),
        ("Omega", lambda q, b, m: (1 - q**b) ** (m - 1)),
        ("Omega_1", lambda q, b, m: (1 - q**b / 2) ** (m - 1)),
    ],
)
def test_powers_keep_their_digits(name, direct):
    setting = {"batch_size": [b * m for _, b, m in EXTREMES]}
    setting["micro_batch_size"] = [b for _, b, _ in EXTREMES]
    setting["probability"] = [p for p, _, _ in EXTREMES]
    expression = abbreviation(name)
    names = Formula(name=name, expression=expression, source="a test").names
    got = number(expression, **{key: setting[key] for key in names})
    compared = 0
    with mpmath.workdps(50):
        for (p, b, m), value in zip(EXTREMES, got, strict=True):
            want = direct(1 - mpmath.mpf(p), b, m)
            if in_range(want):
                compared += 1
                assert abs(value - want) <= EXACT * want, (p, b, m)
            else:
                assert value < 1e-280, (p, b, m)
    assert compared >= 60


@pytest.mark.parametrize("text", ["1 - q**b", "1 - (1 - p)**b", "-q**b + 1", "1 - exp(b*log(q))"])
@pytest.mark.parametrize("p", [1e-12, 1e-3, 0.3])
@pytest.mark.parametrize("b", [1, 10**6])
def test_a_users_powers_keep_their_digits(text, p, b):
    with mpmath.workdps(50):
        want = 1 - (1 - mpmath.mpf(p)) ** b
    got = number(text, probability=p, micro_batch_size=b)
    assert abs(got - want) <= EXACT * want


@pytest.mark.parametrize("text", ["q*(1 - q**b)", "(1 - q**b)*q", "q + 1 - q**b - q", "q*q**b"])
def test_digits_do_not_depend_on_what_else_was_computed(text):
    p, b = 1e-12, 1000
    with mpmath.workdps(50):
        q = 1 - mpmath.mpf(p)
        want = q * q**b if text == "q*q**b" else (1 - q**b) * (1 if "+" in text else q)
    got = number(text, probability=p, micro_batch_size=b)
    # A sum of three terms is right to the roundoff of its largest.
    assert abs(got - want) <= (1e-15 if "+" in text else EXACT * want)


def test_the_textbook_form_would_lose_them():
    p, b = 1e-12, 10**6
    with mpmath.workdps(50):
        want = (1 - mpmath.mpf(p)) ** b
    assert abs((1 - p) ** b - want) > 10 * EXACT * want
    assert abs(number("q**b", probability=p, micro_batch_size=b) - want) <= EXACT * want


def test_the_log_of_a_small_sum_is_not_taken_near_one():
    assert number("log(Delta + sigma)", initial_gap=1e-20, sigma=1e-20) == math.log(2e-20)
    assert number("log(1 + sigma)", sigma=1e-20) == 1e-20


@pytest.mark.parametrize(
    ("p", "b"),
    [
        (p, b)
        for p in (0.0, 1e-12, 1e-6, 0.05, 0.5, 0.9, 0.9999)
        for b in (1, 2, 3, 64, 1000, 10**6)
        if not (p > 0.5 and b > 1000)  # the recurrence at 50 digits takes minutes there
    ],
)
def test_the_mean_inverse_count_against_its_recurrence(p, b):
    got = number(abbreviation("stilde") ** 2, sigma=2.0, probability=p, micro_batch_size=b)
    with mpmath.workdps(50):
        want = 4 * inverse_count(b, mpmath.mpf(p))
    assert abs(got - want) <= EXACT * want


def test_the_mean_inverse_count_against_sympys_own_sum():
    b, p, sigma = symbols("micro_batch_size", "probability", "sigma")
    (q,) = symbols("q")
    meaning = ABBREVIATIONS[abbreviation("stilde")].subs(q, 1 - p)
    for size in range(1, 7):
        exact = (meaning**2).subs({b: size, p: sympy.Rational(1, 5), sigma: 1}).doit()
        got = number(abbreviation("stilde") ** 2, sigma=1, probability=0.2, micro_batch_size=size)
        assert got == pytest.approx(float(exact), rel=EXACT)


def test_a_large_micro_batch_costs_a_window_not_the_whole_binomial():
    start = time.perf_counter()
    number(abbreviation("stilde"), sigma=1, probability=1e-3, micro_batch_size=10**12)
    # 40 standard deviations are 1.3 million counts, some 0.1 s; all 10^12 would never end.
    assert time.perf_counter() - start < 5


# ------------------------------------------------------------- values: broadcast and refused


def test_numbers_give_a_float_and_arrays_broadcast():
    made = Formula(name="a", expression=parse_formula("sigma**2/b"), source="a test")
    assert type(made.evaluate(sigma=2, micro_batch_size=4)) is float
    assert type(made.evaluate(sigma=np.float64(2), micro_batch_size=np.int64(4))) is float
    grid = made.evaluate(sigma=np.array([[1.0], [2.0]]), micro_batch_size=[1, 2, 4])
    np.testing.assert_array_equal(grid, [[1, 0.5, 0.25], [4, 2, 1]])
    grid[0, 0] = 7.0  # the caller's own array, not a view of ours


def test_a_constant_takes_the_shape_of_its_values():
    made = Formula(name="a", expression=parse_formula("sigma*0 + 1"), source="a test")
    np.testing.assert_array_equal(made.evaluate(sigma=[1.0, 2.0]), [1, 1])


REFUSED_VALUES = [
    ({}, "missing: probability, sigma"),
    ({"sigma": 1}, "missing: probability"),
    ({"sigma": 1, "probability": 0.1, "pi": 3}, "unknown: pi"),
    ({"sigma": 1, "probability": 0.1, "steps": 3}, "unknown: steps"),
    ({"sigma": -1, "probability": 0.1}, "sigma=-1 must be at least 0"),
    ({"sigma": 1, "probability": 1.0}, "probability=1.0 must be at least 0 and below 1"),
    ({"sigma": 1, "probability": [0.1, 1.5]}, "probability=1.5 must be at least 0 and below 1"),
    ({"sigma": 1, "probability": -1e-300}, "probability=-1e-300 must be at least 0"),
    ({"sigma": math.nan, "probability": 0.1}, "sigma=nan must be finite"),
    ({"sigma": math.inf, "probability": 0.1}, "sigma=inf must be finite"),
    ({"sigma": [1.0, math.nan], "probability": 0.1}, "sigma must be finite; 1 of its 2 values"),
    ({"sigma": "1", "probability": 0.1}, "sigma='1' must be an array of real numbers"),
    ({"sigma": None, "probability": 0.1}, "sigma=None must be an array of real numbers"),
    ({"sigma": True, "probability": 0.1}, "sigma=True must be a number"),
    ({"sigma": 1j, "probability": 0.1}, "must be an array of real numbers"),
    ({"sigma": [[1], [1, 2]], "probability": 0.1}, "must be an array of real numbers"),
    ({"sigma": [], "probability": 0.1}, "must not be empty"),
    ({"sigma": [1, 2], "probability": [0.1, 0.2, 0.3]}, "do not broadcast"),
    ({"sigma": 1e200, "probability": 0.1}, "is inf at probability=0.1, sigma=1e+200"),
]


@pytest.mark.parametrize(("values", "fault"), REFUSED_VALUES)
def test_bad_values_are_refused_in_one_line(values, fault):
    made = Formula(name="a formula", expression=parse_formula("sigma**2/(1 - p)"), source="a test")
    with pytest.raises(InvalidArgument) as refusal:
        made.evaluate(**values)
    assert fault in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_counts_must_be_whole_and_divide():
    with pytest.raises(InvalidArgument, match=r"batch_size=2\.5 must be a whole number"):
        number("sigma/B", sigma=1, batch_size=2.5)
    with pytest.raises(InvalidArgument, match="micro_batch_size=3 must divide batch_size=10"):
        number("m", micro_batch_size=[5, 3], batch_size=10)


def test_missing_names_list_all_that_is_wanted():
    with pytest.raises(InvalidArgument, match="a formula takes steps, sigma; missing: steps"):
        Formula(name="a formula", expression=parse_formula("sigma/T"), source="").evaluate(sigma=1)


def test_value_is_for_formulas_without_names():
    assert Formula(name="a", expression=sympy.Float(0.1), source="").value == 0.1
    with pytest.raises(InvalidArgument, match="no value before sigma are given"):
        _ = Formula(name="a", expression=parse_formula("sigma"), source="").value
    with pytest.raises(InvalidArgument, match="must be finite"):
        _ = Formula(name="a", expression=sympy.exp(800), source="").value


def test_strange_expressions_are_refused():
    with pytest.raises(InvalidArgument, match="stand for no quantity: Delta, zeta"):
        Formula(name="a", expression=sympy.Symbol("zeta") + sympy.Symbol("Delta"), source="")
    with pytest.raises(InvalidArgument, match="must be a SymPy expression"):
        Formula(name="a", expression="L/T", source="")
    with pytest.raises(InvalidArgument, match="not a real number"):
        _ = Formula(name="a", expression=sympy.sqrt(-1), source="").value


def test_every_symbol_is_one_thing():
    letters = [quantity.symbol for quantity in QUANTITIES.values()] + list(ABBREVIATIONS)
    assert len({symbol.name for symbol in letters}) == len(letters)
    for symbol, meaning in ABBREVIATIONS.items():  # each in terms of those before it
        earlier = list(ABBREVIATIONS)[: list(ABBREVIATIONS).index(symbol)]
        assert meaning.free_symbols <= {q.symbol for q in QUANTITIES.values()} | set(earlier)


# ------------------------------------------------------------- what users may type

# Each with the same thing in plain Python.
TAKEN = {
    "2*Delta/(eta*T) + eta*L*sigma**2/B": 2 * 1.5 / (0.1 * 100) + 0.1 * 2 * 1.25**2 / 64,
    "2*sqrt(2*Delta*L*sigma**2/(B*T))/(1-p)": 2 * math.sqrt(3 * 2 * 1.5625 / 6400) / 0.95,
    "initial_gap*smoothness*step_size": 1.5 * 2 * 0.1,
    "steps/batch_size + micro_batch_size*micro_batches": 100 / 64 + 64,
    "probability + q + norm_ratio*coherence": 1 + 3 * 0.25,
    "m*b - B": 0.0,
    "sigma**2/n + sigma/benign_dim": 1.5625 / 4 + 1.25 / 4,
    "16*sigma**2/((b+1)*q**(b+1))": 16 * 1.5625 / (9 * 0.95**9),
    "(1 - q**b)**(m-1)": (1 - 0.95**8) ** 7,
    "exp(-p*b)*log(T)": math.exp(-0.4) * math.log(100),
    "min(eta, 1/L, 3)": 0.1,
    "max(eta, 1/L) + min(B, b)": 8.5,
    "-c**2": -9.0,
    "+ - - 2": 2.0,
    "2**-1": 0.5,
    "2**3**2": 512.0,
    "-2**2": -4.0,
    "1e-3 + .5 + 2. + 1_000": 1002.501,
    "T**0.5 + T**(1/2)": 20.0,
    " L ": 2.0,
    "((((((((((L))))))))))": 2.0,
    "0": 0.0,
}


@pytest.mark.parametrize("text", TAKEN)
def test_formulas_mean_what_python_means(text):
    assert number(text, **SETTING) == pytest.approx(TAKEN[text], rel=1e-14, abs=0)


def test_letters_and_code_names_are_the_same_symbols():
    assert parse_formula("Delta*eta*B*p*q*m*gamma") == parse_formula(
        "initial_gap*step_size*batch_size*probability*q*micro_batches*coherence"
    )


def test_the_table_in_the_docstring_is_the_table_in_the_code():
    rows = [line.split() for line in formula.__doc__.splitlines() if line.startswith(("``", "(no"))]
    listed = {word.strip("`") for row in rows for word in row if word.startswith("``")}
    assert listed == set(formula.USER_SYMBOLS)


def test_decimals_are_exact():
    assert sympy.simplify(parse_formula("0.1 + 0.2") - sympy.Rational(3, 10)) == 0


HOSTILE = [
    "__import__('os').system('touch pwned')",
    '__import__("os")',
    "__import__",
    "open(L)",
    "exec(L)",
    "eval(L)",
    "L.__class__",
    "(1).__class__.__mro__",
    "L.real",
    "1 .real",
    "sqrt.__globals__",
    "L(2)",
    "sqrt",
    "sqrt()",
    "sqrt(2, 3)",
    "sqrt(*L)",
    "sqrt(x=2)",
    "sqrt(sqrt)(2)",
    "min(L)",
    "min(L, B, b, m, p, q, c, n, T)",
    "sin(L)",
    "lambda: 1",
    "lambda",
    "[x for x in L]",
    "{L}",
    "(L, B)",
    "L, B",
    "L[0]",
    "'L'",
    '"L"',
    "b'L'",
    "f'{L}'",
    "L if B else b",
    "L and B",
    "L or B",
    "not L",
    "L < B",
    "L == B",
    "L = B",
    "(L := 2)",
    "L; B",
    "L\nB",
    "L # B",
    "L\\",
    "L\x00",
    "L // B",
    "L % B",
    "L @ B",
    "L << 3",
    "L ^ 2",
    "~L",
    "await L",
    "yield",
    "True",
    "None",
    "...",
    "1j",
    "nan",
    "inf",
    "-inf",
    "oo",
    "zoo",
    "I",
    "pi",
    "E",
    "x",
    "Lambda",
    "alignment",
    "K_g",
    "1e400",
    "-1e400",
    "1e-400",
    "1e100",
    "9" * 50,
    "0." + "0" * 45 + "1",
    "1e31",
    "1e-31",
    "9**9**9",
    "9**9**9**9",
    "(9**9)**9",
    "((((9**9)**9)**9)**9)**9",
    "((L**8)**8)**8",
    "T**65",
    "T**-65",
    "T**(8*9)",
    "T**(99*b)",
    "2**(9**9*b)",
    "exp(exp(exp(9)))",
    "exp(1e9)",
    "1/0",
    "1/(1-1)",
    "L/(2-2)",
    "log(0)",
    "log(1-1)",
    "log(-1)",
    "sqrt(-1)",
    "(-8)**(1/3)",
    "0**-1",
    "",
    "   ",
    "(",
    ")",
    "()",
    "L +",
    "* L",
    "L B",
    "2 3",
    "2L",
    "1or 2",
    "1if 2else 3",
    "L**",
    "(" * 250 + "L" + ")" * 250,
    "(" * 5000,
    "-" * 100 + "L",
    "sqrt(" * 50 + "L" + ")" * 50,
    "+".join(["L"] * 101),
    "L" * 501,
    "L*(" * 60,
    "ｂ",  # a full-width b, which Python would read as b
    "η",
    "L − 1",  # a minus sign that is not a hyphen
    "L·B",
    "L\u200b",
    "\u202eL",
    "𝐋",
    None,
    3,
    b"L",
    ["L"],
]


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: repr(text)[:40])
def test_hostile_formulas_are_refused_quickly_and_in_one_line(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    start = time.perf_counter()
    with pytest.raises(InvalidArgument) as refusal:
        parse_formula(text)
    # A refusal takes about a millisecond; a formula that gets through to be worked out, for ever.
    assert time.perf_counter() - start < 2
    message = str(refusal.value)
    assert message.startswith("formula=")
    assert "\n" not in message
    assert len(message) < 500
    assert not list(tmp_path.iterdir())


def test_refusals_say_what_would_do():
    for text, hint in {
        "L^2": "powers are written **",
        "x": "known are Delta, L, eta",
        "sin(L)": "sqrt, log, exp, min, max",
        "T**65": "exponent above 64",
        "2L": "missing operator",
    }.items():
        with pytest.raises(InvalidArgument) as refusal:
            parse_formula(text)
        assert hint in str(refusal.value)


def test_what_is_just_within_the_limits_is_taken():
    assert number("T**64", steps=2) == 2.0**64
    assert number("(T**8)**8", steps=2) == 2.0**64
    assert number("(" * 39 + "L" + ")" * 39, **SETTING) == 2
    assert number("-" * (formula.MAX_DEPTH - 1) + "L", **SETTING) == -2
    assert number("+".join(["L"] * formula.MAX_DEPTH), **SETTING) == 2 * formula.MAX_DEPTH
    assert number("1e30*1e-30", **SETTING) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize(
    "text",
    [
        "sqrt(exp((Delta+L+eta+T+B+b+p+c+gamma+sigma+n)**64))",
        "min(1/(1+L**64-64*L), max(T**63/(1+T**62), sqrt(1+B**64)))",
        "log(2/(exp(sigma)-(-2**(64**T))))",
        "12**(1/97)*L + (1.0000001*L)**1.0000001",
        "2**(2**(2**(2**b)))",
    ],
)
def test_what_sympy_could_work_on_for_ever_is_left_as_typed(text):
    start = time.perf_counter()
    with contextlib.suppress(InvalidArgument):  # some are too large for a float, which is fine
        number(text, **SETTING)
    assert time.perf_counter() - start < 2


# Texts with their values. No differences: they could cancel, and leave no digits to compare.
leaves = st.sampled_from(
    [("Delta", 1.5), ("smoothness", 2.0), ("T", 100.0), ("b", 8.0), ("p", 0.05), ("q", 0.95)]
) | st.integers(1, 9).map(lambda k: (str(k), float(k)))


def combined(children):
    def binary(op, work):
        return st.tuples(children, children).map(
            lambda xy: (f"({xy[0][0]} {op} {xy[1][0]})", work(xy[0][1], xy[1][1]))
        )

    return st.one_of(
        binary("+", lambda x, y: x + y),
        binary("*", lambda x, y: x * y),
        binary("/", lambda x, y: x / y),
        st.tuples(children, children).map(
            lambda xy: (f"max({xy[0][0]}, {xy[1][0]})", max(xy[0][1], xy[1][1]))
        ),
        st.tuples(children, children).map(
            lambda xy: (f"min({xy[0][0]}, {xy[1][0]})", min(xy[0][1], xy[1][1]))
        ),
        children.map(lambda x: (f"sqrt({x[0]})", math.sqrt(x[1]))),
        children.map(
            lambda x: (f"{x[0]}**2" if x[0].isidentifier() else f"({x[0]})**2", x[1] ** 2)
        ),
        children.map(lambda x: (f"log(1 + {x[0]})", math.log1p(x[1]))),
    )


@given(st.recursive(leaves, combined, max_leaves=12))
@settings(max_examples=200)
def test_random_formulas_have_their_python_value(pair):
    text, value = pair
    assume(1e-100 < value < 1e100 and text.count("**2") <= 6)
    # Some tens of operations, each right to 2^-53, and powers of powers up to 64.
    assert number(text, **SETTING) == pytest.approx(value, rel=1e-12)


@given(st.text(alphabet="LTbpq0129.+-*/()e ,sqrtminlogxp_", max_size=60))
@settings(max_examples=500)
def test_any_text_is_taken_or_refused(text):
    try:
        parsed = parse_formula(text)
    except InvalidArgument:
        return
    assert isinstance(parsed, sympy.Expr)


# ------------------------------------------------------------- a user's formula as a Bound


def test_formula_bound():
    bound = formula_bound("2*Delta/(eta*T)", assumptions=("none",))
    assert isinstance(bound, Bound)
    assert (bound.kind, bound.name, bound.assumptions) == (
        "upper bound",
        "2*Delta/(eta*T)",
        ("none",),
    )
    assert bound.names == ("initial_gap", "step_size", "steps")
    assert bound.evaluate(initial_gap=1, step_size=0.1, steps=10) == 2.0
    assert bound == formula_bound("2*Delta/(eta*T)", assumptions=("none",))
    with pytest.raises(InvalidArgument, match="kind='guess' must be one of 'upper bound', "):
        formula_bound("L", kind="guess")


def test_what_a_user_typed_is_shown_as_typed():
    assert str(formula_bound("max(L, 2)*sqrt(T)")).endswith("≤ sqrt(T)*max(L, 2)")
    assert r"\max\left(L, 2\right)^{3}" in formula_bound("max(L, 2)**3").latex()
    contrived = formula_bound("q/log(1e30/1e30) + L")
    assert str(contrived).endswith("(SymPy cannot print this)")  # its printer divides by 0
