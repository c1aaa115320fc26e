"""`Generator`: a denoiser with its sampler. A run trains one, and `load` returns it."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep import plugins, tables
from fewstep.autoencoders import Decoder
from fewstep.autoguidance import Autoguided, check_weak, network_digest, weak_network
from fewstep.condition import Condition
from fewstep.denoiser import Denoiser
from fewstep.errors import InputError
from fewstep.guidance import (
    Guided,
    Negative,
    check_guidance,
    check_interval,
    guidance_interval,
    guidance_weight,
    negative_prompt,
    unguided,
)
from fewstep.precision import float32_products
from fewstep.ranges import Precision
from fewstep.sample_spec import SampleSpec
from fewstep.sampling import Step, Transfer, path, sample
from fewstep.times import Grid, UniformGrid


class Generator(nn.Module):
    """Generates images from noise by sampling `denoiser` with `step` at the times of `grid`.

    Few-step students are trained for certain step counts, `grid.counts`. For any other count,
    `forward` uses the nearest of these and warns. With a `decoder`, the samples of the denoiser are
    latents, of shape `spec.shape`, and the images are decoded at the end.

    Raises: InputError for a decoder of latents of another shape.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        spec: SampleSpec,
        *,
        grid: Grid | None = None,
        step: Step | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        super().__init__()
        self.denoiser: Denoiser = denoiser
        self.spec = spec
        self.decoder: Decoder | None = decoder
        if decoder is not None and decoder.latent_shape != spec.shape:
            raise InputError(
                f"the samples have shape {spec.shape}, and the decoder takes latents of shape "
                f"{decoder.latent_shape}"
            )
        self.grid = grid or UniformGrid()
        self.step = step or Transfer()

    def forward(
        self,
        noise: Tensor,
        *,
        steps: int = 1,
        cond: Condition | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Tensor:
        """Images (b, *image_shape), about [-1, 1], from standard normal `noise` (b, *shape).

        `seed` is for samplers that add noise: one seed for each row, or the seed of the first row,
        from which the others count up.
        Raises InputError for fewer than 1 step, noise of another shape, or a label out of range.
        """
        self._check(noise, cond)
        times, noise = self._start(noise, steps)
        with float32_products(self.denoiser.precision):  # once for all evaluations
            samples = sample(self.denoiser, noise, times, step=self.step, cond=cond, seed=seed)
            return self.decode(samples)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """Shape of the images: that of the samples, unless these are latents."""
        return self.spec.shape if self.decoder is None else self.decoder.shape

    @property
    def _autoencoder(self) -> str | None:
        return self.decoder and self.decoder.autoencoder

    def decode(self, samples: Tensor) -> Tensor:
        """The images (b, *image_shape) of the denoiser's samples (b, *shape), about [-1, 1]."""
        return samples if self.decoder is None else self.decoder(samples)

    def path(
        self,
        noise: Tensor,
        *,
        steps: int,
        cond: Condition | None = None,
        seed: int | Sequence[int] = 0,
    ) -> Iterator[Tensor]:
        """Yield the states (b, *shape) at each time of the grid, then the samples: `steps` + 1.

        `decode` turns the samples into the images of `forward` with the same arguments.
        """
        self._check(noise, cond)
        times, noise = self._start(noise, steps)
        return path(self.denoiser, noise, times, step=self.step, cond=cond, seed=seed)

    def _start(self, noise: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The times of a sample, and the noise at which it starts."""
        times = self.grid(self.nearest(steps), self.denoiser)
        scale = self.grid.start_scale(float(times[0]), self.denoiser)
        return times, noise if scale == 1 else scale * noise

    def _check(self, noise: Tensor, cond: Condition | None) -> None:
        if tuple(noise.shape[1:]) != self.spec.shape:
            raise InputError(
                f"noise has shape {tuple(noise.shape)}; this generator takes "
                f"(n, {', '.join(map(str, self.spec.shape))})"
            )
        self.check_condition(cond)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def nearest(self, steps: int, *, quietly: bool = False) -> int:
        """The number in `grid.counts` nearest to `steps`; `quietly` suppresses the warning."""
        counts = self.grid.counts
        if not counts or steps in counts or steps < 1:
            return steps
        nearest = min(counts, key=lambda count: abs(count - steps))
        if not quietly:
            trained = ", ".join(map(str, counts))
            message = (
                f"this generator supports {trained} steps, not {steps}; it now takes {nearest}"
            )
            warnings.warn(message, stacklevel=3)
        return nearest

    def check_condition(self, cond: Condition | None) -> None:
        """Raise InputError for labels out of range, and prompts for a generator without text."""
        if cond is None:
            return
        if cond.text is not None and self.spec.text is None:
            raise InputError("this generator takes no text: leave out the prompts")
        if cond.label is not None:
            self.check_labels(cond.label)

    def check_labels(self, label: Tensor) -> None:
        """Raise InputError for a label that is not a class number or -1, which means no class."""
        classes = self.spec.classes
        if not classes:
            noun = "unconditional" if self.spec.text is None else "conditional on prompts only"
            raise InputError(f"this generator is {noun}: leave out the label")
        low, high = int(label.min()), int(label.max())
        if low < -1 or high >= classes:
            raise InputError(
                f"label {high if high >= classes else low} is out of range; "
                f"the classes are 0 to {classes - 1}"
            )

    def with_sampler(self, *, grid: Grid | None = None, step: Step | None = None) -> "Generator":
        """The same denoiser with another grid or step, or both.

        A new step keeps the current grid, unless that grid suits only the old step, as with a
        circuit's `Ring`: then the default is a uniform grid.
        """
        step_changes = step is not None and type(step) is not type(self.step)
        default = UniformGrid() if step_changes and self.step.own_grid else self.grid
        return self.replace(grid=grid or default, step=step or self.step)

    def with_guidance(
        self, weight: float, *, interval: Sequence[float] | None = None, negative: str = ""
    ) -> "Generator":
        """The same weights under classifier-free guidance.

        `interval` is the lowest and highest time of guidance, from 0 (image) to 1 (noise); at other
        times the output is the conditional one. A `negative` prompt takes the place of no prompt:
        guidance leads away from it.

        Raises: InputError for a generator without classes and text, a weight outside [0, 1000],
        an interval that is not 0 <= low < high <= 1, or a negative prompt for a generator without
        text; and for an interval or negative prompt with a weight of 1, which has no effect.
        """
        if not self.spec.is_conditional:
            raise InputError("guidance needs classes or prompts, and this generator has neither")
        check_guidance(weight)
        backbone = Guided(
            unguided(self.denoiser.backbone),
            weight,
            interval=check_interval(interval, weight),
            negative=self._negative(negative, weight),
        )
        guided = self.denoiser.replace(backbone=backbone)
        return self.replace(denoiser=guided)

    def with_autoguidance(
        self, weight: float, weak: "Generator", *, interval: Sequence[float] | None = None
    ) -> "Generator":
        """The same weights, led away from the outputs of a worse network with the same conditions.

        `weak` may be smaller, trained for fewer steps, or have another process or parametrization.
        Its own guidance, and that of this generator, are left out. Karras et al. 2024,
        arXiv:2406.02507.

        Raises: InputError as `with_guidance`, for samples of another shape or other conditions, and
        for flow maps.
        """
        check_guidance(weight)
        check_weak(self.spec, weak.spec)
        if self._autoencoder != weak._autoencoder:
            raise InputError(
                "the network of autoguidance generates other latents: use one of the same "
                "autoencoder"
            )
        if self.denoiser.is_flow_map or weak.denoiser.is_flow_map:
            raise InputError(
                "autoguidance mixes predictions of the image, and a flow map predicts a state: use "
                "networks of one time, such as teachers"
            )
        network = weak.denoiser.replace(backbone=unguided(weak.denoiser.backbone))
        backbone = Autoguided(
            unguided(self.denoiser.backbone),
            weight,
            network.under(self.denoiser.process),
            interval=check_interval(interval, weight),
        )
        return self.replace(denoiser=self.denoiser.replace(backbone=backbone))

    def _negative(self, prompt: str, weight: float) -> Negative | None:
        if not prompt:
            return None
        if self.spec.text is None:
            raise InputError("this generator takes no text: leave out the negative prompt")
        if weight == 1:
            raise InputError(
                "a negative prompt has no effect without guidance: set a weight of guidance other "
                "than 1"
            )
        return Negative(prompt, self.spec.text.encode([prompt]))

    def with_precision(self, precision: Precision) -> "Generator":
        """The same weights, computing in another number format than f32."""
        return self.replace(denoiser=self.denoiser.replace(precision=precision))

    def replace(self, **changes: Any) -> "Generator":
        """A generator with the same modules and arguments, but for `changes` of the arguments."""
        names = ("denoiser", "spec", "grid", "step", "decoder")
        return Generator(**{**{name: getattr(self, name) for name in names}, **changes})

    def describe(self) -> dict[str, Any]:
        """Everything but the weights, as JSON values; `from_description` builds
        a generator of it.

        Classes from outside this package are named by their address, `package.module:Class`, and
        `packages` contains the versions of their packages.
        """
        backbone = self.denoiser.backbone
        weak, interval = weak_network(backbone), guidance_interval(backbone)
        description = {
            "spec": tables.to_table(self.spec),
            "backbone": tables.to_table(backbone.config),
            "guidance": 1.0 if weak else guidance_weight(backbone),
            "process": tables.to_table(self.denoiser.process),
            "parametrization": tables.to_table(self.denoiser.parametrization),
            "step": tables.to_table(self.step),
            "grid": tables.to_table(self.grid),
        }
        if negative := negative_prompt(backbone):
            description["negative"] = negative
        if interval:
            description["guidance_interval"] = list(interval)
        if weak:
            description["autoguidance"] = {
                "weight": guidance_weight(backbone),
                "sha256": network_digest(weak),
            }
        if self.decoder is not None:
            description["decoder"] = self.decoder.describe()
        if self.denoiser.is_flow_map:
            description["is_flow_map"] = True
        if self.denoiser.span != self.denoiser.natural_span:
            description["span"] = list(self.denoiser.span)
        packages = dict(plugins.package_version(name) for name in tables.addresses(description))
        return {**description, "packages": packages} if packages else description
