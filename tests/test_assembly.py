"""Students as recipes describe them: copied, adapted, started below the noisiest time."""

import os
import shutil
from contextlib import closing
from dataclasses import replace

import pytest
import torch

from fewstep import runs
from fewstep.assembly import assemble
from fewstep.condition import Condition
from fewstep.description import from_description
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.parametrization import EDM, Clean, Eps, Mixed, V, Velocity
from fewstep.planning import plan_recipe
from fewstep.process import Flow, LinearBetas
from fewstep.recipe import read
from fewstep.recording import Recording, record
from fewstep.run_folder import Run
from fewstep.runner import is_finished, run_recipe
from fewstep.sampling import Transfer

DEVICE = torch.device("cpu")
SMALL = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=16",
    "fit.warmup=0",
]
FEW = ["fit.batch=8", "fit.save_every=100", "fit.steps=4", "fit.warmup=0", "evaluate.every=0"]


def run(recipe, folder, until=None):
    with closing(run_recipe(recipe, folder)) as steps:
        for progress in steps:
            if progress.step == until:
                return


@pytest.fixture(scope="module")
def ddpm(tmp_path_factory):
    """An eps network under DDPM's betas, and pairs that it recorded."""
    folder = tmp_path_factory.mktemp("ddpm")
    world = ["student.process=linear-betas", "student.parametrization=eps", "fit.steps=3"]
    run(read("digits-flow", [*SMALL, *world]), folder / "run")
    generator = runs.load(folder / "run").with_sampler(step=Transfer(clip=1.0))
    teacher = runs.network_hash(runs.load(folder / "run"))
    for _ in record(generator, folder / "pairs", Recording(64, 4), teacher=teacher):
        pass
    return folder


def student(ddpm, *more, name="digits-regress"):
    sources = [f"teacher.load={ddpm}/run", f"pairs.load={ddpm}/pairs"]
    return read(name, [*FEW, *sources, *more])


def method(*arguments, **named):
    return assemble(student(*arguments, **named), DEVICE).method


def test_a_parametrization_alone_takes_the_teachers_native_process(ddpm):
    teacher = runs.load(ddpm / "run").denoiser
    assert teacher.parametrization == Eps(LinearBetas())
    for text, expected in {
        "v": V(LinearBetas()),
        '{name="v"}': V(LinearBetas()),
        "velocity": Velocity(LinearBetas()),
        "x0": Clean(LinearBetas()),
        "edm": Mixed(inputs=Eps(LinearBetas()), outputs=EDM()),
        '{name="v", native="flow"}': V(Flow()),
    }.items():
        built = method(ddpm, f"student.parametrization={text}").student
        assert built.parametrization == expected
        assert built.process == teacher.process
        weights = built.state_dict()
        assert all(weights[name].equal(value) for name, value in teacher.state_dict().items())
        low, high = built.span
        assert teacher.span[0] <= low < high <= teacher.span[1]
        if not isinstance(expected, Mixed):
            assert (low, high) == teacher.span


def test_a_copied_student_without_a_parametrization_is_refused_at_its_start(ddpm, tmp_path):
    with pytest.raises(InputError, match="157 times as large in the image at t = 1"):
        run(student(ddpm), tmp_path / "run")


@pytest.mark.parametrize(
    ("setting", "start"),
    [("start=0.4", 0.4), ("start={snr=0.01}", 0.0), ("start.snr=0.01", 0.0), ("start=1", 1.0)],
)
def test_a_start_is_where_students_begin(ddpm, setting, start):
    built = method(ddpm, f"student.{setting}", "student.parametrization=v")
    generator = built.generator()
    (time,) = generator.grid(1, generator.denoiser).tolist()
    assert generator.denoiser.span[1] == time
    if start:
        assert time == start
    else:
        ratio = LinearBetas().ratio(torch.tensor(time, dtype=torch.float64))
        assert ratio.item() == pytest.approx(10)
    again = from_description(generator.describe())  # as weights files do
    assert again.denoiser.span == generator.denoiser.span


def test_starts_out_of_range_are_refused(ddpm):
    for setting, problem in {
        "start=0": "must be a number above 0",
        "start=1.5": "at most 1",
        "start={snr=0.0}": "must be a number above 0",
        "start.snr=-1.0": "must be a number above 0",
        "start={snr=1e9}": "student.start.snr is 1e.09, which is t = 0, .* only for times in",
        "start=soon": "student.start",
        "start={ratio=2.0}": "student.start",
    }.items():
        with pytest.raises(InputError, match=problem):
            method(ddpm, f"student.{setting}")


def test_a_run_adapts_first_and_logs_it(ddpm, tmp_path):
    recipe = student(ddpm, "student.parametrization=v", "fit.adapt=12")
    run(recipe, tmp_path / "run")
    folder = Run(tmp_path / "run")
    lines = [line for line in folder.progress() if "seconds" in line]
    assert [line["step"] for line in lines if "adapt/loss" in line] == [10, 12]
    assert [line["step"] for line in lines if "student/loss" in line] == [16]
    assert folder.progress()[0]["total"] == 16
    assert is_finished(recipe, folder.folder)
    assert len(folder.grids()) == 3  # at the start, after the adaptation, at the end


