"""Peak memory of `fewstep evaluate` at several sample counts: it must not grow with them.

    OMP_NUM_THREADS=1 python benchmarks/memory.py RUN [--extractor classifier]

Each count is a process of its own, whose largest resident size the system tells. The features that
are compared row with row are those of the first 10,000 samples; beyond, nothing more is kept.
"""

import argparse
import os
import subprocess
import sys
import time


def peak(run, extractor, samples):
    """MiB, and seconds."""
    command = [sys.executable, "-m", "fewstep", "evaluate", run, "--steps", "1"]
    command += ["--samples", str(samples), "--extractor", extractor, "--seed", "12345"]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0, command
    return used.ru_maxrss / 1024, time.perf_counter() - start


def main():
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("run")
    asked.add_argument("--extractor", default="classifier")
    asked.add_argument("--samples", default="2000,10000,20000,50000")
    told = asked.parse_args()
    peak(told.run, told.extractor, 2000)  # whatever is kept on disk is made by now
    print("| samples | peak MiB | seconds |\n|---|---|---|")
    for samples in map(int, told.samples.split(",")):
        mib, seconds = peak(told.run, told.extractor, samples)
        print(f"| {samples:,} | {mib:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
