"""How is an ensemble of MLPs evaluated and differentiated as a few batched matrix products?

A `Stack` holds M equal MLPs in *one* flat parameter buffer: layer i is a weight [M, in, out] and a
bias [M, 1, out], views of the buffer. One forward pass is one `baddbmm` per layer for all members;
the backward pass is written out (`_Forward.backward`), so that it fills one flat gradient, skips
the weight gradients where only the input's is wanted (actors through critics), and costs one
autograd node. The optimiser and the target average then work on single flat tensors.

Hidden layers are `x W + b`, optionally layer-normalised (no affine part: the next weight holds
it), then ReLU.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "members batch in_size"]
Outputs = Float[Tensor, "members batch out_size"]
Layers = list[tuple[Tensor, Tensor]]

LAYER_NORM_EPS = 1e-5


class Stack:
    """M MLPs of the same sizes over one flat float buffer."""

    def __init__(
        self, members: int, sizes: Sequence[int], *, layer_norm: bool = False, flat: Tensor
    ) -> None:
        self.members, self.sizes, self.layer_norm = members, tuple(sizes), layer_norm
        if flat.numel() != parameter_count(members, sizes):
            raise ValueError(f"flat buffer of {flat.numel()} does not hold {members} x {sizes}")
        self.flat = flat
        self._layers = split(flat.detach(), members, sizes)

    @classmethod
    def create(
        cls,
        members: int,
        sizes: Sequence[int],
        generator: torch.Generator,
        *,
        layer_norm: bool = False,
        last_scale: float = 1.0,
    ) -> "Stack":
        """Fresh members, uniform in +-1/sqrt(fan-in); the last layer's times `last_scale`."""
        flat = torch.empty(parameter_count(members, sizes))
        stack = cls(members, sizes, layer_norm=layer_norm, flat=flat)
        for index, (weight, bias) in enumerate(stack.layers()):
            bound = 1.0 / math.sqrt(weight.shape[1])
            bound *= last_scale if index == len(sizes) - 2 else 1.0
            for parameter in (weight, bias):
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2.0 * drawn - 1.0) * bound)
        flat.requires_grad_(True)
        return stack

    def twin(self) -> "Stack":
        """A copy that never needs gradients: a target network."""
        flat = self.flat.detach().clone()
        return Stack(self.members, self.sizes, layer_norm=self.layer_norm, flat=flat)

    def layers(self) -> Layers:
        """(weight [M, in, out], bias [M, 1, out]) of each layer: detached views of `flat`."""
        return self._layers

    def __call__(self, x: Inputs) -> Outputs:
        """Outputs with gradients to the parameters and, where x needs it, to x."""
        out: Tensor = _Forward.apply(x, self.flat, self, self.members)  # type: ignore[no-untyped-call]
        return out

    def frozen(self, x: Inputs, members: int | None = None) -> Outputs:
        """Outputs of the first `members` members, with gradients to x alone."""
        count = members or self.members
        out: Tensor = _Forward.apply(x, None, self, count)  # type: ignore[no-untyped-call]
        return out


def parameter_count(members: int, sizes: Sequence[int]) -> int:
    """Numbers in one flat buffer."""
    return members * sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def split(flat: Tensor, members: int, sizes: Sequence[int]) -> Layers:
    """Views (weight [M, in, out], bias [M, 1, out]) of a flat buffer, layer by layer."""
    layers: Layers = []
    start = 0
    for fan_in, fan_out in zip(sizes[:-1], sizes[1:], strict=True):
        middle = start + members * fan_in * fan_out
        end = middle + members * fan_out
        weight = flat[start:middle].view(members, fan_in, fan_out)
        layers.append((weight, flat[middle:end].view(members, 1, fan_out)))
        start = end
    return layers


class _Forward(torch.autograd.Function):
    """x, flat -> outputs; backward as the two products per layer of back-propagation.

    `flat` is the stack's own buffer, named so that autograd gives it a gradient, or None.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor | None, stack: Stack, members: int) -> Tensor:
        layers = stack.layers()
        saved: list[Tensor] = []
        hidden = x
        for weight, bias in layers[:-1]:
            inputs = hidden
            hidden = torch.baddbmm(bias[:members], inputs, weight[:members])
            saved.append(inputs)
            if stack.layer_norm:
                shape = [hidden.shape[-1]]
                normed, mean, rstd = torch.native_layer_norm(
                    hidden, shape, None, None, LAYER_NORM_EPS
                )
                saved += [hidden, mean, rstd]
                hidden = normed
            hidden = hidden.relu_()
        weight, bias = layers[-1]
        saved.append(hidden)
        ctx.save_for_backward(*saved)
        ctx.stack, ctx.members = stack, members
        return torch.baddbmm(bias[:members], hidden, weight[:members])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        saved = list(ctx.saved_tensors)
        stack, members = ctx.stack, ctx.members
        need_input, need_flat = ctx.needs_input_grad[:2]
        layers = stack.layers()
        flat_grad = torch.empty_like(stack.flat) if need_flat else None
        slots = split(flat_grad, stack.members, stack.sizes) if flat_grad is not None else None
        grad = grad.contiguous()
        for index in range(len(layers) - 1, -1, -1):
            inputs = saved.pop()
            if slots is not None:
                torch.bmm(inputs.transpose(1, 2), grad, out=slots[index][0])
                torch.sum(grad, dim=1, keepdim=True, out=slots[index][1])
            if index == 0 and not need_input:
                return None, flat_grad, None, None
            grad = torch.bmm(grad, layers[index][0][:members].transpose(1, 2))
            if index > 0:
                grad = torch.ops.aten.threshold_backward(grad, inputs, 0.0)
                if stack.layer_norm:
                    rstd, mean, before = saved.pop(), saved.pop(), saved.pop()
                    shape = [before.shape[-1]]
                    mask = [True, False, False]
                    grad = torch.ops.aten.native_layer_norm_backward(
                        grad, before, shape, mean, rstd, None, None, mask
                    )[0]
        return grad, flat_grad, None, None
