"""EDM's augmentation in training: its labels reach the networks, and samples have none."""

from contextlib import closing

import pytest
import torch

import fewstep
from fewstep import runs
from fewstep.assembly import assemble
from fewstep.backbones import (
    EDMUNetConfig,
    UNetConfig,
    unet,
    with_augmentation,
    without_augmentation,
)
from fewstep.batching import Batches, ImageStream
from fewstep.condition import Condition
from fewstep.data.augment import Augmentation
from fewstep.errors import InputError
from fewstep.export.source import load_source
from fewstep.planning import plan_recipe
from fewstep.recipe import parse, read
from fewstep.runner import run_recipe
from fewstep.sample_spec import SampleSpec
from fewstep.schema import read_table

CPU = torch.device("cpu")
UNET = UNetConfig(channels=(8,), layers=1, attention=(), groups=4, middle_attention=False)
EDM_UNET = EDMUNetConfig(
    width=8, channels=(8,), layers=1, attention=(), level_width=8, embedding=16
)
TINY = [
    'student.backbone={name="unet", channels=[8], layers=1, attention=[], groups=4, pace=0.02}',
    *("fit.steps=4", "fit.batch=12", "fit.warmup=0", "fit.save_every=2", "data.augment=0.5"),
]


def train(folder, name="digits-flow", *more, until=None):
    with closing(run_recipe(read(name, more), folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A run that was trained on augmented images."""
    folder = tmp_path_factory.mktemp("augmented")
    train(folder / "run", "digits-flow", *TINY)
    return folder / "run"


def batches(augmentation, batch=10, seed=0):
    images = torch.randint(
        256, (40, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    streams = {"images": ImageStream(images, torch.arange(40) % 3, flip=True)}
    spec = SampleSpec((1, 8, 8), 3)
    return Batches(streams, spec, batch=batch, seed=seed, augmentation=augmentation)


def images(batches, step, micro=0):
    parts = [batch.images for batch in batches.step(step, micro)]
    return [
        torch.cat(column)
        for column in zip(
            *((part.x0, part.cond.label, part.cond.augment_labels) for part in parts), strict=True
        )
    ]


def test_rows_depend_on_seed_and_step_and_not_on_micro_batches():
    whole = [images(batches(Augmentation(0.5)), step) for step in (0, 1)]
    again = batches(Augmentation(0.5))
    for step in (1, 0, 1):
        for micro in (0, 3):
            for part, expected in zip(images(again, step, micro), whole[step], strict=True):
                assert torch.equal(part, expected)
    assert not whole[0][2].equal(whole[1][2])
    assert not whole[0][2].equal(images(batches(Augmentation(0.5), seed=1), 0)[2])


def test_without_augmentation_rows_are_the_old_ones_bit_for_bit():
    plain = batches(None).step(0)[0].images
    assert plain.cond.augment_labels is None
    x0, label, labels = images(batches(Augmentation(1e-9, ("y-flip",))), 0)
    assert x0.equal(plain.x0) and label.equal(plain.cond.label) and not labels.any()


def test_images_of_a_turn_are_augmented_alike_in_micro_batches():
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    columns = []
    for micro in (0, 4):
        parts = []
        for batch in batches(Augmentation(0.5)).step(0, micro):
            batch.begin("fake", 0)
            rows, cond = batch.augment(x[batch.first : batch.first + batch.rows], None)
            assert cond.label is None
            parts.append((rows, cond.augment_labels))
        columns.append([torch.cat(column) for column in zip(*parts, strict=True)])
    assert all(torch.equal(one, many) for one, many in zip(*columns, strict=True))
    assert columns[0][1].any() and not columns[0][0].equal(x)
    (batch,) = batches(None).step(0)
    assert batch.augment(x, None) == (x, None)


@pytest.mark.parametrize("config", [UNET, EDM_UNET])
@pytest.mark.parametrize("classes", [0, 3])
def test_a_network_gets_an_input_for_the_labels(config, classes):
    net = config.build(shape=(1, 8, 8), classes=classes)
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    x, level = torch.randn(2, 2, 1, 8, 8)[0], torch.tensor([3.0, 400.0])
    label = torch.tensor([0, -1]) if classes else None
    labels = torch.randn(2, 9)
    plain = None if label is None else Condition(label)
    augmented = with_augmentation(net)
    expected = net(x, level, cond=plain)
    torch.testing.assert_close(augmented(x, level, cond=Condition(label, labels)), expected)
    with torch.no_grad():
        augmented.augment_embedding.weight += 0.5
    assert not augmented(x, level, cond=Condition(label, labels)).allclose(expected, atol=1e-3)
    features = augmented.features(x, level, cond=Condition(label, labels))
    assert not features[-1].allclose(augmented.features(x, level, cond=plain)[-1], atol=1e-3)
    torch.testing.assert_close(augmented(x, level, cond=Condition(label, 0 * labels)), expected)
    torch.testing.assert_close(without_augmentation(augmented)(x, level, cond=plain), expected)
    assert augmented.config.augmented and with_augmentation(augmented) is augmented
    with pytest.raises(ValueError, match="build it with augmented = True"):
        net(x, level, cond=Condition(label, labels))


def test_a_stopped_run_of_images_without_classes_ends_in_the_same_bytes(tmp_path):
    recipe = ("digits-flow", *TINY, "data.labels=false", "fit.micro_batch=5")
    train(tmp_path / "whole", *recipe)
    train(tmp_path / "parts", *recipe, until=3)
    train(tmp_path / "parts", *recipe)
    whole, parts = (
        (tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")
    )
    assert whole == parts
    initial = assemble(read(*recipe[:1], recipe[1:]), CPU).method.student.backbone
    trained = runs.load(tmp_path / "whole").denoiser.backbone
    change = trained.augment_embedding.weight - initial.augment_embedding.weight
    assert change.abs().min() > 0  # every label had a gradient


def test_samples_have_no_labels_and_exports_no_input_for_them(teacher):
    generator = fewstep.load(teacher)
    noise, label = torch.randn(3, 1, 8, 8), torch.tensor([0, 5, -1])
    with torch.no_grad():
        plain = generator(noise, steps=2, cond=Condition(label))
        zeros = generator(noise, steps=2, cond=Condition(label, torch.zeros(3, 9)))
        exported = load_source(teacher, guidance=2.0)
        twice = exported.generator(noise, steps=2, cond=Condition(label))
        guided = generator.with_guidance(2.0)(noise, steps=2, cond=Condition(label))
    assert plain.equal(zeros) and twice.equal(guided)
    assert exported.weights_hash == runs.weights_hash(generator.with_guidance(2.0))
    state = exported.generator.state_dict()
    assert not any("augment" in name for name in state)


FEW = ["fit.steps=2", "fit.batch=6", "fit.warmup=0", "evaluate.every=0", "data.augment=0.5"]
SLOW = pytest.mark.slow
METHODS = [
    pytest.param("digits-consistency", [], marks=SLOW),
    pytest.param("digits-cd", [], marks=SLOW),
    pytest.param("digits-scm", []),
    pytest.param("digits-meanflow", ["data.augment_kinds=['x-flip', 'scale', 'translation']"]),
    pytest.param("digits-progressive", ["method.phases=[2]", "method.last=8"], marks=SLOW),
    pytest.param("digits-sid", [], marks=SLOW),
    pytest.param("digits-sida", []),
    pytest.param("digits-dmd2", [], marks=SLOW),
]


@pytest.mark.parametrize(("name", "settings"), METHODS)
def test_methods_train_on_augmented_images(teacher, tmp_path, name, settings, monkeypatch):
    inputs, embed = set(), unet.embed_with_prompts

    def record_inputs(net, x, level, level_s, cond):
        inputs.add((net.training, cond is not None and cond.augment_labels is not None))
        return embed(net, x, level, level_s, cond)

    monkeypatch.setattr(unet, "embed_with_prompts", record_inputs)
    network = [f"teacher.load={teacher}"] if "teacher" in read_table(name) else TINY[:1]
    train(tmp_path / "run", name, *FEW, *network, *settings)
    assert (True, True) in inputs
    generator = fewstep.load(tmp_path / "run")
    assert generator.denoiser.backbone.config.augmented


def test_networks_that_cannot_take_the_labels_are_refused(teacher, tmp_path):
    train(tmp_path / "plain", "digits-flow", *TINY, "data.augment=0")
    cases = [
        (["digits-flow", 'student.backbone={name="mlp"}'], "which mlp does not: set data.augment="),
        (["digits-circuit"], "which circuit does not: set data.augment=0"),
        (["digits-sid", f"teacher.load={tmp_path}/plain"], "was trained without this augmentation"),
    ]
    for (name, *settings), message in cases:
        with pytest.raises(InputError, match=message):
            assemble(read(name, [*settings, "data.augment=0.12"]), CPU)
    for value in ("-0.1", "1.5"):
        with pytest.raises(InputError, match="it must be a number from 0 to 1"):
            read("digits-flow", [f"data.augment={value}"])
    with pytest.raises(InputError, match="augment_kinds"):
        read("digits-flow", ["data.augment_kinds=['twirl']"])


def test_methods_without_images_to_augment_are_refused(teacher):
    recipe = read("digits-sfd", [f"teacher.load={teacher}", "data.augment=0.12"])
    message = "data.augment is 0.12, but Sfd trains on no real images"
    with pytest.raises(InputError, match=message):
        assemble(recipe, CPU)
    (problem,) = plan_recipe(recipe).problems
    assert message in problem


def test_a_copied_network_without_the_input_gets_one(tmp_path):
    train(tmp_path / "plain", "digits-flow", *TINY, "data.augment=0")
    recipe = read("digits-flow", ["data.augment=0.12"])
    table = recipe.table()
    table["student"] = {"init": f"{tmp_path}/plain"}
    student = assemble(parse(table), CPU).method.student
    source = fewstep.load(tmp_path / "plain").denoiser
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.9])
    assert student.backbone.config.augmented
    torch.testing.assert_close(student(x, t).output, source(x, t).output)
