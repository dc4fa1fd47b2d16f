"""The command line of the laboratory: `commit-lab demo`, `reproduce`, `study`."""


def main() -> None:
    """Run the console script.

    Raises:
        SystemExit: Always, with the exit code.
    """
    from commit_lab.cli import app

    app.main()
