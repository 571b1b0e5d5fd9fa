"""Is what is installed here, without any extra, whole and of use? Prints nothing if it is."""

import subprocess
import sys
import tempfile
import time
import tomllib
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def seconds(code: str) -> float:
    """How long a new interpreter takes for this, at its quickest."""
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        taken.append(time.perf_counter() - start)
    return min(taken)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What the installed command does, in an empty folder."""
    program = Path(sys.executable).with_name("mbsim")
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [program, *arguments], capture_output=True, text=True, check=False, cwd=folder
        )


installed = metadata.distribution(PROJECT["name"])
assert installed.version == PROJECT["version"]
files = {str(file) for file in installed.files or ()}
for path in (ROOT / "mbsim").rglob("*"):
    if path.is_file() and path.parent.name != "__pycache__":
        assert str(path.relative_to(ROOT)) in files, f"{path} is not in the distribution"

# What it takes here is a tenth of this; the rest is for a busy machine.
taken = seconds("import mbsim") - seconds("pass")
assert taken < 0.3, f"import mbsim takes {taken:.2f} s"

import mbsim  # noqa: E402

assert mbsim.__version__ == PROJECT["version"]
assert Path(mbsim.__file__).is_relative_to(sys.prefix), "this is not what was installed"
problem = mbsim.Problem(
    loss=mbsim.losses.LogCosh(8),
    noise=mbsim.noise.TwoPoint(sigma=1.0, rare=0.1),
    draggers=mbsim.Draggers(probability=0.05, norm_ratio=20.0),
    benign_dim=4,
    start=[1.0] * 8,
)
clip = mbsim.MicroBatchClipping(8)
run = mbsim.simulate(problem, clip, batch_size=64, step_size=0.05, steps=20, replicates=4, rng=0)
assert not run.diverged.any()
assert 0 < mbsim.drift(problem, clip, batch_size=64).floor(step_size=0.05) < 1

said = command("--version")
assert (said.returncode, said.stdout.strip()) == (0, PROJECT["version"]), said
said = command("sweet-spot", "--by", "floor", "--step-size", "0.01", "--batch-size", "16")
assert said.returncode == 0, said
# What is not there is named in one line, with what brings it: of several, what is wanted first.
for arguments, missing in ((["table1"], "sympy"), (["reproduce", "--quick"], "sympy")):
    said = command(*arguments)
    assert said.returncode == 2, said
    assert said.stderr.count("\n") == 1, said
    assert f"needs {missing}" in said.stderr, said
    assert "microbatch-clipping[" in said.stderr, said
