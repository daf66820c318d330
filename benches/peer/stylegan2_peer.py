"""Times one StyleGAN2 training iteration on the CPU, or checks the definition against reference numbers.

    python stylegan2_peer.py --width demo --threads 2
    python stylegan2_peer.py --check ../../tests/golden/stylegan2_tiny     (needs numpy)
"""

import argparse
import copy
import json
import pathlib
import struct

import torch

from report import peak_bytes, seconds, show
from stylegan2 import Discriminator, Generator, n_parameters, pair
from training import PATH_EVERY, PATH_SHRINK, R1_EVERY, Trainer, d_loss, path_penalty, r1_penalty


def measure(o):
    g, d = pair(o.width, o.modulation == "grouped")
    t = Trainer(g, d, copy.deepcopy(g), o.optimizer)
    real = torch.randn(o.batch, 3, 32, 32).clamp(-1, 1)

    def plain():
        t.d_step(real)
        t.g_step(o.batch)
        t.average()

    path = lambda: t.path_step(max(o.batch // PATH_SHRINK, 1))
    plain_s, r1_s, path_s = (seconds(f, o.repeats) for f in (plain, lambda: t.r1_step(real), path))
    show(
        benchmark="iteration",
        width=o.width,
        batch=o.batch,
        modulation=o.modulation,
        optimizer=o.optimizer,
        parameters=[n_parameters(g), n_parameters(d)],
        plain_s=plain_s,
        r1_s=r1_s,
        path_s=path_s,
        amortised_s=plain_s + r1_s / R1_EVERY + path_s / PATH_EVERY,
        peak_bytes=peak_bytes(),
    )


def safetensors(path):
    """Float32 tensors of a safetensors file: eight bytes of length, a JSON header, data."""
    data = path.read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + n])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        a, b = entry["data_offsets"]
        tensors[name] = torch.frombuffer(bytearray(data[8 + n + a : 8 + n + b]), dtype=torch.float32).reshape(entry["shape"])
    return tensors


def load(module, tensors):
    """Every parameter must be there; the files also hold filters and noise buffers, which are no parameters here."""
    missing = module.load_state_dict(tensors, strict=False).missing_keys
    assert not missing, missing


def check(folder):
    """Prints the relative error of every compared value; fails above 1e-4."""
    import numpy

    def npz(name):
        with numpy.load(folder / f"{name}.npz") as z:
            return {k: torch.from_numpy(numpy.array(z[k])) for k in z.files}

    worst = 0.0

    def near(what, got, want):
        nonlocal worst
        error = float((got.detach() - want).norm() / want.norm())
        worst = max(worst, error)
        print(f"{what:40} {error:.1e}")

    table = {4: 24, 8: 24, 16: 16, 32: 8}
    d = Discriminator(table)
    load(d, safetensors(folder / "discriminator.safetensors"))
    images = npz("discriminator")
    real = images["real"].requires_grad_(True)
    real_logits = d(real)
    near("logits of real images", real_logits, images["real_logits"])
    near("discriminator loss", d_loss(real_logits, d(images["fake"])), images["d_loss"])
    penalty = r1_penalty(real_logits, real)
    near("R1", penalty, images["r1"])
    penalty.backward()
    want = safetensors(folder / "r1_grad.safetensors")
    for name, p in d.named_parameters():
        if name in want and want[name].norm() > 0:
            near(f"R1 gradient of {name}", p.grad, want[name])
    weights = safetensors(folder / "generator.safetensors")
    for grouped in (False, True):
        g = Generator(16, 8, table, grouped)
        load(g, weights)
        z = npz("generator_forward")
        noise = [z[f"noise_{k}"] for k in range(7)]
        near(f"image, grouped={grouped}", g(z["z1"], noise), z["image"])
        mixed = g.synthesis(g.ws(z["z1"], z["z2"], int(z["inject_index"])), noise)
        near(f"image with two styles, grouped={grouped}", mixed, z["image_mixing"])
        p = npz("path_length")
        ws = g.ws(p["z1"], p["z2"], int(p["inject_index"]))
        image = g.synthesis(ws, [p[f"noise_{k}"] for k in range(7)])
        penalty, mean = path_penalty(image, ws, p["y"], float(p["mean_path_length_before"]))
        near(f"path length penalty, grouped={grouped}", penalty, p["penalty"])
    assert worst < 1e-4, worst


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", type=pathlib.Path, metavar="FOLDER", help="compare with reference numbers instead of timing")
    parser.add_argument("--width", choices=["demo", "full"], default="demo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--modulation", choices=["scaled", "grouped"], default="scaled", help="the faster of the two on the CPUs we tried is the default")
    parser.add_argument("--optimizer", choices=["loop", "foreach", "fused"], default="fused")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    if o.check:
        check(o.check)
    else:
        measure(o)


if __name__ == "__main__":
    main()
