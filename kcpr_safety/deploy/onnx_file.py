"""How does `act` become an ONNX graph that needs no torch where it runs?

Written node by node from the controller's own constants (operator set 17), so that the file holds
what the controller does and nothing about who exported it; that the two agree is measured
(`parity`), not believed. Input `obs` [batch, N] float32; outputs `action` [batch, M], `risk`
[batch, 1], `mode` int64 [batch]: those of `act`. The contract is in the model's metadata.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from kcpr_safety.assured import AssuredController, ContinuousRisk, DiscreteRisk
from kcpr_safety.controller import MAX_NORMALISED, NEAR_GAIN, ContinuousController, Stack

OPERATORS = 17
IR_VERSION = 8
OUTPUTS = ("action", "risk", "mode")


class _Graph:
    """Nodes and constants by numbered names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def const(self, value: "Tensor | np.ndarray | float | list[int]") -> str:
        array = value.numpy() if isinstance(value, Tensor) else np.array(value)
        if array.dtype == np.float64:
            array = array.astype(np.float32)
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def finite(self, x: str) -> str:
        return self.op("Not", self.op("Or", self.op("IsNaN", x), self.op("IsInf", x)))

    def every(self, flags: str) -> str:
        """Whether all of a row are true, [batch, 1]."""
        number = self.op("Cast", flags, to=TensorProto.INT32)
        least = self.op("ReduceMin", number, axes=[1], keepdims=1)
        return self.op("Cast", least, to=TensorProto.BOOL)


def onnx_bytes(controller: AssuredController) -> bytes:
    """The file; equal controllers give equal bytes."""
    graph = _Graph()
    policy = controller.policy
    width, actions = policy.obs_size, len(controller.low)
    finite = graph.finite("obs")
    clean = graph.op("Where", finite, "obs", graph.const(0.0))
    centred = graph.op("Sub", clean, graph.const(policy.mean))
    x = graph.op("Mul", centred, graph.const(policy.scale))
    x = graph.op("Clip", x, graph.const(-MAX_NORMALISED), graph.const(MAX_NORMALISED))
    if policy.looks_near:
        below = graph.op("Sub", graph.op("Min", clean, graph.const(1.0)), graph.const(1.0))
        near = graph.op("Exp", graph.op("Mul", below, graph.const(NEAR_GAIN)))
        x = graph.op("Add", x, graph.op("Mul", near, graph.const(policy.near)))
    if isinstance(policy, ContinuousController):
        nominal, fallback = _continuous(graph, policy, x)
        risk = _twins(graph, controller.critic, x, nominal)
    else:
        nominal, fallback, risk = _discrete(graph, controller, x)
    weight = _weight(graph, controller, risk)
    _answer(graph, controller, (nominal, fallback), weight, finite)
    graph.op("Identity", risk, out="risk")
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "act",
            [helper.make_tensor_value_info("obs", TensorProto.FLOAT, ["batch", width])],
            [
                helper.make_tensor_value_info("action", TensorProto.FLOAT, ["batch", actions]),
                helper.make_tensor_value_info("risk", TensorProto.FLOAT, ["batch", 1]),
                helper.make_tensor_value_info("mode", TensorProto.INT64, ["batch"]),
            ],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPERATORS)],
        ir_version=IR_VERSION,
        producer_name="kcpr-safety",
    )
    helper.set_model_props(model, {"contract": controller.text})
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _network(graph: _Graph, stack: Stack, member: int, x: str) -> str:
    """One member of a stack."""
    for layer in (*stack.hidden, stack.last):
        weight, bias = (layer.get_buffer(key)[member] for key in ("weight", "bias"))
        x = graph.op("Add", graph.op("MatMul", x, graph.const(weight)), graph.const(bias))
        if layer is not stack.last:
            if stack.norm_eps > 0.0:
                ones = graph.const(np.ones(weight.shape[1], dtype=np.float32))
                x = graph.op("LayerNormalization", x, ones, axis=-1, epsilon=stack.norm_eps)
            x = graph.op("Relu", x)
    return x


def _columns(graph: _Graph, x: str, start: int, stop: int) -> str:
    bounds = (graph.const([start]), graph.const([stop]), graph.const([1]))
    return graph.op("Slice", x, *bounds)


