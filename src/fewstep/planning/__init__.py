"""What a training will need and cost, found out before it starts: `plan_recipe(recipe)`."""

import warnings
from collections.abc import Generator as Pull
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from fewstep.assembly import allow_code
from fewstep.autoencoders import Decoder
from fewstep.averaging import SNAPSHOTS
from fewstep.conditions import data_spec
from fewstep.data import ImageSet
from fewstep.distributed import device
from fewstep.errors import InputError
from fewstep.evaluation import count_parameters
from fewstep.generator import Generator
from fewstep.latent_recipes import check_latents
from fewstep.methods.base import Method
from fewstep.methods.checks import (
    check_augmentation,
    check_coupling,
    check_prompt_file,
    check_start,
    training_warnings,
)
from fewstep.methods.objective import Objective
from fewstep.optimizers import adapt_config, adapt_steps, fit_problems, main_config
from fewstep.planning.footprint import Footprint, measure
from fewstep.planning.latents import find_latents
from fewstep.planning.requirement import Requirement
from fewstep.planning.requirements import (
    build_autoencoder_method,
    build_method,
    find_data,
    find_generator,
    find_networks,
    find_pairs,
    generator_addresses,
)
from fewstep.recipe import Recipe
from fewstep.sample_spec import SampleSpec
from fewstep.store_recipes import open_stores
from fewstep.trainer import check_players

__all__ = ["Plan", "Requirement", "plan_recipe"]


@dataclass
class Plan:
    """What is known of a training before it starts. Parts that depend on something that is missing,
    and has no stand-in, are None or empty."""

    recipe: Recipe
    requirements: list[Requirement] = field(default_factory=list[Requirement])
    images: ImageSet | None = None
    records: int | None = None
    """Number of recorded pairs."""
    spec: SampleSpec | None = None
    reads: frozenset[str] = frozenset()
    """Streams that the method reads: images, pairs, rings."""
    trained: dict[str, int] = field(default_factory=dict[str, int])
    """Parameters of each player."""
    frozen: dict[str, int] = field(default_factory=dict[str, int])
    """Parameters of networks that are not trained, such as the teacher."""
    adapt_steps: int = 0
    """Training steps that adapt a copied student first."""
    footprint: Footprint | None = None
    memory: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes on the device, without activations."""
    disk: dict[str, int] = field(default_factory=dict[str, int])
    """Bytes of each file of a checkpoint."""
    snapshots: int = 0
    """Bytes of all snapshots of averages with power profiles."""
    warnings: list[str] = field(default_factory=list[str])
    problems: list[str] = field(default_factory=list[str])
    """Why the training would be refused, apart from what is missing."""


def plan_recipe(recipe: Recipe) -> Plan:
    """Build what a training of `recipe` would build, without training, downloads or files.

    Problems that would stop the training are collected, not raised.
    """
    plan = Plan(recipe)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _fill(plan)
    plan.warnings += [str(each.message) for each in caught if each.category is UserWarning]
    return plan


def _describe_samples(plan: Plan, *networks: Generator | None) -> Decoder | None:
    """Sets `plan.spec`.  Returns the decoder of a recipe that trains on latents."""
    if plan.images is None:
        return None
    spec = data_spec(plan.recipe, plan.images, *networks)
    requirements, decoder = find_latents(plan.recipe, plan.images, networks)
    plan.requirements += requirements
    plan.spec = replace(spec, shape=decoder.latent_shape) if decoder else spec
    return decoder


def _fill(plan: Plan) -> None:
    recipe = plan.recipe
    allow_code(recipe)
    networks: dict[str, Generator | None] = {}
    with _collect(plan):
        requirement, images = find_data(recipe)
        plan.requirements.append(requirement)
        plan.images = images
        plan.requirements += find_networks(recipe, images, is_blank=bool(requirement.missing))
    if recipe.method_name == "autoencode":
        _fill_autoencoder(plan)
        return
    teacher = None
    for noun, address in generator_addresses(recipe).items():
        with _collect(plan):
            requirement, networks[noun] = find_generator(noun, address)
            plan.requirements.append(requirement)
            if noun == "teacher" and not requirement.missing:
                teacher = networks[noun]
    method = decoder = None
    with _collect(plan):
        sources = [each for noun, each in networks.items() if noun != "weak"]
        decoder = _describe_samples(plan, *sources)
    if plan.spec and not plan.problems and None not in networks.values():
        with _collect(plan):
            method, is_adapted = build_method(recipe, plan.spec, **networks)
            plan.adapt_steps = adapt_steps(recipe.fit) if is_adapted else 0
            plan.reads = method.reads
            _count(plan, method, decoder)
            check_latents(recipe, reads_images="images" in method.reads or is_adapted)
    if recipe.pairs or plan.reads & {"pairs", "rings"}:
        with _collect(plan):
            requirement, plan.records = find_pairs(recipe, plan.reads)
            plan.requirements.append(requirement)
            is_local = "://" not in requirement.name
            if plan.records is not None and is_local and method and plan.spec:
                open_stores(recipe, plan.spec, method, teacher)
    if plan.spec and method:
        with _collect(plan):
            check_players(method, main_config(recipe.fit))
            check_augmentation(method, recipe.data.augment)
            check_coupling(method, augment=recipe.data.augment, flip=recipe.data.flip)
            check_prompt_file(method, recipe.data.prompts)
            check_start(method)
            plan.warnings += training_warnings(method)
            plan.warnings += _fit_warnings(plan, method)
            augmented = bool(recipe.data.augment)
            plan.footprint = measure(method, plan.spec, recipe.fit, augmented=augmented)


def _fill_autoencoder(plan: Plan) -> None:
    """What a recipe that trains an autoencoder needs beyond its images."""
    recipe = plan.recipe
    if plan.images is None:
        return
    plan.spec = SampleSpec(plan.images.shape)
    with _collect(plan):
        method = build_autoencoder_method(recipe, plan.spec.shape)
        plan.reads = method.reads
        _count(plan, method)
        check_players(method, recipe.fit)
        plan.warnings += fit_problems(method.players, recipe.fit, device())
        plan.footprint = measure(method, plan.spec, recipe.fit, augmented=False)


def _fit_warnings(plan: Plan, method: Method[Any]) -> list[str]:
    """Warnings of the adaptation, if there is one, and of the method's training."""
    fit, problems = plan.recipe.fit, list[str]()
    if plan.adapt_steps:
        problems += fit_problems(("adapt",), adapt_config(fit), device(), is_adaptation=True)
    problems += fit_problems(method.players, main_config(fit), device())
    return list(dict.fromkeys(problems))


