"""`--to diffusers`: images by diffusers alone equal ours, and the folder is the same network."""

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import fewstep
from exporting import (
    CAPTIONS,
    TEXT_TINY,
    UNET,
    OtherText,
    point_generator,
    text_generator,
    unet_generator,
)
from fewstep import runs
from fewstep.backbones import EDMUNetConfig
from fewstep.condition import Condition
from fewstep.drawing import generate_values
from fewstep.errors import InputError
from fewstep.export.base import export
from fewstep.export.diffusers import DiffusersExport
from fewstep.export.precision import round_weights
from fewstep.export.source import Source
from fewstep.parametrization import EDM, Clean, Eps, V
from fewstep.pretrained.betas import Betas
from fewstep.process import VE, VP, Cosine, LinearBetas, Table
from fewstep.sampling import Ancestral, Corrector, Heun, Multistep, Renoise, Transfer
from fewstep.spacing import TableGrid
from fewstep.times import FixedGrid, KarrasGrid

PLAIN = replace(UNET, pace=1.0)
SMALL = replace(UNET, channels=(8,), attention=(), middle_attention=False)
COSINE_TABLE = Betas(100, beta_schedule="squaredcos_cap_v2").process()
LISTED = Table(tuple(torch.linspace(0.99, 0.01, 50).tolist()))
TABLE = TableGrid()
EXAMPLE = Path(__file__).parents[2] / "examples" / "export" / "diffusers_alone.py"


@pytest.fixture(scope="module", autouse=True)
def quiet_diffusers(tmp_path_factory):
    """No bars and notes, and a folder of its own for the code that diffusers copies."""
    from diffusers.utils import dynamic_modules_utils, logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with pytest.MonkeyPatch.context() as patch:
        folder = str(tmp_path_factory.mktemp("modules"))
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", folder)
        yield
    logging.set_verbosity(level)
    if bars:
        logging.enable_progress_bar()


def write(generator, folder, *steps, **settings):
    """Export, and return the record."""
    name = settings.pop("name", "run")
    hash = runs.weights_hash(generator)
    source = Source(name, generator, steps, hash, **settings)
    return export(DiffusersExport(), source, folder, target="diffusers")


def pipeline_of(folder, **options):
    from diffusers import DiffusionPipeline

    pipeline = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pixels(images):
    return (images.clamp(-1, 1) + 1) / 2


def plain(process, kind, step, **options):
    """An unconditional generator with the standard times of its process."""
    return unet_generator(
        process=process, parametrization=kind(), step=step, classes=0, config=PLAIN, **options
    )


@pytest.mark.parametrize(
    ("generator", "steps"),
    [
        (plain(LinearBetas(), Eps, Transfer(clip=1.0), grid=TABLE), (1, 4)),
        (plain(LinearBetas(), Eps, Transfer(), grid=TableGrid(spacing="trailing")), (2, 5)),
        (plain(LinearBetas(), Eps, Transfer(clip=1.0)), (1,)),
        (plain(LinearBetas(), Clean, Transfer(clip=0.8), grid=TABLE), (4,)),
        (plain(COSINE_TABLE, Eps, Transfer(clip=1.0), grid=TableGrid(100)), (4,)),
        (plain(LISTED, V, Transfer(clip=1.0), grid=TableGrid(50)), (5,)),
        (plain(VP(), Eps, Transfer(clip=1.0)), (4,)),
        (plain(VP(), Clean, Transfer()), (1,)),
        (plain(Cosine(), Clean, Transfer()), (5,)),
    ],
)
def test_a_stock_pipeline_takes_our_steps(generator, steps, tmp_path):
    from diffusers import DDIMPipeline

    record = write(generator, tmp_path / "out", *steps)
    assert record["checks"]["pipeline"] == "DDIMPipeline"
    pipeline = DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    for count in steps:
        draw = torch.Generator()
        theirs = pipeline(
            3, generator=draw.manual_seed(5), num_inference_steps=count, output_type="pt"
        ).images
        start = torch.randn(3, 1, 8, 8, generator=draw.manual_seed(5))
        t = float(generator.grid(count, generator.denoiser)[0])
        scale = generator.denoiser.process.sigma(torch.tensor(t, dtype=torch.float64)).item()
        scale *= generator.grid.start_scale(t, generator.denoiser)
        ours = pixels(generator(start / scale, steps=count))
        assert ours.std() > 0.1
        assert (theirs - ours).abs().max() <= 1e-4
        key = f"largest difference in {count} step{'s' * (count > 1)}"
        assert record["checks"][key] <= 1e-4


