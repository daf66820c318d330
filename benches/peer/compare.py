"""Runs recant's programs and the PyTorch ones alternately and prints ratios with their spread.

    python compare.py                      demo width, 2 threads, 3 rounds
    python compare.py --width full --rounds 2 --repeats 1 --only iteration
    python compare.py --only inception --weights inception.safetensors --digits t10k-images-idx3-ubyte
    python compare.py --only fid --weights inception.safetensors --digits t10k-images-idx3-ubyte --n 10000 --rounds 1

A ratio is PyTorch's value over recant's in one round: above 1, recant is faster (or smaller). Printed are the median
and the range over the rounds; whatever else the machine did meanwhile shows in the range.
"""

import argparse
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent

# Benchmark: the PyTorch program, recant's program, the compared keys.
BENCHMARKS = {
    "iteration": ("stylegan2_peer.py", "iteration", ["plain_s", "r1_s", "path_s", "amortised_s", "peak_bytes"]),
    "sampling": ("sampling_peer.py", "sampling", ["sample_s", "classify_s", "feedback_s", "peak_bytes"]),
    "slab_pass": ("optimizer_peer.py", "slab_pass", ["ewc_s", "repulsion_s"]),
    # Only with --weights and --digits.
    "inception": ("inception_peer.py", "inception", ["seconds", "peak_bytes"]),
}


def run(command):
    """The line of JSON that a program ends with, and how long all of it took."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return {"wall_s": time.perf_counter() - start} | json.loads(done.stdout.strip().splitlines()[-1])


def fid(o, recant, folder):
    """`recant fid` and pytorch-fid itself on the same two folders of PNG: digits of even and of odd number."""
    from inception_peer import idx
    from PIL import Image

    images = idx(o.digits, int(o.n))[:, 0].numpy()
    halves = [folder / "even", folder / "odd"]
    for half in halves:
        half.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(halves[i % 2] / f"{i:05}.png")
    threads = ["--threads", str(o.threads)]
    theirs = [sys.executable, str(HERE / "fid_peer.py"), "--weights", o.weights, *map(str, halves), *threads]
    ours = [str(recant), "fid", *(f"folder:{half}" for half in halves), "--inception", o.weights, "--no-cache", "--json", "--device", "cpu", *threads]
    pairs = []
    for i in range(o.rounds):
        order = [theirs, ours] if i % 2 == 0 else [ours, theirs]
        results = {command[0]: run(command) for command in order}
        pairs.append((results[theirs[0]], results[ours[0]]))
        distances = [p["distance"] for p in pairs[-1]]
        if not math.isclose(*distances, rel_tol=1e-3):
            sys.exit(f"fid: distances {distances} of the same images")
    print(f"\nfid of {len(images)} digits: distance {distances[0]:.6f} and {distances[1]:.6f}")
    return pairs


def show(name, pairs, keys):
    print(f"\n{name:<14}{'torch':>12}{'recant':>12}{'ratio':>8}   range")
    for key in keys:
        theirs, ours = ([p[k][key] for p in pairs] for k in (0, 1))
        ratios = [t / r for t, r in zip(theirs, ours)]
        unit = 1e-6 if key == "peak_bytes" else 1.0
        label = key.replace("peak_bytes", "peak_MB")
        values = f"{statistics.median(theirs) * unit:>12.4g}{statistics.median(ours) * unit:>12.4g}"
        print(f"{label:<14}{values}{statistics.median(ratios):>8.2f}   {min(ratios):.2f} to {max(ratios):.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=["demo", "full"], default="demo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", help="how often a program repeats what it times (default: its own)")
    parser.add_argument("--only", choices=[*BENCHMARKS, "fid"])
    parser.add_argument("--weights", help="Inception's, as safetensors: compares feature extraction too, and with --only fid pytorch-fid")
    parser.add_argument("--digits", help="MNIST's IDX file of images, for the same")
    parser.add_argument("--n", default="256", help="digits")
    parser.add_argument("--raw", type=pathlib.Path, help="append every line of JSON to this file")
    o = parser.parse_args()
    subprocess.run(["cargo", "build", "--release", "-p", "recant-benches", "-p", "recant", "--bins"], cwd=ROOT, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release"
    print(f"{platform.machine()}, {os.cpu_count()} processors, load before: {os.getloadavg()[0]:.2f}; {o.threads} threads, width {o.width}, {o.rounds} rounds")
    for name, (peer, ours, keys) in BENCHMARKS.items():
        if o.only not in (None, name):
            continue
        options = ["--threads", str(o.threads)] + (["--repeats", o.repeats] if o.repeats else [])
        if name != "inception":
            options += ["--width", o.width]
        elif o.weights and o.digits:
            options += ["--weights", o.weights, "--digits", o.digits, "--n", o.n]
        else:
            continue
        pairs = []
        for i in range(o.rounds):
            programs = [[sys.executable, str(HERE / peer)], [str(target / ours)]]
            # The order alternates, so that a machine that slows down or speeds up favours neither.
            order = [0, 1] if i % 2 == 0 else [1, 0]
            results = {k: run(programs[k] + options) for k in order}
            pairs.append((results[0], results[1]))
            if o.raw:
                with o.raw.open("a") as f:
                    f.writelines(json.dumps(results[k]) + "\n" for k in order)
        torch_parameters, our_parameters = (p["parameters"] if "parameters" in p else None for p in pairs[0])
        if torch_parameters != our_parameters:
            sys.exit(f"{name}: {torch_parameters} and {our_parameters} parameters: not the same network")
        show(name, pairs, keys)
    if o.only == "fid":
        with tempfile.TemporaryDirectory() as folder:
            show("fid", fid(o, target / "recant", pathlib.Path(folder)), ["wall_s"])


if __name__ == "__main__":
    main()
