"""The command line: `commit-tuning train`, `evaluate`, `compare`, `report`, `inspect`."""

import sys


def main() -> None:
    """The console script; says what to install if the command line's own libraries are missing.

    Raises:
        SystemExit: Always, with the exit code.
    """
    try:
        from commit_tuning.cli import app
    except ModuleNotFoundError as error:
        if str(error.name).startswith("commit_tuning"):
            raise
        sys.exit(_missing(str(error.name)))
    app.main()


def _missing(module: str) -> int:
    sys.stderr.write(f"commit-tuning: error: the command line needs {module}; pip install 'commit-tuning[train]'\n")
    return 2
