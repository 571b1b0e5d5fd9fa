"""The explorer's formulas and its simulation are those of Python; and how it is in a browser."""

import json
import math
import shutil
import subprocess
import sys

import numpy as np
import pytest
from browser import broken_rules, browser, opened

import mbsim
from mbsim.statistics import t_quantile
from mbsim.study.explorer import explorer_page, formulas, sliders

TEXT = explorer_page().read_text("utf-8")
SETTING = {"B": 16, "p": 0.1, "c": 5, "sigma": 1, "skew": 2, "eta": 0.05}
RULES = {"smallest": mbsim.clipping.SmallestNorm(), "median": mbsim.clipping.QuantileNorm(0.5),
         "unit": mbsim.clipping.UnitNorm(), "none": mbsim.clipping.NoClipping()}  # fmt: skip


def problem():
    s = SETTING
    noise = mbsim.noise.TwoPoint(sigma=s["sigma"], isotropic_share=0.5,
                                 rare=0.5 * (1 - s["skew"] / math.hypot(s["skew"], 2)))  # fmt: skip
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(64)), noise=noise, benign_dim=32,
        start=np.full(64, 0.125),
        draggers=mbsim.Draggers(probability=s["p"], norm_ratio=s["c"]))  # fmt: skip


def script(name):
    return TEXT.partition(f'<script id="{name}"')[2].partition(">")[2].partition("</script>")[0]


def in_javascript(code):
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node")
    whole = "\n".join([script("law"), script("formulas"), f"console.log(JSON.stringify({code}))"])
    run = subprocess.run([node, "-"], input=whole, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_the_formulas_in_the_page_are_those_that_sympy_writes():
    assert f"// <formulas>\n{formulas()}// </formulas>" in TEXT


def test_the_formulas_give_the_numbers_of_the_library():
    known = "B: 16, p: 0.1, c: 5, sigma: 1, r: 0.7, b: 4"
    bias, progress, moment = in_javascript(
        f"[biasBound({{{known}}}), sgdProgress({{{known}}}), sgdSecondMoment({{{known}}})]"
    )
    closed = mbsim.theory.bias_bound("closed")
    assert bias == pytest.approx(closed.evaluate(micro_batch_size=4, probability=0.1, sigma=1))
    sgd = mbsim.drift(problem(), mbsim.SGD(), batch_size=16)
    assert progress == pytest.approx(sgd.progress(0.7), rel=1e-12)
    assert moment == pytest.approx(sgd.second_moment(0.7), rel=1e-12)


def test_the_bounds_are_those_of_the_library():
    """Theorem 2 with the closed form of its bias and its largest weight, and Theorem 1."""
    at = {**SETTING, "T": 400}
    calls = [("clipping", {"b": 4, "eta": 0.001}), ("sgd", {}),
             ("clipping", {"b": 4, "c": 50}), ("sgd", {"eta": 2})]  # fmt: skip
    code = ", ".join(f"{name}Bound({json.dumps(at | changed)})" for name, changed in calls)
    bounds = in_javascript(f"[{code}]")
    theory = mbsim.theory
    values = {"initial_gap": 0.5, "smoothness": 1, "steps": 400, "batch_size": 16, "sigma": 1,
              "probability": 0.1, "norm_ratio": 5, "coherence": 0, "micro_batch_size": 4,
              "mean_weight": 0.75}  # fmt: skip
    whole, sgd = theory.clipping_bound(), theory.sgd_bound()
    sums = {name: values[name] for name in ("micro_batch_size", "probability", "sigma")}
    closer = theory.bias_bound("closed").evaluate(**sums) - theory.bias_bound().evaluate(**sums)
    known = {name: values[name] for name in sgd.names if name != "step_size"}
    clipped = whole.evaluate(**values, step_size=0.001) + closer
    wanted = [clipped, sgd.evaluate(**known, step_size=0.05)]
    assert bounds[:2] == pytest.approx(wanted, rel=1e-12)
    assert bounds[2:] == [None, None]  # NaN: such steps are not allowed
    assert not whole.holds(**values | {"norm_ratio": 50}, step_size=0.05)
    assert not sgd.holds(**known, step_size=2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("b", [1, 4])
def test_a_step_in_javascript_has_the_law_of_the_engine(rule, b):
    """Means of A and M against the library's drift; each misses with probability 1e-6."""
    draws = 40_000
    a, square, aa, squares = in_javascript(f"""(() => {{
        const draw = source({b}), sums = [0, 0, 0, 0];
        for (let i = 0; i < {draws}; i++) {{
            const [a, m] = step(draw, {json.dumps(SETTING)}, {b}, "{rule}", 0.4);
            [a, m, a * a, m * m].forEach((x, k) => sums[k] += x / {draws});
        }}
        return sums;
    }})()""")
    drift = mbsim.drift(problem(), mbsim.MicroBatchClipping(b, rule=RULES[rule]), batch_size=16)
    at = drift.at(0.4)
    for mean, of_squares, truth, own, numerical in (
        (a, aa, at.progress, at.progress_standard_error, at.progress_numerical_error),
        (square, squares, at.second_moment, at.second_moment_standard_error,
         at.second_moment_numerical_error),
    ):  # fmt: skip
        error = math.hypot(math.sqrt((of_squares - mean**2) / draws), own)
        df = min(draws - 1, float(at.df))
        assert abs(mean - truth) < t_quantile(df, 5e-7) * error + numerical


@pytest.fixture(scope="module")
def chromium():
    with browser() as started:
        yield started


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1440, "light")])
def test_in_a_browser_it_is_silent_fits_and_is_accessible(chromium, width, scheme):
    look = {"color_scheme": scheme, "viewport": {"width": width, "height": 800}}
    with opened(chromium, explorer_page(), **look) as (it, said):
        loaded = "performance.getEntriesByType('navigation')[0].loadEventEnd"
        it.wait_for_function(f"{loaded} > 0")
        assert it.evaluate(loaded) < 1000  # milliseconds; a tenth of it on an idle machine
        it.wait_for_function("found.sizes && found.runs && found.drift")
        assert it.evaluate("document.documentElement.scrollWidth") <= width
        assert broken_rules(it) == []
        inked = """[...document.querySelectorAll('canvas:not(#map)')].map(one =>
            one.getContext('2d').getImageData(0, 0, one.width, one.height).data.some(x => x))"""
        it.wait_for_function("!asked")
        assert all(it.evaluate(inked))
        assert said == []


