"""How is an ensemble of MLPs evaluated and differentiated as a few batched matrix products?

A `Stack` holds M equal MLPs in *one* flat parameter buffer: layer i is a weight [M, in, out] and a
bias [M, 1, out], views of the buffer. A forward pass is one `baddbmm` per layer for all members.
The backward pass is written out, so that it fills one flat gradient, skips the weights where only
the input's gradient is wanted (actors through critics) and the input where only the weights' is,
and costs no graph. The optimiser and the target average then work on single flat tensors.

What passes between layers lives in buffers that are used again: arrays of this size come fresh from
the operating system at every call otherwise, and its page faults cost as much as the products.

Hidden layers are `x W + b`, optionally layer-normalised (no affine part: the next weight holds
it), then ReLU.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Inputs = Float[Tensor, "members batch in_size"]
Outputs = Float[Tensor, "members batch out_size"]
Layers = list[tuple[Tensor, Tensor]]

LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Trace:
    """What a backward pass needs of its forward pass: each layer's input and normalisation.

    Valid until the next `forward` in the same workspace.
    """

    inputs: list[Tensor]
    norms: list[tuple[Tensor, ...]]
    """(before, mean, 1 / deviation) of each hidden layer; empty without layer normalisation."""

    def rows(self, count: int) -> "Trace":
        """The trace of the first `count` rows alone."""
        # The normalisation's kernel reads its statistics as if they lay side by side.
        norms = [tuple(part[:, :count].contiguous() for part in norm) for norm in self.norms]
        return Trace([x[:, :count] for x in self.inputs], norms)


@dataclass(frozen=True)
class _Part:
    """The layers of some members and their transposed weights, sliced once."""

    layers: Layers
    transposed: list[Tensor]

    @staticmethod
    def of(layers: Layers) -> "_Part":
        return _Part(layers, [weight.transpose(1, 2) for weight, _ in layers])


class Workspace:
    """Room for what passes between layers, used again by every pass that shares it.

    Few and small enough arrays stay in the core's own cache; the more of them, the slower each.
    """

    def __init__(self) -> None:
        self._arrays: dict[str, Tensor] = {}
        self._views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def room(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """An array of that shape, whose content lasts until the name is asked for again."""
        view = self._views.get((name, shape))
        if view is None:
            size = math.prod(shape)
            array = self._arrays.get(name)
            if array is None or array.numel() < size:
                with torch.inference_mode(False):  # for passes outside of it too
                    array = self._arrays[name] = like.new_empty(size)
                self._views = {k: v for k, v in self._views.items() if k[0] != name}
            view = self._views[name, shape] = array[:size].view(shape)
        return view


class Stack:
    """M MLPs of the same sizes over one flat float buffer."""

    def __init__(
        self,
        members: int,
        sizes: Sequence[int],
        *,
        layer_norm: bool = False,
        flat: Tensor,
        workspace: "Workspace | None" = None,
    ) -> None:
        self.members, self.sizes, self.layer_norm = members, tuple(sizes), layer_norm
        if flat.numel() != parameter_count(members, sizes):
            raise ValueError(f"flat buffer of {flat.numel()} does not hold {members} x {sizes}")
        self.flat = flat
        self._layers = split(flat, members, sizes)
        self._parts = {members: _Part.of(self._layers)}
        self._workspace = workspace or Workspace()
        self._slots: dict[int, Layers] = {}
        # Without an affine part the kernel takes twice the time; with these its bits are the same.
        self._affine = {
            size: (flat.new_ones(size), flat.new_zeros(size)) for size in set(self.sizes[1:-1])
        }

    def initialise(self, generator: torch.Generator, *, last_scale: float = 1.0) -> "Stack":
        """Draw all parameters from +-1/sqrt(fan-in); the last layer's times `last_scale`."""
        for index, parameters in enumerate(self._layers):
            bound = 1.0 / math.sqrt(self.sizes[index])
            bound *= last_scale if index == len(self._layers) - 1 else 1.0
            for parameter in parameters:
                drawn = torch.rand(parameter.shape, generator=generator)
                parameter.copy_((2.0 * drawn - 1.0) * bound)
        return self

    def twin(self, flat: Tensor | None = None) -> "Stack":
        """A copy over parameters of its own (`flat`), in the same workspace: a target network."""
        return Stack(
            self.members,
            self.sizes,
            layer_norm=self.layer_norm,
            flat=self.flat.clone() if flat is None else flat,
            workspace=self._workspace,
        )

    def layers(self) -> Layers:
        """(weight [M, in, out], bias [M, 1, out]) of each layer: views of `flat`."""
        return self._layers

    def forward(
        self, x: Inputs, members: int | None = None, *, use: str = "forward"
    ) -> tuple[Outputs, Trace]:
        """Outputs of the first `members` members, and what a backward pass needs."""
        count = members or self.members
        part = self._part(count)
        trace = Trace([], [])
        for index, (weight, bias) in enumerate(part.layers[:-1]):
            trace.inputs.append(x)
            buffer = self._buffer(use, index, count, x.shape[1])
            x = torch.baddbmm(bias, x, weight, out=buffer)
            if self.layer_norm:
                before = x
                size = x.shape[-1]
                x, mean, rstd = torch.native_layer_norm(
                    x, [size], *self._affine[size], LAYER_NORM_EPS
                )
                trace.norms.append((before, mean, rstd))
            x = x.relu_()
        weight, bias = part.layers[-1]
        trace.inputs.append(x)
        return torch.baddbmm(bias, x, weight), trace

    def __call__(self, x: Inputs) -> Outputs:
        """Outputs of every member; leaves traces alone, but not a backward pass's gradients."""
        return self.forward(x, use="backward")[0]

    def parameter_gradient(self, trace: Trace, grad: Outputs, into: Tensor) -> None:
        """Write the gradient of every parameter into a flat buffer like `flat`."""
        slots = self._slots.get(into.data_ptr())
        if slots is None:
            slots = split(into, self.members, self.sizes)
            self._slots = {into.data_ptr(): slots}
        for index in range(len(self._layers) - 1, -1, -1):
            torch.bmm(trace.inputs[index].transpose(1, 2), grad, out=slots[index][0])
            torch.sum(grad, dim=1, keepdim=True, out=slots[index][1])
            if index > 0:
                grad = self._below(trace, grad, index)

    def input_gradient(
        self, trace: Trace, grad: Outputs, columns: slice
    ) -> Float[Tensor, "members batch columns"]:
        """Gradient of some of the input's columns; the parameters are left alone."""
        for index in range(len(self._layers) - 1, 0, -1):
            grad = self._below(trace, grad, index)
        return torch.bmm(grad, self._part(grad.shape[0]).transposed[0][..., columns])

    def _part(self, members: int) -> "_Part":
        """The first `members` members' layers."""
        if members not in self._parts:
            cut = [(weight[:members], bias[:members]) for weight, bias in self._layers]
            self._parts[members] = _Part.of(cut)
        return self._parts[members]

    def _buffer(self, use: str, layer: int, members: int, rows: int) -> Tensor:
        """Room for what a hidden layer puts out, or for its gradient."""
        shape = (members, rows, self.sizes[layer + 1])
        return self._workspace.room(f"{use} {layer}", shape, self.flat)

    def _below(self, trace: Trace, grad: Tensor, index: int) -> Tensor:
        """From the gradient at layer `index`'s output to that at the layer below's."""
        weight = self._part(grad.shape[0]).transposed[index]
        buffer = self._buffer("backward", index - 1, *grad.shape[:2])
        # One column makes this an outer product, which is no work for a matrix kernel.
        product = torch.bmm if grad.shape[-1] > 1 else torch.mul
        grad = product(grad, weight, out=buffer)
        torch.ops.aten.threshold_backward.grad_input(
            grad, trace.inputs[index], 0.0, grad_input=grad
        )
        if self.layer_norm:
            before, mean, rstd = trace.norms[index - 1]
            grad = torch.ops.aten.native_layer_norm_backward(
                grad, before, [before.shape[-1]], mean, rstd, None, None, [True, False, False]
            )[0]
        return grad


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
