"""The network and the diffusion of denoising-diffusion-pytorch, in few lines and with its names."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class RMS(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, dim, 1, 1))

    def forward(self, x):
        return x / x.square().sum(1, keepdim=True).sqrt() * self.g * x.shape[1] ** 0.5


class Embed(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        angle = t[:, None] / 10000 ** (torch.arange(half) / (half - 1))
        return torch.cat([angle.sin(), angle.cos()], 1)


class Conv(nn.Module):
    def __init__(self, dim, out, groups):
        super().__init__()
        self.proj = nn.Conv2d(dim, out, 3, padding=1)
        self.norm = nn.GroupNorm(groups, out) if groups else RMS(out)

    def forward(self, x, scale=0.0, shift=0.0):
        return F.silu(self.norm(self.proj(x)) * (1 + scale) + shift)


class Res(nn.Module):
    def __init__(self, dim, out, time, groups):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out))
        self.block1, self.block2 = Conv(dim, out, groups), Conv(out, out, groups)
        self.res_conv = nn.Conv2d(dim, out, 1) if dim != out else nn.Identity()

    def forward(self, x, t):
        scale, shift = self.mlp(t)[..., None, None].chunk(2, 1)
        return self.block2(self.block1(x, scale, shift)) + self.res_conv(x)


class Attend(nn.Module):
    def __init__(self, dim, heads, head_dim, full):
        super().__init__()
        self.heads, self.full, inner = heads, full, heads * head_dim
        self.norm, self.to_qkv = RMS(dim), nn.Conv2d(dim, 3 * inner, 1, bias=False)
        self.mem_kv = nn.Parameter(torch.randn((2, heads, 4, head_dim)))
        self.to_out = nn.Conv2d(inner, dim, 1)
        if not full:
            self.mem_kv = nn.Parameter(torch.randn((2, heads, head_dim, 4)))
            self.to_out = nn.Sequential(self.to_out, RMS(dim))

    def forward(self, x):
        b, _, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).reshape(b, 3, self.heads, -1, h * w).unbind(1)
        memory = self.mem_kv.transpose(2, 3) if self.full else self.mem_kv
        mk, mv = memory[:, None].expand(-1, b, -1, -1, -1)
        k, v, size = torch.cat([mk, k], 3), torch.cat([mv, v], 3), q.shape[2]
        if self.full:
            weight = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(size)).softmax(-1)
            out = torch.einsum("bhij,bhdj->bhdi", weight, v)
        else:
            context = torch.einsum("bhdn,bhen->bhde", k.softmax(-1), v)
            out = torch.einsum("bhde,bhdn->bhen", context, q.softmax(2) / math.sqrt(size))
        return self.to_out(out.reshape(b, -1, h, w))


class Unshuffle(nn.Module):
    def forward(self, x):
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // 2, 2, w // 2, 2)
        return x.permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2)


class Unet(nn.Module):
    def __init__(
        self,
        dim,
        mults,
        *,
        channels=3,
        init=None,
        full=None,
        heads=4,
        head_dim=32,
        condition=False,
        groups=None,
    ):
        super().__init__()
        self.condition, n = condition, len(mults)
        full = full or [False] * (n - 1) + [True]
        heads, head_dim = ([v] * n if isinstance(v, int) else v for v in (heads, head_dim))
        dims, time = [init or dim, *(dim * m for m in mults)], 4 * dim
        self.init_conv = nn.Conv2d(channels * (2 if condition else 1), dims[0], 7, padding=3)
        self.time_mlp = nn.Sequential(
            Embed(dim), nn.Linear(dim, time), nn.GELU(), nn.Linear(time, time)
        )
        self.downs, self.ups = nn.ModuleList(), nn.ModuleList()
        for i in range(n):
            a, b = dims[i], dims[i + 1]
            last = i == n - 1
            size = nn.Conv2d(a, b, 3, padding=1)
            size = size if last else nn.Sequential(Unshuffle(), nn.Conv2d(4 * a, b, 1))
            kind = (heads[i], head_dim[i], full[i])
            layers = [Res(a, a, time, groups), Res(a, a, time, groups), Attend(a, *kind), size]
            self.downs.append(nn.ModuleList(layers))
            size = nn.Conv2d(b, a, 3, padding=1)
            size = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), size) if i else size
            layers = [
                Res(a + b, b, time, groups),
                Res(a + b, b, time, groups),
                Attend(b, *kind),
                size,
            ]
            self.ups.insert(0, nn.ModuleList(layers))
        self.mid_block1 = Res(dims[-1], dims[-1], time, groups)
        self.mid_attn = Attend(dims[-1], heads[-1], head_dim[-1], True)
        self.mid_block2 = Res(dims[-1], dims[-1], time, groups)
        self.final_res_block = Res(2 * dims[0], dims[0], time, groups)
        self.final_conv = nn.Conv2d(dims[0], channels, 1)

    def forward(self, x, t):
        if self.condition:
            x = torch.cat([torch.zeros_like(x), x], 1)
        first = x = self.init_conv(x)
        t, skips = self.time_mlp(t.float()), []
        for one, two, attend, size in self.downs:
            skips.append(x := one(x, t))
            x = two(x, t)
            skips.append(x := x + attend(x))
            x = size(x)
        x = self.mid_block1(x, t)
        x = self.mid_block2(x + self.mid_attn(x), t)
        for one, two, attend, size in self.ups:
            x = one(torch.cat([x, skips.pop()], 1), t)
            x = two(torch.cat([x, skips.pop()], 1), t)
            x = size(x + attend(x))
        return self.final_conv(self.final_res_block(torch.cat([x, first], 1), t))


def betas(schedule, steps):
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    if schedule == "linear":
        return torch.linspace(1000 / steps * 1e-4, 1000 / steps * 0.02, steps).double()
    if schedule == "cosine":
        signal = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    else:
        low, high = (torch.tensor(v, dtype=torch.float64).sigmoid() for v in (-3, 3))
        signal = (high - (6 * t - 3).sigmoid()) / (high - low)
    return (1 - signal[1:] / signal[:-1]).clip(0, 0.999)


def buffers(schedule, objective, *, steps=100, clip_snr=None):
    """The buffers of a GaussianDiffusion that the weights come with."""
    signal = torch.cumprod(1 - betas(schedule, steps), 0)
    snr = signal / (1 - signal)
    clipped = snr if clip_snr is None else snr.clamp(max=clip_snr)
    divisor = {"pred_noise": snr, "pred_x0": 1, "pred_v": snr + 1}[objective]
    values = {
        "betas": betas(schedule, steps),
        "alphas_cumprod": signal,
        "sqrt_alphas_cumprod": signal.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - signal).sqrt(),
        "loss_weight": clipped / divisor,
    }
    return {name: value.float() for name, value in values.items()}
