"""Times regulariser + Adam + EMA over a generator's parameters as separate PyTorch ops on the CPU.

Parameters are the generator's own tensors (`--layout tensors`) or one flat tensor (`--layout flat`), which spares the
calls per tensor. Both passes have a gradient of the loss given.

    python optimizer_peer.py --width full --layout flat --threads 2
"""

import argparse

import torch

from report import peak_bytes, seconds, show
from stylegan2 import pair
from training import EMA_DECAY, PATH_EVERY


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", choices=["demo", "full"], default="full")
    parser.add_argument("--layout", choices=["tensors", "flat"], default="flat")
    parser.add_argument("--optimizer", choices=["foreach", "fused"], default="fused")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    tensors = [p.detach() for p in pair(o.width)[0].parameters()]
    if o.layout == "flat":
        tensors = [torch.cat([t.flatten() for t in tensors])]
    params = [torch.nn.Parameter(t.clone()) for t in tensors]
    loss_grads = [torch.randn_like(t) for t in tensors]
    anchor, ema = [t.clone() for t in tensors], [t.clone() for t in tensors]
    fisher = [torch.rand_like(t) for t in tensors]
    for p in params:
        p.grad = torch.empty_like(p)
    grads = [p.grad for p in params]
    ratio = PATH_EVERY / (PATH_EVERY + 1)
    kind = dict(fused=True) if o.optimizer == "fused" else dict(foreach=True)
    optim = torch.optim.Adam(params, lr=0.002 * ratio, betas=(0.0, 0.99**ratio), **kind)

    def step_and_average():
        optim.step()
        torch._foreach_lerp_(ema, params, 1 - EMA_DECAY)

    @torch.no_grad()
    def ewc():
        """Gradient lambda F (theta - anchor) added to the loss's, and the penalty as a number."""
        difference = torch._foreach_sub(params, anchor)
        pull = torch._foreach_mul(difference, fisher)
        penalty = sum((p * d).sum() for p, d in zip(pull, difference)).item() / 2
        torch._foreach_copy_(grads, loss_grads)
        torch._foreach_add_(grads, pull, alpha=1.0)
        step_and_average()
        return penalty

    @torch.no_grad()
    def repulsion():
        """Gradient c (theta - centroid), where c follows from the squared distance, which is a reduction of its own."""
        difference = torch._foreach_sub(params, anchor)
        distance = sum(d.square().sum() for d in difference).item()
        torch._foreach_copy_(grads, loss_grads)
        torch._foreach_add_(grads, difference, alpha=-1e-3)
        step_and_average()
        return distance

    n = sum(t.numel() for t in tensors)
    source, target = torch.ones(n), torch.zeros(n)
    copied = seconds(lambda: target.copy_(source), o.repeats)
    show(
        benchmark="slab_pass",
        width=o.width,
        layout=o.layout,
        optimizer=o.optimizer,
        parameters=n,
        ewc_s=seconds(ewc, o.repeats),
        repulsion_s=seconds(repulsion, o.repeats),
        copy_gb_per_s=8 * n / copied / 1e9,
        peak_bytes=peak_bytes(),
    )


if __name__ == "__main__":
    main()
