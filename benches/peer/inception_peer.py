"""Times features of 32 px digits at a block of FID's Inception-v3 with their mean and covariance, on the CPU.

    python inception_peer.py --weights inception.safetensors --digits t10k-images-idx3-ubyte --n 512 --threads 2

The network is the one of pytorch-fid up to Mixed_6e (its patches: averages that do not count padding), written here
once more; weights with batch normalisation folded in, channels-last or not, whichever is faster. Needs numpy and
safetensors.
"""

import argparse
import struct
import time

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from report import peak_bytes, show


class Net:
    def __init__(self, weights, memory_format):
        self.w = {k: v.to(memory_format=memory_format) if v.ndim == 4 else v for k, v in weights.items()}
        self.format = memory_format

    def conv(self, x, name, stride=1, padding=0):
        return F.relu_(F.conv2d(x, self.w[name + ".conv.weight"], self.w[name + ".conv.bias"], stride, padding))

    def smooth(self, x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    def a(self, x, m):
        b1 = self.conv(x, m + ".branch1x1")
        b5 = self.conv(self.conv(x, m + ".branch5x5_1"), m + ".branch5x5_2", padding=2)
        b3 = self.conv(self.conv(x, m + ".branch3x3dbl_1"), m + ".branch3x3dbl_2", padding=1)
        b3 = self.conv(b3, m + ".branch3x3dbl_3", padding=1)
        return torch.cat([b1, b5, b3, self.conv(self.smooth(x), m + ".branch_pool")], 1)

    def b(self, x, m):
        b3 = self.conv(x, m + ".branch3x3", 2)
        bd = self.conv(self.conv(x, m + ".branch3x3dbl_1"), m + ".branch3x3dbl_2", padding=1)
        return torch.cat([b3, self.conv(bd, m + ".branch3x3dbl_3", 2), F.max_pool2d(x, 3, 2)], 1)

    def c(self, x, m):
        wide, tall = (0, 3), (3, 0)
        b1 = self.conv(x, m + ".branch1x1")
        b7 = self.conv(x, m + ".branch7x7_1")
        b7 = self.conv(self.conv(b7, m + ".branch7x7_2", padding=wide), m + ".branch7x7_3", padding=tall)
        bd = self.conv(x, m + ".branch7x7dbl_1")
        for i, padding in enumerate([tall, wide, tall, wide]):
            bd = self.conv(bd, m + f".branch7x7dbl_{i + 2}", padding=padding)
        return torch.cat([b1, b7, bd, self.conv(self.smooth(x), m + ".branch_pool")], 1)

    def features(self, x):
        """uint8 [N, 1, h, w] -> [N, 768]"""
        x = F.interpolate(x.float() / 255, (299, 299), mode="bilinear", align_corners=False)
        x = (2 * x - 1).expand(-1, 3, -1, -1).contiguous(memory_format=self.format)
        x = self.conv(self.conv(self.conv(x, "Conv2d_1a_3x3", 2), "Conv2d_2a_3x3"), "Conv2d_2b_3x3", padding=1)
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.conv(self.conv(x, "Conv2d_3b_1x1"), "Conv2d_4a_3x3"), 3, 2)
        for m in ["Mixed_5b", "Mixed_5c", "Mixed_5d"]:
            x = self.a(x, m)
        x = self.b(x, "Mixed_6a")
        for m in ["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"]:
            x = self.c(x, m)
        return x.mean((2, 3))


def idx(path, n):
    """The first images of an IDX file, uint8 [n, 1, h, w]."""
    data = open(path, "rb").read()
    _, count, h, w = struct.unpack(">4i", data[:16])
    return torch.frombuffer(bytearray(data[16:]), dtype=torch.uint8).view(count, 1, h, w)[:n]


def digits(path, n):
    """The same at 32 px (Pillow's bilinear is PyTorch's with antialiasing up to rounding)."""
    images = idx(path, n)
    resized = F.interpolate(images.float(), (32, 32), mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).byte()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--digits", required=True)
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--batch", type=int, default=50, help="pytorch-fid's default")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.set_flush_denormal(True)
    net = Net(load_file(o.weights), torch.channels_last if o.channels_last else torch.contiguous_format)
    images = digits(o.digits, o.n)
    with torch.inference_mode():
        net.features(images[: o.batch])
        start = time.perf_counter()
        features = torch.cat([net.features(part) for part in images.split(o.batch)]).double().numpy()
        np.mean(features, 0)
        sigma = np.cov(features, rowvar=False)
        elapsed = time.perf_counter() - start
    show(
        benchmark="inception",
        n=o.n,
        batch=o.batch,
        dims=768,
        seconds=elapsed,
        images_per_s=o.n / elapsed,
        trace=float(np.trace(sigma)),
        peak_bytes=peak_bytes(),
    )


if __name__ == "__main__":
    main()
