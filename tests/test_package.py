"""The package as a whole: what it imports, who may import whom, its docstrings, its documents."""

import doctest
import importlib
import inspect
import json
import pkgutil
import re
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import draw_architecture as architecture
import processes
import pytest
from draw_architecture import ROOMS, STRANGERS, room_of

import mbsim

HERE = Path(mbsim.__file__).parent
ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# ------------------------------------------------------------------------- imports

HEAVY = {
    "sympy", "matplotlib", "hypothesis", "xarray", "pandas", "sklearn", "jax", "torch",
    "optax", "array_api_compat",
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

IMPORTS = architecture.imports(HERE)


def test_the_rooms_are_those_of_the_list():
    assert {room_of(module) for module in IMPORTS} == {*ROOMS, ""}, "give every room its place"


@pytest.mark.parametrize("module", sorted({*IMPORTS} - {"mbsim"}))
def test_a_room_imports_only_from_rooms_above(module):
    room = room_of(module)
    for imported in IMPORTS[module]:
        assert imported != "mbsim", f"{module} imports the front door; import from the room"
        other = room_of(imported)
        allowed = other == room or ROOMS.index(other) < ROOMS.index(room)
        assert allowed, f"{module} may not import {imported}"
        assert other == room or not {room, other} <= STRANGERS, f"{module} imports {imported}"


def circle_in(imports):
    """Modules that import each other in a circle, or none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_modules_import_each_other_in_a_circle():
    assert circle_in(IMPORTS) == []


def house(folder, **files):
    """What the reader finds in a package made up of these modules; ``a__b`` is a/b.py."""
    for name, text in {"__init__": "", **files}.items():
        path = folder.joinpath("house", *re.split(r"(?<=[a-z])__(?=[a-z_])", f"{name}.py"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return architecture.imports(folder / "house")


def test_the_reader_sees_every_form_of_import(tmp_path):
    """The negative control of the walls between rooms."""
    found = house(
        tmp_path,
        attic__roof="",
        attic____init__="from . import roof",
        bell="",
        cellar____init__="from .stairs import down",
        cellar__shelf="",
        cellar__stairs="import json, house.bell\n"
        "def f():\n    from . import shelf\n    from ..attic.roof import tile\n",
        door="from house import attic, ring\nif TYPE_CHECKING:\n    from .cellar import stairs\n",
    )
    assert found == {
        "house": set(),
        "house.attic": {"house.attic.roof"},
        "house.attic.roof": set(),
        "house.bell": set(),
        "house.cellar": {"house.cellar.stairs"},
        "house.cellar.shelf": set(),
        "house.cellar.stairs": {
            "house.bell", "house.cellar.shelf", "house.attic", "house.attic.roof",
        },
        "house.door": {"house", "house.attic", "house.cellar", "house.cellar.stairs"},
    }  # fmt: skip
    assert circle_in(found) == []


@pytest.mark.parametrize(
    "hidden",
    [
        "def f():\n    from house import hall",
        "if TYPE_CHECKING:\n    from ..hall import lamp",
        "class C:\n    def f(self):\n        import house.hall",
        "from house.cellar import down",  # its own folder's __init__, which imports it
        "import house.cellar.stairs",  # itself
    ],
)
def test_a_hidden_circle_is_found(tmp_path, hidden):
    files = {"hall": "from house import cellar", "cellar____init__": "from .stairs import down"}
    assert circle_in(house(tmp_path / "without", **files, cellar__stairs="")) == []
    circle = circle_in(house(tmp_path / "with", **files, cellar__stairs=hidden))
    assert "house.cellar.stairs" in circle


# ------------------------------------------------------------------------- the page on them


ARCHITECTURE = (DOCS / "architecture.md").read_text(encoding="utf-8")


def test_the_picture_of_the_rooms_is_what_is_drawn_from_the_imports():
    drawn = architecture.picture()
    kept = (DOCS / "architecture.svg").read_bytes()
    assert kept == drawn.encode(), "draw it again: python docs/draw_architecture.py"


def test_the_page_says_of_every_room_in_one_sentence_what_it_is_for():
    rows = re.findall(r"^\| `(\w+)/?` \| (.+) \|$", ARCHITECTURE, flags=re.M)
    assert [room for room, _ in rows] == ROOMS
    for room, sentence in rows:
        assert re.fullmatch(r"[^.;]+\.", re.sub(r"`[^`]*`", "", sentence)), room


def test_the_files_and_tests_that_the_page_names_are_there():
    named = re.findall(r"`((?:mbsim|tests|docs)/[\w/]+\.\w+)(?:::(\w+))?`", ARCHITECTURE)
    assert len(named) >= 10
    for path, test in named:
        assert (ROOT / path).is_file(), path
        assert f"def {test}(" in (ROOT / path).read_text("utf-8") if test else True, test


# ------------------------------------------------------------------------- docstrings

# Public names without an example of their own, and why.
NO_EXAMPLE = {
    "mbsim.__version__": "a string",
    "mbsim.methods.Method": "a protocol; its two implementations have examples",
    "mbsim.extra.optax.MicroBatchClippingState": "a record of what update keeps",
    "mbsim.clipping.rules.Rule": "a protocol; docs/extending.md writes one",
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
        try:
            module = importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name not in {"torch", "optax"}:  # extras that the test tools do not bring
                raise
            continue
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
    "mbsim.extra.optax",
    "mbsim.extra.sklearn",
    "mbsim.extra.torch",
    "mbsim.checking.formulas",
    "mbsim.choosing.phase_diagram.phase_diagram",
    "mbsim.choosing.sweet_spot.sweet_spot",
    "mbsim.choosing.tuning.simulate",
    "mbsim.drifts.drift.drift",
    "mbsim.gradients.gram",
    "mbsim.gradients.measured",
    "mbsim.gradients.race",
    "mbsim.gradients.replay",
    "mbsim.sweeps.grid.Grid",
    "mbsim.sweeps.runner.Here",
    "mbsim.sweeps.runner.sweep",
    "mbsim.sweeps.store.Store",
)


@pytest.mark.parametrize("name", [name for name in PUBLIC if name.startswith(SHOWCASE)])
def test_public_names_show_an_example(name):
    has_one = any(test.examples for test in FINDER.find(PUBLIC[name], name))
    assert has_one != (name in NO_EXAMPLE), f"{name}: {NO_EXAMPLE.get(name, 'no example')}"


# ------------------------------------------------------------------------- documents


@pytest.mark.parametrize(  # use.md: test_use.py
    ("page", "least"), [("extending.md", 5), ("strategies.md", 5), ("training.md", 1)]
)
def test_pages_with_code_run(page, least, tmp_path, monkeypatch):
    """Their code blocks, top to bottom, in one namespace."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)
    assert len(blocks) >= least
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
    assert {*rest.split(","), "all", "dev", "docs", "torch", "jax", "bench"} == {*extras}
    assert "microbatch-clipping[all,docs]" in extras["dev"]
