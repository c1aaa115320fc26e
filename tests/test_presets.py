"""Every preset, with its own method, settings and chain of teachers, on networks of a few weights.

Each is built, trained for a few steps, saved, resumed, sampled and scored. What is replaced: the
data (random images of 8x8 pixels), the sizes of networks, batch and training, LPIPS and features
(their weights are not at hand: squared errors), torch.compile (it takes minutes) and checkpoints of
other projects (a network of the same kind).
"""

import re
from contextlib import closing
from dataclasses import fields, replace

import pytest
import torch

from fewstep import runs
from fewstep.assembly import assemble
from fewstep.autoencoder_files import load_autoencoder, save_autoencoder
from fewstep.autoencoders import Autoencoder
from fewstep.autoencoders.convolutional import Convolutional
from fewstep.backbones import UNetConfig
from fewstep.backbones.edm_unet import EDMUNetConfig
from fewstep.circuits.network import CircuitConfig
from fewstep.circuits.one_step import ResidualsConfig
from fewstep.circuits.view import Ring
from fewstep.data import ImageSet
from fewstep.denoiser import Denoiser
from fewstep.evaluation import Evaluator
from fewstep.generator import Generator
from fewstep.images import from_uint8
from fewstep.losses import Features, Lpips, SquaredError
from fewstep.metrics import protocol
from fewstep.noise import noise_from_seeds
from fewstep.parametrization import Eps
from fewstep.process import LinearBetas
from fewstep.recipe import PairsConfig, read
from fewstep.recording import Recording, record
from fewstep.runner import run_recipe
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Transfer
from fewstep.schema import preset_names

CPU = torch.device("cpu")
CLASSES = 4
# a teacher, a student of two more players, and a circuit; the others are slow tests
VARIED = {"cifar10-edm", "cifar10-sida", "digits-residual-sum"}
AUTOENCODERS = [n for n in preset_names() if read(n).method_name == "autoencode"]
PRESETS = [
    pytest.param(name, marks=[] if name in VARIED else pytest.mark.slow)
    for name in preset_names()
    if name not in AUTOENCODERS
]
STEPS = {"progressive": 7}
"""Steps of methods with more phases than two."""


def tiny(config):
    """The settings of a network with its sizes made small; the kind of its layers stays."""
    if isinstance(config, UNetConfig):
        return replace(config, channels=(8, 8), layers=1, attention=(4,), groups=4, head_dim=None)
    if isinstance(config, EDMUNetConfig):
        sizes = {"width": 8, "channels": (8, 8), "level_width": 8, "embedding": 16}
        return replace(config, **sizes, layers=1, attention=(4,), groups=4, min_group=2)
    if isinstance(config, CircuitConfig | ResidualsConfig):
        state = replace(config.state, channels=8, groups=4)
        return replace(config, network=tiny(config.network), state=state)
    assert config is None
    return None


HALVING = Convolutional(latent_channels=2, channels=(8,), groups=4)
"""An autoencoder of latents with 4x4 values."""


def without_weights_of_others(config):
    """The settings of a method with squared errors in place of perceptual distances."""
    settings = {f.name: getattr(config, f.name) for f in fields(config)}
    return replace(
        config,
        **{k: SquaredError() for k, v in settings.items() if isinstance(v, Lpips | Features)},
    )


def random_images(name):
    """Forty random images with the channels of the set `name`; CelebA has no classes."""
    generator = torch.Generator().manual_seed(len(name))
    channels = 3 if name in ("cifar10", "celeba") else 1
    images = torch.randint(256, (40, channels, 8, 8), generator=generator, dtype=torch.uint8)
    return ImageSet(name, images, None if name == "celeba" else torch.arange(40) % CLASSES)


