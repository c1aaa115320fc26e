"""What a generator can do besides sampling, by what its recipe says of its training."""

from collections.abc import Mapping
from typing import Any

from fewstep import plugins
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.weights_file import method_name


def why_not_paintable(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why a generator cannot start from a picture; empty if it can.

    `recipe` is the table in its weights file, None for checkpoints of other projects: these were
    trained at all noise levels.
    """
    if len(generator.spec.shape) != 3:
        return "it generates points, not images"
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
    if kind.trains_at_all_times:
        return ""
    return f"its method, {method}, trains it only at the noise levels that its steps start from"


def why_not_guidable(generator: Generator, recipe: Mapping[str, Any] | None) -> str:
    """The reason why classifier-free guidance has no meaning; empty if it has one.

    Guidance compares with the output without class, which only label dropout trains. `recipe` is
    as in `why_not_paintable`.
    """
    if not generator.spec.classes:
        return "it has no classes"
    if recipe is None or not method_name(recipe):
        return "it is not known whether it was trained without labels too"
    if not recipe["method"].get("label_dropout"):
        return f"its method, {method_name(recipe)}, trained it with labels only"
    return ""
