"""A pipeline of diffusers that samples as fewstep does; it needs diffusers alone.

    DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)

Steps are programs: lists of instructions over numbered registers, each a batch (b, c, h, w). The
inputs are the first registers, and each instruction appends one; the last register is the image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor


class FewStepPipeline(DiffusionPipeline):
    """Images of `shape` (channels, height, width), by `programs` for each number of steps."""

    model_cpu_offload_seq = "unet"

    def __init__(
        self,
        unet: Any,
        shape: Sequence[int] = (),
        programs: Mapping[str, Any] | None = None,
        num_classes: int = 0,
        class_names: Sequence[str] = (),
        guidance_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(
            shape=list(shape),
            programs=programs or {},
            num_classes=num_classes,
            class_names=list(class_names),
            guidance_scale=guidance_scale,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        class_labels: Sequence[int] | int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images, the same for the same `seed` as those of `fewstep sample`.

        `class_labels` are numbers of classes, or -1 for none; by default the classes take turns.
        `seed` is one number for all rows, or a list of the keys of each row's noise. `output_type`
        is "pil", "np" (b, h, w, c) or "pt" (b, c, h, w), in [0, 1].
        """
        keys = [(seed << 32) + row for row in range(batch_size)] if isinstance(seed, int) else seed
        if len(keys) != batch_size:
            raise ValueError(f"seed has {len(keys)} keys, but batch_size is {batch_size}")
        scale = self._settings.guidance_scale if guidance_scale is None else guidance_scale
        labels = self._labels(class_labels, batch_size)
        registers = [self._noise(keys, 0)]
        bar: Any = self.progress_bar
        for instruction in bar(self._program(num_inference_steps)):
            registers.append(self._run(instruction, registers, keys, labels, scale))
        images: Any = (registers[-1].clamp(-1, 1) + 1) / 2
        if output_type != "pt":
            images = images.cpu().permute(0, 2, 3, 1).numpy()
            images = self.numpy_to_pil(images) if output_type == "pil" else images
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @property
    def _settings(self) -> Any:
        return self.config

    def _program(self, steps: int | None) -> list[dict[str, Any]]:
        programs = self._settings.programs
        name = next(iter(programs)) if steps is None else str(steps)
        if name not in programs:
            choices = ", ".join(programs)
            raise ValueError(f"num_inference_steps is {name}; this model has programs of {choices}")
        return programs[name]["instructions"]

    def _labels(self, labels: Sequence[int] | int | None, rows: int) -> Tensor | None:
        classes = self._settings.num_classes
        if not classes:
            if labels is not None:
                raise ValueError("this model has no classes: leave class_labels out")
            return None
        if labels is None:
            labels = [row % classes for row in range(rows)]
        numbers = torch.as_tensor(labels, dtype=torch.int64).reshape(-1).expand(rows)
        if numbers.min() < -1 or numbers.max() >= classes:
            raise ValueError(f"class_labels must be from 0 to {classes - 1}, or -1 for no class")
        return numbers.to(self._execution_device)

    def _run(
        self,
        instruction: Mapping[str, Any],
        registers: Sequence[Tensor],
        keys: Sequence[int],
        labels: Tensor | None,
        scale: float,
    ) -> Tensor:
        """The register that an instruction appends."""
        if "noise" in instruction:
            return self._noise(keys, instruction["noise"])
        if "sum" in instruction:
            clip, total = instruction["clip"], _combine(instruction["sum"], registers)
            return total if clip is None else total.clamp(-clip, clip)
        x = _combine(instruction["network"], registers)
        levels = instruction["level"], instruction["level_s"]
        if labels is None or scale == 1:
            return self._predict(x, levels, labels)
        without = self._predict(x, levels, torch.full_like(labels, -1))
        return scale * self._predict(x, levels, labels) + (1 - scale) * without

    def _predict(
        self, x: Tensor, levels: tuple[float, float | None], labels: Tensor | None
    ) -> Tensor:
        """The network's output (b, c, h, w) in float32."""
        level, level_s = (None if v is None else x.new_full((len(x),), v) for v in levels)
        options = {} if level_s is None else {"timestep_s": level_s}
        if labels is not None:  # the last embedding is that of no class
            options["class_labels"] = torch.where(labels < 0, self._settings.num_classes, labels)
        return self.unet(x.to(self.unet.dtype), level, return_dict=False, **options)[0].float()

    def _noise(self, keys: Sequence[int], draw: int) -> Tensor:
        """Standard normal noise (b, c, h, w) of each key, for the draw of this number."""
        rows = [
            np.random.Generator(np.random.Philox(key=[key, draw])).standard_normal(
                self._settings.shape, dtype=np.float32
            )
            for key in keys
        ]
        return torch.from_numpy(np.stack(rows)).to(self._execution_device)


def _combine(pairs: Sequence[Sequence[float]], registers: Sequence[Tensor]) -> Tensor:
    """The sum of registers with their factors."""
    (register, factor), *rest = pairs
    total = factor * registers[int(register)]
    for register, factor in rest:
        total = total + factor * registers[int(register)]
    return total