def test_keys_turn_it_and_the_address_keeps_it(chromium):
    with opened(chromium, explorer_page()) as (it, said):
        it.keyboard.press("Tab")
        assert it.evaluate("document.activeElement.id") == "B"
        it.keyboard.press("ArrowLeft")
        it.keyboard.press("Tab")
        it.keyboard.press("ArrowLeft")
        it.locator("#rule").select_option("median")
        kept = it.evaluate("({...state})")
        assert (kept["B"], kept["b"], kept["rule"]) == (32, 4, "median")
        address = it.url
        it.goto("about:blank")
        it.goto(address)
        assert it.evaluate("({...state})") == kept
        it.goto("about:blank")
        it.goto(address.partition("#")[0] + "#b=7&p=2&rule=x&constructor=1")
        assert it.evaluate("[state.b, state.p, state.rule]") == [1, 0.05, "smallest"]
        assert said == []


def test_what_diverges_is_said_to(chromium):
    with opened(chromium, explorer_page()) as (it, said):
        it.goto(f"{explorer_page().as_uri()}#p=0.3&c=100&sigma=3&eta=0.2")
        it.reload()
        it.wait_for_function("document.getElementById('answer').textContent.length > 0")
        assert it.inner_text("#answer").endswith("SGD diverges.")
        assert said == []


def test_it_moves_at_thirty_frames_a_second(chromium):
    with opened(chromium, explorer_page()) as (it, _):
        it.wait_for_function("found.sizes && found.runs && found.drift")
        took = it.evaluate("""() => {
            const since = performance.now();
            for (let i = 0; i < 30; i++) paint();
            return (performance.now() - since) / 30;
        }""")
        assert took < 1000 / 30  # milliseconds to draw everything once


def test_three_sliders_draw_anew_in_a_notebook(monkeypatch):
    """Without a front end: what is turned is drawn."""
    pytest.importorskip("ipywidgets", reason="needs the extra notebooks")
    from matplotlib import pyplot

    drawn = []
    monkeypatch.setattr(pyplot, "show", lambda: drawn.append(pyplot.gcf()))
    controls, _ = sliders().children
    assert [one.description for one in controls.children] == ["b", "p", "c"]
    b, p, c = controls.children
    b.value, p.value, c.value = 64, 0.0, 2.0
    assert len(drawn) == 4
    lines = [figure.axes[0].lines for figure in drawn]
    first, last = ([line.get_ydata()[-1] for line in one[:2]] for one in (lines[0], lines[-1]))
    assert first[0] > 2 * first[1]  # clipping ends lower, and at b = B it is SGD
    assert last[0] == pytest.approx(last[1], rel=0.5)
    assert any("b = 8" in text.get_text() for text in drawn[0].axes[0].texts)
    for figure in drawn:
        pyplot.close(figure)


def test_without_ipywidgets_a_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs ipywidgets: pip install '.*\[notebooks\]'$"
    ):
        sliders()
