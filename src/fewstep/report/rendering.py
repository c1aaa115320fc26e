"""HTML from Jinja templates, with number formats as filters."""

from collections.abc import Callable
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fewstep.formatting import duration, interval, number, percent, quantity, ratio


def render(template: str, **values: object) -> Markup:
    """HTML of a file in `templates/`. Strings are escaped, `Markup` is inserted unchanged."""
    return Markup(_environment().get_template(template).render(values))


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fewstep.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., str]] = {"quantity": quantity}
    for function in (number, percent, interval, ratio, duration):
        filters[function.__name__] = _without_breaks(function)
    environment.filters.update(filters)
    return environment


def _without_breaks(function: Callable[..., str]) -> Callable[..., Markup]:
    """Wrap a filter so that its result is HTML without line breaks."""
    return lambda *args: Markup('<span class="unbroken">{}</span>').format(function(*args))
