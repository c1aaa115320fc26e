"""Denoising circuits: what is compared with what, what gets a gradient, and the ring it ends in."""

from copy import deepcopy

import pytest
import torch

import toy
from circuits.test_network import circuit
from fewstep.circuits.view import Circuit, Ring
from fewstep.condition import NO_LABEL, Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.evaluation import count_evaluations
from fewstep.generator import Generator
from fewstep.methods.base import Task
from fewstep.methods.batch import Batch, ImageBatch
from fewstep.methods.circuit import CircuitMethod, CircuitMethodConfig
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import Eps, Velocity
from fewstep.process import Flow, LinearBetas
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Transfer

SPEC = SampleSpec((1, 8, 8))


def build(seed=0, shake=0.1, training_steps=100, **settings):
    student = Denoiser(circuit(seed, classes=0, shake=shake), Flow(), Velocity())
    task = Task(student, SPEC, steps=training_steps)
    return CircuitMethod(CircuitMethodConfig(**{"steps": 12, **settings}), task)


def batch(rows=4, step=0):
    images = ImageBatch(
        torch.randn(rows, 1, 8, 8, generator=torch.Generator().manual_seed(1)), None
    )
    made = Batch(7, step, 0, rows, rows, SPEC, torch.device("cpu"), {"images": images})
    made.begin("student", 0)
    return made


def test_depth_0_is_the_plain_loss_of_both_read_outs():
    method, told = build(depths=(1.0,), image=0.5), batch()
    loss = method.student_loss(told)
    again = batch()
    for _ in range(2):  # the depth and the stride
        again.shared_rand()
    t = 1 - (again.rand() * 13).long() / 12
    x0 = again.images.x0
    eps = again.randn_like(x0)
    x_t = Flow().add_noise(x0, eps, t)
    said = method.student(x_t, t)
    main = (said.output - (eps - x0)).square().mean()
    picture = Circuit(method.student).image(Circuit(method.student).encode(x_t, t), t)
    image = (picture - x0).square().mean()
    torch.testing.assert_close(loss.value, main + 0.5 * image)
    assert set(loss.numbers) == {"main", "image"}


def square(a, b):
    return (a - b).square().mean()


def test_each_depth_compares_with_the_networks_own_sampler():
    """The loss at depth 2, by hand: updates of 3 steps beside DDIM's single ones."""
    method = build(depths=(0.0, 0.0, 1.0), strides=(3,), chain=5.0, image=1.0)
    loss = method.student_loss(batch())
    told, x0 = batch(), batch().images.x0
    for _ in range(2):
        told.shared_rand()
    anywhere = 1 - (told.rand() * 13).long() / 12
    eps = told.randn_like(x0)
    x_t = Flow().add_noise(x0, eps, anywhere)
    first = (told.rand() * 7).long()
    t = [1 - (first + k) / 12 for k in range(7)]
    net, model = Circuit(method.student), method.student
    x = [Flow().add_noise(x0, told.randn_like(x0), t[0])]
    for k in range(6):
        velocity = model(x[k], t[k]).velocity  # Euler's step is DDIM's under Flow
        x.append(x[k] + (t[k + 1] - t[k]).view(-1, 1, 1, 1) * velocity)
    z = [net.encode(x[0], t[0])]
    for k in (0, 3):
        z.append(net.advance(z[-1], t[k], t[k + 3]))
    right = {k: net.encode(x[k], t[k]) for k in (3, 6)}
    ways = [(z[1], 3), (z[2], 6)]
    mains = [square(net.read(w, t[k]), model(x[k], t[k]).output) for w, k in ways]
    images = [square(net.image(w, t[k]), net.image(right[k], t[k])) for w, k in ways]
    chain = sum(square(w, right[k]) for w, k in ways) / 2
    main = square(model(x_t, anywhere).output, eps - x0)
    main = (main + sum(mains) / 2) / 2
    image = square(net.image(net.encode(x_t, anywhere), anywhere), x0) / 2
    image = image + sum(images) / 2 / 2
    torch.testing.assert_close(loss.value, main + image + 5 * chain)
    assert chain > 1e-2


