"""`fewstep evaluate RUN --likelihood`, as a person meets it."""

import json
import math
from dataclasses import replace

import pytest
import torch

from analytic import exact
from fewstep import runs
from fewstep.abilities import why_no_likelihood
from fewstep.cli import main
from fewstep.comparison import make_exhibit
from fewstep.data import ImageSet
from fewstep.errors import InputError
from fewstep.evaluation import exhaust
from fewstep.generator import Generator
from fewstep.likelihood_score import (
    LEVEL_BITS,
    LikelihoodSettings,
    dequantize,
    iter_likelihood,
    stored_likelihoods,
)
from fewstep.loading import load_run
from fewstep.noise import RowNoise
from fewstep.parametrization import Velocity
from fewstep.process import Flow
from fewstep.report import results
from fewstep.report.exhibits import style_exhibits
from fewstep.run_folder import Run
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Renoise

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
    "fit.steps=3",
    "evaluate.every=0",
]
QUICK = ["--likelihood", "--samples", "4", "--tolerance", "0.01"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    out = tmp_path_factory.mktemp("likelihood") / "teacher"
    assert main(["train", "digits-flow", *TINY, "--out", str(out)]) == 0
    return str(out)


def fails(capsys, *argv):
    capsys.readouterr()
    assert main(list(argv)) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fewstep: ")
    return line


def test_levels_have_intervals_around_their_values():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 256).repeat(500, 1)
    u = (dequantize(levels, RowNoise(range(500))).double() + 1) * 127.5 - levels
    assert u.min() < -0.499 and u.max() < 0.501 and u.max() > 0.499
    assert u.mean().abs() < 5 * math.sqrt(1 / 12 / u.numel())
    assert u.var().item() == pytest.approx(1 / 12, rel=0.02)
    again = dequantize(levels[:1], RowNoise([3]))
    assert torch.equal(again[0], dequantize(levels, RowNoise(range(500)))[3])


def test_bits_are_those_of_the_probabilities_of_levels():
    """Of pixels whose values have a known Gaussian, each level has the share of its interval."""
    shape, generator = (1, 2, 2), gaussian()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        values = 0.3 + 0.5 * torch.randn(300, *shape, dtype=torch.float64)
    levels = ((values + 1) * 127.5).round().clamp(0, 255)
    images = ImageSet("gaussian", levels.to(torch.uint8))
    # the Jacobian is diagonal, so that one probe of signs gives the exact divergence
    settings = LikelihoodSettings(batch=200, probes=1)
    score = exhaust(iter_likelihood(generator, images, settings, split="train"))
    normal = torch.distributions.Normal(torch.tensor(0.3).double(), torch.tensor(0.5).double())
    upper, lower = ((levels + half) / 127.5 - 1 for half in (0.5, -0.5))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:200]
    bits = -(normal.cdf(upper) - normal.cdf(lower)).log2().flatten(1).mean(1)[order]
    # the noise of dequantisation changes ln p by about (x − mean)/spread²/(127.5·√12)
    assert score.bits == pytest.approx(bits.mean().item(), abs=1e-3)
    spread = 1.96 * bits.std().item() / math.sqrt(200)
    assert score.high - score.bits == pytest.approx(spread, rel=0.02)
    assert (score.samples, score.condition) == (200, "none")
    assert LEVEL_BITS == math.log2(127.5)


