"""The command line: parse, call, print. Exit 0 for a sound answer, 2 for bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mbsim._version import __version__
from mbsim.errors import InvalidArgument

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


@app.command()
def reproduce(
    out: Annotated[Path, typer.Option(help="Folder for figures and report.json.")] = Path(
        "figures"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer steps and replicates.")] = False,
    seed: Annotated[int, typer.Option(help="The seed of all randomness.")] = 0,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit 1 when a verdict is not the expected one.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Run every claim and negative control; print the verdicts, write figures and a report."""
    from mbsim.study import report as reports

    report = reports.reproduce(out, quick=quick, rng=seed)
    if json:
        print(reports.to_json(report.to_dict()), end="")
    else:
        _print_report(report, out)
    surprises = report.surprises()
    for line in surprises:
        print(f"not as expected: {line}", file=sys.stderr)
    if strict and surprises:
        raise typer.Exit(1)


def _print_report(report: object, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from mbsim.study.report import Report

    assert isinstance(report, Report)
    table = Table("claim", "verdict", "decided by", show_lines=False, pad_edge=False)
    styles = {"supported": "green", "refuted": "red", "inconclusive": "yellow"}
    for name, status, why in report.rows():
        table.add_row(name, f"[{styles.get(status, 'dim')}]{status}[/]", why)
    console = Console()
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    console.print(
        f"{report.made_with['seconds']['all']:.0f} s; figures and report.json are in {out}/",
        highlight=False,
    )


@app.command()
def table1(
    values: Annotated[
        list[str] | None,
        typer.Argument(help="Numbers to fill in, such as steps=1000 sigma=1; none for symbols."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
) -> None:
    """The bounds side by side, derived from the paper's assumptions: in symbols, or in numbers."""
    from mbsim.study.report import to_json
    from mbsim.theory import table1 as bounds

    table = bounds()
    if not values and not json:
        print(table)
        return
    rows = table.evaluate(**dict(map(_name_and_number, values or [])))
    if json:
        print(to_json(rows), end="")
        return
    for row in rows:
        print(row.pop("method"))
        for name, number in row.items():
            text = f"{number:.6g}" if isinstance(number, float) else str(number)
            print(f"  {name.replace('_', ' '):<16} {text}")


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
        _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "mbsim":
            raise
        needs = f"this command needs {error.name}, which is not installed"
        _fail(f'{needs}; pip install "mbsim[all]" brings it')
    except Exception as error:
        usage = getattr(error, "format_message", None)  # what the parser has to say
        if usage is None:
            raise
        _fail(f"{' '.join(usage().split())} (in: {' '.join(sys.argv[1:])})")


def _fail(message: str, code: int = 2) -> None:
    print(f"mbsim: {message}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