def test_a_guided_path_is_that_of_the_guided_sampler():
    student = Denoiser(circuit(classes=3, shake=0.1), Flow(), Velocity())
    spec = SampleSpec((1, 8, 8), 3)
    sampler = Generator(student, spec, step=Transfer()).with_guidance(3.0)
    noise, cond = torch.randn(4, 1, 8, 8), Condition(torch.tensor([0, 1, 2, 1]))
    states = list(sampler.path(noise, steps=4, cond=cond))
    times, net = [1.0, 0.75, 0.5, 0.25, 0.0], Circuit(student)
    path = list(net.encode_path(noise, times, cond=cond, guidance=3.0))
    for (z, prediction), x, t in zip(path, states, times, strict=True):
        torch.testing.assert_close(z, net.encode(x, t, cond=cond), rtol=1e-4, atol=1e-4)
        expected = student(x, t, cond=cond).output  # what is read from a state is not guided
        torch.testing.assert_close(prediction.output, expected, rtol=1e-4, atol=1e-4)
    plain = [z for z, _ in net.encode_path(noise, times, cond=cond)]
    assert plain[0].equal(path[0][0]) and (plain[-1] - path[-1][0]).abs().max() > 0.01
    with pytest.raises(InputError, match="no effect without chains"):
        CircuitMethodConfig(depths=(1.0,), guidance=2.0, condition_dropout=0.1)
    with pytest.raises(InputError, match="finite number from 0 to 1000"):
        config = CircuitMethodConfig(steps=12, guidance=1e9, condition_dropout=0.1)
        CircuitMethod(config, Task(student, spec, steps=100))
    for dropout, of, problem in (
        (0.1, SPEC, "have none"),
        (0.0, spec, "does not train: set it"),
    ):
        config = CircuitMethodConfig(steps=12, guidance=2.0, condition_dropout=dropout)
        with pytest.raises(InputError, match=problem):
            CircuitMethod(config, Task(student, of, steps=100))


def test_the_updates_follow_the_guided_sampler():
    images = ImageBatch(torch.randn(4, 1, 8, 8), Condition(torch.tensor([0, 1, 2, 1])))
    spec, losses = SampleSpec((1, 8, 8), 3), []
    for guidance in (1.0, 2.0, 2.0):
        student = Denoiser(circuit(classes=3, shake=0.1), Flow(), Velocity())
        config = CircuitMethodConfig(steps=12, condition_dropout=0.1, guidance=guidance)
        method = CircuitMethod(config, Task(student, spec, steps=100))
        drawn = Batch(7, 0, 0, 4, 4, spec, torch.device("cpu"), {"images": images})
        drawn.begin("student", 0)
        losses.append(method.student_loss(drawn).numbers["chain"].item())
    assert losses[1] == losses[2] and losses[0] != losses[1]


def gradients(method):
    method.student_loss(batch()).value.backward()
    return [p.grad for p in method.student.parameters()]