def test_it_is_measured_once_and_shown_by_all(teacher, capsys):
    argv = ["evaluate", teacher, *QUICK]
    assert main([*argv, "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["samples"], score["split"], score["condition"]) == (4, "train", "class")
    assert (score["probes"], score["tolerance"], score["end_ratio"]) == (1, 0.01, 0.002)
    assert score["low"] < score["bits"] < score["high"]
    assert main(argv) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"{score['bits']:.3f} bits per dimension (95 % interval {score['low']:.3f}" in text
    assert "4 images of the split train of digits (1797, " in text and "given the class" in text
    lines = [line for line in Run(teacher).scores() if "likelihood" in line]
    assert [line["likelihood"] for line in lines] == [score]
    exhibit = make_exhibit(load_run(teacher), [])
    assert [stored.table() for stored in exhibit.likelihoods] == [score]
    page = results.likelihoods(style_exhibits([exhibit]))
    assert f"<td>{score['bits']:.3f} <small" in page and "split train of digits" in page
    assert main(["doctor", teacher]) == 0
    capsys.readouterr()
    assert main([*argv, "--probes", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probes"] == 2
    Run(teacher).append_score({"version": "0.0.1", "likelihood": {"of another version": 1}})
    assert len(stored_likelihoods(teacher, runs.load(teacher))) == 2


def gaussian(classes=()):
    spec = SampleSpec((1, 2, 2), len(classes), classes)
    return Generator(exact(Flow(), Velocity(Flow()), spec.shape), spec)


def bits(generator, images, **settings):
    settings = LikelihoodSettings(**settings)
    return exhaust(iter_likelihood(generator, images, settings, split="train")).bits


def test_an_image_has_its_own_noise():
    """The mean of two images is that of each alone, within the tolerance."""
    images = ImageSet("bright", torch.full((2, 1, 2, 2), 250, dtype=torch.uint8))
    together = bits(gaussian(), images, batch=2, probes=1)
    assert bits(gaussian(), images, batch=1, probes=1) == pytest.approx(together, abs=2e-4)
    assert bits(gaussian(), images) == pytest.approx(
        together, abs=2e-4
    )  # exact up to 16 dimensions
    assert bits(gaussian(), images, batch=2, probes=1, seed=1) != pytest.approx(together, abs=4e-4)


def test_images_without_the_conditions_of_the_network_are_refused():
    images = ImageSet("plain", torch.zeros(2, 1, 2, 2, dtype=torch.uint8))
    with pytest.raises(InputError, match="differ .there are 2 and 0.: name a set of the same"):
        bits(gaussian(("a", "b")), images)
    others = replace(images, labels=torch.tensor([0, 1]), class_names=("b", "a"))
    with pytest.raises(InputError, match="class 0 is 'a' and 'b'"):
        bits(gaussian(("a", "b")), others)
    with pytest.raises(InputError, match="have shape .1, 2, 2., but those of wide have .1, 2, 3."):
        bits(gaussian(), ImageSet("wide", torch.zeros(2, 1, 2, 3, dtype=torch.uint8)))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--probes", "3"], "--probes is for --likelihood, which is missing"),
        (["--likelihood", "--probes", "few"], "--probes is 'few': it must be a number of probes"),
        (["--likelihood", "--probes", "0"], "--probes is 0; it must be an integer from 1"),
        (["--likelihood", "--tolerance", "0.5"], "--tolerance is 0.5; it must be a number from"),
        (["--likelihood", "--straightness"], "are two measures: give one of them"),
        (["--likelihood", "--precision", "bf16"], "--precision bf16 is too coarse"),
        (["--likelihood", "--sampler", "no"], "--sampler no has no effect on a likelihood: leave"),
        (["--likelihood", "--caption-split", "test"], "--caption-split test has no effect on a"),
        (["--likelihood", "--guidance", "2"], "it is guided"),
        (["--likelihood", "--split", "test"], "digits has no split 'test'"),
    ],
)
def test_what_does_not_fit_is_refused(teacher, capsys, argv, message):
    assert message in fails(capsys, "evaluate", teacher, *argv)


def test_students_are_refused(capsys):
    line = fails(capsys, "evaluate", "fewstep:digits", "--likelihood")
    assert "trains a student, whose velocity is not that of a flow" in line
    assert line.endswith("such as a run of the method denoise")
    network, spec = gaussian().denoiser, gaussian().spec
    assert why_no_likelihood(Generator(network, spec), None) == ""
    assert "consistency model" in why_no_likelihood(Generator(network, spec, step=Renoise()), None)
    flow_map = network.replace(is_flow_map=True)
    assert "flow map" in why_no_likelihood(Generator(flow_map, spec), None)
    assert why_no_likelihood(Generator(network, spec), {"method": {"name": "reflow"}}) == ""
    for method in ("consistency", "kstep", "dmd", "circuit", "meanflow", "progressive", "a.b:C"):
        assert why_no_likelihood(Generator(network, spec), {"method": {"name": method}})
