"""Training of an autoencoder: its loss, its latents, and a run that is resumed."""

from contextlib import closing

import pytest
import torch

from fewstep import runs
from fewstep.autoencoder_files import load_autoencoder, save_autoencoder
from fewstep.cli import main
from fewstep.data import load
from fewstep.errors import InputError
from fewstep.images import from_uint8
from fewstep.methods.autoencode import SHARE, channel_moments
from fewstep.optimizers import FitConfig
from fewstep.recipe import parse
from fewstep.runner import run_recipe
from fewstep.trainer import Training
from stripes import SHAPE, autoencoder, batches, method, pictures

FIT = {"steps": 6, "batch": 12, "lr": 1e-3, "ema_halflife": 0.2}
RECIPE = {
    "data": {"name": "digits"},
    "method": {
        "name": "autoencode",
        "network": {"name": "convolutional", "channels": [8, 8], "groups": 4, "latent_channels": 2},
    },
    "fit": {"steps": 4, "batch": 8, "save_every": 1, "ema_halflife": 0.2},
}


def training(**settings):
    config = FitConfig(**{**FIT, **settings})
    return Training(method(), batches(config.batch), config)


def train(recipe, folder, until=None):
    with closing(run_recipe(recipe, folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


def test_the_loss_is_the_distance_after_noise_of_the_latents_own_scale():
    learner = method(noise=0.5)
    learner.student.set_moments(torch.tensor([1.0, -2.0]), torch.tensor([4.0, 9.0]))
    (batch,) = batches().step(0)
    batch.begin("student", 0)
    loss = learner.student_loss(batch).value
    batch.begin("student", 0)
    images, student = batch.images.x0, learner.student
    raw = student.encoder(images)
    noise = batch.randn_like(raw) * 0.5 * torch.tensor([2.0, 3.0]).view(2, 1, 1)
    again = student.decoder.network(raw + noise)
    torch.testing.assert_close(loss, (again - images).square().mean())


def test_latents_have_no_mean_and_unit_variance_over_the_recent_batches():
    learner = method()
    run = Training(learner, batches(), FitConfig(**{**FIT, "lr": 1e-12}))
    expected = torch.zeros(2, 2)
    for step in range(3):
        (batch,) = batches().step(step)
        moments = channel_moments(learner.student.encoder(batch.images.x0).detach())
        expected = expected.lerp(moments, max(1 / (step + 1), SHARE))
        run.advance()
    mean, std = expected[0], (expected[1] - expected[0].square()).sqrt()
    torch.testing.assert_close(learner.student.decoder.mean.flatten(), mean)
    torch.testing.assert_close(learner.student.decoder.std.flatten(), std)
    latents = run.result().encode(from_uint8(pictures(40)))
    assert latents.mean((0, 2, 3)).abs().max() < 0.1
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.1


@pytest.mark.slow
def test_it_learns_pictures_of_two_factors():
    config = FitConfig(steps=200, batch=12, lr=1e-2, schedule="cosine", ema_halflife=0.02)
    run = Training(method(noise=0.02), batches(count=200), config)
    images = from_uint8(pictures(30, seed=1))  # others than those trained on
    before = (run.result()(images) - images).square().mean()
    for _ in run:
        pass
    after = (run.result()(images) - images).square().mean()
    assert images.var() > 0.1 and before > 0.1
    assert after < 0.02  # brightness alone leaves 0.05, contrast alone 0.12


def test_resume_is_bit_identical():
    whole, first = training(), training()
    for _ in whole:
        pass
    for _ in range(3):
        first.advance()
    tensors, note = first.state()
    second = training()
    second.restore({key: value.clone() for key, value in tensors.items()}, note)
    for _ in second:
        pass
    expected, found = whole.state(), second.state()
    assert expected[1] == found[1] and expected[0].keys() == found[0].keys()
    assert all(value.equal(found[0][key]) for key, value in expected[0].items())
    assert {"method.moments", "method.student.decoder.std"} <= tensors.keys()


def test_micro_batches_give_the_gradients_and_moments_of_one_batch():
    results = []
    for micro in (0, 5):
        run = training(micro_batch=micro, clip=0.0)
        run.advance()
        results.append([p.grad for p in run.method.network.parameters()] + [run.method.moments])
    for one, parts in zip(*results, strict=True):
        torch.testing.assert_close(parts, one, rtol=1e-3, atol=1e-5)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_run_resumes_to_the_same_file_and_holds_what_was_trained(tmp_path, capsys):
    recipe = parse(RECIPE)
    train(recipe, tmp_path / "once")
    train(recipe, tmp_path / "twice", until=2)
    train(recipe, tmp_path / "twice")
    once, twice = (tmp_path / name / "model.safetensors" for name in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()
    loaded, again = load_autoencoder(tmp_path / "once"), load_autoencoder(once, shape=SHAPE)
    assert loaded.hash == again.hash and not any(p.requires_grad for p in loaded.parameters())
    images = from_uint8(load("digits").images[:8])
    torch.testing.assert_close(loaded.decode(loaded.encode(images)), loaded(images))
    assert main(["progress", str(tmp_path / "once")]) == 0
    assert "4" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "once" / "samples").iterdir())[0].endswith(
        "png"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_commands_say_in_one_line_what_an_autoencoder_is_for(tmp_path, capsys):
    words = ["method.network.channels=[8,8]", "method.network.groups=4", "fit.steps=2"]
    recipe = ["cifar10-autoencoder", "data.name=digits", "data.flip=false", "method.loss=mse"]
    run = str(tmp_path / "run")
    assert main(["train", *recipe, *words, "--out", run]) == 0
    assert main(["train", *recipe, *words, "--out", run]) == 0  # finished, and lacks nothing
    assert capsys.readouterr().out.endswith(f"{run} is finished\n")
    for command in (
        ["sample", run, "-o", "a.png"],
        ["evaluate", run],
        ["record", run, "--out", "s"],
    ):
        assert main(command) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and f"is an autoencoder, which generates no images: {''}" in lines[0]
    with pytest.raises(InputError, match="is an autoencoder"):
        runs.load(run)
    assert main(["doctor", run]) == 0
    digest = load_autoencoder(run).hash[:16]
    expected = f"SHA-256 matches; autoencoder {digest}, images 1x8x8 to latents 8x2x2"
    assert expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("section", "settings", "words"),
    [
        ("teacher", {"load": "runs/x"}, r"has a section \[teacher\]"),
        ("student", {"init": "scratch"}, r"has a section \[student\]"),
        ("data", {"name": "digits", "augment": 0.1}, "data.augment=0.1"),
        ("data", {"name": "digits", "autoencoder": "x"}, "data.autoencoder=x"),
        ("data", {"name": "digits", "latents": "x"}, "data.latents=x"),
        ("data", {"name": "digits", "prompts": "x"}, "data.prompts=x"),
        ("evaluate", {"every": 2}, "evaluate.every=2"),
        ("fit", {"compile": True}, "fit.compile"),
        ("fit", {"precision": "bf16"}, "fit.precision=bf16"),
    ],
)
def test_settings_without_effect_are_refused(section, settings, words, tmp_path):
    with pytest.raises(InputError, match=words):
        train(parse({**RECIPE, section: settings}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("decoder.network.layers.0.weight", float("nan"), "layers.0.weight contains NaN"),
        ("encoder.layers.1.bias", float("inf"), "encoder.layers.1.bias contains NaN or infinite"),
        ("decoder.std", 0.0, "decoder.std contains 0"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path, name, value, words):
    network = autoencoder()
    network.state_dict()[name].view(-1)[0] = value
    save_autoencoder(tmp_path / "ae.safetensors", network, None, {})
    with pytest.raises(InputError, match=words):
        load_autoencoder(tmp_path / "ae.safetensors")


def test_networks_that_do_not_fit_are_refused():
    for config, shape, words in (
        ({"channels": (8, 8, 8, 8)}, SHAPE, "multiples of 16"),
        ({"channels": (12,), "groups": 8}, SHAPE, "groups = 8"),
        ({}, (2,), "shape \\(2,\\)"),
    ):
        kind = type(autoencoder().config)
        with pytest.raises(InputError, match=words):
            autoencoder(kind(**config), shape)
    with pytest.raises(InputError, match="images have shape"):
        autoencoder().encode(torch.zeros(1, 1, 4, 4))
    with pytest.raises(InputError, match="latents have shape"):
        autoencoder().decode(torch.zeros(1, 3, 2, 2))
