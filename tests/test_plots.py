"""Every result draws itself: what is drawn, by its lines, labels and data."""

from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

import mbsim
from mbsim import plots, statistics
from mbsim.gradients.splits import split_of
from mbsim.gradients.training import train
from mbsim.gradients.tuned import BySize
from mbsim.theory import sgd_bound, table1
from mbsim.verdicts import Comparison, Verdict

SETTING = {"batch_size": 16, "step_size": 0.1, "steps": 60}


@pytest.fixture(scope="module")
def problem():
    return mbsim.Problem(
        loss=mbsim.losses.Quadratic(np.ones(8)), benign_dim=4, start=np.full(8, 0.5),
        noise=mbsim.noise.Gaussian(sigma=1.0),
        draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0))  # fmt: skip


@pytest.fixture(scope="module")
def run(problem):
    return mbsim.simulate(problem, mbsim.SGD(), **SETTING, replicates=64, rng=0)


@pytest.fixture
def ax():
    return Figure(figsize=(5, 3.4)).subplots()


def names(ax):
    return [text.get_text() for text in ax.texts]


def band(ax, number=0):
    """Lower and upper ends of a band at each x."""
    corners = ax.collections[number].get_paths()[0].vertices
    return {x: (corners[corners[:, 0] == x, 1].min(), corners[corners[:, 0] == x, 1].max())
            for x in np.unique(corners[:, 0])}  # fmt: skip


def test_a_new_figure_is_pyplots_and_stays_open(run):
    before = pyplot.get_fignums()
    drawn = run.plot()
    opened = set(pyplot.get_fignums()) - set(before)
    assert [pyplot.figure(number) for number in opened] == [drawn.get_figure()]
    pyplot.close(drawn.get_figure())


def test_a_notebook_that_wakes_with_its_first_figure_stays_awake(ax):
    assert not mpl.is_interactive()
    with plots.on(ax):
        mpl.interactive(True)  # as the inline backend does, when it is first asked
    assert mpl.is_interactive()
    mpl.interactive(False)


def test_what_a_notebook_turns_on_with_its_first_figure_stays_on(monkeypatch):
    """Else it would show the first figure and no other."""
    made = pyplot.subplots
    monkeypatch.setattr(pyplot, "subplots", lambda: mpl.interactive(True) or made())
    with plots.on(None) as ax:
        pass
    assert mpl.is_interactive()
    mpl.interactive(False)
    pyplot.close(ax.get_figure())


def test_a_run_is_its_mean_with_the_interval_of_its_replicates(run, ax):
    assert run.plot(ax) is ax
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xydata()[:, 0], run.steps)
    np.testing.assert_allclose(line.get_xydata()[:, 1], run.grad_norm_sq.mean(axis=0), rtol=1e-12)
    held = statistics.mean(run.grad_norm_sq[:, 30], false_positive_rate=0.01)
    np.testing.assert_allclose(band(ax)[30], (held.low, held.high), rtol=1e-9)
    assert ax.get_yscale() == "log"
    assert "64 replicates, 99 % interval" in ax.get_ylabel()
    assert names(ax) == [str(run.method)]


def test_a_runs_style_and_quantity_are_the_callers(run, ax):
    run.plot(ax, quantity="loss", color="#123456", label="mine")
    assert to_hex(ax.lines[0].get_color()) == "#123456"
    assert names(ax) == ["mine"]
    assert "loss" in ax.get_ylabel()
    with pytest.raises(mbsim.InvalidArgument, match="quantity='nothing' must be one of"):
        run.plot(ax, quantity="nothing")


def test_one_replicate_and_diverged_ones_say_so(problem, ax):
    one = mbsim.simulate(problem, mbsim.SGD(), **SETTING, replicates=1, rng=0)
    one.plot(ax)
    assert not ax.collections
    assert "no interval" in ax.get_ylabel()
    wild = mbsim.simulate(
        problem, mbsim.SGD(), **{**SETTING, "step_size": 3.0}, replicates=4, rng=0
    )
    wild.plot(ax)
    assert "4 of 4 diverged" in names(ax)[1]


def test_a_comparison_draws_every_run_in_a_colour_of_its_own(problem, ax):
    both = mbsim.compare(problem, [mbsim.SGD(), mbsim.MicroBatchClipping(4)], **SETTING,
                         replicates=16, rng=0)  # fmt: skip
    both.plot(ax)
    assert sorted(names(ax)) == sorted(str(run.method) for run in both.runs)
    assert len({(to_hex(x.get_color()), x.get_linestyle()) for x in ax.lines}) == 2
    for line, run in zip(ax.lines, both.runs, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), run.mean("grad_norm_sq"))


