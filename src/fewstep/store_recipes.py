"""The recorded teacher data of a recipe: its store, and whether it fits the student."""

from fewstep import runs, store
from fewstep.batching import Stream
from fewstep.errors import InputError
from fewstep.generator import Generator
from fewstep.methods.base import Method
from fewstep.recipe import Recipe
from fewstep.sample_spec import SampleSpec
from fewstep.streams import PairStream, RingStream


def open_stores(
    recipe: Recipe, spec: SampleSpec, method: Method, teacher: Generator | None
) -> tuple[dict[str, Stream], str | None]:
    """The streams of recorded data that a method reads, and the hash of their store.

    Raises: InputError if they do not fit the images, the teacher or the method. A `teacher` of None
    is not compared with the one that they were recorded with.
    """
    streams: dict[str, Stream] = {}
    store_hash = None
    for name, kind in (("pairs", PairStream), ("rings", RingStream)):
        if name in method.reads:
            streams[name], store_hash = open_store(recipe, spec, kind, teacher)
    method.check(streams)
    return streams, store_hash


def pairs_address(recipe: Recipe) -> str:
    """The address of the recorded pairs of a recipe.  Raises: InputError if it names none."""
    if recipe.pairs is None:
        raise InputError(
            f"method {recipe.method_name!r} learns from recorded pairs, and the recipe has none: "
            "run `fewstep record RUN --out DIR`, then set pairs.load=DIR"
        )
    return recipe.pairs.load


def open_store(
    recipe: Recipe,
    spec: SampleSpec,
    kind: type[PairStream] | type[RingStream],
    teacher: Generator | None,
) -> tuple[Stream, str]:
    """A stream of the recipe's recorded pairs, and the hash of their store."""
    address = pairs_address(recipe)
    reader = store.Reader(address)
    stream = kind(reader, classes=spec.classes, encoder=spec.text)
    if stream.shape != spec.shape:
        raise InputError(
            f"the images in the store {address} have shape {stream.shape}, but those of "
            f"data.name={recipe.data.name} have {spec.shape}: record pairs of this size"
        )
    if spec.classes and not stream.conditions.has_labels():
        raise InputError(
            f"the pairs in {address} have no labels, so that the {spec.classes} classes "
            "would not be trained: record a class-conditional teacher, or set data.labels=false"
        )
    _check_prompts(address, stream.conditions.has_prompts(), spec)
    # samples converted from other projects say neither their classes nor who recorded them
    recorded = reader.provenance.get("class_names")
    names = tuple(map(str, recorded)) if isinstance(recorded, list) else ()
    if difference := SampleSpec(spec.shape, len(names), names).class_difference(spec):
        raise InputError(
            f"the classes of the pairs in {address} are not those of "
            f"data.name={recipe.data.name}: {difference}; record pairs of a teacher of the latter"
        )
    source = reader.provenance.get("teacher")
    teacher_hash = runs.network_hash(teacher) if teacher else source
    if source not in (None, teacher_hash):
        assert recipe.teacher and teacher_hash
        raise InputError(
            f"the pairs in {address} were recorded with another teacher than "
            f"{recipe.teacher.load} (hashes {source[:12]} and {teacher_hash[:12]}): record pairs "
            "of this teacher, or set teacher.load to theirs"
        )
    return stream, reader.hash


def _check_prompts(address: str, has_prompts: bool, spec: SampleSpec) -> None:
    """Raise InputError for pairs without prompts and a network that reads them, or vice versa."""
    if has_prompts == (spec.text is not None):
        return
    if has_prompts:
        raise InputError(
            f"the images in {address} were generated from prompts, and the recipe trains without: "
            "train on captions, or record pairs of a teacher without text"
        )
    raise InputError(
        f"the pairs in {address} have no prompts, and the recipe trains on captions: record a "
        "teacher that reads prompts, or set data.captions=false"
    )
