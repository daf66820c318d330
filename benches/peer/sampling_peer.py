"""Times sampling StyleGAN2 images and judging them with LeNet, on the CPU. Weights are random: speed does not depend
on them.

    python sampling_peer.py --width demo --n 512 --threads 2
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

from report import peak_bytes, seconds, show
from stylegan2 import pair

BATCH = 64
LUMA = torch.tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)


class LeNet(nn.Module):
    """32 px grey images in [0, 1] -> log-probabilities of ten digits; the network of recant's src/models/lenet.rs."""

    def __init__(self):
        super().__init__()
        self.c1, self.c3, self.c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.f6, self.f7 = nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.c1(x)), 2)
        x = F.max_pool2d(F.relu(self.c3(x)), 2)
        x = F.relu(self.f6(F.relu(self.c5(x)).flatten(1)))
        return F.log_softmax(self.f7(x), 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=["demo", "full"], default="demo")
    parser.add_argument("--n", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    g, lenet = pair(o.width)[0].eval(), LeNet().eval()
    z = torch.randn(o.n, g.latent)
    batches = []

    @torch.inference_mode()
    def sample():
        batches.clear()
        for part in z.split(BATCH):
            batches.append(g(part, g.draw_noise(len(part))))

    @torch.inference_mode()
    def classify():
        for images in batches:
            pixels = (images.clamp(-1, 1) + 1) / 2
            lenet((pixels * LUMA).sum(1, keepdim=True)).argmax(1)

    sample_s, classify_s = seconds(sample, o.repeats), seconds(classify, o.repeats)
    show(
        benchmark="sampling",
        width=o.width,
        n=o.n,
        sample_s=sample_s,
        classify_s=classify_s,
        feedback_s=sample_s + classify_s,
        peak_bytes=peak_bytes(),
    )


if __name__ == "__main__":
    main()