@pytest.mark.parametrize("by", ["floor", "simulation", "final"])
def test_a_sweet_spot_marks_its_best_and_has_intervals_where_it_is_random(problem, ax, by):
    more = {"replicates": 16, "rng": 0} if by == "simulation" else {}
    best = mbsim.sweet_spot(problem, **SETTING, by=by, **more)
    best.plot(ax)
    known = [b for b in best.curve if b not in best.why_not]
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), [(b, best.curve[b]) for b in known])
    marked = {line.get_gid(): line.get_xdata() for line in ax.lines if line.get_gid()}
    assert list(marked["best"]) == [best.micro_batch_size]
    assert list(marked["no value"]) == list(best.why_not)
    assert ("99 % interval" in ax.get_ylabel()) == (by != "floor")
    assert list(best.intervals) == ([] if by == "floor" else known)
    for b, (low, high) in best.intervals.items():
        assert low < best.curve[b] < high
    if by != "floor":
        ends = [segment[:, 1] for segment in ax.collections[0].get_segments()]
        np.testing.assert_allclose(ends, [best.intervals[b] for b in known])
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4", "8", "16"]


def test_a_phase_diagram_says_b_in_every_cell(problem, ax):
    found = mbsim.phase_diagram(problem, probabilities=[0.001, 0.1], norm_ratios=[1, 20, 50],
                                by="floor", batch_size=16, step_size=0.1)  # fmt: skip
    found.plot(ax)
    said = np.reshape(names(ax), (2, 3))
    for (i, j), b in np.ndenumerate(found.micro_batch_size):
        assert said[i, j] == ("SGD" if b == 16 else str(b))
    assert "p" in ax.get_ylabel()
    assert "c" in ax.get_xlabel()


def test_a_drift_draws_progress_moment_and_gain(problem, ax):
    drift = mbsim.drift(problem, mbsim.MicroBatchClipping(4), batch_size=16)
    r = np.linspace(0, 2, 9)
    for quantity, values in (
        ("progress", drift.progress(r)),
        ("second_moment", drift.second_moment(r)),
        ("gain", r * drift.progress(r) - 0.05 * drift.second_moment(r)),
    ):
        ax.clear()
        drift.plot(ax, quantity=quantity, step_size=0.1, grad_norm=r)
        np.testing.assert_allclose(ax.lines[0].get_ydata(), values, rtol=1e-12, atol=1e-15)
    floor = next(line for line in ax.lines if line.get_gid() == "floor")
    assert floor.get_xdata() == [drift.floor(step_size=0.1)]
    for bad in ({"quantity": "x"}, {"quantity": "gain"}):
        with pytest.raises(mbsim.InvalidArgument):
            drift.plot(ax, **bad)


def test_a_bound_against_a_run_is_its_verdict(problem, run, ax):
    verdict = mbsim.check(sgd_bound(), run)
    verdict.plot(ax)
    (comparison,) = verdict.comparisons
    (label,) = ax.get_yticklabels()
    assert label.get_text().split() == f"{comparison.what}: supported".split()
    assert any(list(line.get_xdata()) == [comparison.limit] * 2 for line in ax.lines)
    bars = [c.get_segments() for c in ax.collections if hasattr(c, "get_segments")]
    measured = comparison.measured
    np.testing.assert_allclose(bars[0][0][:, 0], (measured.low, measured.high))
    rate = 100 * (1 - measured.false_positive_rate)
    assert f"{rate:.10g} % interval" in ax.get_xlabel()
    assert ax.get_xscale() == "log"


def test_a_verdict_with_signs_and_limits_of_two_kinds(ax):
    heights = statistics.mean([-1.0, 0.5, 0.2, 0.1], false_positive_rate=0.01)
    endless = statistics.mean([np.inf, 0.5, 0.2], false_positive_rate=0.01)
    Verdict(claim="tall", statement="It is tall.", seed=0, comparisons=(
        Comparison(what="a", measured=heights, relation="within", limit=(-1.0, 1.0)),
        Comparison(what="b", measured=endless, relation="above", limit=0.0),
    )).plot(ax)  # fmt: skip
    assert ax.get_xscale() == "linear"
    assert ax.get_title(loc="left") == "tall: inconclusive"
    assert np.isfinite(ax.get_xlim()).all()


def test_a_verdict_that_does_not_apply_says_why(ax):
    Verdict(claim="x", statement="y.", comparisons=(), seed=0, not_applicable="no noise").plot(ax)
    assert ax.get_xlabel() == "no noise"


def test_table_1_draws_the_rows_that_have_their_numbers(ax):
    values = {"initial_gap": 1, "smoothness": 1, "sigma": 1, "batch_size": 64,
              "probability": 0.05, "norm_ratio": 20, "coherence": 0}  # fmt: skip
    table1().plot(ax, values=values)
    drawn = [line for line in ax.lines if not line.get_label().startswith("_")]
    rows = [row for row in table1().evaluate(**values, steps=1e8) if row["tuned_bound"] is not None]
    assert [line.get_label() for line in drawn] == [row["method"] for row in rows]
    assert [line.get_ydata()[-1] for line in drawn] == [row["tuned_bound"] for row in rows]
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    with pytest.raises(mbsim.InvalidArgument, match="must give at least initial_gap"):
        table1().plot(ax, values={"sigma": 1})


