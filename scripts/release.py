"""Build both distributions and check them as a user would get them.

    python scripts/release.py [--into dist]

Builds the wheel and the source distribution of each, checks their metadata, holds the product to its size,
installs the wheels in a fresh environment, and runs both commands there, outside of the repository. It uploads nothing.
It needs build and twine (`pip install build twine`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LARGEST = 400_000  # bytes of the product, as a wheel and as source
COMMANDS = (["commit-tuning", "--version"], ["commit-lab", "--version"], ["commit-tuning", "inspect", "nano-salmonn"])


def build(into: Path) -> list[Path]:
    """Build both distributions; returns their files."""
    for project in (ROOT, ROOT / "lab"):
        subprocess.run(
            [sys.executable, "-m", "build", "--outdir", into, project], check=True, stdout=subprocess.DEVNULL
        )
    return sorted(into.glob("commit_*"))


def check(files: list[Path]) -> None:
    """Check the metadata of all files, and the size of the product."""
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=True)
    for file in files:
        print(f"{file.name}: {file.stat().st_size:,} bytes")
        if file.name.startswith("commit_tuning") and file.stat().st_size > LARGEST:
            sys.exit(f"{file.name} is larger than {LARGEST:,} bytes: what does not belong into the product?")


def try_out(files: list[Path]) -> None:
    """Install the wheels in a fresh environment and run the commands."""
    wheels = {file.name.partition("-")[0]: file for file in files if file.suffix == ".whl"}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        names = [f"{wheels['commit_tuning']}[train,audio,metrics]", str(wheels["commit_lab"])]
        pins = ["--constraint", str(ROOT / "constraints.txt")]
        subprocess.run(
            [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", *pins, *names], check=True, cwd=folder
        )
        for command in COMMANDS:
            subprocess.run([f"{folder}/bin/{command[0]}", *command[1:]], check=True, cwd=folder)


def main() -> None:
    """Build, check, try out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=ROOT / "dist")
    into = parser.parse_args().into.resolve()
    if into.exists() and any(into.iterdir()):
        sys.exit(f"{into} is not empty: choose another folder, or empty it")
    files = build(into)
    check(files)
    try_out(files)


if __name__ == "__main__":
    main()
