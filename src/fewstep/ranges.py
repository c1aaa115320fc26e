"""Types of settings with their ranges, such as `Positive`, and the words that describe them.

`tables.from_table` checks a setting of these types wherever it comes from: a recipe, a weights
file or a store. A new setting is checked by its type, without code of its own. A float is finite.
"""

from collections.abc import Collection
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import BaseMetadata, Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

Finite = Annotated[float, Ge(-1e30), Le(1e30)]
"""Any number that float32 can hold with room for arithmetic."""
Positive = Annotated[float, Gt(0), Le(1e30)]
NonNegative = Annotated[float, Ge(0), Le(1e30)]
AtLeastOne = Annotated[float, Ge(1), Le(1e30)]
AboveOne = Annotated[float, Gt(1), Le(1e30)]
Probability = Annotated[float, Ge(0), Le(1)]
ProbabilityBelowOne = Annotated[float, Ge(0), Lt(1)]
PositiveFraction = Annotated[float, Gt(0), Le(1)]

ProfileLength = Annotated[float, Ge(0.001), Le(0.28)]
"""Standard deviation of a power profile, as a share of the training; see `ema`."""

Precision = Literal["f32", "tf32", "bf16"]
"""Number format of a computation. f32: float32. tf32: float32 whose matrix products and
convolutions round their inputs to TF32, on GPUs that have it. bf16: layers that allow it compute in
bfloat16, all else in float32."""

Count = Annotated[int, Ge(1), Le(2**31 - 1)]
CountOrZero = Annotated[int, Ge(0), Le(2**31 - 1)]
Integer = Annotated[int, Ge(-(2**31)), Le(2**31 - 1)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
SampleSeed = Annotated[int, Ge(0), Lt(2**30)]
"""Seed of samples, from which each row's seed follows."""
Rows = Annotated[int, Ge(1), Le(2**20)]
"""Rows of a batch."""
RowsOrZero = Annotated[int, Ge(0), Le(2**20)]
SamplingSteps = Annotated[int, Ge(1), Le(100_000)]
Samples = Annotated[int, Ge(2), Le(2**31 - 1)]
"""Images of a score, whose covariance needs two."""
Snapshots = Annotated[int, Ge(2), Le(1000)]
Port = Annotated[int, Ge(1), Le(65_535)]
Channels = Annotated[int, Ge(1), Le(65_536)]
"""Channels or features of one layer."""
EvenWidth = Annotated[int, Ge(4), Le(65_536), MultipleOf(2)]
"""Features of an embedding, half of which are sines."""
Depth = Annotated[int, Ge(1), Le(1000)]
"""Number of layers, one after the other."""
DepthOrZero = Annotated[int, Ge(0), Le(1000)]
Pixels = Annotated[int, Ge(1), Le(65_536)]
Address = Annotated[str, "address"]
"""A path, or an address such as `folder:PATH`; `tables` replaces a leading ~ by the home folder."""
NONEMPTY = MinLen(1)


def split(kind: Any) -> tuple[Any, tuple[BaseMetadata, ...]]:
    """A type without its ranges, and the ranges."""
    if get_origin(kind) is not Annotated:
        return kind, ()
    bare, *rest = get_args(kind)
    return bare, tuple(each for each in rest if isinstance(each, BaseMetadata))


def describe(kind: Any) -> str:
    """The values of a type in words, such as "a number above 0"."""
    bare, limits = split(kind)
    origin, inner = get_origin(bare), get_args(bare)
    if origin in (Union, UnionType):
        return " or ".join(describe(each) for each in inner if each is not NoneType)
    if origin is Literal:
        return _choice(inner)
    if origin is tuple:
        return _list_words(inner, limits)
    if bare in (int, float):
        noun = "an integer" if bare is int else "a number"
        if any(isinstance(limit, MultipleOf) for limit in limits):
            noun = "an even integer"
        words = _range_words(limits)
        return " ".join(filter(None, (noun, words)))
    return {bool: "true or false", str: "text"}.get(bare, "a table of settings")


def _choice(values: Collection[Any]) -> str:
    texts = [str(value) for value in values]
    return f"one of {', '.join(texts)}" if len(texts) > 1 else texts[0]


def _list_words(inner: tuple[Any, ...], limits: Collection[BaseMetadata]) -> str:
    each = describe(inner[0])
    if Ellipsis not in inner:
        return f"a list of {len(inner)} values, each {each}"
    least = next((limit.min_length for limit in limits if isinstance(limit, MinLen)), 0)
    most = next((limit.max_length for limit in limits if isinstance(limit, MaxLen)), None)
    if most is not None:
        return f"a list of {least:,} to {most:,}, each {each}"
    return f"a list of at least {least}, each {each}" if least else f"a list, each {each}"


def _range_words(limits: Collection[BaseMetadata]) -> str:
    """A range such as "from 0 to 1" or "above 0 and below 1"."""
    low = high = ""
    for limit in limits:
        match limit:
            case Ge(ge=bound):
                low = f"from {_number(bound)}"
            case Gt(gt=bound):
                low = f"above {_number(bound)}"
            case Le(le=bound):
                high = f"at most {_number(bound)}"
            case Lt(lt=bound):
                high = f"below {_number(bound)}"
            case _:
                pass
    if low.startswith("from"):
        return f"{low} to {high.removeprefix('at most ')}" if high else low
    return " and ".join(filter(None, (low, high)))


def _number(bound: Any) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
