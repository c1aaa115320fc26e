"""A pipeline of diffusers that samples as fewstep does; it needs diffusers alone.

    DiffusionPipeline.from_pretrained(FOLDER, trust_remote_code=True)

Steps are programs: lists of instructions over numbered registers, each a batch (b, c, h, w). The
inputs are the first registers, and each instruction appends one; the last register is the image.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unicodedata import normalize

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
        prompts: Sequence[str] = (),
        negative_prompt: str = "",
        text: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(unet=unet)
        self.register_to_config(
            shape=list(shape),
            programs=programs or {},
            num_classes=num_classes,
            class_names=list(class_names),
            guidance_scale=guidance_scale,
            prompts=list(prompts),
            negative_prompt=negative_prompt,
            text=text,
        )

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        class_labels: Sequence[int] | int | None = None,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        seed: int | Sequence[int] = 0,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images, the same for the same `seed` as those of `fewstep sample`.

        `class_labels` are numbers of classes, or -1 for none; by default the classes take turns,
        and images of prompts have no class. `prompt` is one for all rows, or a list with one for
        each row, whose length is then the `batch_size`; by default those of the configuration take
        turns. Guidance leads away from `negative_prompt`. `seed` is one number for all rows, or a
        list of the keys of each row's noise. `output_type` is "pil", "np" (b, h, w, c) or "pt"
        (b, c, h, w), in [0, 1].
        """
        if batch_size is None:
            batch_size = 1 if prompt is None or isinstance(prompt, str) else len(prompt)
        keys = [(seed << 32) + row for row in range(batch_size)] if isinstance(seed, int) else seed
        if len(keys) != batch_size:
            raise ValueError(f"seed has {len(keys)} keys, but batch_size is {batch_size}")
        scale = self._settings.guidance_scale if guidance_scale is None else guidance_scale
        labels = self._labels(class_labels, batch_size)
        conditions = {**labels, **self._prompts(prompt, batch_size)}
        avoided = {**_no_class(labels), **self._avoided(negative_prompt, batch_size)}
        registers = [self._noise(keys, 0)]
        bar: Any = self.progress_bar
        for instruction in bar(self._program(num_inference_steps)):
            registers.append(self._run(instruction, registers, keys, conditions, avoided, scale))
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

    def _labels(self, labels: Sequence[int] | int | None, rows: int) -> dict[str, Tensor]:
        classes = self._settings.num_classes
        if not classes:
            if labels is not None:
                raise ValueError("this model has no classes: leave class_labels out")
            return {}
        if labels is None:
            prompted = self._settings.text is not None
            labels = [-1 if prompted else row % classes for row in range(rows)]
        numbers = torch.as_tensor(labels, dtype=torch.int64).reshape(-1).expand(rows)
        if numbers.min() < -1 or numbers.max() >= classes:
            raise ValueError(f"class_labels must be from 0 to {classes - 1}, or -1 for no class")
        return {"class_labels": numbers.to(self._execution_device)}

    def _prompts(self, prompt: str | Sequence[str] | None, rows: int) -> dict[str, Tensor]:
        if self._settings.text is None:
            if prompt is not None:
                raise ValueError("this model takes no text: leave prompt out")
            return {}
        if prompt is None:
            own = self._settings.prompts or [""]
            prompt = [own[row % len(own)] for row in range(rows)]
        prompts = [prompt] * rows if isinstance(prompt, str) else prompt
        if len(prompts) != rows:
            raise ValueError(f"prompt has {len(prompts)} texts, but batch_size is {rows}")
        table = _Table(self._settings.text)
        tokens = torch.zeros(rows, table.length, dtype=torch.int64)
        mask = torch.zeros(rows, table.length, dtype=torch.bool)
        for row, text in enumerate(prompts):
            ids = table.ids_of(text)
            tokens[row, : len(ids)], mask[row, : len(ids)] = torch.tensor(ids).long(), True
        device = self._execution_device
        return {"tokens": tokens.to(device), "token_mask": mask.to(device)}

    def _avoided(self, negative: str | None, rows: int) -> dict[str, Tensor]:
        """The prompt that guidance leads away from."""
        if self._settings.text is not None:
            negative = self._settings.negative_prompt if negative is None else negative
        return self._prompts(negative, rows)

    def _run(
        self,
        instruction: Mapping[str, Any],
        registers: Sequence[Tensor],
        keys: Sequence[int],
        conditions: Mapping[str, Tensor],
        avoided: Mapping[str, Tensor],
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
        output = self._predict(x, levels, conditions)
        if not conditions or scale == 1:
            return output
        return scale * output + (1 - scale) * self._predict(x, levels, avoided)

    def _predict(
        self, x: Tensor, levels: tuple[float, float | None], conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """The network's output (b, c, h, w) in float32."""
        level, level_s = (None if v is None else x.new_full((len(x),), v) for v in levels)
        options = {**conditions} if level_s is None else {**conditions, "timestep_s": level_s}
        if "class_labels" in conditions:  # the last embedding is that of no class
            labels = conditions["class_labels"]
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


class _Table:
    """Tokens of prompts: pieces of words, or bytes of characters that no piece has."""

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.length, self.longest = table["length"], table["longest_prompt"]
        self.start, self.runs = table["start"], re.compile(f"[{table['normalized']}]+")
        self.ids = {piece: 256 + i for i, piece in enumerate(table["pieces"])}

    def ids_of(self, prompt: str) -> list[int]:
        """The ids of a prompt's first `length` tokens."""
        text = self.runs.sub(lambda run: _normalize(run[0]), prompt[: self.longest])
        words = re.findall("[a-z0-9\x80-\U0010ffff]+|[^ \t\n\r\f\v]", text)
        return [token for word in words for token in self._word(self.start + word)][: self.length]

    def _word(self, rest: str) -> Iterator[int]:
        while rest not in ("", self.start):
            size = next((n for n in range(len(rest), 0, -1) if rest[:n] in self.ids), 0)
            if size:
                yield self.ids[rest[:size]]
            else:
                rest = rest.removeprefix(self.start)
                yield from rest[0].encode("utf-8", "replace")
            rest = rest[size or 1 :]


def _normalize(text: str) -> str:
    return normalize("NFKC", normalize("NFKC", text).lower().replace("ς", "σ"))


def _no_class(labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: torch.full_like(label, -1) for name, label in labels.items()}


def _combine(pairs: Sequence[Sequence[float]], registers: Sequence[Tensor]) -> Tensor:
    """The sum of registers with their factors."""
    (register, factor), *rest = pairs
    total = factor * registers[int(register)]
    for register, factor in rest:
        total = total + factor * registers[int(register)]
    return total