def randomise(module, seed=0):
    """New initial weights draw no class: their last layers are zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weights in module.parameters():
            weights.add_(0.05 * torch.randn(weights.shape, generator=generator))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made(name)` is the small recipe of a preset, after its teachers and pairs were made."""
    folder, recipes = tmp_path_factory.mktemp("presets"), {}

    def network(address):
        """The folder of an untrained teacher."""
        place = folder / re.sub(r"\W", "-", address)
        if place.exists():
            return place
        if address.startswith("diffusers:"):
            built = tiny(UNetConfig()).build(shape=(3, 8, 8))
            denoiser = Denoiser(built, LinearBetas(), Eps())
            generator, table = Generator(denoiser, SampleSpec((3, 8, 8))), None
        else:
            recipe = make(address.removeprefix("runs/"))
            assembly, table = assemble(recipe, CPU), recipe.table()
            generator = assembly.method.generator().replace(decoder=assembly.decoder)
        randomise(generator)
        place.mkdir()
        runs.save_generator(place / "model.safetensors", generator, table, {})
        return place

    def pairs(recipe, teacher):
        """The folder of what that teacher recorded."""
        place = folder / f"{teacher.name}-recorded"
        if not place.exists():
            generator, settings = runs.load(teacher), {"steps": 2}
            if isinstance(generator.step, Ring):
                chunks = recipe.student.backbone.chunks
                settings = {"steps": max(generator.grid.counts), "chunks": chunks}
            else:
                generator = generator.with_sampler(step=Transfer())
            hash = runs.network_hash(generator)
            for _ in record(generator, place, Recording(16, **settings), teacher=hash):
                pass
        return place

    def make(name):
        if name in recipes:
            return recipes[name]
        recipe = read(name)
        student = replace(recipe.student, backbone=tiny(recipe.student.backbone))
        if student.init not in ("teacher", "scratch"):
            student = replace(student, init=str(network(student.init)))
        steps = STEPS.get(recipe.method_name, 2)
        small = {"steps": steps, "batch": 8, "micro_batch": 0, "save_every": 1}
        recipe = replace(
            recipe,
            student=student,
            method=without_weights_of_others(recipe.method),
            fit=replace(recipe.fit, **small, compile=False, adapt=1),
            evaluate=replace(recipe.evaluate, every=0, steps=(min(*recipe.evaluate.steps, 8),)),
        )
        if recipe.data.autoencoder:
            path = folder / "autoencoder.safetensors"
            save_autoencoder(path, Autoencoder(HALVING, (3, 8, 8)), None, {})
            recipe = replace(recipe, data=replace(recipe.data, autoencoder=str(path), latents=None))
        if recipe.teacher:
            teacher = network(recipe.teacher.load)
            recipe = replace(recipe, teacher=replace(recipe.teacher, load=str(teacher)))
            if recipe.pairs:
                recipe = replace(recipe, pairs=PairsConfig(str(pairs(recipe, teacher))))
        recipes[name] = recipe
        return recipe

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fewstep.data.load", lambda name, **_: random_images(name))
        yield make


def train(recipe, folder, until=None):
    with closing(run_recipe(recipe, folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


# a training of two steps is too short for averages and schedules, and says so
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_resumes_samples_and_scores(made, name, tmp_path):
    recipe = made(name)
    train(recipe, tmp_path / "once")
    train(recipe, tmp_path / "twice", until=1)
    train(recipe, tmp_path / "twice")
    files = [tmp_path / run / "model.safetensors" for run in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    generator, images = runs.load(tmp_path / "once"), random_images(recipe.data.name)
    steps = generator.nearest(recipe.evaluate.steps[0], quietly=True)
    samples = generator(noise_from_seeds(range(4), generator.spec.shape), steps=steps)
    assert samples.isfinite().all()
    measure = protocol("quick").with_settings(samples=8, extractor="pixels")
    score = Evaluator(images, measure).score(generator, steps=steps)
    assert score.frechet >= 0 and score.steps == steps


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_preset_of_an_autoencoder_trains_and_resumes(name, tmp_path, monkeypatch):
    monkeypatch.setattr("fewstep.data.load", lambda name, **_: random_images(name))
    recipe = read(name, ["fit.steps=2", "fit.batch=8", "fit.save_every=1"])
    method = without_weights_of_others(recipe.method)
    method = replace(method, network=replace(method.network, channels=(8, 8)))
    recipe = replace(recipe, method=method)
    train(recipe, tmp_path / "once")
    train(recipe, tmp_path / "twice", until=1)
    train(recipe, tmp_path / "twice")
    files = [tmp_path / run / "model.safetensors" for run in ("once", "twice")]
    assert files[0].read_bytes() == files[1].read_bytes()
    images = from_uint8(random_images(recipe.data.name).images)
    autoencoder = load_autoencoder(files[0])
    assert autoencoder(images).shape == images.shape


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", PRESETS)
def test_what_a_preset_samples_by_is_trained(made, name):
    """A class that gets no gradient is sampled and scored with random weights."""
    method = assemble(made(name), CPU).method
    if not method.spec.classes:
        return
    randomise(method.student)
    batches = assemble(made(name), CPU).batches
    for step in range(3):
        (batch,) = batches.step(step)
        for occurrence, turn in enumerate(method.turns(step)):
            batch.begin(turn.player, occurrence)
            if turn.player == "student":
                method.players["student"].requires_grad_(True)
                turn.loss(batch).value.backward()
    tables = [
        module.class_embedding.weight.grad
        for module in method.student.modules()
        if getattr(module, "class_embedding", None) is not None
    ]
    assert tables
    for gradient in tables:
        assert gradient is not None and gradient[: method.spec.classes].abs().sum() > 0


@pytest.mark.parametrize("name", preset_names())
def test_published_scores_say_what_was_measured(name):
    """Of which network, with or without classes, after which training, by which protocol."""
    for published in read(name).about.published:
        method, network, data, training = published.name.split("; ")
        assert method and network
        assert data in ("unconditional", "class-conditional")
        assert re.search(r"step|images|epochs|not stated", training)
        assert re.match(r"FID: [\d,]+ samples against .*, Inception", published.protocol)
        assert re.search(r"arXiv:\d{4}\.\d{5}|^the README of ", published.source)
