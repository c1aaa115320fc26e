"""Muon for the matrices of a network, and AdamW for everything else, in one optimiser."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SMALLEST_SIDE = 17
"""Layers with fewer inputs or outputs are AdamW's: those that read or write images, and heads."""


def matrices(module: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear and convolutional layers inside a network.

    By convention, embeddings, norms, biases and the first and last layer are not Muon's. A first
    or last layer is one with few inputs or outputs: the channels or numbers of an image.
    """
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d)
    own = {id(layer.weight) for layer in module.modules() if isinstance(layer, layers)}
    return [
        weight
        for weight in module.parameters()
        if id(weight) in own and min(weight.shape[:2]) >= SMALLEST_SIDE
    ]


class Muon(torch.optim.Optimizer):
    """Muon for `matrices(module)`, and fused AdamW for the other parameters of a network.

    Muon's update is the momentum of the gradient with all singular values set to about 1, by
    Newton's method in bfloat16. A kernel (out, in, h, w) is the matrix (out, in·h·w). Updates are
    scaled to the size of AdamW's, so that one learning rate suits both (Liu et al. 2025,
    arXiv:2502.16982). The momentum is 0.95, as published (Jordan et al. 2024,
    https://kellerjordan.github.io/posts/muon/); `betas` are AdamW's.

    Both are torch's own, and work on the state of this optimiser.
    """

    def __init__(
        self, module: nn.Module, lr: float, *, betas: tuple[float, float], weight_decay: float
    ) -> None:
        self._matrices = matrices(module)
        own = {id(weight) for weight in self._matrices}
        self._others = [weight for weight in module.parameters() if id(weight) not in own]
        groups = [group for group in (self._matrices, self._others) if group]
        # `fused` lets `load_state_dict` move the count of AdamW's steps to the device
        settings = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "fused": True}
        super().__init__([{"params": group} for group in groups], settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore
        """Update all parameters that have a gradient; there is no `closure`."""
        group = self.param_groups[0]
        lr, betas, weight_decay = group["lr"], group["betas"], group["weight_decay"]
        others = [weight for weight in self._others if weight.grad is not None]
        if others:
            adamw = torch.optim.AdamW(others, lr, betas, weight_decay=weight_decay, fused=True)
            for weight in others:
                adamw.state[weight] = self.state[weight]
            adamw.step()
        weights = [weight for weight in self._matrices if weight.grad is not None]
        if weights:
            views = [nn.Parameter(_as_matrix(weight.detach(), weight)) for weight in weights]
            muon = torch.optim.Muon(views, lr, weight_decay, adjust_lr_fn="match_rms_adamw")
            for view, weight in zip(views, weights, strict=True):
                assert weight.grad is not None
                view.grad = _as_matrix(weight.grad, weight)
                muon.state[view]["momentum_buffer"] = _as_matrix(self._momentum(weight), weight)
            muon.step()

    def _momentum(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        return state["momentum_buffer"]


def _as_matrix(x: Tensor, weight: Tensor) -> Tensor:
    """`x` as (out, the rest): a view, if its memory is ordered as that of `weight`."""
    if not weight.is_contiguous():  # channels last
        x = x.movedim(1, -1)
    return x.flatten(1)
