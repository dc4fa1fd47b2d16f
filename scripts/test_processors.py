"""Run the tests under the arithmetic of several processors, and under one and two threads.

    python scripts/test_processors.py [--arithmetic] [PYTEST ARGUMENT ...]

A processor is stood in for by what its instructions allow: torch's own kernels (ATEN_CPU_CAPABILITY) and the matrix
products of oneDNN and MKL. `--arithmetic` takes the tests alone whose verdict arithmetic could change. It prints a line
for each run, and exits with 1 if a test failed in any.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time

CAPABILITIES = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"},
    "native": {},
}
THREADS = (1, 2)
FOLDERS = ("measure", "control", "paper", "health", "models", "train", "report", "invariant", "integration")
ARITHMETIC = (*(f"tests/{name}" for name in FOLDERS), "tests/test_coordinator.py", "tests/test_three_modules.py")
ARITHMETIC += ("tests/test_step_faults.py", "tests/test_optimizers_as_they_are.py", "lab/tests/nano/test_nano.py")
ARITHMETIC += ("lab/tests/nano/test_nano_measures.py", "lab/tests/reproduce", "lab/tests/rivals", "lab/tests/small")
ARITHMETIC += ("lab/tests/studies",)


def run(capability: str, threads: int, arguments: list[str]) -> tuple[bool, str]:
    """Run pytest once; whether it passed, and its closing line."""
    count = str(threads)
    environment = {**os.environ, **CAPABILITIES[capability]}
    environment |= {"OMP_NUM_THREADS": count, "COMMIT_TUNING_TEST_THREADS": count, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        print(done.stdout, flush=True)
    closing = re.findall(r"^(?:\d+ \w+,? ?)+", done.stdout, re.MULTILINE)
    return done.returncode == 0, closing[-1].strip() if closing else f"pytest exited with {done.returncode}"


def main(arguments: list[str]) -> int:
    """Run every capability with every number of threads."""
    if "--arithmetic" in arguments:
        arguments = [*(argument for argument in arguments if argument != "--arithmetic"), *ARITHMETIC]
    verdicts = []
    for capability in CAPABILITIES:
        for threads in THREADS:
            started = time.perf_counter()
            passed, closing = run(capability, threads, arguments)
            verdicts.append(passed)
            print(f"{capability}, {threads} thread(s): {closing} in {time.perf_counter() - started:.0f} s", flush=True)
    return 0 if all(verdicts) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