@contextmanager
def _collect(plan: Plan) -> Pull[None]:
    """Adds an InputError that is raised inside to the problems of the plan."""
    try:
        yield
    except InputError as error:
        plan.problems.append(str(error))


def _count(plan: Plan, method: Objective[Any], decoder: Decoder | None = None) -> None:
    """Parameters, and bytes in memory and on disk; a model of latents contains its decoder."""
    players = method.players
    plan.trained = {name: count_parameters(player) for name, player in players.items()}
    trained = {id(weight) for player in players.values() for weight in player.parameters()}
    for name, module in method.named_children():
        count = sum(p.numel() for p in module.parameters() if id(p) not in trained)
        if count and name not in players:
            plan.frozen[name] = count
    gradients = sum(_bytes(player.parameters()) for player in players.values())
    fit, one = plan.recipe.fit, _bytes(method.network.parameters())
    lengths = len(fit.ema_lengths or ())
    average = one * (len(fit.halflives) + lengths)
    plan.memory = {
        "weights": _bytes([*method.parameters(), *method.buffers()]),
        "gradients": gradients,
        "moments": 2 * gradients,
        "averages": average,
    }
    state = method.state_dict()
    own = _bytes(value for name, value in state.items() if not name.startswith("teacher."))
    model = _bytes(method.network.state_dict().values())
    model += _bytes(decoder.state_dict().values()) if decoder else 0
    plan.disk = {"state/state.safetensors": own + 2 * gradients + average}
    plan.disk["model.safetensors"] = model
    if lengths:
        plan.snapshots = one * lengths * min(fit.ema_snapshots or SNAPSHOTS, fit.steps)
    if plan.recipe.evaluate.every:
        plan.disk["best.safetensors"] = model


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
