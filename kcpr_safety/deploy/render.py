"""How does a card read for people? (`CARD.md` and the picture of the evaluation.)

Everything comes out of the card, so that the two cannot disagree; the front matter is that of a
model card on model hubs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kcpr_safety.deploy.native import DEBIAN

_WIDTH, _HEIGHT, _EDGE = 480, 260, 46

Card = Mapping[str, Any]


def rendered(card: Card) -> str:
    """The page; the task stands for the bundle's folder."""
    name = card["identity"]["task"]
    parts = (_front, _head, _use, _interface, _safety, _evidence, _stress, _proof, _origin)
    return "\n".join(part(card, name) for part in parts)


def _front(card: Card, _: str) -> str:
    tags = ["reinforcement-learning", "safe-reinforcement-learning", "robotics"]
    lines = ["---", "license: apache-2.0", "library_name: kcpr-safety", "tags:"]
    return "\n".join([*lines, *(f"- {tag}" for tag in tags), "---", ""])


def _head(card: Card, name: str) -> str:
    who, contract = card["identity"], card["contract"]
    return (
        f"# {name}\n\nA policy for `{who['task']}` by `{who['agent']}`, training seed "
        f"{who['seed']}, kept after {who['steps']:,} steps. Control period "
        f"{contract['period_s']:g} s, {len(contract['observation'])} observation and "
        f"{len(contract['action'])} action entries.\n\n"
        f"**Punishment:** {contract['punishment'].rstrip('.')}. Budget: {contract['budget']:g} an "
        f"episode of {contract['time_limit']:,} steps"
        + "".join(
            f"; {part['name']}, {part['meaning'].rstrip('.')}: {part['budget']:g}"
            for part in contract.get("streams", ())
        )
        + ".\n"
    )


def _use(card: Card, name: str) -> str:
    width = len(card["contract"]["observation"])
    key = card["signature"]["key_id"]
    return f"""## Use it

First, wherever the package is: `kcpr-safety verify {name}` (`--trust {key}.pub` for a key that it
does not know). In Python, with torch alone:

```python
import json, torch
controller = torch.jit.load("{name}/controller.pt")
assert controller.self_test() <= {card["parity"]["replay_tolerance"]:g}
assurance = json.loads(controller.contract())["assurance"]
state = torch.tensor([assurance["initial_state"]])
with torch.inference_mode():
    while True:
        obs = torch.zeros(1, {width})  # your sensors, float32, in the contract's order and units
        action, risk, mode, state = controller.step(obs, state)
        print(action[0].tolist(), risk.item(), mode.item()); break  # your actuators
```

In C++ (LibTorch; `kcpr_safety/deploy/cpp` of the package, which verifies before it loads),
`mine.cpp`:

```cpp
#include "controller.hpp"
#include <cstdio>
int main() {{
  const auto bundle = kcpr::open_bundle("{name}", "trusted");  // a folder with {key}.pub
  kcpr::Options options{{.period_s = bundle.contract.period_s}};
  for (const auto& e : bundle.contract.observation) options.observation.push_back(e.name);
  for (const auto& e : bundle.contract.action) options.action.push_back(e.name);
  kcpr::Controller controller(bundle, options);
  std::vector<float> obs({width}, 0.0f);  // your sensors
  for (float value : controller.step(obs, 0.0).action) printf("%g ", value);
}}
```

Compiled and run where the package is installed (on Debian: `{DEBIAN}`):

```sh
SOURCES=$(python -c "import kcpr_safety.deploy.native as n; print(n.SOURCES)")
TORCH=$(python -c "import torch; print(torch.utils.cmake_prefix_path)")
cmake -S "$SOURCES" -B build -DCMAKE_PREFIX_PATH="$TORCH" -DKCPR_SOURCE=mine.cpp
cmake --build build
build/kcpr-robot
```
"""


def _interface(card: Card, _: str) -> str:
    assurance, usual = card["assurance"], card["calibration"]["observation_quantiles"]
    rows = [
        (
            *(i, f"`{e['name']}`", e["unit"], " / ".join(f"{x:.3g}" for x in told)),
            *(_range(assurance, kind, i) for kind in ("seen", "hard")),
        )
        for i, (e, told) in enumerate(zip(card["contract"]["observation"], usual, strict=True))
    ]
    actions = [
        (f"`{e['name']}`", e["unit"], f"{e['low']:g} .. {e['high']:g}", f"{slew:.3g}", f"{safe:g}")
        for e, slew, safe in zip(
            card["contract"]["action"], assurance["slew"], assurance["safe_action"], strict=True
        )
    ]
    return "\n".join(
        [
            f"## Interface\n\nObservations (seen in {assurance['seen_in']}):\n",
            _table(("", "entry", "unit", "5 / 50 / 95 %", "seen", "hard range"), rows),
            "\nActions:\n",
            _table(("entry", "unit", "bounds", "most change a step", "safe"), actions),
            *_servos(card["contract"].get("servos", ())),
            "",
        ]
    )