@pytest.mark.parametrize("length", [0, 5])
def test_no_gradient_goes_into_what_is_followed(length):
    """Following a frozen copy of equal weights gives the same gradient as following itself."""
    told = {"depths": (0.0, 0.0, 1.0), "length": length}
    told |= {"joint": True}
    live, copied = build(**told), build(**told, follow="average")
    assert copied.target is not None
    copied.target.requires_grad_(False)
    for mine, theirs in zip(gradients(live), gradients(copied), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            torch.testing.assert_close(mine, theirs)
    assert any(g is not None and g.abs().max() > 0 for g in gradients(live))


@pytest.mark.parametrize("joint", [False, True])
def test_the_updates_train_the_encoder_only_if_asked(joint):
    """What the encoder's gradient is at depth 2 differs from the plain loss's, or does not."""
    deep = build(depths=(0.0, 0.0, 1.0), joint=joint, image=0.0)
    plain = build(depths=(0.0, 0.0, 1.0), joint=joint, image=0.0, chain=0.0)
    seen = []
    for method in (deep, plain):
        method.student_loss(batch()).value.backward()
        seen.append([p.grad for p in method.student.backbone.encoder.parameters()])
    pairs = [(a, b) for a, b in zip(*seen, strict=True) if a is not None]
    assert pairs and all(a.equal(b) for a, b in pairs) != joint
    assert any(p.grad is not None for p in deep.student.backbone.update.parameters())


@pytest.mark.slow
def test_the_updates_of_every_ring_are_learnt_down_to_the_last(monkeypatch):
    method, seen = build(depths=(0.0, 0.5, 0.5), strides=(1, 4)), set()
    advance = Circuit.advance

    def spy(self, z, t, s, *, cond=None):
        pairs = zip((12 * t).round().int().tolist(), (12 * s).round().int().tolist(), strict=True)
        seen.update(pairs)
        return advance(self, z, t, s, cond=cond)

    monkeypatch.setattr(Circuit, "advance", spy)
    for step in range(60):
        method.student_loss(batch(rows=6, step=step))
    generator = method.generator()
    assert generator.grid.counts == (3, 12) and generator.step == Ring()
    for steps in generator.grid.counts:
        times = [round(12 * t) for t in generator.grid(steps, generator.denoiser).tolist()] + [0]
        assert set(zip(times, times[1:], strict=False)) <= seen


def test_a_long_chain_is_compared_whole_and_reaches_back_by_its_depth(monkeypatch):
    """Of 5 updates at depth 2, the gradient of the last state's error stops before the fourth."""
    method, ways = build(depths=(0.0, 0.0, 1.0), length=5), []
    advance = Circuit.advance

    def spy(self, z, t, s, *, cond=None):
        z.requires_grad_() if z.is_leaf else z.retain_grad()
        ways.append((z, advance(self, z, t, s, cond=cond), t))
        return ways[-1][1]

    monkeypatch.setattr(Circuit, "advance", spy)
    method.student_loss(batch())
    assert len(ways) == 5
    for (_, made, _), (entered, _, _) in zip(ways, ways[1:], strict=False):
        assert made.equal(entered)
    ways[4][1].square().sum().backward()
    reached = [z.grad is not None for z, _, _ in ways]
    assert reached == [False, False, False, False, True]
    ways[3][1].sum().backward()
    assert [z.grad is not None for z, _, _ in ways] == [False, False, True, True, True]


def test_a_chain_is_at_most_the_ring_and_then_starts_at_noise(monkeypatch):
    method, starts = build(depths=(0.0, 1.0), length=12, strides=(1, 4)), []
    encode = Circuit.encode

    def spy(self, x_t, t, *, cond=None):
        starts.append((x_t, t))
        return encode(self, x_t, t, cond=cond)

    monkeypatch.setattr(Circuit, "encode", spy)
    for step in range(8):
        starts.clear()
        method.student_loss(batch(step=step))
        # the plain loss's, and what is followed at 13 times, whose first starts the chain
        assert len(starts) == 14 and bool((starts[1][1] == 1).all())


def test_phases_are_the_plain_loss_and_then_chains():
    method = build(depths=(0.0, 1.0), phases=(0.3, 0.4), training_steps=7)
    net = method.student.backbone
    trunk = lambda of: of.mid_block.resnets[0].conv1.weight  # noqa: E731
    for step in (0, 2, 3, 6, 9):
        (turn,) = method.turns(step)
        assert trunk(net.update).equal(trunk(net.encoder)) == (step >= 3)
        assert turn.phase == ((0, 3) if step < 3 else (3, 7))
        method.student.zero_grad()
        loss = turn.loss(batch())
        loss.value.backward()
        assert ("chain" in loss.numbers) == (step >= 3)
        encoding = [*net.encoder.parameters(), *net.encoder_out.parameters()]
        assert all((p.grad is None) == (step >= 3) for p in encoding)
        assert all(p.grad is not None for p in net.output_readout.parameters())


def test_the_ring_is_the_updates_and_one_reading():
    method = build()
    generator = method.generator().eval()
    noise = noise_from_seeds(range(3), SPEC.shape)
    with torch.inference_mode():
        made = generator(noise, steps=12)
        net = Circuit(generator.denoiser)
        z = net.encode(noise, 1.0)
        for k in range(12):
            z = net.advance(z, 1 - k / 12, 1 - (k + 1) / 12)
        torch.testing.assert_close(made, net.image(z, 0.0))
        # and any sampler works on what Rout says
        ordinary = generator.with_sampler(step=Transfer())
        assert generator.with_sampler(step=Ring()).grid is generator.grid
        other = ordinary(noise, steps=5)
    # a call of either trunk is an evaluation
    assert (count_evaluations(generator, 12), count_evaluations(ordinary, 5)) == (13, 5)
    assert other.isfinite().all() and (other - made).abs().max() > 1e-3


def test_the_average_follows_the_student():
    method = build(follow="average", decay=0.75)
    before = deepcopy(method.target)
    turns = method.turns(0)
    next(turns)
    with torch.no_grad():
        for parameter in method.student.parameters():
            parameter += 1.0
    assert next(turns, None) is None
    for old, new in zip(before.parameters(), method.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)


def test_labels_are_dropped_where_asked(monkeypatch):
    images = ImageBatch(torch.randn(64, 1, 8, 8), Condition(torch.arange(64) % 3))
    spec = SampleSpec((1, 8, 8), 3)
    told = Batch(7, 0, 0, 64, 64, spec, torch.device("cpu"), {"images": images})
    seen = []
    encode = Circuit.encode

    def spy(self, x_t, t, *, cond=None):
        seen.append(cond.label == NO_LABEL)
        return encode(self, x_t, t, cond=cond)

    monkeypatch.setattr(Circuit, "encode", spy)
    for share in (0.0, 0.3):
        student = Denoiser(circuit(classes=3), Flow(), Velocity())
        config = CircuitMethodConfig(steps=4, condition_dropout=share)
        seen.clear()
        told.begin("student", 0)
        CircuitMethod(config, Task(student, spec)).student_loss(told)
        shares = [float(none.float().mean()) for none in seen]
        assert all(abs(found - share) <= 0.2 * (share > 0) for found in shares)
        # all of a chain alike
        assert len(seen) == 3 and seen[1].equal(seen[2])


def test_what_cannot_be_is_refused():
    with pytest.raises(InputError, match="must divide method.steps, 10"):
        CircuitMethodConfig(steps=10, strides=(3,))
    with pytest.raises(InputError, match="more time steps than method.steps, 4"):
        CircuitMethodConfig(steps=4, depths=(0.0, 0.0, 0.0, 1.0), strides=(2, 4))
    with pytest.raises(InputError, match="two relative lengths"):
        CircuitMethodConfig(steps=4, phases=(100,))
    with pytest.raises(InputError, match="freezes"):
        CircuitMethodConfig(steps=4, phases=(1, 1), joint=True)
    with pytest.raises(InputError, match="different numbers"):
        CircuitMethodConfig(steps=4, strides=(2, 2))
    with pytest.raises(InputError, match="method.chain"):
        CircuitMethodConfig(steps=4, chain=-1.0)
    with pytest.raises(InputError, match="from 0 to below 1"):
        CircuitMethodConfig(steps=4, decay=5.0)
    blind = Denoiser(circuit(classes=0), Flow(), Eps(Flow()))
    with pytest.raises(InputError, match="eps-prediction network"):
        CircuitMethod(CircuitMethodConfig(steps=4), Task(blind, SPEC))
    seeing = Denoiser(circuit(classes=0), LinearBetas(), Eps(LinearBetas()))
    CircuitMethod(CircuitMethodConfig(steps=4), Task(seeing, SPEC))
    with pytest.raises(InputError, match="not all of them 0"):
        CircuitMethodConfig(depths=(0.0,))
    with pytest.raises(InputError, match="must be a circuit"):
        CircuitMethod(CircuitMethodConfig(steps=4), Task(toy.fresh(), toy.SPEC))
    guided = Generator(
        Denoiser(circuit(), Flow(), Velocity()), SampleSpec((1, 8, 8), 3)
    ).with_guidance(2.0)
    with pytest.raises(InputError, match="guidance"):
        guided.with_sampler(step=Ring())(torch.randn(1, 1, 8, 8), steps=2)
