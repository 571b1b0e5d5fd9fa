"""The command line: parse, call, print. Exit 0 for a sound answer, 2 for bad input."""

from __future__ import annotations

import math
import re
import sys
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mbsim._shared.files import replacing
from mbsim._shared.meant import meant
from mbsim._shared.records import to_json
from mbsim._shared.version import __version__
from mbsim.errors import InvalidArgument, check_integer, check_number

if TYPE_CHECKING:
    from mbsim.problems.noise import NoiseLaw

__all__ = ["main"]

_INTERRUPTED = 130  # what a shell makes of Ctrl-C

app = typer.Typer(
    help="Does micro-batch clipping help here, at which b, and is the theory right about it?",
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
_LAWS = ("gaussian", "two-point", "exponential", "student-t")


def _whole(text: str) -> int:
    """A whole number, as 1000 or 1e3."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(text)
    return int(number)


def _count(about: str) -> Any:
    return typer.Option(help=about, parser=_whole, metavar="<int>")


def _words(*words: str) -> Any:
    """Completion in a shell from a few words."""
    return lambda incomplete: [word for word in words if word.startswith(incomplete)]


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
        result.plot(ax=figure.subplots(), **how)
        figure.savefig(file, format=plot.suffix.lower().lstrip("."), bbox_inches="tight")


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option(help="Folder for figures and reports.")] = Path(
        "mbsim-report"
    ),
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
    from mbsim.study import report as reports

    report = reports.reproduce(out, quick=quick, rng=seed, workers=workers, store=store)
    if json:
        print(to_json(report.to_dict()), end="")
    else:
        _print(report)
        taken = report.seconds["all"]
        print(f"\n{taken:.0f} s; figures are in {out}; open {out / 'report.html'}")
    surprises = report.surprises()
    for line in surprises:
        print(f"not as expected: {line}", file=sys.stderr)
    if strict and surprises:
        raise typer.Exit(1)


def _print(result: object) -> None:
    """A result in words; what is supported and refuted in colours where somebody looks."""
    colours = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
    text = str(result)
    if sys.stdout.isatty():
        pattern = rf"\b({'|'.join(colours)})\b"
        text = re.sub(pattern, lambda word: typer.style(word[0], colours[word[0]]), text)
    print(text)


@app.command()
def table1(
    values: Annotated[
        list[str] | None,
        typer.Argument(
            help="Numbers to fill in, by name or letter: steps=1000 eta=.01; none for symbols."
        ),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option(
            help="A law, such as gaussian: with it all quantities have numbers, of 1/2 |w|^2 where "
            "none are given, and what rows on clipping need is measured.",
            autocompletion=_words(*_LAWS),
        ),
    ] = None,
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """The bounds side by side, derived from the paper's assumptions: in symbols, or in numbers."""
    from mbsim.theory import table1 as bounds
    from mbsim.theory.quantities import by_name

    _check_plot(plot)
    table = bounds()
    known: Any = by_name(dict(map(_name_and_number, values or [])))
    if noise is not None:
        known = _filled_in(noise, known)
    if plot is not None:
        over = {name: known[name] for name in known if name != "steps" and name in table.names}
        _draw(table, plot, values=over)
    if not known and not json:
        print(table)
        return
    rows = table.evaluate(known) if noise is not None else table.evaluate(**known)
    if json:
        print(to_json(rows), end="")
        return
    if noise is not None:
        print(f"{known}\n")
    print(table.in_numbers(rows))
    if noise is None and any(row["missing"] for row in rows):
        print("\nWith --noise gaussian all are filled in, and measured where need be.")


def _filled_in(noise: str, given: dict[str, float]) -> Any:
    """The quantities of one half of |w|^2 with what is given, and what is measured there."""
    from mbsim.choosing.quantities import quantities
    from mbsim.problems.draggers import Draggers
    from mbsim.study.half_square import half_square

    typical = {
        "initial_gap": 0.5, "sigma": 1.0, "probability": 0.05, "norm_ratio": 20.0, "coherence": 0.0,
        "benign_dim": 32, "batch_size": 64, "micro_batch_size": 8, "step_size": 0.01, "steps": 1000,
    }  # fmt: skip
    now = typical | given
    if left := sorted(given.keys() - typical.keys()):
        taken = f"with --noise only {', '.join(typical)} can be given"
        raise InvalidArgument(f"{left[0]}={given[left[0]]:g} must be left out: {taken}")
    size = check_integer("benign_dim", now["benign_dim"], minimum=1)
    problem = half_square(
        _noise(noise, now["sigma"], rare=0.1, df=5.0),
        Draggers(**{name: now[name] for name in ("probability", "norm_ratio", "coherence")}),
        dimension=2 * size + 2,
        benign_dim=size,
        grad_norm=math.sqrt(2 * check_number("initial_gap", now["initial_gap"], above=0)),
    )
    run: Any = {x: now[x] for x in ("batch_size", "micro_batch_size", "step_size", "steps")}
    return quantities(problem, **run)


@app.command()
def sweet_spot(
    probability: Annotated[float, typer.Option(help="Of a dragger, p.")] = 0.05,
    norm_ratio: Annotated[float, typer.Option(help="Of draggers, c.")] = 20.0,
    coherence: Annotated[float, typer.Option(help="Of draggers, gamma.")] = 0.0,
    noise: Annotated[
        str,
        typer.Option(
            help="gaussian, two-point, exponential or student-t.", autocompletion=_words(*_LAWS)
        ),
    ] = "gaussian",
    rare: Annotated[float, typer.Option(help="Of two-point noise: the rare side.")] = 0.1,
    df: Annotated[float, typer.Option(help="Of Student's t: degrees of freedom.")] = 5.0,
    sigma: Annotated[float, typer.Option(help="Noise of one example.")] = 1.0,
    dimension: Annotated[int, _count("Parameters, d.")] = 64,
    benign_dim: Annotated[int, _count("Dimensions of benign noise, n.")] = 32,
    start: Annotated[float, typer.Option(help="Gradient norm at the start.")] = 1.0,
    batch_size: Annotated[int, _count("Examples in a mini-batch, B.")] = 64,
    step_size: Annotated[str, typer.Option(help='A number, or "tuned".')] = "tuned",
    steps: Annotated[int, _count("How many, T.")] = 1000,
    by: Annotated[
        str,
        typer.Option(
            help="final (where runs end), average (over their steps), bias, bound, certificate, "
            "floor or simulation.",
            autocompletion=_words(
                "final", "average", "bias", "bound", "certificate", "floor", "simulation"
            ),
        ),
    ] = "final",
    replicates: Annotated[
        int | None, _count("Runs for each b; as many as are worth their time.")
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
    if json:
        print(to_json(best.to_dict()), end="")
    if best.micro_batch_size is None:
        _fail(f"no b of {batch_size} has an answer: {best.reason}")
    _draw(best, plot)
    if not json:
        asked = [f"batch size {batch_size}", f"steps {steps}", f"step size {step_size}"]
        print(f"{problem}\n  {'asked':<12} {', '.join(asked)}, by {by}\n\n{best}")


@app.command()
def advise(
    gradients: Annotated[
        list[Path], typer.Argument(help="An .npy file [examples, coordinates]; or some in time.")
    ],
    batch_size: Annotated[int, _count("Examples in a mini-batch, B.")] = 64,
    target: Annotated[
        list[str] | None,
        typer.Option(help='An .npy file, one for each; or "geometric-median" or "mean".'),
    ] = None,
    steps: Annotated[int, _count("How many of training, T.")] = 300,
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
    problems: Annotated[int, _count("How many of the family.")] = 24,
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
    from mbsim._shared import tables

    head = ("#", "B", "b", "p", "c", "γ", "η", "T", "left", "right", "ratio")
    rows: list[tuple[str, ...]] = [head]
    for row in verdict.details["rows"]:
        cells = [f"{row[name]:.3g}" for name in ("p", "c", "gamma", "eta")]
        over = row["left"] / row["right"] if row["right"] else math.inf
        sides = [f"{row['left']:.3g}", f"{row['right']:.3g}", f"{over:.3g}"]
        if row["why_not"]:
            sides = ["does", "not", "apply"]
        size = "SGD" if row["method"] == "SGD" else str(row["b"])
        rows.append((str(row["problem"]), str(row["B"]), size, *cells, str(row["T"]), *sides))
    print(*tables.as_text(rows, align=">>>....>...", gap=" "), sep="\n")
    print("left: the mean of |gradient|^2 in simulation; right: the formula\n")
    _print(verdict)


@app.command()
def study(
    what: Annotated[
        str, typer.Argument(help="tilt: where wrong labels pull. training: what pruning is worth.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for finished settings; study-WHAT unless told."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="One table; again for more. All, unless told.")
    ] = None,
    splits: Annotated[int, typer.Option(help="Of every table (training).")] = 10,
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print the verdicts as JSON.")] = False,
) -> None:
    """A long study of real tables, which goes on where it was cut off: minutes or hours."""
    _check_plot(plot)
    folder = out or Path(f"study-{what}")
    if what == "tilt":
        from mbsim.study.tilted_tables import whole

        verdicts = whole(folder, rng=seed, only=only)
    elif what == "training":
        from mbsim.study.trained_tables import whole as trained

        verdicts = trained(folder, rng=seed, only=only, splits=splits)
    else:
        raise InvalidArgument(f"study={what!r} must be tilt or training")
    _draw(next(iter(verdicts.values())), plot)
    if json:
        print(to_json({name: one.to_dict() for name, one in verdicts.items()}), end="")
        return
    for name, verdict in verdicts.items():
        _print(f"{name}:\n{verdict}" if name.startswith("control") else verdict)


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
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print all that is known as JSON.")] = False,
) -> None:
    """Run a grid of problems and methods, or what is left of it. Exit 1 if a cell failed."""
    from mbsim.sweeps import runner
    from mbsim.sweeps.grid import Grid

    _check_plot(plot)
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
    _draw(found, plot, x=next(iter(found.grid.axes), ""), incomplete=True)
    print(to_json(found.to_dict()) if json else found, end="" if json else "\n")
    if not found.complete or "diverged" in found.counts:
        raise typer.Exit(1)


@app.command()
def demo(
    plot: Plot = None,
    json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> None:
    """What micro-batch clipping does, and when it does not help: a few seconds, one picture."""
    from mbsim.study import demo as shows

    _check_plot(plot)
    found: dict[str, Any] = {}
    if not json:
        print(shows.HEAD)
    for what, both in shows.cases():
        if not found:
            _draw(both, plot)
        found[what] = both.to_dict()
        if not json:
            print(shows.told(what, both, picture=len(found) == 1), flush=True)
    print(to_json(found) if json else shows.FOOT, end="" if json else "\n")


@app.command()
def explore(
    path: Annotated[bool, typer.Option("--path", help="Print where it is; open nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print where it is as JSON.")] = False,
) -> None:
    """Open the explorer: one page to turn b, draggers and noise, and see what clipping does."""
    import webbrowser

    from mbsim.study.explorer import explorer_page

    page = explorer_page()
    print(to_json({"path": str(page)}) if json else page, end="" if json else "\n")
    if not (path or json):
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
        said = _option_meant(error) or " ".join(usage().split()).rstrip(".")
        path = getattr(getattr(error, "ctx", None), "command_path", "mbsim")
        _fail(f"{said} (in: {' '.join(sys.argv[1:])}; {path} --help says more)")


def _option_meant(error: Any) -> str:
    """For an option that there is not, the one of the same meaning; "" if none is known."""
    wrong, context = getattr(error, "option_name", None), getattr(error, "ctx", None)
    if wrong is None or context is None:
        return ""
    if context.info_name == "table1":
        return f"no such option: {wrong}: numbers are given as {wrong.lstrip('-')}=..."
    known = [one.name for one in context.command.params if one.name]
    ours = meant(wrong.lstrip("-"), known)
    return f"no such option: {wrong}: did you mean --{ours.replace('_', '-')}?" if ours else ""


def _fail(message: str, code: int = 2) -> NoReturn:
    print(f"mbsim: {message}", file=sys.stderr)
    sys.exit(code)
