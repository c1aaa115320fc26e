"""The generators of the studio, and one generation at a time, for all tabs of one process."""

import string
import threading
import time
from collections import Counter, OrderedDict, abc
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import UInt8
from torch import Tensor

from fewstep import abilities, painting, runs
from fewstep.condition import NO_LABEL, Condition
from fewstep.distributed import device
from fewstep.drawing import conditions, prompts_in_turn, seeds
from fewstep.errors import InputError, errors_about
from fewstep.finite import check_finite
from fewstep.generator import Generator
from fewstep.guidance import unguided
from fewstep.images import to_uint8
from fewstep.studio.catalogue import Catalogue, Entry, printable
from fewstep.studio.starts import Place

MODELS = 8
"""Generators kept in memory; the one that was used longest ago is dropped for another."""
RESULTS = 48
"""Results kept in memory, of all tabs together."""

Cancel = Callable[[], object]
"""Called between network calls, and while waiting; it raises to abandon the generation."""
Key = TypeVar("Key")
Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded generator with what the page says of it."""

    name: str
    generator: Generator
    hash: str
    """SHA-256 of the weights and description; see `runs.weights_hash`."""
    recipe: dict[str, Any] | None
    why_not_paintable: str
    """Why it cannot start from a picture; empty if it can."""
    why_not_guidable: str
    """Why classifier-free guidance makes no sense; empty if it does."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the noise: that of the images, or of their latents."""
        return self.generator.spec.shape

    @property
    def kind(self) -> tuple[tuple[int, ...], int, bool]:
        """Shape, number of classes, and whether it reads prompts: only models of the same kind can
        be compared."""
        return self.generator.image_shape, self.generator.spec.classes, self.reads_text

    @property
    def reads_text(self) -> bool:
        return self.generator.spec.text is not None

    def unknown_words(self, text: str) -> list[str]:
        """The words that its text encoder does not know; none for a model without text."""
        encoder = self.generator.spec.text
        words = [] if encoder is None else encoder.unknown_words(text)
        return [word for word in dict.fromkeys(words) if word not in string.punctuation]

    def class_difference(self, other: "Model") -> str:
        """See `SampleSpec.class_difference`: models whose classes differ are not compared."""
        return self.generator.spec.class_difference(other.generator.spec)

    @property
    def default_steps(self) -> int:
        """The fewest steps that it was trained for."""
        return min(runs.default_steps(self.generator, self.recipe))

    def class_names(self) -> list[str]:
        """The name of each class; with its number if other classes have that name too, or none."""
        spec = self.generator.spec
        names = [" ".join(printable(name).split()) for name in spec.class_names]
        names = names or [str(number) for number in range(spec.classes)]
        count = Counter(names)
        return [
            name if name and count[name] == 1 else f"{name} ({number})".strip()
            for number, name in enumerate(names)
        ]


@dataclass(frozen=True)
class Request:
    """What to generate: one picture for each start, all by one model."""

    model: Model
    starts: tuple[Place, ...]
    labels: tuple[int, ...] | None
    """A class for each start, −1 for none; None for an unconditional model."""
    steps: int
    guidance: float = 1.0
    prompts: tuple[str, ...] | None = None
    """A prompt for each start, empty for none; None for a model without text."""
    negative: str = ""
    """The negative prompt under guidance."""

    def key(self) -> tuple[Any, ...]:
        """Equal for requests with equal results."""
        conditions = self.labels, self.prompts, self.negative
        return self.model.hash, *map(str, self.starts), *conditions, self.steps, self.guidance

    def noise(self) -> Tensor:
        """The starting noise (n, *shape)."""
        return torch.cat([start.noise(self.model.shape) for start in self.starts])

    def cond(self) -> Condition | None:
        """The condition of each start, on the CPU."""
        rows, spec = range(len(self.starts)), self.model.generator.spec
        return conditions(spec, rows, labels=self.labels, prompts=self.prompts)

    def generator(self) -> Generator:
        """The model's generator, under guidance if that is asked for."""
        plain = self.model.generator
        if self.guidance == 1:
            return plain
        return plain.with_guidance(self.guidance, negative=self.negative)

    def seeds(self) -> list[int]:
        """Seeds of the noise that a sampler adds."""
        return [seeds(start.seed, range(1))[0] for start in self.starts]


@dataclass(frozen=True, eq=False)
class Result:
    """Generated images with their cost."""

    values: Tensor
    """The generator's own output (n, *shape), about [-1, 1], on the CPU."""
    calls: int
    """Network calls, each on the batch of all images."""
    seconds: float

    @property
    def images(self) -> UInt8[Tensor, "n *shape"]:
        """The images as uint8."""
        return to_uint8(self.values)


