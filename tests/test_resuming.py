"""What a training finds in its run folder: when it is claimed, what may change, what it owes."""

import os
import shlex
import shutil
from contextlib import closing

import jaxtyping
import pytest
import torch
from torch import nn

from fewstep import run_folder
from fewstep.cli import main
from fewstep.errors import InputError
from fewstep.evaluation import Evaluator
from fewstep.files import LOCK
from fewstep.locks import lock_folder
from fewstep.recipe import read
from fewstep.resuming import check_changes, find_start, length_settings
from fewstep.run_folder import Run
from fewstep.runner import is_finished, run_recipe

TINY = [
    "student.backbone.channels=[8]",
    "student.backbone.attention=[]",
    "student.backbone.groups=4",
    "fit.batch=8",
    "fit.warmup=0",
    "fit.schedule=constant",
    "fit.ema_halflife=16",
    "fit.save_every=2",
    "evaluate.steps=[1]",
]


@pytest.fixture(autouse=True, scope="module")
def unchecked_shapes():
    """Half of the time would go into them, and other tests check them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def recipe(*more):
    return read("digits-flow", [*TINY, "fit.steps=6", *more])


def train(folder, *more, until=None, extend=False):
    with closing(run_recipe(recipe(*more), folder, log_every=2, extend=extend)) as steps:
        for progress in steps:
            if progress.step == until:
                return


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def steps(folder):
    return [line["step"] for line in Run(folder).progress() if "seconds" in line]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resuming") / "run"
    train(folder)
    return folder


@pytest.fixture
def stopped(tmp_path):
    """A run that was stopped after step 3."""
    train(tmp_path / "run", until=3)
    return tmp_path / "run"


def tensors(folder):
    return Run(folder).state()[0]


def equal(one, two):
    return one.keys() == two.keys() and all(one[name].equal(two[name]) for name in one)


# --- claimed when training has begun


@pytest.mark.parametrize(
    "setting",
    [
        "fit.players.fake.lr=1e-3",
        "teacher.load=nowhere",
        "data={name='folder', path='nowhere'}",
        "student.backbone.groups=3",
        "student.init=teacher",
        "evaluate={every=1, extractor='inceptiom'}",
        "fit.lr=1e30",  # infinite at the second micro-batch of the first step
    ],
)
def test_a_recipe_that_cannot_train_leaves_no_folder(tmp_path, setting, monkeypatch):
    settings = [setting]
    if setting.startswith("fit.lr"):
        monkeypatch.setattr("fewstep.trainer.nn.utils.get_total_norm", lambda _: torch.nan)
    with pytest.raises((InputError, RuntimeError, ValueError)):
        train(tmp_path / "new" / "run", *settings)
    assert os.listdir(tmp_path) == []
    monkeypatch.undo()
    train(tmp_path / "new" / "run", until=1)  # the corrected one starts there
    assert steps(tmp_path / "new" / "run") == []


def test_a_compiler_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def compiled(module, *_, **__):
        def fail(*_, **__):
            raise RuntimeError("no C++ compiler")

        module.forward = fail

    monkeypatch.setattr(nn.Module, "compile", compiled)
    with pytest.raises(RuntimeError, match="no C"):
        train(tmp_path / "run", "fit.compile=true")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "files",
    [
        [],
        [LOCK],
        ["recipe.toml.tmp"],
        [LOCK, "recipe.toml.tmp"],
        ["recipe.toml"],
        ["recipe.toml", "progress.jsonl.tmp", LOCK],
        ["recipe.toml", "progress.jsonl", "samples/step-0000000.png.tmp", "samples/.tmpAb3dE9"],
    ],
)
def test_what_a_killed_start_left_is_accepted_by_any_recipe(tmp_path, undisturbed, files):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    if not any(file.startswith("samples") for file in files):
        (run / "samples").rmdir()
    for file in files:
        (run / file).write_text("{")
    if "recipe.toml" in files:
        (run / "recipe.toml").unlink()
        Run(run).claim(recipe("fit.lr=0.5").table())
    train(run)
    assert equal(tensors(run), tensors(undisturbed))
    assert content(run).keys() == content(undisturbed).keys()


@pytest.mark.parametrize("name", ["thesis.txt", ".git", "recipe.toml.bak", "a.tmp", "step-1.png"])
def test_a_folder_of_something_else_is_refused(tmp_path, name):
    (tmp_path / name).write_text("precious")
    with pytest.raises(InputError, match="is not empty and is not a run folder"):
        train(tmp_path)
    assert os.listdir(tmp_path) == [name]


# --- one owner


def test_a_second_trainer_is_refused_and_changes_nothing(stopped):
    with lock_folder(stopped):
        before = content(stopped)
        with pytest.raises(InputError, match=r"in use by process \d+ on .*: wait"):
            train(stopped)
        assert content(stopped) == before
        assert Run(stopped).owner()
    train(stopped)
    assert Run(stopped).owner() is None and not (stopped / LOCK).exists()


# --- what may change


FREE = [
    "fit.save_every=5",
    "evaluate.every=3",
    "evaluate.steps=[2]",
    "about.title=mine",
    "evaluate.best=2",
]


@pytest.mark.parametrize("setting", FREE)
def test_settings_without_effect_on_the_weights_may_change(stopped, undisturbed, setting):
    more = [setting, "evaluate.extractor=pixels", "evaluate.samples=10"][
        : 1 + 2 * ("every" in setting)
    ]
    train(stopped, *more)
    assert equal(tensors(stopped), tensors(undisturbed))
    assert steps(stopped) == [2, 4, 6]
    assert Run(stopped).recipe() == recipe(*more).table()
    key = setting.partition("=")[0]
    assert [key in line["changes"] for line in Run(stopped).progress() if "changes" in line]
    assert is_finished(recipe(*more), stopped)


@pytest.mark.parametrize(
    "setting",
    [
        "fit.lr=1e-3",
        "fit.batch=16",
        "fit.seed=1",
        "data.labels=false",
        "student.backbone.groups=2",
        "method.condition_dropout=0.5",
        "fit.precision=bf16",
        "fit.ema_halflife=32",
        "data.split=test",
    ],
)
def test_settings_of_the_result_may_not_change(stopped, setting):
    before, key = content(stopped), setting.partition("=")[0]
    with pytest.raises(InputError, match=f"belongs to another recipe: {key} is "):
        train(stopped, setting)
    assert content(stopped) == before


@pytest.mark.parametrize(
    "setting", ["data.prompts=new.txt", 'teacher={load="new"}', 'pairs={load="new"}']
)
def test_contents_may_move_but_not_be_added_to_a_finished_run(undisturbed, setting):
    with pytest.raises(InputError, match="belongs to another recipe: .* is not set in"):
        is_finished(recipe(setting), undisturbed)
    assert is_finished(recipe("data.path=new"), undisturbed)


def test_weights_that_were_used_may_not_be_left_out(stopped):
    pins = Run(stopped).state()[1]["pins"]
    assert find_start(Run(stopped), recipe(), pins, "").step == 3
    for other in ({}, {**pins, "pairs": "abc"}, {**pins, "data": "abc"}):
        with pytest.raises(InputError, match="was trained with another (data|pairs) than this"):
            find_start(Run(stopped), recipe(), other, "")


@pytest.mark.parametrize("setting", ["fit.micro_batch=4", "fit.channels_last=true"])
def test_settings_that_round_differently_are_announced(stopped, setting):
    with pytest.warns(UserWarning, match=f"{setting.partition('=')[0]} is .* rounds differently"):
        train(stopped, setting)
    assert is_finished(recipe(setting), stopped)


def test_another_number_of_threads_is_announced_and_logged(stopped):
    torch.set_num_threads(2)
    try:
        with pytest.warns(UserWarning, match="resumes on 2 CPU threads .* was on 1 CPU thread "):
            train(stopped)
    finally:
        torch.set_num_threads(1)
    hardware = [line["hardware"] for line in Run(stopped).progress() if "hardware" in line]
    assert [text.split()[0] for text in hardware] == ["1", "2"]


# --- after a loss that is not finite


def explode(folder, *more):
    """Train until the loss is infinite. Returns the message."""
    with pytest.raises(InputError, match="the loss of player 'student' is") as caught:
        train(folder, "fit.lr=1e18", "fit.clip=0", *more)
    return str(caught.value)


@pytest.mark.parametrize(
    "setting",
    [
        "fit.lr=1e-3",
        "fit.players.student.lr=1e-4",
        *(
            pytest.param(setting, marks=pytest.mark.slow)
            for setting in ("fit.optimizer=adam", "fit.clip=1.0")
        ),
    ],
)
def test_the_advice_after_an_infinite_loss_works_without_a_state(tmp_path, setting):
    assert "it starts from the beginning" in explode(tmp_path / "run", "fit.save_every=100")
    more = {"fit.lr": "fit.lr=2e-4", setting.partition("=")[0]: setting}.values()
    train(tmp_path / "run", *more)
    train(tmp_path / "new", *more)
    assert equal(tensors(tmp_path / "run"), tensors(tmp_path / "new"))
    assert steps(tmp_path / "run") == [2, 4, 6]


@pytest.mark.parametrize(
    "more",
    [
        [],
        pytest.param(
            ["evaluate={every=1, extractor='pixels', samples=10, steps=[1]}"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_state_that_has_diverged_already_is_not_resumed(tmp_path, more):
    assert "it starts from the" in explode(tmp_path / "run", "fit.save_every=1", *more)
    assert Run(tmp_path / "run").state()[1]["step"] == 1
    with pytest.warns(UserWarning, match="as large as at the start, so that .* the beginning"):
        train(tmp_path / "run", *more)
    train(tmp_path / "new", *more)
    assert content(tmp_path / "run").keys() == content(tmp_path / "new").keys()
    assert equal(tensors(tmp_path / "run"), tensors(tmp_path / "new"))
    scores = [line["step"] for line in Run(tmp_path / "run").progress() if "score" in line]
    assert scores == [step for step in range(1, 7) if more]


def test_a_sound_state_is_resumed_with_another_rate(tmp_path, monkeypatch):
    run, real = Run(tmp_path / "run"), nn.utils.get_total_norm
    with monkeypatch.context() as patch:
        calls = []

        def norm(gradients):
            calls.append(1)
            return torch.tensor(torch.inf) if len(calls) == 6 else real(gradients)

        patch.setattr("fewstep.trainer.nn.utils.get_total_norm", norm)
        with pytest.raises(InputError, match=r"lower fit\.lr .*: it resumes after step 4"):
            train(run.folder)
    assert run.nonfinite_step() == 5 and run.state()[1]["step"] == 4
    with pytest.raises(InputError, match="another recipe: fit.batch"):
        train(run.folder, "fit.batch=4")
    with pytest.warns(UserWarning, match=r"from step 5 on, fit\.lr is 0\.0001 instead of 0\.003"):
        train(run.folder, "fit.lr=1e-4")
    assert steps(run.folder) == [2, 4, 6]
    assert run.nonfinite_step() is None
    assert [line["changes"] for line in run.progress() if "changes" in line] == [
        {"fit.lr": [0.003, 0.0001]}
    ]
    with pytest.raises(InputError, match="another recipe: fit.lr"):
        train(run.folder)  # the rate is that of the recipe by now


@pytest.mark.filterwarnings("ignore:from step . on, fit.lr is 0.0003 instead of 0.003:UserWarning")
@pytest.mark.parametrize(
    "failing", [1, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 3, 6))]
)
def test_the_printed_command_works(tmp_path, capsys, monkeypatch, failing):
    out = tmp_path / "my runs" / "a, b"
    norms = iter([1.0] * (failing - 1) + [torch.nan])
    monkeypatch.setattr("fewstep.trainer.nn.utils.get_total_norm", lambda _: next(norms))
    assert main(["train", "digits-flow", *TINY, "fit.steps=6", "fit.clip=0", "--out", str(out)])
    monkeypatch.undo()
    assert out.exists() == (failing > 1)
    (line,) = (text for text in capsys.readouterr().err.splitlines() if "example" in text)
    command = shlex.split(line.rpartition("For example: fewstep ")[2])
    assert command[-1] == "fit.lr=0.0003"
    assert main(command) == 0
    assert Run(out).state()[1]["step"] == 6 and (out / "report.html").exists()


# --- more steps


@pytest.mark.parametrize(
    ("more", "until"),
    [
        ([], None),
        (["fit.adapt=3"], 3),
        *(
            pytest.param(more, until, marks=pytest.mark.slow)
            for more in (["fit.warmup=2"], ["fit.nonfinite=skip"], ["fit.ema_rampup=0"])
            for until in (None, 3)
        ),
        pytest.param([], 3, marks=pytest.mark.slow),
        pytest.param(["fit.adapt=3"], None, marks=pytest.mark.slow),
    ],
)
def test_an_extended_run_is_one_of_this_length(tmp_path, more, until):
    train(tmp_path / "run", *more, until=until)
    longer = [*more, "fit.steps=9"]
    assert not is_finished(recipe(*longer), tmp_path / "run", extend=True)
    train(tmp_path / "run", *longer, extend=True)
    train(tmp_path / "new", *longer)
    assert equal(tensors(tmp_path / "run"), tensors(tmp_path / "new"))
    model = "model.safetensors"
    assert (tmp_path / "run" / model).read_bytes() == (tmp_path / "new" / model).read_bytes()
    assert is_finished(recipe(*longer), tmp_path / "run", extend=True)
    assert is_finished(recipe(*longer), tmp_path / "run")


def test_an_extended_run_that_is_killed_before_its_first_save_is_not_finished(
    undisturbed, tmp_path
):
    shutil.copytree(undisturbed, tmp_path / "run")
    with closing(run_recipe(recipe("fit.steps=9"), tmp_path / "run", extend=True)) as steps:
        next(steps)
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
    assert not is_finished(recipe("fit.steps=9"), tmp_path / "killed")
    train(tmp_path / "killed", "fit.steps=9")
    train(tmp_path / "run", "fit.steps=9")
    assert equal(tensors(tmp_path / "killed"), tensors(tmp_path / "run"))


def test_a_training_reads_the_tensors_of_its_state_once(stopped, monkeypatch):
    reads, read_file = [], run_folder.read_weights_file
    monkeypatch.setattr(
        run_folder, "read_weights_file", lambda *a, **k: reads.append(a) or read_file(*a, **k)
    )
    assert not is_finished(recipe(), stopped)
    train(stopped)
    assert len(reads) == 1
    assert is_finished(recipe(), stopped) and len(reads) == 1


def test_without_the_option_more_steps_are_refused_and_fewer_always(stopped):
    with pytest.raises(InputError, match=r"another recipe: fit\.steps is 6 .* and 9 .*--extend"):
        train(stopped, "fit.steps=9")
    with pytest.raises(InputError, match=r"fit\.steps is 4 here but 6 in"):
        train(stopped, "fit.steps=4", extend=True)
    with pytest.raises(InputError, match="another recipe: fit.batch"):
        train(stopped, "fit.steps=9", "fit.batch=4", extend=True)


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("fit.schedule=cosine", "fit.schedule"),
        ("fit.players.student.schedule=linear", "fit.players.student.schedule"),
        ("fit.warmup=0.1", "fit.warmup"),
        ("fit.ema_halflife=[16, 0.05]", "fit.ema_halflife"),
        ("method={name='consistency'}", "method.levels"),
        ("method={name='scm', source='data', warmup=0.5}", "method.warmup"),
    ],
)
def test_what_follows_the_number_of_steps_cannot_be_extended(tmp_path, setting, name):
    Run(tmp_path / "run").claim(recipe(setting).table())
    Run(tmp_path / "run").model_file.touch()
    with pytest.raises(InputError, match=rf"{name} follows .* by student\.init={tmp_path}/run "):
        check_changes(Run(tmp_path / "run"), recipe(setting, "fit.steps=9"), extend=True)
    with pytest.raises(
        InputError, match=rf"9 in this recipe; .* student\.init={tmp_path}/run "
    ) as e:
        check_changes(Run(tmp_path / "run"), recipe(setting, "fit.steps=9"))
    assert "--extend" not in str(e.value)


def test_settings_that_do_not_follow_the_number_of_steps():
    names = {
        "digits-dmd2": [],
        "digits-progressive": ["method.phases"],
        "digits-consistency": ["method.levels"],
        "digits-scm": ["method.warmup"],
        "digits-circuit": ["method.phases"],
        "digits-meanflow": [],
        "digits-regress": [],
        "digits-sid": [],
    }
    for name, expected in names.items():
        settings = list(length_settings(read(name)))
        assert [key for key in settings if key.startswith("method.")] == expected, name
    cd = read("digits-cd", ["method.levels={name='ladder', growth='fixed'}"])
    assert not [key for key in length_settings(cd) if key.startswith("method.")]


# --- all that a step owes


OWED = ["evaluate={every=2, steps=[1], samples=10, extractor='pixels'}"]


@pytest.mark.parametrize("name", ["model.safetensors", "samples/step-0000006.png", "report.html"])
def test_a_finished_run_makes_a_missing_file_again(undisturbed, tmp_path, name):
    shutil.copytree(undisturbed, tmp_path / "run")
    argv = ["train", "digits-flow", *TINY, "fit.steps=6", "--out", str(tmp_path / "run")]
    assert main(argv) == 0
    before = content(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    assert Run(tmp_path / "run").missing() == [name]
    assert main(argv) == 0
    assert content(tmp_path / "run") == before and Run(tmp_path / "run").missing() == []


@pytest.mark.parametrize(
    "step", [4, *(pytest.param(step, marks=pytest.mark.slow) for step in (2, 6))]
)
def test_an_interrupted_evaluation_is_made_again(tmp_path, monkeypatch, step):
    run = Run(tmp_path / "run")
    with monkeypatch.context() as patch:
        real, calls = Evaluator.score, []

        def score(*arguments, **settings):
            calls.append(1)
            if 2 * len(calls) == step:
                raise KeyboardInterrupt
            return real(*arguments, **settings)

        patch.setattr(Evaluator, "score", score)
        with pytest.raises(KeyboardInterrupt):
            train(run.folder, *OWED)
    assert run.state()[1]["step"] == step and "scores" in run.missing()
    assert not is_finished(recipe(*OWED), run.folder)
    train(run.folder, *OWED)
    train(tmp_path / "new", *OWED)
    scores = [line["step"] for line in run.progress() if "score" in line]
    assert scores == [2, 4, 6] and run.missing() == ["report.html"]
    for name in ("best.safetensors", "model.safetensors", "state/state.safetensors"):
        assert (run.folder / name).read_bytes() == (tmp_path / "new" / name).read_bytes()


def test_log_lines_after_a_resume_are_those_of_an_undisturbed_run(tmp_path):
    """The numbers of steps 4 and 5 are in the line of step 6, also if the run stopped at 5."""

    def lines(folder):
        varying = ("seconds", "memory")
        rows = [line for line in Run(folder).progress() if "seconds" in line]
        return [{k: v for k, v in row.items() if k not in varying} for row in rows]

    for name, stop in (("new", None), ("run", 5)):
        for _ in range(2):
            with closing(run_recipe(recipe(), tmp_path / name, log_every=3)) as training:
                for progress in training:
                    if progress.step == stop:
                        break
    assert lines(tmp_path / "run") == lines(tmp_path / "new")
