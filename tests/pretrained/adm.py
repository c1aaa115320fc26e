"""OpenAI's U-Net in few lines, by the names in its state dicts.

Written after Dhariwal and Nichol 2021, arXiv:2105.05233, and Nichol and Dhariwal 2021, 2102.09672.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F


class ResBlock(nn.Module):
    def __init__(self, net, width_in, width, resize=None):
        super().__init__()
        self.film, self.resize = net.film, resize
        norm, out = nn.GroupNorm(net.groups, width_in), nn.GroupNorm(net.groups, width)
        self.in_layers = nn.Sequential(norm, nn.SiLU(), nn.Conv2d(width_in, width, 3, padding=1))
        emb = nn.Linear(net.emb, 2 * width if net.film else width)
        self.emb_layers = nn.Sequential(nn.SiLU(), emb)
        conv = nn.Conv2d(width, width, 3, padding=1)
        self.out_layers = nn.Sequential(out, nn.SiLU(), nn.Dropout(0.1), conv)
        change = nn.Conv2d(width_in, width, 1) if width_in != width else nn.Identity()
        self.skip_connection = change

    def forward(self, x, emb):
        hidden = F.silu(self.in_layers[0](x))
        if self.resize == "down":
            hidden, x = (v.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)) for v in (hidden, x))
        elif self.resize == "up":
            hidden, x = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (hidden, x))
        hidden, change = self.in_layers[2](hidden), self.emb_layers(emb)[..., None, None]
        if self.film:
            scale, shift = change.chunk(2, 1)
            hidden = self.out_layers[1:](self.out_layers[0](hidden) * (1 + scale) + shift)
        else:
            hidden = self.out_layers(hidden + change)
        return hidden + self.skip_connection(x)


class AttentionBlock(nn.Module):
    def __init__(self, net, width):
        super().__init__()
        self.heads = net.heads or width // net.head_channels
        self.new, self.dims = net.new_order, net.dims
        self.norm = nn.GroupNorm(net.groups, width)
        conv = nn.Conv1d if net.dims == 1 else nn.Conv2d
        self.qkv, self.proj_out = conv(width, 3 * width, 1), conv(width, width, 1)

    def forward(self, x, emb):
        b, c, h, w = x.shape
        flat = (b, -1, h * w) if self.dims == 1 else (b, -1, h, w)
        joint = self.qkv(self.norm(x).reshape(flat)).flatten(2)
        if self.new:
            q, k, v = joint.reshape(b, 3, self.heads, -1, h * w).unbind(1)
        else:
            q, k, v = joint.reshape(b, self.heads, 3, -1, h * w).unbind(2)
        weight = (q.transpose(2, 3) @ k / math.sqrt(q.shape[2])).softmax(-1)
        out = (v @ weight.transpose(2, 3)).reshape(b, c, h * w)
        return x + self.proj_out(out.reshape(flat)).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x, emb):
        return self.op(x)


class Upsample(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x, emb):
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class Sequence(nn.Sequential):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, emb)
        return x


class UNetModel(nn.Module):
    def __init__(self, size=8, channels=3, *, width=32, mults=(1, 2), layers=1, attends=(2,),
                 classes=0, film=True, updown=True, heads=None, head_channels=16, new_order=False,
                 learn_sigma=True, dims=1):  # fmt: skip
        super().__init__()
        self.width, self.emb, self.groups, self.film, self.dims = width, 4 * width, 32, film, dims
        self.heads, self.head_channels, self.new_order = heads, head_channels, new_order
        first, second = nn.Linear(width, self.emb), nn.Linear(self.emb, self.emb)
        self.time_embed = nn.Sequential(first, nn.SiLU(), second)
        if classes:
            self.label_emb = nn.Embedding(classes, self.emb)
        here = width * mults[0]
        self.input_blocks = nn.ModuleList([Sequence(nn.Conv2d(channels, here, 3, padding=1))])
        self.output_blocks, skips = nn.ModuleList(), [here]
        for i, mult in enumerate(mults):
            for _ in range(layers):
                parts = [ResBlock(self, here, here := width * mult)]
                parts += [AttentionBlock(self, here)] if 2**i in attends else []
                self.input_blocks.append(Sequence(*parts))
                skips.append(here)
            if i < len(mults) - 1:
                change = ResBlock(self, here, here, "down") if updown else Downsample(here)
                self.input_blocks.append(Sequence(change))
                skips.append(here)
        self.middle_block = Sequence(
            ResBlock(self, here, here), AttentionBlock(self, here), ResBlock(self, here, here)
        )
        for i, mult in reversed(list(enumerate(mults))):
            for j in range(layers + 1):
                parts = [ResBlock(self, here + skips.pop(), here := width * mult)]
                parts += [AttentionBlock(self, here)] if 2**i in attends else []
                if i and j == layers:
                    parts += [ResBlock(self, here, here, "up") if updown else Upsample(here)]
                self.output_blocks.append(Sequence(*parts))
        last = nn.Conv2d(here, channels * (2 if learn_sigma else 1), 3, padding=1)
        self.out = nn.Sequential(nn.GroupNorm(self.groups, here), nn.SiLU(), last)

    def forward(self, x, t, label=None):
        half = self.width // 2
        angle = t.float()[:, None] * 10_000 ** (-torch.arange(half) / half)
        emb, skips = self.time_embed(torch.cat([angle.cos(), angle.sin()], 1)), []
        if label is not None:
            emb = emb + self.label_emb(label)
        for block in self.input_blocks:
            skips.append(x := block(x, emb))
        x = self.middle_block(x, emb)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], 1), emb)
        return self.out(x)
