"""pytorch-fid itself on two folders of images, with the weights that recant has: safetensors with folded batch normalisation.

    python fid_peer.py --weights inception.safetensors A B --threads 2

Its download of the original weights is answered with these, each normalisation being the identity but for the bias. The
feature block is the last that they reach. Needs pytorch-fid.
"""

import argparse
import time

import torch
import torchvision
from pytorch_fid import fid_score, inception
from safetensors.torch import load_file

from report import peak_bytes, show

# pytorch-fid's blocks by dimension, with a layer that each needs.
BLOCKS = {768: "Mixed_6e", 2048: "Mixed_7c"}
BATCH_NORM_EPS = 0.001


def unfolded(weights):
    state = {}
    for name, value in weights.items():
        layer, _, kind = name.rpartition(".conv.")
        if kind == "bias":
            one = torch.ones_like(value)
            state |= {f"{layer}.bn.weight": (one + BATCH_NORM_EPS).sqrt(), f"{layer}.bn.bias": value}
            state |= {f"{layer}.bn.running_mean": 0 * one, f"{layer}.bn.running_var": one}
        else:
            state[name] = value
    return state


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("folders", nargs=2)
    parser.add_argument("--batch", type=int, default=50, help="pytorch-fid's default")
    parser.add_argument("--threads", type=int, default=2)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    weights = load_file(o.weights)
    dims = max(d for d, layer in BLOCKS.items() if any(name.startswith(layer) for name in weights))
    inception.load_state_dict_from_url = lambda *_, **__: unfolded(weights)
    # Layers behind the block are not in the file, and not used.
    strict = torchvision.models.Inception3.load_state_dict
    torchvision.models.Inception3.load_state_dict = lambda net, state: strict(net, state, strict=dims == 2048)
    start = time.perf_counter()
    distance = fid_score.calculate_fid_given_paths(o.folders, o.batch, torch.device("cpu"), dims)
    show(benchmark="fid", dims=dims, batch=o.batch, distance=float(distance), seconds=time.perf_counter() - start, peak_bytes=peak_bytes())


if __name__ == "__main__":
    main()