def _continuous(graph: _Graph, policy: ContinuousController, x: str) -> tuple[str, str]:
    count = policy.action_size
    out, companion = (_network(graph, policy.pair, member, x) for member in range(2))
    mean, raw = _columns(graph, out, 0, count), _columns(graph, out, count, 2 * count)
    bent = graph.op("Mul", graph.op("Tanh", raw), graph.const(policy.log_reach[1]))
    std = graph.op("Exp", graph.op("Add", bent, graph.const(policy.log_middle[1])))
    offset = graph.op("Mul", std, _columns(graph, companion, 0, count))

    def command(middle: str) -> str:
        above = graph.op("Add", graph.op("Tanh", middle), graph.const(1.0))
        action = graph.op("Mul", above, graph.const(policy.half_span))
        action = graph.op("Add", action, graph.const(policy.low))
        action = graph.op("Where", graph.finite(action), action, graph.const(policy.safe))
        action = graph.op("Max", action, graph.const(policy.low))
        return graph.op("Min", action, graph.const(policy.high))

    return command(mean), command(graph.op("Add", mean, offset))


def _twins(graph: _Graph, risk: nn.Module, x: str, action: str) -> str:
    assert isinstance(risk, ContinuousRisk)
    inputs = graph.op("Concat", x, action, axis=1)
    values = [_network(graph, risk.twins, member, inputs) for member in range(2)]
    return graph.op("Max", graph.op("Max", *values), graph.const(0.0))


def _discrete(graph: _Graph, controller: AssuredController, x: str) -> tuple[str, str, str]:
    policy = controller.policy
    commands, weights = policy.get_buffer("commands"), policy.get_buffer("logit_weights")
    assert isinstance(controller.critic, DiscreteRisk)
    scale = controller.critic.scale
    values = _network(graph, policy.pair, 1, x)
    preference = graph.op(
        "Add",
        graph.op("Mul", _network(graph, policy.pair, 0, x), graph.const(weights[0:1])),
        graph.op("Mul", values, graph.const(weights[1:2])),
    )

    def choose(preferred: str) -> tuple[str, str]:
        row = graph.op("ArgMax", preferred, axis=1, keepdims=0)
        action = graph.op("Gather", graph.const(commands), row, axis=0)
        valid = graph.every(graph.finite(preferred))
        return graph.op("Where", valid, action, graph.const(policy.safe)), row

    nominal, _ = choose(preference)
    fallback, _ = choose(values)
    # The row nearest to the nominal action, which may be the safe one.
    gap = graph.op(
        "Sub", graph.op("Unsqueeze", nominal, graph.const([1])), graph.const(commands[None])
    )
    distance = graph.op("ReduceSum", graph.op("Mul", gap, gap), graph.const([2]), keepdims=0)
    nearest = graph.op("ArgMin", distance, axis=1, keepdims=1)
    value = graph.op("GatherElements", values, nearest, axis=1)
    scaled = graph.op("Div", graph.op("Neg", value), graph.const(scale))
    return nominal, fallback, graph.op("Max", scaled, graph.const(0.0))


def _weight(graph: _Graph, controller: AssuredController, risk: str) -> str:
    """Share of the fallback in the action, [batch, 1]."""
    nothing = graph.op("Mul", risk, graph.const(0.0))
    if not controller.has_fallback:
        return graph.op("Where", graph.op("IsNaN", nothing), graph.const(0.0), nothing)
    if not controller.blends:
        below = graph.op("Less", risk, graph.const(controller.engage))
        return graph.op("Cast", graph.op("Not", below), to=TensorProto.FLOAT)
    above = graph.op("Sub", risk, graph.const(controller.release))
    share = graph.op("Div", above, graph.const(controller.width))
    share = graph.op("Clip", share, graph.const(0.0), graph.const(1.0))
    return graph.op("Where", graph.finite(risk), share, graph.const(1.0))


def _answer(
    graph: _Graph,
    controller: AssuredController,
    actions: tuple[str, str],
    weight: str,
    finite: str,
) -> None:
    """The outputs `action` and `mode`."""
    nominal, fallback = actions
    above = graph.op("GreaterOrEqual", "obs", graph.const(controller.hard_low))
    below = graph.op("LessOrEqual", "obs", graph.const(controller.hard_high))
    valid = graph.every(graph.op("And", graph.op("And", above, below), finite))
    full = graph.op("GreaterOrEqual", weight, graph.const(1.0))
    if controller.blends:
        step = graph.op("Mul", weight, graph.op("Sub", fallback, nominal))
        blended = graph.op("Where", full, fallback, graph.op("Add", nominal, step))
    else:
        blended = graph.op("Where", full, fallback, nominal)
    graph.op("Where", valid, blended, graph.const(controller.safe), out="action")
    part = graph.op("And", graph.op("Greater", weight, graph.const(0.0)), graph.op("Not", full))
    integers = [graph.const(code) for code in (controller.avoiding, controller.blended)]
    zero = graph.const(np.array(0))
    mode = graph.op("Where", full, integers[0], graph.op("Where", part, integers[1], zero))
    mode = graph.op("Where", valid, mode, graph.const(controller.invalid))
    graph.op("Squeeze", mode, graph.const([1]), out="mode")
