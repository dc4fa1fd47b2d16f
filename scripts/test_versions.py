"""Run the product's tests with the oldest supported versions and with the newest, in environments of their own.

    python scripts/test_versions.py [--only oldest|newest] [--pin PACKAGE==VERSION] [PYTEST ARGUMENT ...]

The oldest versions are the lower bounds of `pyproject.toml` under the oldest Python that is found; the newest are what
the package index has, but for what `--pin` names, such as a torch without CUDA. It prints one row of a table for each
environment, and exits with 1 if a test failed in any. It needs uv (`pip install uv`).
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
SHOWN = ("torch", "transformers", "peft", "trl", "accelerate", "lightning")
ENVIRONMENTS = {"oldest": "lowest-direct", "newest": "highest"}


def pythons() -> list[str]:
    """The supported Pythons that are there, the oldest first."""
    found = [shutil.which(f"python{version}") for version in PYTHONS]
    return [python for python in found if python and _runs(python)]


def _runs(python: str) -> bool:
    return subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0


def make(name: str, folder: Path, pins: list[str]) -> Path:
    """Make an environment; returns its Python."""
    chosen = (pythons() or [sys.executable])[0 if name == "oldest" else -1]
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", chosen, folder], check=True)
    python = folder / "bin" / "python"
    install = [*uv, "pip", "install", "--quiet", "--python", python, "--resolution", ENVIRONMENTS[name]]
    subprocess.run([*install, *(pins if name == "newest" else []), "--editable", f"{ROOT}[dev]"], check=True)
    return python


def versions(python: Path) -> list[str]:
    """The versions of Python and of the packages in `SHOWN`."""
    code = (
        f"import sys; from importlib.metadata import version; "
        f"print(sys.version.split()[0], *map(version, {SHOWN!r}), sep='\\n')"
    )
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test(python: Path, arguments: list[str]) -> tuple[bool, str]:
    """Run pytest once; whether it passed, and its closing line."""
    quiet = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]  # of old packages about newer ones
    command = [python, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", *quiet, *(arguments or ["tests"])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout, flush=True)
    closing = re.findall(r"^(?:\d+ \w+,? ?)+", done.stdout, re.MULTILINE)
    return done.returncode == 0, closing[-1].strip() if closing else f"pytest exited with {done.returncode}"


def main() -> int:
    """Test every environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=ENVIRONMENTS)
    parser.add_argument("--pin", action="append", default=[])
    chosen, arguments = parser.parse_known_args()
    rows, verdicts = [], []
    for name in [chosen.only] if chosen.only else ENVIRONMENTS:
        with tempfile.TemporaryDirectory() as folder:
            python = make(name, Path(folder, name), chosen.pin)
            found = versions(python)
            passed, closing = test(python, arguments)
        verdicts.append(passed)
        rows.append("| " + " | ".join([name, *found, closing]) + " |")
    print("\n".join(["| | Python | " + " | ".join(SHOWN) + " | tests |", "| --- " * (len(SHOWN) + 3) + "|", *rows]))
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
