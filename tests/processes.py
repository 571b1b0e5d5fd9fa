"""Fresh interpreters that see the same mbsim as the tests do."""

import os
import subprocess
import sys
from pathlib import Path

import mbsim

HERE = Path(__file__).parent


def environment():
    places = (Path(mbsim.__file__).parents[1], HERE)
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}


def run(code, *, timeout=60, **variables):
    """Standard output and error of `code`; what there was of it, and "hung", after `timeout`.

    `variables` go into its environment.
    """
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment() | variables,
        cwd=HERE,
    ) as process:
        try:
            return process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return out, f"{err}\nhung"
