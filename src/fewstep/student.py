"""Build the student of a recipe: a new network, or a copy of another network."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from fewstep import backbones, runs
from fewstep.denoiser import SPAN_TOLERANCE, Denoiser
from fewstep.errors import InputError
from fewstep.finite import nonfinite_weight
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.parametrization import Mixed, Native, Parametrization
from fewstep.recipe import Recipe, Snr, StudentConfig
from fewstep.sample_spec import SampleSpec


def check_spec(generator: Generator, noun: str, recipe: Recipe, spec: SampleSpec) -> None:
    """Raise InputError for a generator of images of another shape or classes than the data's, or
    with weights that are not finite."""
    if name := nonfinite_weight(generator):
        raise InputError(
            f"{noun} cannot be trained from: its weight {name} contains NaN or infinite values, so "
            "its file is damaged or its training diverged; use other weights"
        )
    own = generator.spec
    check_encoders(noun, own, spec)
    if (own.shape, own.classes) == (spec.shape, spec.classes):
        if difference := own.class_difference(spec):
            raise InputError(
                f"the classes of {noun} are not those of data.name={recipe.data.name}: "
                f"{difference}; name and order the classes alike, or set data.labels=false and "
                "use networks without classes"
            )
        return
    size = own.shape[-1]
    remedies: list[str] = []
    if spec.shape[1:] != own.shape[1:] == (size, size):
        remedies.append(f"data.size={size} resizes the images")
    if spec.classes and not own.classes:
        remedies.append("data.labels=false trains without classes")
    raise InputError(
        f"{noun} generates images of shape {own.shape} with {own.classes} classes, but those of "
        f"data.name={recipe.data.name} have shape {spec.shape} and {spec.classes} classes"
        + (f"; {' and '.join(remedies)}" if remedies else "")
    )


def check_encoders(noun: str, own: SampleSpec, spec: SampleSpec) -> None:
    """Raise InputError if a generator reads prompts in another way than `spec` asks for."""
    if own.text == spec.text:
        return
    if own.text is None:
        raise InputError(
            f"{noun} reads no prompts, and the recipe trains on captions: remove [text], or use a "
            "network that was trained on captions"
        )
    if spec.text is None:
        raise InputError(
            f"{noun} reads prompts, and data.captions=false trains without them: remove that key"
        )
    raise InputError(
        f"{noun} was trained with another text encoder than the recipe's: remove [text] from the "
        "recipe to use the former"
    )


def build_student(
    recipe: Recipe,
    spec: SampleSpec,
    teacher: Generator | None,
    initial: Generator | None = None,
) -> tuple[Denoiser, Generator | None]:
    """The student, and the network whose weights it copies if it must be adapted to predict
    another quantity than that network. `initial` is the run that `student.init` names, if it is
    loaded already.

    Raises: InputError for settings that do not fit together, the images or the teacher.
    """
    config = recipe.student
    if config.init == "scratch":
        return _with_start(_new_student(recipe, spec, teacher), config), None
    if config.backbone or config.process:
        raise InputError(
            f"student.init = {config.init!r} copies a network with its process: remove "
            'student.backbone and student.process, or set student.init = "scratch"'
        )
    if config.init == "teacher" and teacher is None:
        raise InputError(
            'student.init = "teacher" copies the teacher, and the recipe has none: set '
            'teacher.load, or student.init = "scratch"'
        )
    source = teacher if config.init == "teacher" else initial or runs.load(config.init)
    assert source
    check_spec(source, f"the network of student.init={config.init}", recipe, spec)
    denoiser = source.denoiser
    network = unguided(denoiser.backbone)
    if recipe.data.augment:
        network = backbones.with_augmentation(network)
    backbone = deepcopy(network)
    if config.dropout is not None:
        backbones.set_dropout(backbone, config.dropout)
    student = Denoiser(backbone, denoiser.process, denoiser.parametrization, span=denoiser.span)
    if config.parametrization is None:
        return _with_start(student, config), None
    student = _repurpose(student, config.parametrization)
    changed = student.parametrization != denoiser.parametrization
    original = Generator(denoiser.replace(backbone=network), spec) if changed else None
    return _with_start(student, config), original


def _repurpose(student: Denoiser, parametrization: Parametrization) -> Denoiser:
    """The same network, to predict another quantity.

    Its inputs stay as they are, unless the parametrization's `native` is another process.
    """
    old = student.parametrization
    inputs = old.inputs if isinstance(old, Mixed) else old
    new = parametrization.bind(inputs.process if isinstance(inputs, Native) else student.process)
    if new != inputs and not (isinstance(inputs, Native) and isinstance(new, Native)):
        new = Mixed(inputs=inputs, outputs=new)
    natural = student.replace(parametrization=new, span=None).span
    low, high = max(student.span[0], natural[0]), min(student.span[1], natural[1])
    return student.replace(parametrization=new, span=(low, high))


def _with_start(student: Denoiser, config: StudentConfig) -> Denoiser:
    """The student with the start time of the recipe as the upper end of its span."""
    start, setting = config.start, f"student.start is {config.start}"
    if isinstance(start, Snr):
        snr, ratio = start.snr, torch.tensor([start.snr**-0.5], dtype=torch.float64)
        start = student.process.time(ratio).item()
        setting = f"student.start.snr is {snr:g}, which is t = {start:.6g}"
    if start is None:
        return student
    low, high = student.span
    if not low < start <= high + SPAN_TOLERANCE:
        raise InputError(
            f"{setting}, but the student's network was trained only for times in [{low:.6g}, "
            f"{high:.6g}]: choose a start in this span"
        )
    return student.replace(span=(low, min(start, high)))


def _new_student(recipe: Recipe, spec: SampleSpec, teacher: Generator | None) -> Denoiser:
    config = recipe.student
    process = config.process or (teacher and teacher.denoiser.process)
    parametrization = config.parametrization or (teacher and teacher.denoiser.parametrization)
    if not (process and parametrization and config.backbone):
        raise InputError(
            'student.init = "scratch" needs student.backbone, student.process and '
            "student.parametrization (the last two may come from a teacher)"
        )
    settings: Any = config.backbone
    if recipe.data.augment:
        backbones.check_augmentable(settings)
        settings = replace(settings, augmented=True)
    with torch.random.fork_rng():
        torch.manual_seed(recipe.fit.seed)
        text = None if spec.text is None else spec.text.input
        backbone = backbones.build_backbone(
            settings, shape=spec.shape, classes=spec.classes, text=text
        )
    student = Denoiser(backbone, process, parametrization)
    backbone.load_teacher(teacher and unguided(teacher.denoiser.backbone))
    return student