@pytest.mark.parametrize(("variance", "large"), [("posterior", False), ("large", True)])
def test_ddpm_is_the_ancestral_sampler(variance, large, tmp_path):
    generator = plain(LinearBetas(), Eps, Ancestral(variance, clip=1.0), grid=TABLE)
    record = write(generator, tmp_path / "out", 5)
    assert record["checks"]["pipeline"] == "DDPMPipeline"
    scheduler = json.loads((tmp_path / "out/scheduler/scheduler_config.json").read_text())
    assert scheduler["variance_type"] == ("fixed_large" if large else "fixed_small")
    pipeline = pipeline_of(tmp_path / "out")
    noise = iter(torch.randn(5, 3, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    x = first = next(noise)
    pipeline.scheduler.set_timesteps(5)
    draws = torch.Generator().manual_seed(2)
    for t in pipeline.scheduler.timesteps:
        output = pipeline.unet(x, t).sample
        x = pipeline.scheduler.step(output, t, x, generator=draws).prev_sample
    ours = sample_with(generator, first, torch.Generator().manual_seed(2))
    assert (pixels(x) - pixels(ours)).abs().max() <= 1e-4


def sample_with(generator, x, draws):
    """A sample of 5 steps from the state x, with the fresh noise of a torch generator."""
    from fewstep.noise import RowNoise
    from fewstep.sampling import StepContext, iterate

    class Noise(RowNoise):
        def __init__(self):
            pass

        def like(self, x):
            return torch.randn(x.shape, generator=draws)

    times = generator.grid(5, generator.denoiser).tolist()
    *_, image = iterate(generator.step, StepContext(generator.denoiser, None, Noise()), x, times)
    return image


OTHERS = {
    "uniform": (plain(LinearBetas(), Eps, Transfer(clip=1.0)), (3,)),
    "heun": (plain(LinearBetas(), Eps, Heun(clip=1.0), grid=TABLE), (3,)),
    "multistep": (plain(VP(), V, Multistep()), (3,)),
    "eta": (plain(LinearBetas(), Eps, Ancestral(eta=0.5, clip=1.0), grid=TABLE), (4,)),
    "edm": (
        unet_generator(
            process=VE(), parametrization=EDM(), grid=KarrasGrid(), step=Heun(), classes=0
        ),
        (2,),
    ),
    "classes": (unet_generator(step=Renoise(clip=1.0)), (1, 3)),
    "flow map": (unet_generator(flow_map=True, config=SMALL), (1, 2)),
}


@pytest.mark.slow
def test_networks_that_diffusers_lacks(tmp_path):
    config = EDMUNetConfig(8, (8, 16), 1, (), level_width=8, embedding=16)
    options = {"process": VE(), "parametrization": EDM(), "grid": KarrasGrid()}
    generator = unet_generator(config=config, **options)
    test_our_pipeline_makes_the_same_images_for_the_same_seed(generator, (2,), tmp_path)
    assert (tmp_path / "out" / "unet" / "network.pt2").exists()


@pytest.mark.parametrize(("generator", "steps"), OTHERS.values(), ids=OTHERS)
def test_our_pipeline_makes_the_same_images_for_the_same_seed(generator, steps, tmp_path):
    record = write(generator, tmp_path / "out", *steps)
    assert record["checks"]["pipeline"] == "FewStepPipeline"
    pipeline, classes = pipeline_of(tmp_path / "out"), generator.spec.classes
    for count in steps:
        labels = [2, 0] if classes else None
        batches = generate_values(generator, 3, steps=count, seed=4, labels=labels)
        ours = pixels(torch.cat([images for _, images in batches]))
        options = {"class_labels": [2, 0, 2]} if classes else {}
        theirs = pipeline(3, num_inference_steps=count, seed=4, output_type="pt", **options).images
        assert ours.std() > 0.05
        limit = 1e-3 if generator.denoiser.process == VE() else 1e-4  # it starts at sigma = 80
        assert (theirs - ours).abs().max() <= limit


def test_guidance_and_no_class(tmp_path):
    generator = unet_generator(step=Transfer())
    write(generator.with_guidance(2.5), tmp_path / "out", 2)
    pipeline, noise = pipeline_of(tmp_path / "out"), fewstep.noise_from_seeds([7, 8], (1, 8, 8))
    labels = [1, -1]
    for weight, options in ((2.5, {}), (1.0, {"guidance_scale": 1.0})):
        ours = generator.with_guidance(weight)(noise, steps=2, cond=Condition(torch.tensor(labels)))
        theirs = pipeline(2, class_labels=labels, seed=[7, 8], output_type="pt", **options).images
        assert (theirs - pixels(ours)).abs().max() <= 1e-4


@pytest.mark.slow
def test_prompts(tmp_path):
    generator = text_generator(classes=2, config=TEXT_TINY)
    record = write(generator.with_guidance(2.5, negative="the hat"), tmp_path / "out", 2)
    assert record["checks"]["largest difference in 2 steps"] < 1e-4
    pipeline = pipeline_of(tmp_path / "out")
    assert "text-conditional" in (text := (tmp_path / "out" / "README.md").read_text())
    assert f"prompt={CAPTIONS[0]!r}, seed=0" in text
    prompts, chance = ["A Zebra's 猫 & ﬁ", "", "a red heart \ud800"], random.Random(0)
    prompts += ["".join(chr(chance.randrange(0x110000)) for _ in range(9)) for _ in range(40)]
    rows = len(prompts)
    cond = Condition(torch.arange(rows) % 2, text=generator.spec.text.encode(prompts))
    noise = fewstep.noise_from_seeds(range(rows), (1, 8, 8))
    for weight, negative, options in (
        (2.5, "the hat", {}),
        (3.0, "", {"negative_prompt": "", "guidance_scale": 3.0}),
    ):
        ours = generator.with_guidance(weight, negative=negative)(noise, steps=2, cond=cond)
        options |= {"prompt": prompts, "class_labels": [row % 2 for row in range(rows)]}
        theirs = pipeline(output_type="pt", **options).images
        assert (theirs - pixels(ours)).abs().max() <= 1e-4
    theirs = pipeline(2, prompt="a red heart", class_labels=-1, output_type="pt", guidance_scale=1)
    text = generator.spec.text.encode(["a red heart"] * 2)
    ours = generator(noise[:2], steps=2, cond=Condition(torch.tensor([-1, -1]), text=text))
    assert (theirs.images - pixels(ours)).abs().max() <= 1e-4
    with pytest.raises(ValueError, match="prompt has 2 texts, but batch_size is 3"):
        pipeline(3, prompt=["a", "b"])


def test_weights_are_equal_bit_for_bit_and_read_again(tmp_path):
    from diffusers import UNet2DModel

    for name, generator in {
        "flow": unet_generator(grid=FixedGrid(((1.0,),)), step=Renoise()),
        "betas": plain(LinearBetas(200, 2e-4, 0.03), Eps, Transfer(), grid=TableGrid(200)),
        "table": plain(COSINE_TABLE, V, Heun(), grid=TableGrid(100)),
    }.items():
        record = write(generator, tmp_path / name, 1)
        assert record["checks"]["network read by diffusers:, difference"] == 0
        assert record["checks"]["weights equal bit for bit"] is True
        unet = UNet2DModel.from_pretrained(tmp_path / name / "unet")
        ours = generator.denoiser.backbone.state_dict()
        assert unet.state_dict().keys() == ours.keys()
        assert all(torch.equal(value, ours[key]) for key, value in unet.state_dict().items())
        again = fewstep.load(f"diffusers:{tmp_path / name}")
        assert runs.network_hash(again) == runs.network_hash(generator), name
        assert again.spec.classes == generator.spec.classes


def test_half_precision_is_a_variant(tmp_path):
    exact = unet_generator(step=Transfer())
    rounded = round_weights(exact, "f16")
    write(rounded, tmp_path / "half", 2, dtype="f16")
    write(exact, tmp_path / "full", 2)
    file = "unet/diffusion_pytorch_model{}.safetensors"
    half, full = (
        (tmp_path / name / file.format(part)).stat().st_size
        for name, part in (("half", ".fp16"), ("full", ""))
    )
    assert half < 0.7 * full  # of a small file, a part is names
    pipeline = pipeline_of(tmp_path / "half", variant="fp16")
    ((_, images),) = generate_values(rounded, 3, steps=2)
    assert (pipeline(3, output_type="pt").images - pixels(images)).abs().max() <= 1e-4
    assert 'variant="fp16"' in (tmp_path / "half" / "README.md").read_text()


@pytest.mark.slow
def test_half_precision_of_a_program(tmp_path):
    exact = unet_generator(flow_map=True, config=SMALL)
    rounded = round_weights(exact, "f16")
    write(rounded, tmp_path / "half", 2, dtype="f16")
    program = torch.export.load(tmp_path / "half" / "unet" / "network.pt2")
    types = [value.dtype for value in program.state_dict.values()]
    assert len(types) > 10 and {*types} == {torch.float16}
    ((_, images),) = generate_values(rounded, 3, steps=2)
    pipeline = pipeline_of(tmp_path / "half")
    assert (pipeline(3, output_type="pt").images - pixels(images)).abs().max() <= 1e-4
    assert "variant" not in (tmp_path / "half" / "README.md").read_text()


AUTOGUIDED = unet_generator().with_autoguidance(2.0, unet_generator())


@pytest.mark.parametrize(
    ("generator", "settings", "message"),
    [
        (point_generator(), {}, r"samples of this generator have the shape \(2,\): use --to torch"),
        (AUTOGUIDED, {}, "a pipeline of diffusers cannot have autoguidance"),
        (unet_generator(), {"dtype": "int8"}, "stores f32 or f16, not int8"),
        (text_generator(text=OtherText(), config=TEXT_TINY), {}, "no text encoder"),
        (unet_generator(step=Corrector()), {}, "the sampler corrector computes more than sums"),
    ],
)
def test_what_diffusers_cannot_hold_is_refused(generator, settings, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        write(generator, tmp_path / "out", 2, **settings)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_images_that_differ_are_refused(tmp_path, monkeypatch):
    import diffusers

    real = diffusers.UNet2DModel.forward

    def wrong(self, *inputs, **options):
        (output,) = real(self, *inputs, **options)
        return (output + 0.01,)

    monkeypatch.setattr(diffusers.UNet2DModel, "forward", wrong)
    with pytest.raises(InputError, match=r"in 2 steps differ by 0\.00\d+ .* more than 0\.001"):
        write(unet_generator(), tmp_path / "out", 2)


def test_other_weights_are_refused(tmp_path, monkeypatch):
    import diffusers

    load = diffusers.UNet2DModel.from_pretrained

    def damaged(*words, **options):
        unet = load(*words, **options)
        with torch.no_grad():
            unet.conv_out.bias.add_(1e-6)
        return unet

    monkeypatch.setattr(diffusers.UNet2DModel, "from_pretrained", damaged)
    with pytest.raises(InputError, match="other weights than those that were written"):
        write(unet_generator(), tmp_path / "out", 2)


def test_the_pipeline_refuses_wrong_input(tmp_path):
    write(unet_generator(), tmp_path / "out", 2)
    pipeline = pipeline_of(tmp_path / "out")
    for options, message in (
        ({"class_labels": 3}, "class_labels must be from 0 to 2, or -1"),
        ({"num_inference_steps": 3}, "num_inference_steps is 3; this model has programs of 2"),
        ({"seed": [1, 2]}, "seed has 2 keys, but batch_size is 1"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(**options)
    write(plain(VP(), V, Multistep()), tmp_path / "other", 2)
    with pytest.raises(ValueError, match="no classes: leave class_labels out"):
        pipeline_of(tmp_path / "other")(class_labels=1)
    for options in ({"prompt": "a cat"}, {"negative_prompt": "a cat"}):
        with pytest.raises(ValueError, match="this model takes no text: leave prompt out"):
            pipeline(**options)


SCORE = {
    "steps": 1, "extractor": "classifier", "extractor_hash": "abc", "resize": "none",
    "samples": 2000, "reference": "digits (1797, a60d)", "seed": 0, "frechet": 0.4567,
    "frechet_high": 0.5567,
}  # fmt: skip


def test_the_model_card(tmp_path):
    recipe = {"about": {"title": "<script>"}, "data": {"name": "digits", "split": "train"}}
    recipe["method"] = {"name": "consistency"}
    write(
        unet_generator(), tmp_path / "out", 1, name="a <b> run", recipe=recipe, scores=[SCORE],
        license="cc-by-4.0", pins={"data": "a60d"},
    )  # fmt: skip
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlicense: cc-by-4.0\nlibrary_name: diffusers\n")
    assert "# a &lt;b> run" in text and "&lt;b>two&lt;/b>" in text
    assert "| 1 | Fréchet distance (classifier) 0.457 ± 0.100 | 2,000 | " in text
    assert "Trained on digits, split train, SHA-256 a60d. Optical Rec" in text
    assert (
        "FID" not in text
        and "(E. Alpaydin and C. Kaynak, 1998, UCI" in text
        and "CC BY 4.0" in text
    )
    head, _, card = text.partition("## Recipe")
    assert "<" not in head and 'name = "consistency"' in card


def test_an_unusual_licence_is_a_name_of_its_own(tmp_path):
    write(unet_generator(), tmp_path / "out", 1, license="MIT; data: someone's, CC BY 4.0")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "license: other\nlicense_name: 'MIT; data: someone''s, CC BY 4.0'\n" in text
    assert "not scored" in text


def test_ten_lines_of_diffusers_alone(tmp_path):
    """In a process in which fewstep cannot be imported."""
    from PIL import Image

    generator = unet_generator(classes=3, grid=FixedGrid(((1.0,),)))
    write(generator, tmp_path / "out", 1)
    code = EXAMPLE.read_text().replace("[3]", "[2]")
    assert len([line for line in code.splitlines() if line]) <= 14
    block = "import sys; sys.modules['fewstep'] = None\n"
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-W", "ignore", "-c", block + code, str(tmp_path / "out")]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
    ((_, images),) = generate_values(generator, 8, steps=1, labels=[2])
    for row in range(8):
        with Image.open(tmp_path / f"three-{row}.png") as image:
            theirs = torch.from_numpy(np.array(image))[::16, ::16]
        assert (theirs - 255 * pixels(images[row, 0])).abs().max() <= 1
