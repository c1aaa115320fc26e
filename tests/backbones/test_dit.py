"""The diffusion transformer against diffusers' own, PyTorch's attention and finite differences."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import jvp, vmap

from fewstep.backbones import DiTConfig, with_augmentation, with_two_times, without_augmentation
from fewstep.backbones.derivatives import value_and_tangent
from fewstep.backbones.dit import CrossAttention
from fewstep.backbones.outline import outline
from fewstep.backbones.text import TextContext
from fewstep.condition import Condition, Text, TextInput
from fewstep.errors import InputError

SMALL = DiTConfig(width=32, depth=2, head_dim=16, text_width=32, text_layers=1)
SHAPE = (3, 8, 8)
IDS = TextInput(5, vocabulary=30)


def scrambled(config=SMALL, *, shape=SHAPE, classes=0, text=None, dtype=torch.float64):
    """A network in which no weight is zero, so that everything has an effect."""
    net = config.build(shape=shape, classes=classes, text=text).to(dtype).eval()
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=draw, dtype=dtype)
    return net


def inputs(shape=SHAPE, rows=3, dtype=torch.float64):
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *shape, generator=draw, dtype=dtype)
    return x, 1000 * torch.rand(rows, generator=draw, dtype=dtype)


def prompts():
    draw = torch.Generator().manual_seed(3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 0]]).bool()
    return Text(torch.randint(0, IDS.vocabulary, (3, 5), generator=draw), mask)


def diffusers_weights(net):
    """The weights of a DiT by the names of diffusers, whose blocks each embed level and class."""
    state, weights = net.state_dict(), {}
    embedding = {
        f"timestep_embedder.linear_{i}.{kind}": state[f"time_embedding.linear_{i}.{kind}"]
        for i in (1, 2)
        for kind in ("weight", "bias")
    } | {"class_embedder.embedding_table.weight": state["class_embedding.weight"]}
    layers = {
        "norm1.linear": "modulation",
        "attn1.to_out.0": "to_out",
        "ff.net.0.proj": "linear_1",
        "ff.net.2": "linear_2",
    }
    for kind in ("weight", "bias"):
        for i in range(net.config.depth):
            theirs, ours = f"transformer_blocks.{i}.", f"blocks.{i}."
            weights |= {
                f"{theirs}{a}.{kind}": state[f"{ours}{b}.{kind}"] for a, b in layers.items()
            }
            parts = state[f"{ours}to_qkv.{kind}"].chunk(3)
            names = ("to_q", "to_k", "to_v")
            weights |= {f"{theirs}attn1.{n}.{kind}": p for n, p in zip(names, parts, strict=True)}
            weights |= {f"{theirs}norm1.emb.{name}": value for name, value in embedding.items()}
        weights[f"pos_embed.proj.{kind}"] = state[f"patches.{kind}"]
        weights[f"proj_out_1.{kind}"] = state[f"modulation.{kind}"]
        channels_first = state[f"proj_out.{kind}"].unflatten(0, (net.shape[0], -1))
        weights[f"proj_out_2.{kind}"] = channels_first.transpose(0, 1).flatten(0, 1)
    return weights


@pytest.mark.parametrize(
    "config", [SMALL, DiTConfig(patch=4, width=48, depth=1, head_dim=12)], ids=["p2", "p4"]
)
def test_outputs_and_gradients_are_those_of_diffusers(config):
    from diffusers import DiTTransformer2DModel

    ours = scrambled(config, classes=4, shape=(3, 16, 16))
    theirs = DiTTransformer2DModel(
        num_attention_heads=config.width // config.head_dim,
        attention_head_dim=config.head_dim,
        in_channels=3,
        num_layers=config.depth,
        sample_size=16,
        patch_size=config.patch,
        num_embeds_ada_norm=4,
        norm_eps=1e-6,
    )
    theirs = theirs.double().eval()
    theirs.load_state_dict(diffusers_weights(ours), strict=True)
    x, level = inputs((3, 16, 16))
    x = x.requires_grad_()
    expected = theirs(x, level, torch.tensor([0, 3, 4])).sample
    output = ours(x, level, cond=Condition(torch.tensor([0, 3, -1])))
    # diffusers computes positions and sinusoids in float32
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    wanted, found = (torch.autograd.grad(y.square().sum(), x)[0] for y in (expected, output))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("width", "depth", "head_dim", "millions"),
    [(384, 12, 64, 33), (768, 12, 64, 130), (1024, 24, 64, 458), (1152, 28, 72, 675)],
)
def test_networks_of_the_paper_have_as_many_weights(width, depth, head_dim, millions):
    """Table 1 and table 4 of the paper, with 1,000 classes and 32×32 latents."""
    config = DiTConfig(width=width, depth=depth, head_dim=head_dim)
    net = outline(config, shape=(4, 32, 32), classes=1000, text=None, tensors=400)
    assert round(sum(weight.numel() for weight in net.parameters()) / 1e6) == millions


def test_cross_attention_is_pytorchs():
    ours = CrossAttention(32, 2, 24).double()
    theirs = nn.MultiheadAttention(32, 2, kdim=24, vdim=24, batch_first=True).double()
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
    x, tokens = torch.randn(2, 9, 32).double(), torch.randn(2, 4, 24).double()
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    expected, _ = theirs(x, tokens, tokens, key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, TextContext(tokens, mask)), expected)


@pytest.mark.parametrize("cross_attention", [True, False])
def test_only_the_tokens_of_a_prompt_have_an_effect(cross_attention):
    net = scrambled(replace(SMALL, cross_attention=cross_attention), text=IDS, classes=3)
    x, level = inputs()
    text, label = prompts(), torch.tensor([0, 2, -1])
    full = net(x, level, cond=Condition(label, text=text))
    other = torch.where(text.mask, text.tokens, (text.tokens + 1) % IDS.vocabulary)
    changed = net(x, level, cond=Condition(label, text=Text(other, text.mask)))
    assert torch.equal(changed, full)
    none = net(x, level)
    torch.testing.assert_close(none[2], full[2])  # the row of the empty prompt
    labels_alone = net(x, level, cond=Condition(label))
    assert (labels_alone - full)[:2].flatten(1).abs().amax(1).min() > 1e-4
    assert (labels_alone - none)[:2].flatten(1).abs().amax(1).min() > 1e-4
    torch.testing.assert_close(net(x, level, cond=Condition(label, text=text).null()), none)


def test_forward_mode_agrees_with_finite_differences():
    net = scrambled(replace(SMALL, two_times=True), text=IDS)
    cond = Condition(text=prompts())
    x, level = inputs()
    at = (x, level, 0.5 * level)
    draw = torch.Generator().manual_seed(3)
    toward = tuple(torch.randn(a.shape, generator=draw, dtype=a.dtype) for a in at)

    def f(x, level, level_s):
        return net(x, level, level_s=level_s, cond=cond)

    output, tangent = value_and_tangent(f, at, toward)
    torch.testing.assert_close(output, f(*at))
    torch.testing.assert_close(tangent, jvp(f, at, toward)[1])
    step = 1e-5
    ahead, behind = (
        f(*(a + sign * step * d for a, d in zip(at, toward, strict=True))) for sign in (1, -1)
    )
    slope = (ahead - behind) / (2 * step)
    assert (tangent - slope).abs().max() < 1e-6 * slope.abs().max()


def test_derivatives_compose_with_vmap_and_reverse_mode():
    net = scrambled()
    x, level = inputs()

    def slope(x, level):
        return jvp(lambda at: net(x[None], at[None]), (level,), (torch.ones_like(level),))[1]

    alone = torch.stack([slope(x[i], level[i]) for i in range(len(x))])
    torch.testing.assert_close(vmap(slope)(x, level), alone)
    alone.square().sum().backward()
    assert net.patches.weight.grad.abs().max() > 0


def test_a_new_network_is_zero_and_all_weights_have_gradients_later():
    net = SMALL.build(shape=SHAPE, classes=4, text=IDS)
    x, level = inputs(dtype=torch.float32)
    cond = Condition(torch.tensor([0, 1, -1]), text=prompts())
    assert torch.equal(net(x, level, cond=cond), torch.zeros_like(x))
    hidden = net.features(x, level, cond=cond)
    assert torch.equal(hidden[0], hidden[-1])  # each block returns its input
    net = scrambled(classes=4, text=IDS)
    net(*inputs(), cond=cond).square().sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


@settings(max_examples=15, deadline=None)
@given(
    patch=st.sampled_from([1, 2, 4, 8]),
    sides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    depth=st.integers(1, 3),
)
def test_shapes(patch, sides, depth):
    shape = (2, *(patch * side for side in sides))
    net = scrambled(replace(SMALL, patch=patch, depth=depth), shape=shape)
    x, level = inputs(shape)
    assert net(x, level).shape == x.shape
    assert [tuple(each.shape) for each in net.features(x, level)] == [(3, 32, *sides)] * depth


def test_patches_and_places_lie_where_the_pixels_are():
    """A pixel has an effect on its own patch alone if no token attends to others."""
    net = scrambled(shape=(3, 8, 4))
    for block in net.blocks:
        nn.init.zeros_(block.to_out.weight)
    x, level = inputs((3, 8, 4), rows=1)
    changed = x.clone()
    changed[0, 1, 5, 2] += 1
    difference = (net(changed, level) - net(x, level))[0].abs().amax(0)
    assert difference[4:6, 2:4].min() > 0
    difference[4:6, 2:4] = 0
    assert difference.max() == 0
    before, after = (net.features(image, level)[0][0] for image in (x, changed))
    assert (after - before).abs().amax(0).nonzero().tolist() == [[2, 1]]


def test_inputs_that_are_added_start_without_effect():
    teacher = scrambled(text=IDS, dtype=torch.float32)
    x, level = inputs(dtype=torch.float32)
    cond = Condition(text=prompts())
    student = with_two_times(teacher)
    torch.testing.assert_close(
        student(x, level, level_s=0 * level, cond=cond), teacher(x, level, cond=cond)
    )
    augmented = with_augmentation(teacher)
    labels = Condition(augment_labels=torch.ones(3, 9), text=cond.text)
    torch.testing.assert_close(augmented(x, level, cond=labels), teacher(x, level, cond=cond))
    nn.init.ones_(augmented.augment_embedding.weight)
    assert not torch.equal(augmented(x, level, cond=labels), augmented(x, level, cond=cond))
    torch.testing.assert_close(
        without_augmentation(augmented)(x, level, cond=cond), teacher(x, level, cond=cond)
    )


def test_conditions_that_a_network_was_not_built_for():
    net, (x, level) = scrambled(), inputs()
    with pytest.raises(ValueError, match="two_times"):
        net(x, level, level_s=level)
    with pytest.raises(ValueError, match="no classes"):
        net(x, level, cond=Condition(torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="reads no prompts"):
        net(x, level, cond=Condition(text=prompts()))


def test_memory_formats_and_precisions():
    net, (x, level) = scrambled(dtype=torch.float32), inputs(dtype=torch.float32)
    expected = net(x, level)
    assert expected.is_contiguous()
    last = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(last(x.to(memory_format=torch.channels_last), level), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = net(x, level)
    rounded.float().square().sum().backward()
    assert (rounded - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("change", "shape", "message"),
    [
        ({}, (2,), "use the mlp"),
        ({"patch": 8}, (1, 12, 8), "patch = 8 does not divide 12x8 pixels: set patch = 1"),
        ({"head_dim": 24}, SHAPE, "multiple of 4 and of head_dim"),
        ({"width": 30, "head_dim": 10}, SHAPE, "multiple of 4"),
    ],
)
def test_impossible_networks_are_refused(change, shape, message):
    with pytest.raises(InputError, match=message) as refused:
        replace(SMALL, **change).build(shape=shape)
    assert "\n" not in str(refused.value)
