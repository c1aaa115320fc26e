"""What a generator can do besides sampling, by what its recipe says of its training."""

from collections.abc import Mapping, Sequence
from typing import Any

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.guidance import guidance_weight
from fewstep.sampling import Renoise
from fewstep.weights_file import method_name


def why_not_paintable(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why a generator cannot start from a picture; empty if it can.

    `recipe` is the table in its weights file, None for checkpoints of other projects: these were
    trained at all noise levels.
    """
    if len(generator.spec.shape) != 3:
        return "it generates points, not images"
    if generator.decoder is not None:
        return "it generates latents, and its file contains their decoder without the encoder"
    if generator.step.own_grid:
        name = plugins.name_of("sampler", type(generator.step))
        return f"its sampler, {name}, has no images between its steps"
    if recipe is None:
        return ""
    method = method_name(recipe)
    if not method:
        return ""
    try:  # the name may be the address of foreign code, which a weights file must not import
        kind = plugins.resolve("method", method, allow_code=())
    except InputError as error:
        return str(error)
    if getattr(kind, "trains_at_all_times", False):  # which no autoencoder is
        return ""
    return f"its method, {method}, trains it only at the noise levels that its steps start from"


def why_no_likelihood(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why a generator gives images no likelihood; empty if it does.

    Only the velocity of a teacher is that of a probability flow. `recipe` is as in
    `why_not_paintable`; of checkpoints of other projects, the sampler tells consistency models.
    """
    if generator.decoder is not None:
        return "it generates latents, and the density of latents is not that of images"
    if generator.denoiser.is_flow_map:
        return "it is a flow map, which jumps from noise to image"
    if guidance_weight(generator.denoiser.backbone) != 1:
        return "it is guided, and guidance moves images away from the density that was learned"
    if generator.step.own_grid:
        name = plugins.name_of("sampler", type(generator.step))
        return f"its sampler, {name}, follows no probability flow"
    method = method_name(recipe)
    if not method:
        consistency = isinstance(generator.step, Renoise) and generator.step.share == 1
        return "its sampler, renoise, is that of a consistency model" if consistency else ""
    try:  # the name may be the address of foreign code, which a weights file must not import
        kind = plugins.resolve("method", method, allow_code=())
    except InputError as error:
        return str(error)
    if getattr(kind, "trains_velocity", False):
        return ""
    return f"its method, {method}, trains a student, whose velocity is not that of a flow"


def why_not_guidable(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why the generator's sampler cannot be guided, classifier-free; empty if it can.

    Guidance compares with the output without class and prompt, which only condition dropout
    trains. `recipe` is as in `why_not_paintable`.
    """
    if generator.spec.is_conditional and generator.step.own_grid:
        return f"its sampler, {plugins.name_of('sampler', type(generator.step))}, has no guidance"
    return _why_not_trained(generator, recipe)


def _why_not_trained(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why the network has no output without condition; empty if it has one."""
    spec = generator.spec
    if not spec.is_conditional:
        return "it has no classes and no prompts"
    conditions = (
        "labels" if spec.text is None else "labels and prompts" if spec.classes else "prompts"
    )
    if recipe is None or not method_name(recipe):
        return f"it is not known whether it was trained without {conditions} too"
    if not _condition_dropout(recipe["method"]):
        return f"its method, {method_name(recipe)}, trained it with {conditions} only"
    return ""


def with_guidance(
    generator: Generator,
    weight: float,
    recipe: Mapping[str, Any] | None,
    *,
    interval: Sequence[float] | None = None,
    weak: Generator | None = None,
    negative: str = "",
) -> Generator:
    """The generator under guidance: classifier-free, or with a `weak` network autoguidance.

    A weight of 1 means no guidance. Checkpoints of other projects, of which nothing is known, are
    accepted.

    Raises: InputError as `Generator.with_guidance` and `with_autoguidance`, if the recipe says that
    the generator was not trained without labels too, as classifier-free guidance requires, or for
    autoguidance with a weight of 1 or a negative prompt, which have no effect.
    """
    if weak is not None:
        check_autoguidance(weight, negative=negative)
        return generator.with_autoguidance(weight, weak, interval=interval)
    if weight == 1 and not negative and interval is None:
        return generator
    guided = generator.with_guidance(weight, interval=interval, negative=negative)
    reason = _why_not_trained(generator, recipe) if method_name(recipe) else ""
    if reason:
        raise InputError(
            f"guidance compares with the output without condition, but {reason}: set the weight of "
            "guidance to 1, or train with method.condition_dropout=0.1"
        )
    return guided


def check_autoguidance(weight: float, *, negative: str = "") -> None:
    """Raise InputError for settings without an effect: a weight of 1, or a negative prompt."""
    if weight == 1 or negative:
        problem = "a weight of 1" if weight == 1 else "a negative prompt"
        remedy = "set another weight of guidance" if weight == 1 else "leave it out"
        raise InputError(f"{problem} has no effect on autoguidance: {remedy}")


def _condition_dropout(settings: Mapping[str, Any]) -> float:
    try:  # the name may be the address of foreign code, which a weights file must not import
        kind = plugins.resolve("method", settings["name"], allow_code=())
    except InputError:
        return settings.get("condition_dropout", 0.0)
    return kind.condition_dropout(settings)