def test_assumptions_stand_beside_their_null(ax):
    rng = np.random.default_rng(0)
    gradients = 0.3 + rng.standard_normal((60, 12))
    gradients[:10] *= 8
    found = mbsim.check_assumptions(gradients, is_dragger=np.arange(60) < 10)
    found.plot(ax)
    null, measured = (line.get_xdata() for line in ax.lines if line.get_linestyle() == "None"
                      and line.get_marker() in "so")  # fmt: skip
    count = len(found.measured)
    np.testing.assert_array_equal(measured[:count], [x.interval.estimate for x in found.measured])
    np.testing.assert_array_equal(null[:count], [x.null.estimate for x in found.measured])
    assert "% interval" in ax.get_xlabel()


def test_checks_along_training_are_one_number_over_the_snapshots(ax):
    rng = np.random.default_rng(0)
    snapshots = [0.3 + rng.standard_normal((60, 12)) for _ in range(3)]
    for size, gradients in zip((4, 8, 16), snapshots, strict=True):
        gradients[:10] *= size
    found = mbsim.check_assumptions(snapshots, is_dragger=np.arange(60) < 10)
    assert found.plot(ax) is ax
    ratios = found["norm_ratio"]
    np.testing.assert_array_equal(ax.lines[0].get_xydata().T[0], [1, 2, 3])
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [x.estimate for x in ratios])
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose([s[:, 1] for s in segments], [(x.low, x.high) for x in ratios])
    assert "norm ratio" in ax.get_ylabel()
    assert "% interval" in ax.get_ylabel()
    found.plot(Figure().subplots(), quantity="probability")
    with pytest.raises(mbsim.InvalidArgument, match="quantity='lengths' must be one of"):
        found.plot(ax, quantity="lengths")


def test_accuracy_by_size_has_its_interval_over_splits(ax):
    found = BySize(
        sizes=np.array([1, 4]), batch_size=4, stop=np.full((2, 3), 9), step_size=np.ones((2, 3)),
        test_accuracy=np.array([[0.7, 0.8, 0.9], [0.6, 0.6, 0.9]]), test_loss=np.ones((2, 3)),
        rule=mbsim.clipping.SmallestNorm())  # fmt: skip
    found.plot(ax, "test_accuracy")
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.8, 0.7])
    held = statistics.mean([0.7, 0.8, 0.9], false_positive_rate=0.01)
    segments = ax.collections[0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], (held.low, held.high))


def test_a_training_is_a_line_for_each_step_size_with_its_interval_over_orders(ax):
    x = np.random.default_rng(0).standard_normal((300, 4))
    data = split_of(x, x[:, 0] > 0, np.split(np.arange(300), [200, 250]))
    given = {"steps": 20, "record_every": 10, "rng": 0}
    run = train(data, mbsim.SGD(), step_size=[0.5, 1e7], orders=3, **given)
    assert run.plot(ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), run.test_loss[:, 0].mean(axis=0))
    held = statistics.mean(run.test_loss[:, 0, 1], false_positive_rate=0.01)
    ends = ax.collections[0].get_segments()[1][:, 1]
    np.testing.assert_allclose(ends, (held.low, held.high))
    assert "step size 0.5" in names(ax)[0]
    with pytest.raises(mbsim.InvalidArgument, match="quantity='loss' must be one of"):
        run.plot(ax, quantity="loss")
    one = Figure().subplots()
    train(data, mbsim.SGD(), step_size=0.5, **given).plot(one, quantity="test_accuracy")
    assert not one.collections
    assert names(one) == ["SGD"]
    assert "no interval" in one.get_ylabel()


def test_names_do_not_overlap_and_many_become_a_legend(ax):
    for number in range(4):
        plots.curve(ax, [1, 2], [number, 3.0], label=f"line {number}")
        plots.name_lines(ax)
    assert sorted(names(ax)) == [f"line {number}" for number in range(4)]
    ax.get_figure().canvas.draw()
    boxes = sorted((text.get_window_extent() for text in ax.texts), key=lambda box: box.y0)
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))
    plots.curve(ax, [1, 2], [5, 6], label="a fifth")
    plots.name_lines(ax)
    assert not names(ax)
    assert len(ax.get_legend().get_texts()) == 5


def test_colours_are_told_apart_in_grey():
    """By lightness and, where that is near, by marker and by line: no two curves share all."""
    looks = list(zip(plots.COLOURS[:4], plots._MARKERS, plots._LINES, strict=False))
    assert len(looks) == len(set(plots._MARKERS[:4])) == len(set(plots._LINES)) == 4
