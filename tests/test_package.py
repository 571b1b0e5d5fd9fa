"""The package as a whole: what it imports, who may import whom, its docstrings, its documents."""

import ast
import doctest
import importlib
import inspect
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import processes
import pytest

import mbsim

HERE = Path(mbsim.__file__).parent
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# ------------------------------------------------------------------------- imports

HEAVY = {
    "sympy", "matplotlib", "hypothesis", "xarray", "pandas", "sklearn", "jax", "torch",
    "scipy.stats", "scipy.optimize", "scipy.integrate", "rich", "typer",
}  # fmt: skip


def imported_by(code):
    out, err = processes.run(f"{code}\nimport sys, json\nprint(json.dumps(sorted(sys.modules)))")
    assert err == ""
    return set(json.loads(out))


def test_import_mbsim_is_light():
    modules = imported_by("import mbsim")
    assert not modules & (HEAVY | {"scipy", "numpy.f2py"})
    assert {m for m in modules if m.startswith("mbsim")} == {"mbsim"}


def test_the_daily_work_stays_light():
    """A simulation, its verdict and a file need NumPy, and SciPy's special functions at most."""
    modules = imported_by(
        "import numpy as np, mbsim, mbsim.statistics, mbsim.verdicts\n"
        "p = mbsim.Problem(loss=mbsim.losses.LogCosh(4), noise=mbsim.noise.Gaussian(),\n"
        "                  benign_dim=2, start=np.ones(4))\n"
        "r = mbsim.simulate(p, mbsim.SGD(), batch_size=4, step_size=.1, steps=2,\n"
        "                   replicates=2, rng=0)\n"
        "mbsim.clipping.apply(np.ones((2, 2))), repr(r), repr(p)\n"
        "mbsim.statistics.mean(r.mean_grad_norm_sq, false_positive_rate=.1)"
    )
    assert not modules & HEAVY


def test_every_public_name_is_there():
    for name in mbsim.__all__:
        assert getattr(mbsim, name) is not None
        assert name in dir(mbsim)
    with pytest.raises(AttributeError, match="no attribute 'Foo'"):
        mbsim.Foo  # noqa: B018
    listed = {*mbsim._HOMES, *mbsim._MODULES}
    assert listed == set(mbsim.__all__)


# ------------------------------------------------------------------------- rooms

# A room imports only from rooms above it; those of one line see each other.
ROOMS = [
    "errors", "_shared", "clipping", "methods", "statistics", "verdicts", "plots", "problems",
    "simulation", "drifts", "gradients", "theory", "choosing", "checking", "sweeps", "study",
    "testing", "extra", "cli", "__main__",
]  # fmt: skip
FLOOR = {room: floor for floor, room in enumerate(ROOMS)}
# What checks must not depend on what is checked.
STRANGERS = {"theory", "drifts", "simulation"}


def room_of(module):
    """The room of ``mbsim.a.b`` is a."""
    return module.split(".")[1]


def imports_of(path, module):
    """The modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("mbsim"))
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            if base == "mbsim":
                yield from (f"mbsim.{alias.name}" for alias in node.names)
            elif base.startswith("mbsim."):
                yield base


def modules():
    for path in sorted(HERE.rglob("*.py")):
        parts = path.relative_to(HERE).with_suffix("").parts
        if parts != ("__init__",):  # the front door, lazy, sees every room
            yield path, ".".join(["mbsim", *(p for p in parts if p != "__init__")])


@pytest.mark.parametrize(("path", "module"), [pytest.param(*m, id=m[1]) for m in modules()])
def test_a_room_imports_only_from_rooms_above(path, module):
    room = room_of(module)
    assert room in FLOOR, f"{module}: give the room {room} a place in the list"
    for imported in imports_of(path, module):
        assert imported != "mbsim", f"{module} imports the front door; import from the room"
        other = room_of(imported)
        allowed = other == room or FLOOR[other] < FLOOR[room]
        assert allowed, f"{module} may not import {imported}"
        assert other == room or not {room, other} <= STRANGERS, f"{module} imports {imported}"


def test_the_wall_between_rooms_can_be_hit(tmp_path):
    """The negative control of the test above: all forms of import are seen."""
    file = tmp_path / "x.py"
    file.write_text(
        "import mbsim.simulation.run\nfrom mbsim import study\n"
        "def f():\n    from ..simulation import run\n    from mbsim.cli import main\n",
        encoding="utf-8",
    )
    found = list(imports_of(file, "mbsim.theory.x"))
    assert sorted(found) == ["mbsim.cli", "mbsim.simulation", "mbsim.simulation.run", "mbsim.study"]


# ------------------------------------------------------------------------- docstrings

# Public names without an example of their own, and why.
NO_EXAMPLE = {
    "mbsim.__version__": "a string",
    "mbsim.methods.Method": "a protocol; its two implementations have examples",
    "mbsim.clipping.Rule": "a protocol; docs/extending.md writes one",
    "mbsim.problems.losses.Loss": "a protocol; docs/extending.md writes one",
    "mbsim.problems.noise.NoiseLaw": "a protocol; docs/extending.md writes one",
    "mbsim.problems.noise.VectorNoise": "a protocol; docs/extending.md writes one",
}
FINDER = doctest.DocTestFinder(recurse=False)


def public_names():
    """Every name of every public module's ``__all__``, under the module that defines it."""
    for found in pkgutil.walk_packages([str(HERE)], "mbsim."):
        if any(part.startswith("_") for part in found.name.split(".")[1:]):
            continue
        module = importlib.import_module(found.name)
        for name in getattr(module, "__all__", ()):
            home = getattr(getattr(module, name), "__module__", found.name)
            if home == found.name:
                yield f"{found.name}.{name}", getattr(module, name)