class Recent(Generic[Key, Value]):
    """A dictionary of the `size` values that were used last. Threads may share it."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._values: OrderedDict[Key, Value] = OrderedDict()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def put(self, key: Key, value: Value) -> Value:
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._values)


class Workshop:
    """Loads models of a catalogue, and generates with one of them at a time."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self._turn = threading.Lock()
        self._models: Recent[tuple[str, str], Model] = Recent(MODELS)
        self._results: Recent[tuple[Any, ...], Result] = Recent(RESULTS)

    @contextmanager
    def turn(self, cancel: Cancel) -> abc.Generator[None]:
        """Wait until nothing else is generated; `cancel` may raise meanwhile."""
        while not self._turn.acquire(timeout=0.05):
            cancel()
        try:
            yield
        finally:
            self._turn.release()

    def load(self, name: str, *, cancel: Cancel = lambda: None) -> Model:
        """The model with this name of the catalogue; it is read again after its file changed.

        Raises: InputError for a name that the catalogue does not have, or unusable weights.
        """
        entry = self.catalogue.find("run", name)
        key = entry.address, _version(entry)
        model = self._models.get(key)
        if model is None:
            with self.turn(cancel):
                model = self._models.get(key) or self._models.put(key, _load(entry))
        return model

    def generate(
        self,
        request: Request,
        *,
        image: Tensor | None = None,
        freedom: float = 1.0,
        cancel: Cancel = lambda: None,
    ) -> Result:
        """The images of a request, from the cache if they were generated lately.

        With an `image` (1, *shape) in [-1, 1], they resemble it; see `painting.paint`.

        Raises: InputError if the values are not finite.
        """
        key = request.key()
        if image is not None:
            key = *key, freedom, image.numpy().tobytes()
        result = self._results.get(key)
        if result is None:
            with self.turn(cancel), errors_about(request.model.name):
                result = measure(
                    request.model.generator, lambda: _sample(request, image, freedom), cancel
                )
            self._results.put(key, result)
        return result


def _sample(request: Request, image: Tensor | None, freedom: float) -> Tensor:
    generator = request.generator()
    noise, cond = request.noise().to(generator.device), request.cond()
    cond = cond and cond.to(generator.device)
    settings: Any = {"steps": request.steps, "cond": cond, "seed": request.seeds()}
    if image is not None:
        image = image.to(noise).expand_as(noise)
        return painting.paint(generator, image, noise, freedom=freedom, **settings)
    repeat = partial(generator.path, noise, **settings)
    return check_finite(generator, generator(noise, **settings), repeat)


@torch.inference_mode()
def measure(generator: Generator, sample: Callable[[], Tensor], cancel: Cancel) -> Result:
    """Run `sample`, count the calls of the generator's network, and take the time."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        cancel()
        calls += 1

    # guided copies of the generator share its network, so one hook sees the calls of all
    trunks = unguided(generator.denoiser.backbone).trunks
    handles = [trunk.register_forward_pre_hook(count) for trunk in trunks]
    start = time.perf_counter()
    try:
        values = sample().float().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return Result(values, calls, time.perf_counter() - start)


def labels_of(model: Model, starts: Sequence[Place], label: int | None) -> tuple[int, ...] | None:
    """The class of each start: `label`; if that is None, in turn by its seed, or none for a model
    with text, whose prompts say what to draw."""
    classes = model.generator.spec.classes
    if not classes:
        return None
    if label is not None and not NO_LABEL <= label < classes:
        raise InputError(f"label {label} is out of range; the classes are 0 to {classes - 1}")
    if label is None and model.reads_text:
        label = NO_LABEL
    return tuple(start.seed % classes if label is None else label for start in starts)


def prompts_of(model: Model, starts: Sequence[Place], prompt: str) -> tuple[str, ...] | None:
    """The prompt of each start: `prompt`, or examples of the model in turn if that is empty."""
    if not model.reads_text:
        return None
    examples = (prompt,) if prompt else prompts_in_turn(model.generator.spec)
    return tuple(examples[start.seed % len(examples)] for start in starts)


def _load(entry: Entry) -> Model:
    generator = runs.load(entry.address).to(device())
    note = runs.describe(entry.address)
    recipe = note.get("recipe")
    with errors_about(entry.name):
        _warm_up(generator)
    return Model(
        name=entry.name,
        generator=generator,
        hash=runs.weights_hash(generator),
        recipe=recipe,
        why_not_paintable=abilities.why_not_paintable(generator, recipe),
        why_not_guidable=abilities.why_not_guidable(generator, recipe),
    )


@torch.inference_mode()
def _warm_up(generator: Generator) -> None:
    """Generate once, so that the first time that the page prints is that of the network."""
    noise = torch.zeros(1, *generator.spec.shape, device=generator.device)
    cond = conditions(generator.spec, range(1), noise.device)
    settings: Any = {"steps": min(generator.grid.counts or (1,)), "cond": cond}
    check_finite(
        generator, generator(noise, **settings), partial(generator.path, noise, **settings)
    )


def _version(entry: Entry) -> str:
    """Changes when the entry's weights file is replaced, as a running training does."""
    file = entry.run.model_file if entry.run else Path(entry.address)
    try:
        stat = file.stat()
    except OSError:
        return ""
    return f"{stat.st_mtime_ns} {stat.st_size}"
