"""Plans of trainings: what is missing, what a step asks of the networks, what it keeps."""

from collections import Counter
from contextlib import closing

import pytest
import torch

from fewstep import runs
from fewstep.assembly import assemble
from fewstep.backbones import UNet
from fewstep.cli import main
from fewstep.cli.dry_run import lines as dry_run_lines
from fewstep.errors import InputError
from fewstep.planning import plan_recipe
from fewstep.planning.footprint import measure
from fewstep.recipe import read
from fewstep.runner import run_recipe
from fewstep.trainer import Training

CPU = torch.device("cpu")
SMALL = "student.backbone={name='unet', channels=[8], layers=1, attention=[], groups=4}"


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A machine without data, weights and runs."""
    monkeypatch.setenv("FEWSTEP_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planning") / "run"
    recipe = read("digits-flow", [SMALL, "fit.steps=1", "fit.batch=4", "fit.warmup=0"])
    with closing(run_recipe(recipe, folder)) as steps:
        list(steps)
    return folder


def dry_run(capsys, *arguments):
    """Exit code, and the lines of the output by their names."""
    code = main(["train", *arguments, "--dry-run"])
    captured = capsys.readouterr()
    lines: dict[str, list[str]] = {}
    for line in captured.out.splitlines():
        name, text = (part.strip() for part in line.split("  ", 1))
        lines.setdefault(name, []).append(text)
    assert captured.err == ""
    return code, lines


def test_a_fresh_machine_lists_everything_that_is_missing(fresh, capsys):
    loss = "method.loss={name='lpips', trunk='vgg'}"
    settings = [loss, "evaluate.every=100", "evaluate.protocol=fid10k"]
    code, lines = dry_run(capsys, "mnist-dmd", *settings)
    assert code == 0
    assert f"12 MB are downloaded to {fresh}/home/data/mnist" in lines["data"][0]
    assert lines["teacher"][0] == "runs/mnist-flow: missing: fewstep train mnist-flow"
    record = "fewstep record runs/mnist-flow --out runs/mnist-pairs"
    assert lines["pairs"][0] == f"runs/mnist-pairs: missing: {record}"
    assert [line.split(":")[0] for line in lines["loss"]] == ["vgg16", "lpips-vgg"]
    assert "weights-inception-2015-12-05-6726825d.pth" in lines["extractor"][0]
    assert lines["images"][0].startswith("60,000 of shape 1 x 16 x 16, 10 classes")
    assert {"student", "fake", "teacher", "network calls", "memory", "checkpoint"} <= set(lines)
    assert "problem" not in lines
    assert list(fresh.iterdir()) == []


def test_sizes_are_those_of_the_training(teacher, tmp_path):
    recipe = read(
        "digits-sida",
        [f"teacher.load={teacher}", "fit.steps=4", "fit.batch=8", "fit.micro_batch=2"],
    )
    plan = plan_recipe(recipe)
    assembly = assemble(recipe, CPU)
    training = Training(assembly.method, assembly.batches, recipe.fit)
    training.advance()
    tensors, _ = training.state()
    counted = {
        name: sum(p.numel() for p in player.parameters())
        for name, player in assembly.method.players.items()
    }
    assert plan.trained == counted and plan.frozen == {"teacher": counted["student"]}
    size = sum(value.numel() * value.element_size() for value in tensors.values())
    steps = sum(value.numel() == 1 for name, value in tensors.items() if name.endswith(".step"))
    assert plan.disk["state/state.safetensors"] == size - 4 * steps
    gradients = 4 * sum(counted.values())
    assert (plan.memory["gradients"], plan.memory["moments"]) == (gradients, 2 * gradients)
    assert plan.memory["weights"] >= gradients + 4 * counted["student"]
    runs.save_generator(tmp_path / "model.safetensors", training.generator(), None, {})
    file = (tmp_path / "model.safetensors").stat().st_size
    assert plan.disk["model.safetensors"] == pytest.approx(file, rel=0.2)


@pytest.mark.parametrize(
    "name",
    [
        "digits-cd",
        "digits-dmd2",
        pytest.param("digits-sfd", marks=pytest.mark.slow),
        pytest.param("digits-sida", marks=pytest.mark.slow),
    ],
)
def test_network_calls_are_those_of_real_steps(name, teacher, monkeypatch):
    recipe = read(name, [f"teacher.load={teacher}", "fit.steps=12", "fit.batch=4", "fit.adapt=0"])
    plan = plan_recipe(recipe)
    calls = Counter()

    def count(function):
        def counted(network, x, *arguments, **options):
            calls[id(network)] += x.shape[0] / 4 / 12
            return function(network, x, *arguments, **options)

        return counted

    assembly = assemble(recipe, CPU)
    monkeypatch.setattr(UNet, "forward", count(UNet.forward))
    monkeypatch.setattr(UNet, "features", count(UNet.features))
    method = assembly.method
    for _ in Training(method, assembly.batches, recipe.fit):
        pass
    networks = {"student": method.student.backbone, "teacher": method.teacher.denoiser.backbone}
    if "fake" in method.players:
        networks["fake"] = method.fake.score.backbone
    expected = {name: calls[id(network)] for name, network in networks.items()}
    assert plan.footprint and plan.footprint.calls == pytest.approx(expected)


def test_activations_are_those_that_autograd_keeps(teacher):
    """A linear network of known size: of each layer its input is kept."""
    recipe = read("digits-flow", ['student.backbone={name="mlp", width=64, depth=2}'])
    small, large = (
        plan_recipe(read("digits-flow", ['student.backbone={name="mlp"}', f"fit.batch={rows}"]))
        for rows in (16, 64)
    )
    assert large.footprint.activations == pytest.approx(4 * small.footprint.activations, rel=0.02)
    method = assemble(recipe, CPU).method
    width, depth, rows = 64, 2, recipe.fit.batch
    footprint = measure(method, method.spec, recipe.fit, augmented=False)
    # inputs of first and last, and in every layer: silu, inner, silu, outer, embedding
    assert 4 * rows * width * 4 * depth < footprint.activations < 4 * rows * width * 20 * depth


def test_problems_are_collected_and_exit_with_2(fresh, capsys):
    code, lines = dry_run(
        capsys, "digits-sid", "teacher.load=runs/elsewhere", "data.name=folder", "data.path=nowhere"
    )
    assert code == 2
    assert "nowhere" in lines["problem"][0]
    assert lines["teacher"][0].endswith("missing: fewstep train RECIPE --out runs/elsewhere")
    code, lines = dry_run(capsys, "digits-sid", "fit.players.critic.lr=1")
    assert code == 2 and "choose one of student, fake" in lines["problem"][0]
    assert list(fresh.iterdir()) == []


def test_a_folder_of_another_recipe_is_a_problem(teacher, capsys):
    files = {path: path.stat().st_mtime_ns for path in teacher.rglob("*")}
    code, lines = dry_run(capsys, "digits-flow", SMALL, "--out", str(teacher))
    (problem,) = lines["problem"]
    assert code == 2 and problem.startswith(f"{teacher} belongs to another recipe: fit.")
    same = [SMALL, "fit.steps=1", "fit.batch=4", "fit.warmup=0"]
    assert dry_run(capsys, "digits-flow", *same, "--out", str(teacher))[0] == 0
    assert files == {path: path.stat().st_mtime_ns for path in teacher.rglob("*")}


def test_problems_of_pairs_and_scores_are_those_of_the_training(teacher, tmp_path, capsys):
    other = read("digits-flow", [SMALL, "fit.steps=1", "fit.batch=4", "fit.warmup=0", "fit.seed=1"])
    with closing(run_recipe(other, tmp_path / "other")) as steps:
        list(steps)
    pairs = ["--out", f"{tmp_path}/pairs", "--count", "4", "--steps", "1", "--allow-out-of-range"]
    assert main(["record", f"{tmp_path}/other", *pairs]) == 0
    capsys.readouterr()
    recipe = ("digits-regress", f"teacher.load={teacher}")
    for settings in (
        [f"pairs.load={tmp_path}/pairs"],
        ["evaluate.every=1", "evaluate.extractor=nothing"],
        ["evaluate.every=1", "evaluate.measures=['nothing']"],
        ["evaluate.every=1", "evaluate.extractor=pixels", "evaluate.resize=clean-bicubic"],
    ):
        with pytest.raises(InputError) as refusal:
            assemble(read(recipe[0], [recipe[1], *settings]), CPU)
        code, lines = dry_run(capsys, *recipe, *settings)
        assert code == 2 and lines["problem"] == [str(refusal.value)]


def test_an_adaptation_has_settings_and_warnings_of_its_own(teacher):
    """Its averages do not matter, because the method starts from the weights themselves."""
    settings = [
        f"teacher.load={teacher}",
        *("student.parametrization=edm", "fit.steps=40", "fit.batch=4"),
        *("fit.ema_halflife=30", "fit.ema_rampup=0.2", "fit.warmup=3"),
        "fit.players.adapt.warmup=20",
    ]
    recipe = read("digits-cd", settings)
    plan = plan_recipe(recipe)
    assembly = assemble(recipe, CPU)
    with pytest.warns(UserWarning) as caught:
        for training in assembly.trainings(recipe.fit):
            training.step = training.config.steps
    messages = [str(each.message) for each in caught]
    assert plan.problems == [] and plan.warnings == messages
    (message,) = messages
    assert message.startswith("fit.players.adapt.warmup is 20 steps, but this adaptation has 4")


def test_activations_are_those_of_one_process(monkeypatch):
    def memory(*settings):
        plan = plan_recipe(read("digits-flow", [SMALL, *settings]))
        line = dict(dry_run_lines(plan))["memory"]
        return line[line.index("activations") :]

    alone = memory("fit.batch=16")
    monkeypatch.setattr("fewstep.cli.dry_run.world", lambda: (0, 2))
    # half of the batch; a micro-batch is of one process already
    assert memory("fit.batch=32") == memory("fit.batch=64", "fit.micro_batch=16") == alone
    assert "of 16 images at once" in alone


def test_a_dry_run_trains_and_writes_nothing(teacher, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, lines = dry_run(capsys, "digits-regress", f"teacher.load={teacher}", "fit.save_every=9")
    assert code == 0 and lines["teacher"][0].endswith("present")
    assert lines["checkpoint"][0].endswith("every 9 steps")
    assert list(tmp_path.iterdir()) == []


def test_warnings_are_those_of_the_training(teacher):
    recipe = read("digits-scm", [f"teacher.load={teacher}", "fit.steps=10", "fit.warmup=20"])
    warnings = plan_recipe(recipe).warnings
    assert any("derivative in time" in warning for warning in warnings)
    assert any("fit.warmup" in warning for warning in warnings)
