"""One training iteration: the order and the numbers of recant's src/training."""

import math

import torch
from torch.nn import functional as F

R1_WEIGHT, R1_EVERY = 10.0, 16
PATH_WEIGHT, PATH_EVERY, PATH_SHRINK = 2.0, 4, 2
EMA_DECAY = 0.5 ** (32 / 10_000)


def adam(module, every, kind):
    ratio = every / (every + 1)
    options = {"loop": dict(foreach=False), "foreach": dict(foreach=True), "fused": dict(fused=True)}[kind]
    return torch.optim.Adam(module.parameters(), lr=0.002 * ratio, betas=(0.0, 0.99**ratio), **options)


def freeze(module, frozen):
    for p in module.parameters():
        p.requires_grad_(not frozen)


def d_loss(real_logits, fake_logits):
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def r1_penalty(logits, images):
    (g,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return g.square().flatten(1).sum(1).mean()


def path_penalty(images, ws, y, mean):
    """Penalty and updated running mean (a number); `y` is normal noise divided by sqrt(H W)."""
    (g,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    lengths = g.square().sum(2).mean(1).sqrt()
    updated = mean + 0.01 * (lengths.mean() - mean)
    return (lengths - updated).square().mean(), updated.item()


class Trainer:
    def __init__(self, g, d, g_ema, optimizer):
        self.g, self.d, self.g_ema = g, d, g_ema
        self.g_optim, self.d_optim = adam(g, PATH_EVERY, optimizer), adam(d, R1_EVERY, optimizer)
        self.mean_path = 0.0

    def styles(self, n):
        g = self.g
        z1 = torch.randn(n, g.latent)
        if torch.rand(()) < 0.9:
            return z1, torch.randn(n, g.latent), int(torch.randint(1, g.style_layers, ()))
        return z1, None, 0

    def d_step(self, real):
        freeze(self.g, True)
        freeze(self.d, False)
        with torch.no_grad():
            fake = self.g.synthesis(self.g.ws(*self.styles(len(real))), self.g.draw_noise(len(real)))
        self.d_optim.zero_grad(set_to_none=True)
        loss = d_loss(self.d(real), self.d(fake))
        loss.backward()
        self.d_optim.step()
        return loss.item()

    def r1_step(self, real):
        freeze(self.g, True)
        freeze(self.d, False)
        real = real.detach().requires_grad_(True)
        self.d_optim.zero_grad(set_to_none=True)
        logits = self.d(real)
        penalty = r1_penalty(logits, real)
        (R1_WEIGHT / 2 * R1_EVERY * penalty + 0 * logits[0, 0]).backward()
        self.d_optim.step()
        return penalty.item()

    def g_step(self, n):
        freeze(self.g, False)
        freeze(self.d, True)
        self.g_optim.zero_grad(set_to_none=True)
        images = self.g.synthesis(self.g.ws(*self.styles(n)), self.g.draw_noise(n))
        loss = F.softplus(-self.d(images)).mean()
        loss.backward()
        self.g_optim.step()
        return loss.item()

    def path_step(self, n):
        freeze(self.g, False)
        self.g_optim.zero_grad(set_to_none=True)
        ws = self.g.ws(*self.styles(n))
        images = self.g.synthesis(ws, self.g.draw_noise(n))
        y = torch.randn_like(images) / math.sqrt(images.shape[2] * images.shape[3])
        penalty, self.mean_path = path_penalty(images, ws, y, self.mean_path)
        (PATH_WEIGHT * PATH_EVERY * penalty + 0 * images[0, 0, 0, 0]).backward()
        self.g_optim.step()
        return penalty.item()

    @torch.no_grad()
    def average(self):
        torch._foreach_lerp_(list(self.g_ema.parameters()), list(self.g.parameters()), 1 - EMA_DECAY)