def _servos(servos: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the robot's own controllers must be set to, where actions are their targets."""
    if not servos:
        return []
    keys = ("kp", "kd", "rest", "torque", "speed")
    rows = [(f"`{servo['joint']}`", *(f"{servo[key]:g}" for key in keys)) for servo in servos]
    columns = ("joint", "kp [N m/rad]", "kd [N m s/rad]", "rest [rad]")
    return [
        "\nServos, in the actions' order: torque = kp (target - angle) - kd rate, limited; rest is "
        "the pose to start from and the safe action:\n",
        _table((*columns, "torque limit [N m]", "speed limit [rad/s]"), rows),
    ]


def _safety(card: Card, _: str) -> str:
    safety, assurance, calibration = card["safety"], card["assurance"], card["calibration"]
    lines = ["## Safety\n", f"- Risk: {safety['risk']}.", f"- Fallback: {safety['fallback']}."]
    if assurance["fallback"]:
        act = "keeps to the nominal action" if "commands" in card["contract"] else "blends"
        lines.append(
            f"- `step` calls it from risk {assurance['engage']:.4g} until below "
            f"{assurance['release']:.4g}, for at least {assurance['dwell_steps']} steps, blended "
            f"over {assurance['blend_steps']}; `act` {act} between the two."
        )
    lines.append(
        f"- `step` starts softly over {assurance['soft_start_steps']} steps and holds the slew "
        "limits; an observation that is not finite or beyond its hard range is answered by the "
        "safe action."
    )
    alarms, conformal = calibration["alarms"], calibration["conformal"]
    lines.append(
        f"- An alarm at risk {alarms['level']:.4g} for realised punishment above the budget's "
        f"pace, {alarms['bad_from']:.4g}: missed {_percent(alarms['missed_share'])}, "
        f"false {_percent(alarms['false_alarm_share'])}, median lead time "
        f"{_number(alarms['lead_time_s_median'])} s (steps of {calibration['episodes']} nominal "
        "episodes)."
    )
    lines.append(
        f"- Realised punishment minus prediction stays below {_number(conformal['quantile'])} in "
        f"a whole episode with probability at least {1 - conformal['alpha']:.0%} (split conformal "
        f"over {conformal['episodes']} episodes; valid for {conformal['valid_for']})."
    )
    lines += [f"- Not claimed: {sentence}" for sentence in safety["not_claimed"]]
    rows = [
        (r["steps"], _number(r["predicted"]), _number(r["realised"]))
        for r in calibration["reliability"]
    ]
    lines.append("\nPredicted against realised punishment, by tenths of the prediction:\n")
    return "\n".join([*lines, _table(("steps", "predicted", "realised"), rows), ""])


def _evidence(card: Card, _: str) -> str:
    evidence = card["evidence"]
    rows = [
        (
            words,
            _number(evidence[key]["value"]),
            f"{_number(evidence[key]['low'])} .. {_number(evidence[key]['high'])}",
        )
        for words, key in (("return", "return_mean"), ("punishment", "punishment_mean"))
    ]
    over = evidence["over_budget"]
    rows.append(
        ("episodes over budget", f"{over['value']:.1%}", f"{over['low']:.1%} .. {over['high']:.1%}")
    )
    rows.append(("worst episode's punishment", _number(evidence["punishment_max"]), ""))
    rows.append(("mean of the worst tenth", _number(evidence["punishment_cvar"]["value"]), ""))
    for part in evidence.get("streams", ()):
        mean, over = part["punishment_mean"], part["over_budget"]
        rows.append(
            (
                f"punishment: {part['name']} (budget {part['budget']:g})",
                _number(mean["value"]),
                f"{_number(mean['low'])} .. {_number(mean['high'])}",
            )
        )
        rows.append(
            (
                f"episodes over that of {part['name']}",
                f"{over['value']:.1%}",
                f"{over['low']:.1%} .. {over['high']:.1%}",
            )
        )
    return (
        f"## Evidence\n\n{evidence['episodes']} full episodes from seed "
        f"{evidence['eval_seed']:,}, deterministic policy (`forward`), "
        f"{evidence['confidence']:.0%} intervals.\n\n"
        + _table(("", "value", "interval"), rows)
        + "\n\n![Return and punishment of every episode](evaluation.svg)\n"
    )


def _stress(card: Card, _: str) -> str:
    stress = card["stress"]
    if stress is None:
        return "## Faults\n\nNot tried.\n"
    rows = []
    for row in stress["faults"]:
        cells = [row["fault"]]
        for key, form in (
            ("return_mean", "{:.4g}"),
            ("punishment_mean", "{:.3g}"),
            ("over_budget_share", "{:.0%}"),
        ):
            cells += [form.format(row[way][key]) for way in ("nominal", "assured")]
        rows.append(tuple(cells))
    left_out = ", ".join(stress.get("left_out", ()))
    untried = f"\n\nNot tried, for want of a MuJoCo model: {left_out}." if left_out else ""
    verdict = stress["verdict"]
    words = "helps" if verdict["helps"] else "does not help"
    return (
        f"## Faults\n\n{stress['episodes']} episodes each, without and with runtime assurance "
        "(`step`).\n\n"
        + _table(("fault", "return", "with", "punishment", "with", "over budget", "with"), rows)
        + f"{untried}\n\nRuntime assurance **{words}** here: episodes over budget over all faults "
        f"{verdict['over_budget_share']['nominal']:.1%} without and "
        f"{verdict['over_budget_share']['assured']:.1%} with it, worst episode "
        f"{verdict['punishment_max']['nominal']:.4g} and "
        f"{verdict['punishment_max']['assured']:.4g}; it costs "
        f"{verdict['return_loss_share']:.1%} of the return without a fault.\n"
    )


def _proof(card: Card, _: str) -> str:
    parity, latency = card["parity"], card["latency"]
    text = (
        "## Parity and speed\n\n`controller.pt` equals the evaluated policy to "
        f"{parity['golden_max_ulp']} ULP on {parity['golden_rows']} golden and to "
        f"{parity['adversarial_max_ulp']} ULP on {parity['adversarial_rows']} adversarial "
        f"observations; `controller.onnx` differs by at most {parity['onnx_max_error']:.2g}, "
        f"`controller.pt2` by {parity['pt2_max_error']:.2g} (shares of the action's span, and of "
        "1 + risk).\n"
    )
    forms = {k: v for k, v in (latency or {}).items() if isinstance(v, Mapping) and "p50_us" in v}
    if not forms:
        return text + "\nLatency: not measured.\n"
    columns = ("p50_us", "p99_us", "p999_us", "max_us", "cold_us")
    rows = [(name, *(_number(form.get(c)) for c in columns)) for name, form in forms.items()]
    return text + "\n" + _table(("latency", *columns), rows) + "\n"


def _origin(card: Card, _: str) -> str:
    origin, signature = card["provenance"], card["signature"]
    begun = origin.get("begun_from")
    shared = begun.get("observations_known") if begun else None
    all_of = len(card["contract"]["observation"])
    known = "" if shared is None else f"; it knew {shared} of the {all_of} observations"
    before = (
        f"Training began with the weights of {begun['task']} ({begun['agent']}, seed "
        f"{begun['seed']}, {begun['steps']:,} steps, policy file SHA-256 "
        f"`{begun['policy_sha256'][:16]}...`{known}). "
        if begun
        else ""
    )
    return (
        f"## Provenance\n\n{origin['package']}, torch {origin['torch']}. {before}Signed with key "
        f"`{signature['key_id']}` ({signature['algorithm']}, public key SHA-256 "
        f"`{signature['public_key_sha256'][:16]}...`). Components: `sbom.cdx.json`.\n"
    )


def plot_of(card: Card) -> str:
    """Return against punishment, a dot for each episode, the budget as a line (SVG)."""
    evidence = card["evidence"]
    returns, punishments = evidence["returns"], evidence["punishments"]
    high = max(*punishments, 1.25 * evidence["budget"], 1.0)
    low_return, high_return = min(returns), max(returns)
    span = (high_return - low_return) or 1.0

    def place(punishment: float, value: float) -> tuple[float, float]:
        x = _EDGE + (_WIDTH - 2 * _EDGE) * punishment / high
        return x, _HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (value - low_return) / span

    dots = [
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="#1f6fb4" fill-opacity="0.6"/>'
        for x, y in (place(p, r) for p, r in zip(punishments, returns, strict=True))
    ]
    line = place(evidence["budget"], low_return)[0]
    top, bottom, right = _EDGE - 10, _HEIGHT - _EDGE + 10, _WIDTH - _EDGE + 10
    texts = (
        (_WIDTH / 2, _HEIGHT - 8, "middle", "punishment of an episode"),
        (8, 18, "start", f"return: {low_return:.4g} .. {high_return:.4g}"),
        (line + 4, top + 4, "start", f"budget {evidence['budget']:g}"),
        (right, _HEIGHT - 20, "end", f"{high:.4g}"),
        (_EDGE - 10, _HEIGHT - 20, "middle", "0"),
    )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" '
            'font-family="sans-serif" font-size="12">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<path d="M{_EDGE - 10} {top}V{bottom}H{right}" fill="none" stroke="#444"/>',
            f'<path d="M{line:.1f} {top}V{bottom}" stroke="#b4451f" stroke-dasharray="4 3"/>',
            *dots,
            *(
                f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{a}">{t}</text>'
                for x, y, a, t in texts
            ),
            "</svg>\n",
        ]
    )


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _range(assurance: Mapping[str, Any], kind: str, i: int) -> str:
    sides = (assurance[f"{kind}_low"][i], assurance[f"{kind}_high"][i])
    return " .. ".join("open" if side is None else f"{side:.4g}" for side in sides)


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"