PUBLIC = dict(public_names())


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name):
    thing = PUBLIC[name]
    if not callable(thing):
        return
    text = inspect.getdoc(thing)
    assert text, f"{name} has no docstring"
    assert len(text.splitlines()[0]) <= 100
    for member, value in vars(thing).items() if inspect.isclass(thing) else ():
        if not member.startswith("_") and (callable(value) or isinstance(value, property)):
            assert inspect.getdoc(value), f"{name}.{member} has no docstring"


#: Rooms whose public functions must each show an example; the inner ones may lean on these.
SHOWCASE = (
    "mbsim.clipping",
    "mbsim.errors.InvalidArgument",
    "mbsim.methods",
    "mbsim.problems.losses",
    "mbsim.problems.noise",
    "mbsim.problems.draggers",
    "mbsim.problems.problem",
    "mbsim.simulation.run",
    "mbsim.statistics",
    "mbsim.verdicts",
    "mbsim.testing",
    "mbsim.extra.hypothesis",
    "mbsim.checking.formulas",
    "mbsim.choosing.phase_diagram.phase_diagram",
    "mbsim.choosing.sweet_spot.sweet_spot",
    "mbsim.choosing.tuning.simulate",
    "mbsim.drifts.drift.drift",
)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith(SHOWCASE)])
def test_public_names_show_an_example(name):
    has_one = any(test.examples for test in FINDER.find(PUBLIC[name], name))
    assert has_one != (name in NO_EXAMPLE), f"{name}: {NO_EXAMPLE.get(name, 'no example')}"


# ------------------------------------------------------------------------- documents


@pytest.mark.parametrize("page", ["extending.md", "strategies.md"])
def test_pages_with_code_run(page, tmp_path, monkeypatch):
    """Their code blocks, top to bottom, in one namespace."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) >= 5
    namespace = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)


def test_the_table_of_the_page_on_extending_is_true():
    """Which laws the fast engine serves: every row, asked of the engine itself."""
    import numpy as np

    from mbsim.simulation.run import choose_engine

    text = (DOCS / "extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)`[^|]*\|[^|]*\| (yes|no) \| yes \|$", text, flags=re.M)
    assert len(rows) == 6
    for made_by, answer in rows:
        if made_by.startswith("vectors"):

            class Law:
                sigma = 1.0

                def vectors(self, shape, benign_dim, rng):
                    return rng.standard_normal((*shape, benign_dim)) / np.sqrt(benign_dim)

            law = Law()
        elif made_by.startswith("mean_of"):

            class Law:
                sigma = 1.0
                mean_of = mbsim.noise.Gaussian().mean_of

            law = Law()
        else:
            law = eval(made_by, {"mbsim": mbsim})
        for coherence in (0.0, 0.4, 1.0):
            for tilt in (0.0, 0.5):
                problem = mbsim.Problem(
                    loss=mbsim.losses.LogCosh(8), noise=law, benign_dim=4, start=np.ones(8),
                    draggers=mbsim.Draggers(
                        probability=0.1, norm_ratio=2, coherence=coherence, tilt=tilt),
                )  # fmt: skip
                expected = "exact_law" if answer == "yes" else "reference"
                assert choose_engine(problem) == expected, made_by


def test_links_between_documents_lead_somewhere():
    for page in DOCS.glob("*.md"):
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


# ------------------------------------------------------------------------- the distribution

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_one_name_is_installed_and_another_imported():
    assert PROJECT["name"] == "microbatch-clipping"
    assert PROJECT["scripts"] == {"mbsim": "mbsim.cli:main"}


def test_all_that_is_asked_to_be_installed_can_be():
    """Every ``name[extras]``, in messages, documents and the project itself, is true."""
    asked = 0
    for path in ROOT.rglob("*.*"):
        mine = not any(part.startswith(".venv") for part in path.relative_to(ROOT).parts)
        if mine and path.suffix in {".py", ".md", ".ipynb", ".toml", ".cff"}:
            for name, extras in re.findall(r"([\w-]*)\[([a-z,]+)\][\"']", path.read_text("utf-8")):
                if name in {"mbsim", "microbatch-clipping"}:
                    assert name == PROJECT["name"], path
                    assert {*extras.split(",")} <= {*PROJECT["optional-dependencies"]}, path
                    asked += 1
    assert asked >= 5


def test_the_extra_all_is_all_that_users_need():
    extras = PROJECT["optional-dependencies"]
    (rest,) = re.findall(r"microbatch-clipping\[(.*)\]", extras["all"][0])
    assert {*rest.split(","), "all", "dev", "torch", "bench"} == {*extras}
    assert "microbatch-clipping[all]" in extras["dev"]
