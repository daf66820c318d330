"""StyleGAN2 in plain PyTorch, our own compact definition for comparison on a CPU.

The architecture and the parameter names are those of recant's src/models/stylegan2 (images [N, 3, H, W]). Styles scale
the input of a shared convolution and demodulation its output; `grouped=True` instead makes one weight per sample and a
grouped convolution. Both give the same images.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
SQRT2 = math.sqrt(2.0)


def fir(gain):
    """The 4x4 resampling filter with this sum."""
    k = torch.outer(TAPS, TAPS)
    return k / k.sum() * gain


class Blur(nn.Module):
    """Filters each channel, after zero padding (before, after) on both axes."""

    def __init__(self, pad, gain=1.0, stride=1):
        super().__init__()
        self.pad, self.stride = pad, stride
        self.register_buffer("kernel", fir(gain), persistent=False)

    def forward(self, x):
        c = x.shape[1]
        x = F.pad(x, (self.pad[0], self.pad[1], self.pad[0], self.pad[1]))
        return F.conv2d(x, self.kernel.expand(c, 1, 4, 4), stride=self.stride, groups=c)


class Upsample(nn.Module):
    """Twice the size: zeros between pixels, then the filter with gain 4."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", fir(4.0), persistent=False)

    def forward(self, x):
        c = x.shape[1]
        # The full transposed convolution has one row and column too many at either end.
        return F.conv_transpose2d(x, self.kernel.expand(c, 1, 4, 4), stride=2, padding=1, groups=c)


class FusedBias(nn.Module):
    """leaky_relu(x + bias, 0.2) * sqrt 2."""

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return F.leaky_relu(x + self.bias.view(1, -1, *[1] * (x.ndim - 2)), 0.2) * SQRT2


class EqualLinear(nn.Module):
    def __init__(self, n_in, n_out, bias_init=0.0, lr_mul=1.0, activate=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) / lr_mul)
        self.bias = nn.Parameter(torch.full((n_out,), float(bias_init)))
        self.scale, self.lr_mul, self.activate = lr_mul / math.sqrt(n_in), lr_mul, activate

    def forward(self, x):
        y = F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)
        return F.leaky_relu(y, 0.2) * SQRT2 if self.activate else y


class PixelNorm(nn.Module):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-8)


