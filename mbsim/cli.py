"""The command line: parse, call, print. Exit 0 for a sound answer, 2 for bad input."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mbsim._shared.files import replacing
from mbsim._shared.records import to_json
from mbsim._shared.version import __version__
from mbsim.errors import InvalidArgument, check_integer

if TYPE_CHECKING:
    from rich.console import Console

    from mbsim.problems.noise import NoiseLaw

__all__ = ["main"]

_INTERRUPTED = 130  # what a shell makes of Ctrl-C

app = typer.Typer(
    help="Check the theory of micro-batch clipping by simulation.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


Plot = Annotated[Path | None, typer.Option(help="A .png, .svg or .pdf to draw to.")]


def _check_plot(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InvalidArgument(f"plot={str(plot)!r} must end in .png, .svg or .pdf")


def _draw(result: Any, plot: Path | None, **how: Any) -> None:
    """Draw a result to a file, where one is asked for."""
    if plot is None:
        return
    from matplotlib.figure import Figure

    from mbsim import plots

    with plots.style(), replacing(plot, "plot") as file:
        figure = Figure()
        result.plot(figure.subplots(), **how)
        figure.savefig(file, format=plot.suffix.lower().lstrip("."), bbox_inches="tight")


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option(help="Folder for figures and reports.")] = Path("figures"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and replicates.")] = False,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    workers: Annotated[
        int | None, typer.Option(help="Processes; as many as there are processors, unless told.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="A file to keep finished claims in, and to go on from.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when a verdict is not the expected one.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run every claim and negative control; print the verdicts, write figures and a report."""
    from rich.table import Table

    from mbsim.study import report as reports

    report = reports.reproduce(out, quick=quick, rng=seed, workers=workers, store=store)
    if json:
        print(to_json(report.to_dict()), end="")
    else:
        table = Table("claim", "verdict", "decided by", show_lines=False, pad_edge=False)
        styles = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
        for name, status, why in report.rows():
            table.add_row(name, f"[{styles.get(status, 'dim')}]{status}[/]", why)
        console = _console()
        console.print(table)
        console.print(
            f"{report.seconds['all']:.0f} s; figures are in {out}/; open {out}/report.html",
            highlight=False,
        )
    surprises = report.surprises()
    for line in surprises:
        print(f"not as expected: {line}", file=sys.stderr)
    if strict and surprises:
        raise typer.Exit(1)


def _console() -> Console:
    """A console; wide where nobody looks at it, so that no line is broken."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 160
    return console


@app.command()
def table1(
    values: Annotated[
        list[str] | None,
        typer.Argument(help="Numbers to fill in, such as steps=1000 sigma=1; none for symbols."),
    ] = None,
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """The bounds side by side, derived from the paper's assumptions: in symbols, or in numbers."""
    from mbsim.theory import table1 as bounds

    _check_plot(plot)
    table = bounds()
    known = dict(map(_name_and_number, values or []))
    if plot is not None:
        over = {name: number for name, number in known.items() if name != "steps"}
        _draw(table, plot, values=over)
    if not values and not json:
        print(table)
        return
    rows = table.evaluate(**known)
    if json:
        print(to_json(rows), end="")
        return
    for row in rows:
        print(row.pop("method"))
        for name, number in row.items():
            text = f"{number:.6g}" if isinstance(number, float) else str(number)
            print(f"  {name.replace('_', ' '):<16} {text}")


