"""What the programs of this folder share: timing and one line of JSON."""

import json
import platform
import resource
import statistics
import time

import torch


def seconds(f, repeats):
    """Median of `repeats` calls, after one that is not counted."""
    f()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        f()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def show(**values):
    print(json.dumps({"program": "torch", "version": torch.__version__, "machine": platform.machine(), "threads": torch.get_num_threads(), **values}))