def test_the_default_adaptation_is_a_tenth_of_the_steps_and_can_be_off(ddpm):
    for settings, steps in {
        ("student.parametrization=v", "fit.steps=95"): 105,
        ("student.parametrization=v", "fit.adapt=0"): 4,
        ("student.start=0.4",): 4,
        ("student.start=0.4", "student.parametrization=eps"): 4,
    }.items():
        recipe = student(ddpm, *settings)
        assert assemble(recipe, DEVICE).count_steps(recipe.fit) == steps


@pytest.mark.parametrize(
    ("stop", "layout"),
    [
        (7, "true"),
        *(pytest.param(stop, "false", marks=pytest.mark.slow) for stop in (3, 5, 7, 8)),
    ],
)
def test_a_run_that_is_stopped_anywhere_ends_in_the_same_bytes(ddpm, tmp_path, stop, layout):
    """Steps 1 to 5 adapt, 6 to 9 train; the average of consistency starts from adapted weights."""
    more = [
        "student.parametrization=v", "fit.adapt=5", "method.target_decay=0.5", "fit.save_every=1",
        "fit.players.adapt.lr=0.01", f"fit.channels_last={layout}",
    ]  # fmt: skip
    recipe = student(ddpm, *more, name="digits-consistency")
    run(recipe, tmp_path / "whole")
    run(recipe, tmp_path / "parts", until=stop)
    run(recipe, tmp_path / "parts")
    for name in ("model.safetensors", "state/state.safetensors"):
        one, other = (tmp_path / part / name for part in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes(), name
    raw = Run(tmp_path / "whole").raw_generator()
    assert raw.denoiser.parametrization == V(LinearBetas())


def test_the_best_weights_are_those_of_the_method_not_of_its_adaptation(
    ddpm, tmp_path, monkeypatch
):
    """Sampled in many steps, an adapted network can be better than all students of the run."""
    frechet = iter([1.0, 2.0, 5.0, 4.0, 6.0, 7.0])
    real = Evaluator.score

    def score(self, generator, **settings):
        value = real(self, generator, **settings)
        return replace(value, measures=replace(value.measures, frechet=next(frechet)))

    monkeypatch.setattr(Evaluator, "score", score)
    evaluate = ["every=1", "steps=[1]", "samples=20", "extractor=pixels"]
    more = ["student.parametrization=v", "fit.adapt=2", *(f"evaluate.{text}" for text in evaluate)]
    run(student(ddpm, *more), tmp_path / "run", until=2)
    assert not Run(tmp_path / "run").best_file.exists()
    run(student(ddpm, *more), tmp_path / "run")
    assert runs.describe(tmp_path / "run", weights="best")["step"] == 4


def test_an_adapted_run_can_start_another_one(ddpm, tmp_path):
    run(student(ddpm, "student.parametrization=v"), tmp_path / "first")
    copied = method(ddpm, f"student.init={tmp_path / 'first'}")
    assert copied.student.parametrization == V(LinearBetas())


def test_a_student_that_was_adapted_keeps_its_first_inputs_in_another_run(ddpm, tmp_path):
    run(student(ddpm, "student.parametrization=edm"), tmp_path / "first")
    again = f"student.init={tmp_path / 'first'}"
    for text, expected, steps in [
        ("edm", Mixed(inputs=Eps(LinearBetas()), outputs=EDM()), 4),
        ("v", V(LinearBetas()), 5),
    ]:
        recipe = student(ddpm, again, f"student.parametrization={text}")
        built = assemble(recipe, DEVICE)
        assert built.method.student.parametrization == expected
        assert built.count_steps(recipe.fit) == steps


def test_an_edm_network_of_another_sigma_data_keeps_its_inputs(ddpm, tmp_path):
    settings = ['student.parametrization={name="edm", sigma_data=0.6}', "fit.steps=1"]
    run(read("digits-flow", [*SMALL, *settings]), tmp_path / "edm")
    for text, expected in {
        "edm": Mixed(inputs=EDM(0.6), outputs=EDM()),
        '{name="edm", sigma_data=0.6}': EDM(0.6),
    }.items():
        built = method(ddpm, f"student.init={tmp_path / 'edm'}", f"student.parametrization={text}")
        assert built.student.parametrization == expected


def test_a_run_that_cannot_train_is_refused_before_its_adaptation(ddpm, tmp_path):
    run(student(ddpm, "student.parametrization=v"), tmp_path / "v")
    for more, problem in {
        ("student.parametrization=v", "fit.players.fake.lr=0.1"): "does not have; choose one of",
        (f"student.init={tmp_path / 'v'}", "student.parametrization=eps"): 'predicts "eps"',
    }.items():
        recipe = student(ddpm, *more)
        assert assemble(recipe, DEVICE).adaptation
        with pytest.raises(InputError, match=problem):
            run(recipe, tmp_path / "run", until=1)
        assert not (tmp_path / "run").exists()


def test_an_initial_network_of_other_images_is_refused(ddpm, tmp_path):
    run(read("digits-flow", [*SMALL, "data.labels=false", "fit.steps=1"]), tmp_path / "plain")
    with pytest.raises(InputError, match="student.init=.* with 0 classes, .* data.labels=false"):
        method(ddpm, f"student.init={tmp_path / 'plain'}")


def test_a_resumed_adaptation_needs_the_same_initial_network(ddpm, tmp_path):
    eps = ["student.process=linear-betas", "student.parametrization=eps", "fit.steps=2"]
    for seed in (0, 1):
        run(read("digits-flow", [*SMALL, *eps, f"fit.seed={seed}"]), tmp_path / f"seed-{seed}")
    os.rename(tmp_path / "seed-0", tmp_path / "initial")
    recipe = student(ddpm, f"student.init={tmp_path / 'initial'}", "student.parametrization=v")
    run(recipe, tmp_path / "run", until=1)
    shutil.rmtree(tmp_path / "initial")
    os.rename(tmp_path / "seed-1", tmp_path / "initial")
    with pytest.raises(InputError, match="another student.init than this recipe loads now"):
        run(recipe, tmp_path / "run")


def test_a_copied_network_keeps_its_process(ddpm):
    with pytest.raises(InputError, match="remove student.backbone and student.process"):
        method(ddpm, "student.process=flow")


def test_pairs_without_labels_are_refused_for_students_with_classes(tmp_path):
    run(read("digits-flow", [*SMALL, "data.labels=false", "fit.steps=1"]), tmp_path / "plain")
    generator, pairs = runs.load(tmp_path / "plain"), tmp_path / "pairs"
    for _ in record(generator, pairs, Recording(8, 1), teacher=""):
        pass
    new = ["student.init=scratch", "student.process=flow", "student.parametrization=velocity"]
    network = ["student.backbone.name=unet", *SMALL[:3]]
    recipe = read("digits-regress", [*FEW, *new, *network, f"pairs.load={pairs}"])
    recipe = replace(recipe, teacher=None)
    assert assemble(replace(recipe, data=replace(recipe.data, labels=False)), DEVICE)
    with pytest.raises(InputError, match="no labels, so that the 10 classes would not be trained"):
        assemble(recipe, DEVICE)


def test_guidance_of_a_teacher_trained_with_labels_only_is_refused(tmp_path):
    run(
        read("digits-flow", [*SMALL, "method.condition_dropout=0.0", "fit.steps=1"]),
        tmp_path / "run",
    )
    settings = [*FEW, f"teacher.load={tmp_path / 'run'}", "teacher.guidance=2.0"]
    with pytest.raises(InputError, match="but its method, denoise, trained it with labels only"):
        assemble(read("digits-progressive", settings), DEVICE)


def test_a_teacher_has_the_guidance_of_its_recipe(tmp_path):
    for name, seed in (("run", 0), ("weak", 1)):
        run(read("digits-flow", [*SMALL, "fit.steps=1", f"fit.seed={seed}"]), tmp_path / name)
    guidance = ["teacher.guidance=2.0", "teacher.guidance_interval=[0.25, 0.75]"]
    settings = [*FEW, f"teacher.load={tmp_path / 'run'}"]
    weak = f"teacher.autoguidance={tmp_path / 'weak'}"
    plain, limited, auto = (
        assemble(read("digits-progressive", [*settings, *more]), DEVICE)
        for more in ([], guidance, [*guidance, weak])
    )
    assert len({each.pins["teacher"] for each in (plain, limited, auto)}) == 3
    x, t, cond = torch.randn(1, 1, 16, 16), torch.tensor(0.5), Condition(torch.tensor([3]))
    with torch.inference_mode():
        ours = [each.method.teacher.denoiser(x, t, cond=cond).x0 for each in (limited, auto)]
        main, other = (runs.load(tmp_path / name).denoiser for name in ("run", "weak"))
        image = main(x, t, cond=cond).x0
        torch.testing.assert_close(ours[0], 2 * image - main(x, t).x0)
        torch.testing.assert_close(ours[1], 2 * image - other(x, t, cond=cond).x0)
    plan = plan_recipe(read("digits-progressive", [*settings, *guidance, weak]))
    assert not plan.problems
    assert ("weak", str(tmp_path / "weak")) in [(r.noun, r.name) for r in plan.requirements]


def test_pairs_of_another_teacher_are_refused(ddpm, tmp_path):
    world = ["student.process=linear-betas", "student.parametrization=eps", "fit.steps=1"]
    run(read("digits-flow", [*SMALL, *world]), tmp_path / "other")
    with pytest.raises(InputError, match="were recorded with another teacher"):
        method(ddpm, f"teacher.load={tmp_path / 'other'}", "student.parametrization=v")
    os.rename(ddpm / "run", tmp_path / "moved")  # the same weights in another place
    try:
        method(ddpm, f"teacher.load={tmp_path / 'moved'}", "student.parametrization=v")
    finally:
        os.rename(tmp_path / "moved", ddpm / "run")