@app.command()
def sweet_spot(
    probability: Annotated[float, typer.Option(help="Of a dragger, p.")] = 0.05,
    norm_ratio: Annotated[float, typer.Option(help="Of draggers, c.")] = 20.0,
    coherence: Annotated[float, typer.Option(help="Of draggers, gamma.")] = 0.0,
    noise: Annotated[
        str, typer.Option(help="gaussian, two-point, exponential or student-t.")
    ] = "gaussian",
    rare: Annotated[float, typer.Option(help="Of two-point noise: the rare side.")] = 0.1,
    df: Annotated[float, typer.Option(help="Of Student's t: degrees of freedom.")] = 5.0,
    sigma: Annotated[float, typer.Option(help="Noise of one example.")] = 1.0,
    dimension: Annotated[int, typer.Option(help="Parameters, d.")] = 64,
    benign_dim: Annotated[int, typer.Option(help="Dimensions of benign noise, n.")] = 32,
    start: Annotated[float, typer.Option(help="Gradient norm at the start.")] = 1.0,
    batch_size: Annotated[int, typer.Option(help="Examples in a mini-batch, B.")] = 64,
    step_size: Annotated[str, typer.Option(help='A number, or "tuned".')] = "tuned",
    steps: Annotated[int, typer.Option(help="How many, T.")] = 1000,
    by: Annotated[
        str,
        typer.Option(
            help="final (where runs end), average (over their steps), bias, bound, certificate, "
            "floor or simulation."
        ),
    ] = "final",
    replicates: Annotated[
        int | None, typer.Option(help="Runs for each b; as many as are worth their time.")
    ] = None,
    store: Annotated[
        Path | None, typer.Option(help="For simulation: a file to keep runs in, and to go on from.")
    ] = None,
    plot: Plot = None,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """The best micro-batch size for one half of |w|^2: the one with which runs end lowest."""
    from mbsim.choosing import sweet_spot as choosing
    from mbsim.problems.draggers import Draggers
    from mbsim.study.half_square import half_square

    _check_plot(plot)
    problem = half_square(
        _noise(noise, sigma, rare, df),
        Draggers(probability=probability, norm_ratio=norm_ratio, coherence=coherence),
        dimension=check_integer("dimension", dimension, minimum=1),
        benign_dim=benign_dim,
        grad_norm=start,
    )
    best = choosing.sweet_spot(
        problem,
        batch_size=batch_size,
        step_size=_number_or_word(step_size),
        steps=steps,
        by=by,
        replicates=64 if by == "simulation" and not (replicates or store) else replicates,
        rng=seed,
        store=store,
    )
    _draw(best, plot)
    if not json:
        print(f"{problem}\n")
    print(to_json(best.to_dict()) if json else best, end="" if json else "\n")


@app.command()
def advise(
    gradients: Annotated[
        list[Path], typer.Argument(help="An .npy file [examples, coordinates]; or some in time.")
    ],
    batch_size: Annotated[int, typer.Option(help="Examples in a mini-batch, B.")] = 64,
    target: Annotated[
        list[str] | None,
        typer.Option(help='An .npy file, one for each; or "geometric-median" or "mean".'),
    ] = None,
    steps: Annotated[int, typer.Option(help="How many of training, T.")] = 300,
    plot: Plot = None,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the advice as JSON.")] = False,
) -> None:
    """Which micro-batch size for your own per-example gradients, and why."""
    from mbsim.gradients import advice as advising

    _check_plot(plot)
    goals = [text if text in advising.TARGETS else Path(text) for text in target or []]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        advice = advising.advise(
            gradients if len(gradients) > 1 else gradients[0],
            batch_size=batch_size,
            target=None if not goals else goals if len(goals) > 1 else goals[0],
            steps=steps,
            rng=seed,
        )
    for text in dict.fromkeys(str(one.message) for one in said):
        print(f"mbsim: {text}", file=sys.stderr)
    _draw(advice, plot)
    print(to_json(advice.to_dict()) if json else advice, end="" if json else "\n")


def _noise(name: str, sigma: float, rare: float, df: float) -> NoiseLaw:
    from mbsim.problems.noise import Exponential, Gaussian, StudentT, TwoPoint

    laws: dict[str, Callable[[], NoiseLaw]] = {
        "gaussian": lambda: Gaussian(sigma=sigma),
        "two-point": lambda: TwoPoint(sigma=sigma, rare=rare),
        "exponential": lambda: Exponential(sigma=sigma),
        "student-t": lambda: StudentT(sigma=sigma, df=df),
    }
    if name not in laws:
        raise InvalidArgument(f"noise={name!r} must be one of {', '.join(laws)}")
    return laws[name]()


def _number_or_word(text: str) -> float | str:
    """A number where it is one; words are left to whoever knows which are allowed."""
    try:
        return float(text)
    except ValueError:
        return text


@app.command()
def check_bound(
    formula: Annotated[str, typer.Argument(help="Such as 2*Delta/(eta*T) + eta*L*sigma**2/B.")],
    kind: Annotated[str, typer.Option(help="upper, lower or estimate.")] = "upper",
    method: Annotated[
        str | None, typer.Option(help="SGD or clipping; by whether b is in it, unless told.")
    ] = None,
    largest_step: Annotated[
        str | None, typer.Option(help="A formula for the largest step size it allows.")
    ] = None,
    problems: Annotated[int, typer.Option(help="How many of the family.")] = 24,
    plot: Plot = None,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON.")] = False,
) -> None:
    """Hold your own formula for the mean of |gradient|^2 over a run against simulation."""
    from mbsim.checking.formulas import check_bound as check

    _check_plot(plot)
    verdict = check(
        formula, kind=kind, method=method, largest_step=largest_step, problems=problems, rng=seed
    )
    _draw(verdict, plot)
    if json:
        print(to_json(verdict.to_dict()), end="")
        return
    from rich.table import Table

    table = Table("problem", "method", "B", "p", "c", "γ", "η", "T", "left", "right", "left/right")
    for row in verdict.details["rows"]:
        cells = [f"{row[name]:.3g}" for name in ("p", "c", "gamma", "eta")]
        over = row["left"] / row["right"] if row["right"] else math.inf
        sides = [f"{row['left']:.4g}", f"{row['right']:.4g}", f"{over:.3g}"]
        if row["why_not"]:
            sides = ["", "", "not applicable"]
        table.add_row(
            str(row["problem"]), row["method"], str(row["B"]), *cells, str(row["T"]), *sides
        )
    _console().print(table)
    print(verdict)


@app.command()
def study(
    what: Annotated[str, typer.Argument(help="tilt: wrong labels on 21 real tables.")],
    out: Annotated[Path, typer.Option(help="Folder for finished settings and figures.")] = Path(
        "study-tilt"
    ),
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="One table; again for more. All, unless told.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """A long study, begun again where it was cut off: `tilt`, some minutes."""
    from mbsim.study.tilted_tables import whole

    if what != "tilt":
        raise InvalidArgument(f"study={what!r} must be tilt")
    verdicts = whole(out, rng=seed, only=only)
    if json:
        print(to_json({name: one.to_dict() for name, one in verdicts.items()}), end="")
        return
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}" if name.startswith("control") else verdict)


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A TOML file: fixed fields, and axes.")],
    store: Annotated[Path, typer.Option(help="The file to keep results in, and to go on from.")],
    workers: Annotated[
        int | None, typer.Option(help="Processes; as many as there are processors, unless told.")
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Of a Dask cluster that draws instead, such as tcp://host:8786.")
    ] = "",
    fail_fast: Annotated[
        bool, typer.Option("--fail-fast/--keep-going", help="Stop when a cell has failed; or not.")
    ] = False,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that 256 replicates of a cell may take.")
    ] = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for who holds the store.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="Print all that is known as JSON.")] = False,
) -> None:
    """Run a grid of problems and methods, or what is left of it. Exit 1 if a cell failed."""
    from mbsim.sweeps import runner
    from mbsim.sweeps.grid import Grid

    cells = Grid.from_toml(grid)
    try:
        with runner.cluster(scheduler) if scheduler else nullcontext((None, None)) as (pool, size):
            found = runner.sweep(
                cells,
                store,
                executor=pool,
                workers=size if workers is None else workers,
                keep_going=not fail_fast,
                timeout=timeout,
                wait=wait,
            )
    except KeyboardInterrupt as stop:
        _fail("; ".join(["interrupted", *getattr(stop, "__notes__", ())]), _INTERRUPTED)
    print(to_json(found.to_dict()) if json else found, end="" if json else "\n")
    if not found.complete or "diverged" in found.counts:
        raise typer.Exit(1)


@app.command()
def demo() -> None:
    """What micro-batch clipping does, and when it does not help: a few seconds, one picture."""
    from mbsim.study.demo import demo as pieces

    for piece in pieces():
        print(piece, flush=True)


@app.command()
def explore(
    path: Annotated[bool, typer.Option("--path", help="Print where it is; open nothing.")] = False,
) -> None:
    """Open the explorer: one page to turn b, draggers and noise, and see what clipping does."""
    import webbrowser

    from mbsim.study.explorer import explorer_page

    page = explorer_page()
    print(page)
    if not path:
        webbrowser.open(page.as_uri())


def _name_and_number(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise InvalidArgument(f"{text!r} must be name=number, such as steps=1000") from None


def main() -> None:
    """Run the command line; bad input is one line on standard error and exit code 2."""
    try:
        code = app(standalone_mode=False)
        if code != _INTERRUPTED:
            sys.exit(code)
        _fail("interrupted", code)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED)
    except InvalidArgument as error:
        _fail(" ".join([str(error), *getattr(error, "__notes__", ())]))
    except (MemoryError, OverflowError) as error:
        _fail(f"these numbers are too large to compute with ({error})")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "mbsim":
            raise
        needs = f"this command needs {error.name}, which is not installed"
        _fail(f'{needs}; pip install "microbatch-clipping[all]" brings it')
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what the parser has to say
        if usage is None:
            raise
        _fail(f"{' '.join(usage().split())} (in: {' '.join(sys.argv[1:])})")


def _fail(message: str, code: int = 2) -> None:
    print(f"mbsim: {message}", file=sys.stderr)
    sys.exit(code)
