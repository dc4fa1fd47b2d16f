"""Share of simulated runs in which a controller starves a module: `python benchmarks/controller_stability.py`.

Prints a Markdown table. The simulation is `commit_tuning.core.simulate`: kappa = rho (lr_X / lr_S)^2 with noise.
"""

from commit_tuning.core.simulate import collapse_share

WINDOWS = (10, 15, 20, 30, 50, 100)
RUNS = 100


def main() -> None:
    """Print collapse shares of the literal and of the bounded controller."""
    print(
        f"Share of {RUNS} simulated runs (1000 steps, rho = 4, log-sd of kappa 1.2, N_lr = 10) in which a module's rate"
    )
    print("fell below a hundredth of its base rate.\n")
    print("| controller, estimator | " + " | ".join(f"N_kappa {n}" for n in WINDOWS) + " |")
    print("| --- |" + " --- |" * len(WINDOWS))
    for controller, interval in (("literal", 1), ("bounded", 5)):
        for estimator in ("arithmetic", "geometric", "ratio"):
            shares = [
                collapse_share(
                    RUNS,
                    controller=controller,
                    kappa_estimator=estimator,
                    kappa_window=window,
                    probe_interval=interval,
                )
                for window in WINDOWS
            ]
            name = f"`{controller}`, {estimator}, a measurement every {interval} steps"
            print(f"| {name} | " + " | ".join(f"{share:.2f}" for share in shares) + " |")


if __name__ == "__main__":
    main()
