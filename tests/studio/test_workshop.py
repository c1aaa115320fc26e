"""Generation in the studio: equal to the library's, counted, one at a time, and abandoned."""

import os
import shutil
import threading
from dataclasses import replace

import pytest
import torch

from fewstep import painting, runs
from fewstep.condition import NO_LABEL, Condition
from fewstep.drawing import generate_values, seeds
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.sampling import Renoise
from fewstep.studio.catalogue import Catalogue
from fewstep.studio.journey import arrows, travel
from fewstep.studio.starts import Between, Start
from fewstep.studio.workshop import MODELS, RESULTS, Recent, Request, Workshop, labels_of


@pytest.fixture(scope="module")
def workshop(folder):
    return Workshop(Catalogue([str(folder)]))


FIRST = (Start(0),)


def request(workshop, name, starts=FIRST, *, label=None, steps=1, guidance=1.0):
    model = workshop.load(name)
    return Request(model, tuple(starts), labels_of(model, starts, label), steps, guidance)


def test_images_are_those_of_the_library(workshop, folder):
    result = workshop.generate(request(workshop, "teacher", [Start(3)], label=2, steps=4))
    generator = runs.load(folder / "teacher")
    _, expected = next(generate_values(generator, 1, steps=4, seed=3, labels=[2]))
    assert torch.equal(result.values, expected)
    assert result.images.dtype == torch.uint8


def test_a_samplers_own_noise_is_that_of_the_row(workshop, folder):
    result = workshop.generate(request(workshop, "cm", [Start(3)], label=1, steps=3))
    _, expected = next(generate_values(runs.load(folder / "cm"), 1, steps=3, seed=3, labels=[1]))
    assert torch.equal(result.values, expected)


def test_classes_take_turns_by_seed(workshop):
    model = workshop.load("teacher")
    starts = [Start(4), Between((Start(5), Start(0)), 0.5)]
    assert labels_of(model, starts, None) == (1, 2)
    assert labels_of(model, starts, NO_LABEL) == (-1, -1)
    assert labels_of(workshop.load("toy"), starts, None) is None
    with pytest.raises(InputError, match="label 3 is out of range"):
        labels_of(model, starts, 3)


def test_class_names_are_told_apart(workshop):
    model = workshop.load("teacher")
    for names, texts in (
        (("a", "b ", "a"), ["a (0)", "b", "a (2)"]),
        (("", "b\nc", "\udcff"), ["(0)", "b c", "?"]),
        ((), ["0", "1", "2"]),
    ):
        spec = replace(model.generator.spec, class_names=names)
        generator = Generator(model.generator.denoiser, spec)
        assert replace(model, generator=generator).class_names() == texts


def test_values_that_are_not_finite_are_no_black_picture(folder, tmp_path):
    shutil.copytree(folder / "cm", tmp_path / "cm")
    generator = runs.load(tmp_path / "cm")
    weights = next(generator.parameters())
    workshop = Workshop(Catalogue([str(tmp_path)]))
    before = request(workshop, "cm")
    with torch.no_grad():
        next(before.model.generator.parameters())[0] = torch.inf
        weights[0] = torch.nan
    with pytest.raises(InputError, match=r"cm: 1 of 1 image \(100.0 %\) contains NaN"):
        workshop.generate(before)
    runs.save_generator(tmp_path / "cm" / "model.safetensors", generator, None, {})
    with pytest.raises(InputError, match="cm: .* or its training diverged"):
        workshop.load("cm")


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (5, 1.0), (5, 2.0)])
def test_network_calls_are_counted(workshop, steps, guidance):
    starts = [Start(0), Start(1)]
    result = workshop.generate(request(workshop, "teacher", starts, steps=steps, guidance=guidance))
    assert result.calls == steps and result.seconds > 0


def test_guidance_changes_the_images(workshop, folder):
    plain, strong = (
        workshop.generate(request(workshop, "teacher", label=1, steps=2, guidance=guidance))
        for guidance in (1.0, 3.0)
    )
    generator = runs.load(folder / "teacher").with_guidance(3.0)
    _, expected = next(generate_values(generator, 1, steps=2, seed=0, labels=[1]))
    assert torch.equal(strong.values, expected) and not torch.equal(plain.values, strong.values)


def test_painting_is_that_of_the_library(workshop, folder):
    image = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    starts = [Start(0), Start(1)]
    asked = request(workshop, "teacher", starts, label=0, steps=3)
    result = workshop.generate(asked, image=image, freedom=0.5)
    noise = torch.cat([start.noise((1, 8, 8)) for start in starts])
    expected = painting.paint(
        runs.load(folder / "teacher"),
        image.expand(2, -1, -1, -1),
        noise,
        freedom=0.5,
        steps=3,
        cond=Condition(torch.tensor([0, 0])),
        seed=[seeds(start.seed, range(1))[0] for start in starts],
    )
    assert torch.equal(result.values, expected)
    assert not torch.equal(workshop.generate(asked, image=-image, freedom=0.5).values, expected)


