"""The networks and preconditionings of EDM in few lines, by the names in its snapshots.

Written after Karras et al. 2022, arXiv:2206.00364, table 1 and appendix F.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

from pretrained.snapshots import Module


def depthwise(x, kernel, stride=1):
    return F.conv2d(x, kernel.expand(x.shape[1], 1, -1, -1), stride=stride, groups=x.shape[1])


def shrink(x, kernel, pad=None):
    pad = (kernel.shape[-1] - 1) // 2 if pad is None else pad
    return depthwise(F.pad(x, [pad] * 4), kernel, stride=2)


def grow(x, kernel):
    size = kernel.shape[-1]
    b, c, h, w = x.shape
    sparse = torch.zeros(b, c, 2 * h - 1, 2 * w - 1, dtype=x.dtype)
    sparse[..., ::2, ::2] = x
    return depthwise(F.pad(sparse, [size - 1 - (size - 1) // 2] * 4), 4 * kernel)


class Linear(nn.Module):
    def __init__(self, width_in, width, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width_in) / math.sqrt(width_in))
        self.bias = nn.Parameter(0.1 * torch.randn(width)) if bias else None

    def forward(self, x):
        return F.linear(x, self.weight, self.bias)


class Conv2d(nn.Module):
    def __init__(self, width_in, width, size, *, resize=None, taps=(1, 1), fused=False):
        super().__init__()
        self.in_channels, self.out_channels = width_in, width
        self.resize, self.fused, self.size = resize, fused, size
        weight = torch.randn(width, width_in, size, size) / (max(size, 1) * math.sqrt(width_in))
        self.weight = nn.Parameter(weight) if size else None
        self.bias = nn.Parameter(0.1 * torch.randn(width)) if size else None
        row = torch.tensor(taps, dtype=torch.float32)
        kernel = torch.outer(row, row)[None, None] / row.sum() ** 2 if resize else None
        self.register_buffer("resample_filter", kernel)

    def forward(self, x):
        kernel = self.resample_filter
        if self.fused:
            pad = self.size // 2 + (kernel.shape[-1] - 1) // 2
            x = shrink(F.conv2d(x, self.weight, padding=pad), kernel, pad=0)
            return x + self.bias[:, None, None]
        x = x if self.resize is None else {"up": grow, "down": shrink}[self.resize](x, kernel)
        return F.conv2d(x, self.weight, self.bias, padding=self.size // 2) if self.size else x


class GroupNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.num_groups, self.eps = min(32, width // 4), eps
        self.weight = nn.Parameter(1 + 0.1 * torch.randn(width))
        self.bias = nn.Parameter(0.1 * torch.randn(width))

    def forward(self, x):
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class UNetBlock(nn.Module):
    def __init__(self, net, width_in, width, *, attends=False, resize=None):
        super().__init__()
        song = isinstance(net, SongUNet)
        eps, taps = (1e-6, net.taps) if song else (1e-5, (1, 1))
        self.in_channels, self.out_channels, self.dropout = width_in, width, 0.1
        self.num_heads = 0 if not attends else 1 if song else width // 8
        # a NumPy scalar, as in the files
        self.skip_scale = torch.tensor(0.5).sqrt().double().numpy()[()] if song else 1
        self.adaptive_scale = not song
        self.norm0, self.norm1 = GroupNorm(width_in, eps), GroupNorm(width, eps)
        self.conv0 = Conv2d(width_in, width, 3, resize=resize, taps=taps)
        self.conv1 = Conv2d(width, width, 3)
        self.affine = Linear(net.emb, width if song else 2 * width)
        self.skip = None
        if width != width_in or resize:
            size = 1 if song or width != width_in else 0
            self.skip = Conv2d(width_in, width, size, resize=resize, taps=taps)
        if attends:
            self.norm2, self.qkv = GroupNorm(width, eps), Conv2d(width, 3 * width, 1)
            self.proj = Conv2d(width, width, 1)

    def forward(self, x, emb):
        hidden, change = self.conv0(F.silu(self.norm0(x))), self.affine(emb)[..., None, None]
        if self.adaptive_scale:
            scale, shift = change.chunk(2, 1)
            hidden = self.norm1(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm1(hidden + change)
        hidden = self.conv1(F.silu(hidden))
        x = (hidden + (x if self.skip is None else self.skip(x))) * float(self.skip_scale)
        if not self.num_heads:
            return x
        b, c, h, w = x.shape
        joint = self.qkv(self.norm2(x)).reshape(b, self.num_heads, c // self.num_heads, 3, h * w)
        q, k, v = joint.unbind(3)
        weight = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(q.shape[2])).softmax(-1)
        out = torch.einsum("bhij,bhdj->bhdi", weight, v).reshape(b, c, h, w)
        return (x + self.proj(out)) * float(self.skip_scale)


class FourierEmbedding(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("freqs", torch.randn(width // 2))


class PositionalEmbedding(nn.Module):
    pass


class UNet(nn.Module):
    """Both architectures; the order of their layers is that of `enc` and `dec`."""

    def __init__(self, size, channels, out, labels, *, width=16, mults=(1, 2), layers=1,
                 attends=(4,), augment=9, fourier=False, residual=False, taps=(1, 1)):  # fmt: skip
        super().__init__()
        song = isinstance(self, SongUNet)
        self.emb, self.taps = 4 * width, taps
        features = 2 * width if fourier else width
        self.map_noise = FourierEmbedding(features) if fourier else PositionalEmbedding()
        self.features = features
        self.map_label = None
        if labels:
            self.map_label = Linear(labels, features if song else self.emb, bias=song)
        self.map_augment = Linear(augment, features, bias=False)
        self.map_layer0, self.map_layer1 = Linear(features, self.emb), Linear(self.emb, self.emb)
        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), []
        here, image = width if song else width * mults[0], channels
        sizes = [size >> i for i in range(len(mults))]
        for i, r in enumerate(sizes):
            if i == 0:
                self.enc[f"{r}x{r}_conv"] = Conv2d(channels, here, 3)
                skips.append(here)
            else:
                self.enc[f"{r}x{r}_down"] = UNetBlock(self, here, here, resize="down")
                skips.append(here)
                if residual:
                    self.enc[f"{r}x{r}_aux_residual"] = Conv2d(
                        image, here, 3, resize="down", taps=taps, fused=True
                    )
                    image = here
            for j in range(layers):
                block = UNetBlock(self, here, width * mults[i], attends=r in attends)
                self.enc[f"{r}x{r}_block{j}"] = block
                here = width * mults[i]
                skips.append(here)
        for i, r in reversed(list(enumerate(sizes))):
            if i == len(sizes) - 1:
                self.dec[f"{r}x{r}_in0"] = UNetBlock(self, here, here, attends=True)
                self.dec[f"{r}x{r}_in1"] = UNetBlock(self, here, here)
            else:
                self.dec[f"{r}x{r}_up"] = UNetBlock(self, here, here, resize="up")
            for j in range(layers + 1):
                there = width * mults[i]
                attend = r in attends and (j == layers or not song)
                block = UNetBlock(self, here + skips.pop(), there, attends=attend)
                self.dec[f"{r}x{r}_block{j}"], here = block, there
        if song:
            self.dec[f"{size}x{size}_aux_norm"] = GroupNorm(here, 1e-6)
            self.dec[f"{size}x{size}_aux_conv"] = Conv2d(here, out, 3)
        else:
            self.out_norm, self.out_conv = GroupNorm(here, 1e-5), Conv2d(here, out, 3)

    def embedding(self, level, labels, augment):
        half, song = self.features // 2, isinstance(self, SongUNet)
        if isinstance(self.map_noise, FourierEmbedding):
            angle = level[:, None] * 2 * math.pi * self.map_noise.freqs
        else:
            angle = level[:, None] / 10_000 ** (torch.arange(half) / (half - 1 if song else half))
        parts = [angle.sin(), angle.cos()]
        emb = torch.cat(parts if song else parts[::-1], 1)
        if song and self.map_label:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if not song and self.map_label:
            emb = emb + self.map_label(labels)
        return F.silu(emb)

    def forward(self, x, level, labels, augment=None):
        emb, skips, image = self.embedding(level, labels, augment), [], x
        for name, layer in self.enc.items():
            if "aux" in name:
                x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
            else:
                x = layer(x, emb) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if isinstance(layer, UNetBlock):
                if "_block" in name:
                    x = torch.cat([x, skips.pop()], 1)
                x = layer(x, emb)
            else:
                x = F.silu(layer(x)) if "norm" in name else layer(x)
        return x if isinstance(self, SongUNet) else self.out_conv(F.silu(self.out_norm(x)))


class SongUNet(UNet):
    pass


class DhariwalUNet(UNet):
    pass


class Precond(nn.Module):
    def __init__(self, architecture, *, size=8, channels=3, labels=0, **settings):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim = size, channels, labels
        out = channels * (2 if isinstance(self, iDDPMPrecond) else 1)
        self.model = architecture(size, channels, out, labels, **settings)
        self.setup()

    def forward(self, x, sigma, labels=None, augment=None):
        """The denoised image of x = x0 + sigma·eps."""
        skip, out, scale, level = self.coefficients(torch.tensor(sigma, dtype=torch.float64))
        if labels is None:
            labels = torch.zeros(len(x), self.label_dim)
        raw = self.model(float(scale) * x, level.float().expand(len(x)), labels, augment)
        return float(skip) * x + float(out) * raw[:, : self.img_channels]


class EDMPrecond(Precond):
    def setup(self):
        self.sigma_min, self.sigma_max, self.sigma_data = 0, math.inf, 0.4

    def coefficients(self, sigma):
        total = sigma**2 + self.sigma_data**2
        skip, out = self.sigma_data**2 / total, sigma * self.sigma_data / total.sqrt()
        return skip, out, 1 / total.sqrt(), sigma.log() / 4


class VEPrecond(Precond):
    def setup(self):
        self.sigma_min, self.sigma_max = 0.02, 100

    def coefficients(self, sigma):
        return 1, sigma, 1, (sigma / 2).log()


class VPPrecond(Precond):
    def setup(self):
        self.beta_d, self.beta_min, self.M, self.epsilon_t = 15.0, 0.2, 500, 1e-3

    def coefficients(self, sigma):
        # sigma² + 1 = exp(½·beta_d·t² + beta_min·t)
        integral = torch.log(sigma**2 + 1)
        t = (math.sqrt(self.beta_min**2 + 2 * self.beta_d * integral) - self.beta_min) / self.beta_d
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), torch.as_tensor((self.M - 1) * t)


class iDDPMPrecond(Precond):  # noqa: N801
    def setup(self):
        self.M, ratios = 20, [0.0]
        signal = [math.sin(math.pi / 2 * j / self.M / 1.008) ** 2 for j in range(self.M + 1)]
        for j in range(self.M, 0, -1):
            gain = max(signal[j - 1] / signal[j], 0.001)
            ratios.insert(0, math.sqrt((ratios[0] ** 2 + 1) / gain - 1))
        self.register_buffer("u", torch.tensor(ratios))

    def coefficients(self, sigma):
        index = (self.u - sigma).abs().argmin()
        return 1, -sigma, 1 / (sigma**2 + 1).sqrt(), self.M - 1 - index


def snapshot(module):
    """The module as the file holds it: containers of torch, and classes that carry their code."""
    children = {name: snapshot(child) for name, child in module.named_children()}
    if isinstance(module, nn.ModuleDict):
        container = nn.ModuleDict()
        container._modules.update(children)
        return container
    extra = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    extra.pop("training")
    parameters = {name: p.detach() for name, p in module.named_parameters(recurse=False)}
    buffers = dict(module._buffers)
    name = type(module).__name__
    return Module(name, parameters, buffers, children, source="raise SystemExit", **extra)
