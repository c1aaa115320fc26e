"""Networks compute float32 products in float32, or in TF32 if asked, whatever the process does."""

import threading

import pytest
import torch
from torch import nn

from fewstep import metrics
from fewstep.backbones import UNetConfig
from fewstep.batching import Batches, ImageStream
from fewstep.denoiser import Denoiser
from fewstep.generator import Generator
from fewstep.methods.base import Task
from fewstep.methods.denoise import Denoise, DenoiseConfig
from fewstep.optimizers import FitConfig
from fewstep.parametrization import Velocity
from fewstep.precision import bf16_is_slow, float32_products
from fewstep.process import Flow
from fewstep.sample_spec import SampleSpec
from fewstep.trainer import Training

SPEC = SampleSpec((1, 4, 4))
NET = UNetConfig(channels=(4,), layers=1, attention=(), middle_attention=False, groups=2)
IEEE, TF32 = ["ieee"] * 5, ["tf32"] * 5


def switches():
    """What PyTorch does with float32 in convolutions and products, by its newer switches."""
    cudnn, onednn = torch.backends.cudnn, torch.backends.mkldnn
    operations = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul, onednn.conv, onednn.matmul)
    return [operation.fp32_precision for operation in operations]


def older_switches():
    """The same by its older switches, which `torch.compile` reads; they raise if both disagree."""
    return torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()


@pytest.fixture(params=["default", "matmul", "newer"])
def process(request):
    """A process with PyTorch's defaults, or one that allows TF32 in either of two ways."""
    before = switches()
    if request.param == "matmul":
        torch.set_float32_matmul_precision("high")
    elif request.param == "newer":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield request.param
    torch.set_float32_matmul_precision("highest")
    for operation, setting in zip(
        (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul),
        (before[2], before[4]),
        strict=True,
    ):
        operation.fp32_precision = setting


@pytest.mark.parametrize(
    ("precision", "wanted", "older"),
    [
        ("f32", IEEE, (False, "highest")),
        ("tf32", TF32, (True, "high")),
        ("bf16", IEEE, (False, "highest")),
    ],
)
def test_switches_are_set_inside_and_restored_after(process, precision, wanted, older):
    before = switches()
    if process == "default":
        assert before[0] == "tf32"  # PyTorch's default for convolutions, which f32 must undo
    with float32_products(precision):
        assert switches() == wanted and older_switches() == older
        with float32_products("f32"):
            assert switches() == IEEE
        assert switches() == wanted
    assert switches() == before
    with pytest.raises(ZeroDivisionError), float32_products(precision):
        _ = 1 / 0
    assert switches() == before


def test_a_thread_that_ends_leaves_the_switches_of_another():
    before, found = switches(), []
    events = [threading.Event() for _ in range(3)]

    def first():
        with float32_products():
            events[0].set()
            events[1].wait(10)
        events[2].set()

    thread = threading.Thread(target=first)
    thread.start()
    events[0].wait(10)
    with float32_products():
        events[1].set()
        assert events[2].wait(10)
        found.append(switches())
    thread.join()
    assert found == [IEEE] and switches() == before


class Watch(nn.Module):
    """Notes the switches under which it computes, forwards and backwards."""

    def __init__(self):
        super().__init__()
        self.log = []

    def forward(self, x):
        self.log.append(switches())
        if x.requires_grad:
            x.register_hook(lambda _: self.log.append(switches()))
        return x


def denoiser(precision="f32"):
    backbone = NET.build(shape=SPEC.shape, classes=0)
    watch = Watch()
    backbone.register_module("watch", watch)
    backbone.register_forward_hook(lambda _, inputs, output: watch(output))
    return Denoiser(backbone, Flow(), Velocity(), precision=precision), watch.log


@pytest.mark.parametrize(("precision", "wanted"), [("f32", IEEE), ("tf32", TF32)])
def test_samples_and_paths_are_computed_in_the_precision_of_the_generator(
    process, precision, wanted
):
    network, log = denoiser()
    generator = Generator(network, SPEC).eval().with_precision(precision)
    before, noise = switches(), torch.randn(2, *SPEC.shape)
    with torch.no_grad():
        generator(noise, steps=2)
        for _ in generator.path(noise, steps=2):
            assert switches() == before  # a suspended path leaves the process as it was
    assert log == [wanted] * 4
    assert switches() == before


@pytest.mark.parametrize("precision", ["f32", "tf32", "bf16"])
def test_training_computes_both_passes_in_its_precision(precision):
    network, log = denoiser()
    images = ImageStream(torch.randn(8, *SPEC.shape), None)
    batches = Batches({"images": images}, SPEC, batch=4, seed=0)
    method = Denoise(DenoiseConfig(), Task(network, SPEC))
    config = FitConfig(steps=1, batch=4, precision=precision)
    training, before = Training(method, batches, config), switches()
    training.advance()
    assert log == [TF32 if precision == "tf32" else IEEE] * 2  # forwards, backwards
    assert switches() == before
    log.clear()
    with torch.no_grad():
        training.generator()(torch.randn(1, *SPEC.shape))
    assert training.generator().denoiser.precision == "f32"


def test_features_are_computed_in_float32(process):
    class Probe(metrics.Extractor):
        name = hash = "probe"

        def extract(self, images):
            log.append(switches())
            return metrics.ExtractorOutput(images.flatten(1))

    log, before = [], switches()
    Probe()(torch.zeros(300, 1, 2, 2, dtype=torch.uint8))
    assert log == [IEEE] * 2 and switches() == before


def test_compiling_reads_the_switches_that_are_set():
    """torch.compile raises if PyTorch's older switches contradict the newer ones."""
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    for precision in ("f32", "tf32"):
        torch.compiler.reset()
        with float32_products(precision), torch.no_grad():
            found = torch.compile(layer, backend="eager")(x)
            torch.testing.assert_close(found, layer(x))


def test_processors_without_bfloat16_are_warned_about(monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert bf16_is_slow()
    network, _ = denoiser()
    batches = Batches({"images": ImageStream(torch.randn(8, 1, 4, 4), None)}, SPEC, batch=4, seed=0)
    method = Denoise(DenoiseConfig(), Task(network, SPEC))
    with pytest.warns(UserWarning, match='fit.precision is bf16.*"f32"'):
        Training(method, batches, FitConfig(steps=4, batch=4, precision="bf16"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert not bf16_is_slow()