def test_reasons_are_given_for_what_a_model_cannot_do(workshop):
    teacher, student, toy = (workshop.load(name) for name in ("teacher", "one-step", "toy"))
    assert teacher.why_not_paintable == teacher.why_not_guidable == ""
    assert "dmd" in student.why_not_paintable and "dmd" in student.why_not_guidable
    assert "points" in toy.why_not_paintable and "no classes" in toy.why_not_guidable
    assert workshop.load("cm").why_not_paintable == ""


def test_step_counts_by_default(workshop):
    counts = {name: workshop.load(name).default_steps for name in ("teacher", "one-step", "cm")}
    assert counts == {"teacher": 16, "one-step": 1, "cm": 1}


def test_a_run_whose_weights_change_is_read_again(folder, tmp_path):
    shutil.copytree(folder / "cm", tmp_path / "run")
    workshop = Workshop(Catalogue([str(tmp_path)]))
    before = workshop.load("run")
    assert workshop.load("run") is before
    file = tmp_path / "run" / "model.safetensors"
    shutil.copy(folder / "teacher" / "model.safetensors", file)
    os.utime(file, ns=(1, 1))
    assert workshop.load("run").hash != before.hash


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_damaged_weights_are_one_line(folder, tmp_path, content):
    shutil.copytree(folder / "cm", tmp_path / "run")
    file = tmp_path / "run" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100] if content is None else content)
    workshop = Workshop(Catalogue([str(tmp_path)]))
    with pytest.raises(InputError) as error:
        workshop.load("run")
    assert "\n" not in str(error.value)


class Stop(Exception):
    pass


def test_a_stale_generation_stops_at_the_next_network_call(workshop):
    calls = []

    def cancel():
        calls.append(1)
        if len(calls) == 3:
            raise Stop

    stale = request(workshop, "teacher", [Start(77)], steps=50)
    with pytest.raises(Stop):
        workshop.generate(stale, cancel=cancel)
    assert len(calls) == 3
    # nothing of it is left: the next generation counts its own calls only
    assert workshop.generate(request(workshop, "teacher", [Start(78)], steps=2)).calls == 2


def test_one_generation_at_a_time_and_waiting_ones_can_stop(workshop):
    entered, release, stopped = threading.Event(), threading.Event(), threading.Event()

    def hold():
        with workshop.turn(lambda: None):
            entered.set()
            release.wait(10)

    def give_up():
        stopped.set()
        raise Stop

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    with pytest.raises(Stop):
        workshop.generate(request(workshop, "cm", [Start(99)]), cancel=give_up)
    assert stopped.is_set()
    release.set()
    thread.join()
    assert workshop.generate(request(workshop, "cm", [Start(99)])).calls == 1


def test_caches_are_bounded():
    recent = Recent(3)
    for number in range(10):
        recent.put(number, str(number))
        recent.get(0)
    assert len(recent) == 3 and recent.get(0) == "0" and recent.get(1) is None
    assert MODELS <= 16 and RESULTS <= 64


def test_the_way_of_a_sample_ends_at_its_image(workshop):
    asked = request(workshop, "teacher", [Start(1)], label=1, steps=6)
    journey = travel(asked)
    assert len(journey.times) == len(journey.predictions) == 6 and len(journey.states) == 7
    torch.testing.assert_close(journey.states[-1], workshop.generate(asked).values)
    torch.testing.assert_close(journey.predictions[-1], journey.states[-1])
    assert journey.scales == pytest.approx([1.0] * 7)  # of a straight flow


def test_the_way_includes_the_noise_that_a_sampler_adds(workshop):
    model = workshop.load("cm")
    renoised = replace(model, generator=model.generator.with_sampler(step=Renoise()), hash="other")
    asked = Request(renoised, (Start(1), Start(2)), (0, 1), 3)
    torch.testing.assert_close(travel(asked).states[-1], workshop.generate(asked).values)


def test_arrows_are_the_slope_of_a_first_order_step(workshop):
    asked = request(workshop, "toy", [Start(0), Start(1)], steps=4)
    journey = travel(asked)
    t, s = journey.times[1:3]
    slope = (journey.states[2] - journey.states[1]) / (s - t)
    torch.testing.assert_close(arrows(asked, t, journey.states[1]), slope)
