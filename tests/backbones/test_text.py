"""How networks read prompts, against PyTorch's own transformer and attention."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import jvp

from fewstep.backbones import MLPConfig, UNetConfig, build_backbone
from fewstep.backbones.text import CrossAttention, TextContext, TextTransformer
from fewstep.condition import Condition, Text, TextInput
from fewstep.errors import InputError

IDS = TextInput(5, vocabulary=30)
VECTORS = TextInput(5, features=7)
SHAPE = (1, 8, 8)
CONFIG = UNetConfig(
    channels=(16, 32), groups=8, attention=(), layers=1, cross_attention=(8, 4), text_width=64
)


def prompts(text=IDS, dtype=torch.float64):
    draw = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    if text.features:
        return Text(torch.randn(3, 5, text.features, generator=draw, dtype=dtype), mask)
    return Text(torch.randint(0, text.vocabulary, (3, 5), generator=draw), mask)


def scramble(module):
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in module.parameters():
            weight.copy_(0.3 * torch.randn(weight.shape, generator=draw, dtype=weight.dtype))
    return module.eval()


def network(config=CONFIG, text=IDS):
    return scramble(config.build(shape=SHAPE, text=text).double())


@pytest.mark.parametrize("text", [IDS, VECTORS], ids=["ids", "vectors"])
def test_the_transformer_is_pytorchs(text):
    """nn.TransformerEncoder with the same weights, where padding is masked."""
    ours = scramble(TextTransformer(text, 64, 2).double())
    layer = nn.TransformerEncoderLayer(
        64,
        2,
        256,
        dropout=0.0,
        activation=lambda x: nn.functional.gelu(x, approximate="tanh"),
        batch_first=True,
        norm_first=True,
    )
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(64), enable_nested_tensor=False)
    names = {
        "self_attn.in_proj_weight": "to_qkv.weight",
        "self_attn.in_proj_bias": "to_qkv.bias",
        "self_attn.out_proj.weight": "to_out.weight",
        "self_attn.out_proj.bias": "to_out.bias",
        "linear1.weight": "linear_1.weight",
        "linear1.bias": "linear_1.bias",
        "linear2.weight": "linear_2.weight",
        "linear2.bias": "linear_2.bias",
    } | {name: name for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")}
    state = ours.state_dict()
    weights = {
        f"layers.{i}.{a}": state[f"layers.{i}.{b}"] for i in range(2) for a, b in names.items()
    }
    weights |= {name: state[name] for name in ("norm.weight", "norm.bias")}
    theirs.double().eval().load_state_dict(weights)
    batch = prompts(text)
    tokens = torch.cat(
        [ours.start.expand(3, 1, -1), ours.token(batch.tokens) + ours.position], dim=1
    )
    padding = torch.cat([torch.zeros(3, 1).bool(), ~batch.mask], dim=1)
    expected = theirs(tokens, src_key_padding_mask=padding)
    context = ours(batch, torch.empty(3, 1, 8, 8))
    assert context.mask.equal(~padding)
    torch.testing.assert_close(context.tokens[context.mask], expected[~padding])
    torch.testing.assert_close(context.pooled, expected[:, 0])


def test_cross_attention_is_pytorchs():
    ours = scramble(CrossAttention(64, 24, nn.GroupNorm(8, 64)).double())
    theirs = nn.MultiheadAttention(64, 2, kdim=24, vdim=24, batch_first=True).double()
    biases = torch.cat([ours.to_q.bias, ours.to_k.bias, ours.to_v.bias])
    theirs.load_state_dict(
        {
            "q_proj_weight": ours.to_q.weight,
            "k_proj_weight": ours.to_k.weight,
            "v_proj_weight": ours.to_v.weight,
            "in_proj_bias": biases,
            "out_proj.weight": ours.to_out.weight,
            "out_proj.bias": ours.to_out.bias,
        }
    )
    x, tokens = torch.randn(2, 64, 3, 3).double(), torch.randn(2, 4, 24).double()
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    query = ours.group_norm(x).flatten(2).mT
    expected, _ = theirs(query, tokens, tokens, key_padding_mask=~mask)
    result = ours(x, TextContext(tokens, mask)) - x
    torch.testing.assert_close(result, expected.mT.reshape(2, 64, 3, 3))


def test_only_the_tokens_of_a_prompt_have_an_effect():
    net, text = network(), prompts()
    x, level = torch.randn(3, *SHAPE).double(), torch.rand(3).double()
    full = net(x, level, cond=Condition(text=text))
    other = torch.where(text.mask, text.tokens, (text.tokens + 1) % IDS.vocabulary)
    assert torch.equal(net(x, level, cond=Condition(text=Text(other, text.mask))), full)
    none = net(x, level)
    torch.testing.assert_close(none[2], full[2])  # the row of the empty prompt
    assert (none[:2] - full[:2]).flatten(1).abs().amax(1).min() > 1e-3
    torch.testing.assert_close(net(x, level, cond=Condition(text=text).null()), none)


@pytest.mark.parametrize("heights", [(), (8,), (4,), (8, 4)])
def test_prompts_have_an_effect_with_and_without_cross_attention(heights):
    net = network(replace(CONFIG, cross_attention=heights))
    count = sum(isinstance(module, CrossAttention) for module in net.modules())
    assert count == 3 * (8 in heights) + 4 * (4 in heights)
    x, level = torch.randn(3, *SHAPE).double(), torch.rand(3).double()
    difference = net(x, level, cond=Condition(text=prompts())) - net(x, level)
    assert difference[:2].flatten(1).abs().amax(1).min() > 1e-4


def test_derivatives_of_a_network_that_reads():
    net, cond = network(), Condition(text=prompts())
    x, level = torch.randn(3, *SHAPE).double(), torch.rand(3).double()
    towards = torch.randn_like(x), torch.ones_like(level)

    def call(x, level):
        return net(x, level, cond=cond)

    _, derivative = jvp(call, (x, level), towards)
    h = 1e-6
    ahead, behind = (call(x + s * towards[0], level + s * towards[1]) for s in (h, -h))
    torch.testing.assert_close(derivative, (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-5)


def test_networks_that_read_no_prompts_say_so():
    with pytest.raises(InputError, match="backbone mlp reads no prompts: use a unet"):
        build_backbone(MLPConfig(), shape=(2,), classes=0, text=IDS)
    plain = CONFIG.build(shape=SHAPE)
    with pytest.raises(ValueError, match="reads no prompts: build it with text"):
        plain(torch.zeros(3, *SHAPE), torch.zeros(3), cond=Condition(text=prompts()))


def test_squares_of_pixels_are_channels():
    """The network with patch = 2 is that for a quarter of the pixels, with the same weights."""
    config = UNetConfig(channels=(16, 32), groups=8, attention=(4,), layers=1)
    inner = scramble(config.build(shape=(12, 4, 4)))
    outer = replace(config, patch=2).build(shape=(3, 8, 8)).eval()
    outer.load_state_dict(inner.state_dict())
    x, level = torch.randn(2, 3, 8, 8), torch.rand(2)
    expected = nn.functional.pixel_shuffle(inner(nn.functional.pixel_unshuffle(x, 2), level), 2)
    torch.testing.assert_close(outer(x, level), expected)
    with pytest.raises(InputError, match="patch = 4 does not divide 6x6 pixels"):
        replace(config, patch=4).build(shape=(3, 6, 6))
