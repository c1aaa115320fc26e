"""Samplers and grids by name or table, as on the command line."""

import warnings
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, cast

from fewstep import plugins, tables
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.overrides import parse_choice
from fewstep.sampling import Step
from fewstep.times import Grid


def convert_step(step: Step, choice: str, *, clip: float | None = None) -> Step:
    """The sampler that `choice` names, with the settings that it shares with `step`, as `clip`.

    `choice` is a name, or a table with settings, such as '{name="multistep", order=3}'. Warns of a
    setting of `step` that the sampler cannot have, unless it has its default value. `clip`, if it
    is not None, replaces that of `step`.

    Raises: InputError for a name that is no sampler's, a clip that is not positive, or one that the
    sampler does not support.
    """
    table = parse_choice("--sampler", choice)
    name, kind = table["name"], plugins.resolve("sampler", table["name"])
    if not (isinstance(kind, type) and issubclass(kind, Step) and is_dataclass(kind)):
        choices = ", ".join(plugins.names("sampler"))
        raise InputError(f"{name} is not a sampler; choose one of {choices}")
    kinds, old = tables.field_types(kind), fields(cast(Any, step))
    settings = {f.name: getattr(step, f.name) for f in old if _fits(kinds, f.name, step)}
    surplus = [
        f"{f.name} = {getattr(step, f.name)!r}"
        for f in old
        if f.name not in settings and getattr(step, f.name) != f.default
    ]
    if surplus:
        source = plugins.name_of("sampler", type(step))
        message = f"the sampler {name} ignores {', '.join(surplus)} of {source}, which it replaces"
        warnings.warn(message, stacklevel=2)
    if clip is not None:
        if clip <= 0 or "clip" not in kinds:
            raise InputError(
                f"clip is {clip:g}; it must be positive"
                if clip <= 0
                else f"the sampler {name} cannot clip images: leave out the clip"
            )
        settings["clip"] = clip
    return tables.from_table(Step, tables.to_table(settings) | table, "--sampler")


def _fits(kinds: Mapping[str, Any], name: str, step: Step) -> bool:
    """Whether a setting of `step` is one of another sampler too, with this value."""
    if name not in kinds:
        return False
    try:
        tables.from_table(kinds[name], tables.to_table(getattr(step, name)), name)
    except InputError:
        return False
    return True


def with_sampler_choices(
    generator: Generator,
    recipe: Mapping[str, Any] | None,
    *,
    sampler: str | None,
    grid: str | None,
    clip: float | None = None,
) -> Generator:
    """The generator with the sampler and the grid of these choices; None leaves its own.

    A choice is a name, or a table with settings; see `convert_step`. `recipe` is the table in the
    generator's weights file, None for checkpoints of other projects.

    Raises: InputError for a name or setting that does not exist, and for a sampler with new noise
    if the recipe couples noise and images.
    """
    if sampler is not None or clip is not None:
        choice = sampler or plugins.name_of("sampler", type(generator.step))
        generator = generator.with_sampler(step=convert_step(generator.step, choice, clip=clip))
        _check_coupling(generator.step, recipe)
    if grid is None:
        return generator
    table = parse_choice("--grid", grid)
    return generator.with_sampler(grid=tables.from_table(Grid, table, "--grid"))


def _check_coupling(step: Step, recipe: Mapping[str, Any] | None) -> None:
    """Raise InputError for new noise on the paths of a coupling, whose noise is no score."""
    method = (recipe or {}).get("method")
    coupling = method.get("coupling") if isinstance(method, Mapping) else None
    name = coupling.get("name") if isinstance(coupling, Mapping) else coupling
    if name not in (None, "independent") and not step.deterministic:
        raise InputError(
            f"the network was trained with method.coupling={name}, which only the paths without "
            f"new noise follow, but the sampler {plugins.name_of('sampler', type(step))} adds "
            "some: choose transfer, heun, multistep or unipc"
        )