class ModulatedConv(nn.Module):
    def __init__(self, c_in, c_out, k, latent, demodulate=True, up=False, grouped=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, c_out, c_in, k, k))
        self.modulation = EqualLinear(latent, c_in, bias_init=1.0)
        self.scale = 1 / math.sqrt(c_in * k * k)
        self.demodulate, self.up, self.grouped, self.k = demodulate, up, grouped, k
        if up:
            self.blur = Blur((1, 1), gain=4.0)

    def forward(self, x, w):
        style = self.modulation(w)
        y = self.per_sample(x, style) if self.grouped else self.scaled(x, style)
        return self.blur(y) if self.up else y

    def scaled(self, x, style):
        weight = self.weight[0] * self.scale
        x = x * style[:, :, None, None]
        if self.up:
            y = F.conv_transpose2d(x, weight.transpose(0, 1), stride=2)
        else:
            y = F.conv2d(x, weight, padding=self.k // 2)
        if self.demodulate:
            factor = torch.rsqrt(style.square() @ weight.square().sum((2, 3)).t() + 1e-8)
            y = y * factor[:, :, None, None]
        return y

    def per_sample(self, x, style):
        n, c_in, h, width = x.shape
        weight = self.weight * self.scale * style[:, None, :, None, None]
        if self.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((2, 3, 4), keepdim=True) + 1e-8)
        c_out = weight.shape[1]
        x = x.reshape(1, n * c_in, h, width)
        if self.up:
            weight = weight.transpose(1, 2).reshape(n * c_in, c_out, self.k, self.k)
            y = F.conv_transpose2d(x, weight, stride=2, groups=n)
        else:
            y = F.conv2d(x, weight.reshape(n * c_out, c_in, self.k, self.k), padding=self.k // 2, groups=n)
        return y.reshape(n, c_out, *y.shape[2:])


class Noise(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


class StyledConv(nn.Module):
    def __init__(self, c_in, c_out, latent, up, grouped):
        super().__init__()
        self.conv = ModulatedConv(c_in, c_out, 3, latent, up=up, grouped=grouped)
        self.noise = Noise()
        self.activate = FusedBias(c_out)

    def forward(self, x, w, noise):
        return self.activate(self.conv(x, w) + self.noise.weight * noise)


class ToRgb(nn.Module):
    def __init__(self, c_in, latent, grouped, up=True):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.conv = ModulatedConv(c_in, 3, 1, latent, demodulate=False, grouped=grouped)
        self.upsample = Upsample() if up else None

    def forward(self, x, w, skip=None):
        y = self.conv(x, w) + self.bias
        return y if skip is None else y + self.upsample(skip)


class Constant(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.input = nn.Parameter(torch.randn(1, channels, 4, 4))


class Generator(nn.Module):
    """`channels`: {4: c, 8: c, ..., size: c}."""

    def __init__(self, latent, mapping_layers, channels, grouped=False):
        super().__init__()
        self.latent, self.sizes = latent, sorted(channels)
        c4 = channels[4]
        self.style = nn.Sequential(PixelNorm(), *[EqualLinear(latent, latent, lr_mul=0.01, activate=True) for _ in range(mapping_layers)])
        self.input = Constant(c4)
        self.conv1 = StyledConv(c4, c4, latent, False, grouped)
        self.to_rgb1 = ToRgb(c4, latent, grouped, up=False)
        self.convs, self.to_rgbs = nn.ModuleList(), nn.ModuleList()
        for small, large in zip(self.sizes, self.sizes[1:]):
            self.convs.append(StyledConv(channels[small], channels[large], latent, True, grouped))
            self.convs.append(StyledConv(channels[large], channels[large], latent, False, grouped))
            self.to_rgbs.append(ToRgb(channels[large], latent, grouped))
        self.style_layers = 2 * len(self.sizes)
        self.noise_sizes = [4] + [s for s in self.sizes[1:] for _ in (0, 1)]

    def draw_noise(self, n):
        return [torch.randn(n, 1, s, s) for s in self.noise_sizes]

    def ws(self, z1, z2=None, crossover=0):
        """One style per layer, [N, layers, latent]."""
        w1 = self.style(z1)
        if z2 is None:
            return w1[:, None].repeat(1, self.style_layers, 1)
        w2 = self.style(z2)
        return torch.cat([w1[:, None].repeat(1, crossover, 1), w2[:, None].repeat(1, self.style_layers - crossover, 1)], 1)

    def synthesis(self, ws, noise):
        x = self.input.input.repeat(ws.shape[0], 1, 1, 1)
        x = self.conv1(x, ws[:, 0], noise[0])
        rgb = self.to_rgb1(x, ws[:, 1])
        for block, to_rgb in enumerate(self.to_rgbs):
            layer = 1 + 2 * block
            x = self.convs[2 * block](x, ws[:, layer], noise[layer])
            x = self.convs[2 * block + 1](x, ws[:, layer + 1], noise[layer + 1])
            rgb = to_rgb(x, ws[:, layer + 2], rgb)
        return rgb

    def forward(self, z, noise):
        return self.synthesis(self.ws(z), noise)


class EqualConv(nn.Module):
    def __init__(self, c_in, c_out, k, stride=1, padding=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(c_out, c_in, k, k))
        self.scale, self.stride, self.padding = 1 / math.sqrt(c_in * k * k), stride, padding

    def forward(self, x):
        return F.conv2d(x, self.weight * self.scale, stride=self.stride, padding=self.padding)


class Residual(nn.Module):
    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1 = nn.Sequential(EqualConv(c_in, c_in, 3, padding=1), FusedBias(c_in))
        self.conv2 = nn.Sequential(Blur((2, 2)), EqualConv(c_in, c_out, 3, stride=2), FusedBias(c_out))
        # The blur makes only the pixels that a 1x1 convolution with stride 2 would read.
        self.skip = nn.Sequential(Blur((1, 1), stride=2), EqualConv(c_in, c_out, 1))

    def forward(self, x):
        return (self.conv2(self.conv1(x)) + self.skip(x)) / SQRT2


class Discriminator(nn.Module):
    def __init__(self, channels):
        super().__init__()
        sizes = sorted(channels, reverse=True)
        blocks = [nn.Sequential(EqualConv(3, channels[sizes[0]], 1), FusedBias(channels[sizes[0]]))]
        blocks += [Residual(channels[large], channels[small]) for large, small in zip(sizes, sizes[1:])]
        self.convs = nn.Sequential(*blocks)
        c4 = channels[4]
        self.final_conv = nn.Sequential(EqualConv(c4 + 1, c4, 3, padding=1), FusedBias(c4))
        self.final_linear = nn.Sequential(EqualLinear(c4 * 16, c4, activate=True), EqualLinear(c4, 1))

    def forward(self, images):
        x = self.convs(images)
        n, c, h, w = x.shape
        group = min(n, 4)
        deviation = x.view(group, n // group, c, h, w)
        deviation = (deviation.var(0, unbiased=False) + 1e-8).sqrt().mean((1, 2, 3), keepdim=True)
        x = self.final_conv(torch.cat([x, deviation.repeat(group, 1, h, w)], 1))
        return self.final_linear(x.flatten(1))


WIDTHS = {
    "demo": dict(latent=64, mapping_layers=4, channels={4: 64, 8: 64, 16: 48, 32: 32}),
    "full": dict(latent=128, mapping_layers=8, channels={4: 512, 8: 512, 16: 512, 32: 512}),
}


def pair(width, grouped=False):
    """Generator and discriminator of one of the measured widths."""
    w = WIDTHS[width]
    return Generator(w["latent"], w["mapping_layers"], w["channels"], grouped), Discriminator(w["channels"])


def n_parameters(module):
    return sum(p.numel() for p in module.parameters())
