"""Does each term of punishment measure what it says, against statics, differences and energy?"""

from typing import Any

import mujoco
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcpr_safety.envs import terms
from kcpr_safety.envs.punishing import Punishment
from kcpr_safety.errors import CardError
from kcpr_safety.punishments import Punish

ARM = """
<mujoco>
  <option timestep="0.001" gravity="0 0 {gravity}"><flag energy="enable"/></option>
  <worldbody>
    <geom name="floor" type="plane" size="5 5 .1" pos="0 0 -1"/>
    <body name="upper" pos="0 0 1">
      <joint name="shoulder" axis="0 1 0" range="-90 90"/>
      <geom name="upper" type="capsule" fromto="0 0 0 .5 0 0" size=".04" mass="1"/>
      <body name="fore" pos=".5 0 0">
        <joint name="elbow" axis="0 1 0" range="-179 179"/>
        <geom name="fore" type="capsule" fromto=".1 0 0 .5 0 0" size=".04" mass=".5"/>
        <body name="hand" pos=".5 0 0">
          <joint name="wrist" axis="0 1 0"/>
          <geom name="hand" type="sphere" pos=".1 0 0" size=".05" mass=".2"/>
        </body>
      </body>
    </body>
    <body name="ball" pos="2 0 0">
      <freejoint name="ball"/>
      <geom name="ball" type="sphere" size=".1" mass="3"/>
    </body>
  </worldbody>
  <actuator>
    <motor name="shoulder" joint="shoulder" gear="2" ctrlrange="-5 5"/>
    <motor name="elbow" joint="elbow" ctrlrange="-5 5"/>
  </actuator>
</mujoco>
"""


def arm(gravity: float = 0.0, **state: Any) -> tuple[Any, Any]:
    """The arm at rest with its ball, computed forward from the given arrays."""
    model = mujoco.MjModel.from_xml_string(ARM.format(gravity=gravity))
    data = mujoco.MjData(model)
    for name, value in state.items():
        getattr(data, name)[: len(value)] = value
    mujoco.mj_forward(model, data)
    return model, data


def charged(model: Any, data: Any, row: Punish, action: Any = None, before: Any = None) -> float:
    """What one term charges one simulation."""
    action = np.zeros((1, 2)) if action is None else np.array([action])
    before = action if before is None else np.array([before])
    return float(Punishment([row], model, "card")([model], [data], action, before).total[0])


def measured(model: Any, data: Any, term: str, top: float = 1e6, **keys: Any) -> float:
    """A measure found through its charge: of terms that charge worst / threshold - 1."""
    low, high = 1e-9, top
    for _ in range(200):
        middle = (low * high) ** 0.5
        if charged(model, data, Punish(term, middle, form="step", **keys)):
            low = middle
        else:
            high = middle
    return high


@pytest.mark.parametrize(
    ("rule", "values", "threshold", "form", "expected"),
    [
        ("above", [3.0, 5.0], 4.0, "share", 0.25),
        ("above", [3.0, 4.0], 4.0, "share", 0.0),
        ("above", [9.0], 4.0, "share", 1.0),
        ("above", [4.1], 4.0, "step", 1.0),
        ("below", [0.75, 2.0], 1.0, "share", 0.25),
        ("below", [1.0], 1.0, "step", 0.0),
        ("below", [-3.0], 1.0, "share", 1.0),
        ("beyond", [0.0, 0.1], 0.4, "share", 0.25),
        ("beyond", [0.0], 0.4, "step", 0.0),
        ("touch", [0.0], 0.0, "share", 0.0),
        ("touch", [1.0], 0.0, "share", 1.0),
        ("above", [np.nan], 4.0, "share", 1.0),
        ("below", [np.nan], 4.0, "step", 1.0),
        ("touch", [np.nan], 0.0, "share", 1.0),
        ("above", [np.inf], 4.0, "share", 1.0),
        ("above", [], 4.0, "share", 0.0),
    ],
)
def test_worked_examples_of_a_charge(
    rule: str, values: list[float], threshold: float, form: str, expected: float
) -> None:
    found = terms.charge(np.array([values]), rule, threshold, form)
    assert found.tolist() == pytest.approx([expected])


NUMBERS = st.floats(-1e6, 1e6)


@given(
    st.lists(NUMBERS, min_size=1, max_size=4),
    st.integers(0, 3),
    st.floats(0, 1e6),
    st.floats(1e-3, 1e3),
    st.sampled_from(["above", "below", "beyond"]),
    st.sampled_from(terms.FORMS),
)
def test_a_charge_is_a_share_and_never_falls_as_things_get_worse(
    values: list[float], which: int, more: float, threshold: float, rule: str, form: str
) -> None:
    worse = list(values)
    worse[which % len(values)] += -more if rule == "below" else more
    before, after = (terms.charge(np.array([x]), rule, threshold, form)[0] for x in (values, worse))
    assert 0.0 <= before <= after <= 1.0
    if rule == "above" and max(values) <= threshold:
        assert before == 0.0
    if rule == "below" and min(values) >= threshold:
        assert before == 0.0


def test_speed_against_differences_of_positions() -> None:
    state = {"qpos": [0.3, -0.7, 0.2], "qvel": [1.0, -2.0, 3.0]}
    model, data = arm(**state)
    later = mujoco.MjData(model)
    tiny = 1e-6
    later.qpos[:] = data.qpos
    mujoco.mj_integratePos(model, later.qpos, data.qvel, tiny)
    mujoco.mj_kinematics(model, later)
    for body in ("fore", "hand"):
        moved = later.body(body).xpos - data.body(body).xpos
        expected = np.linalg.norm(moved) / tiny
        assert measured(model, data, "speed", bodies=(body,)) == pytest.approx(expected, rel=1e-4)


def test_the_worst_of_several_bodies_counts() -> None:
    model, data = arm(qvel=[1.0, 0.0, 0.0])
    far = charged(model, data, Punish("speed", 0.9, bodies=("hand",)))
    assert far == pytest.approx(1.0 / 0.9 - 1.0)
    assert charged(model, data, Punish("speed", 0.9, bodies=("upper", "hand"))) == far
    assert charged(model, data, Punish("speed", 0.9, bodies=("upper", "fore"))) == 0.0


def test_joint_position_is_the_distance_to_the_nearer_end() -> None:
    model, data = arm(qpos=[np.radians(80.0), np.radians(-100.0)])
    row = Punish("joint_position", np.radians(20.0), joints=("shoulder",))
    assert charged(model, data, row) == pytest.approx(0.5)
    # All that have a range: the elbow is further from its ends, the wrist has none.
    assert charged(model, data, Punish("joint_position", np.radians(20.0))) == pytest.approx(0.5)
    row = Punish("joint_position", 1.0, joints=("elbow",), low=(-2.0,), high=(2.0,))
    assert charged(model, data, row) == pytest.approx(1.0 - (2.0 - np.radians(100.0)))


def test_joint_velocity_either_way() -> None:
    model, data = arm(qvel=[1.0, -3.0, 0.5])
    assert charged(model, data, Punish("joint_velocity", 2.0)) == pytest.approx(0.5)
    assert charged(model, data, Punish("joint_velocity", 2.0, joints=("shoulder",))) == 0.0


def test_joint_torque_against_inverse_dynamics() -> None:
    model, data = arm(qpos=[0.4, 1.0, -0.5], qvel=[0.5, 1.0, -1.0], ctrl=[1.5, -0.8])
    mujoco.mj_inverse(model, data)
    for name, i in (("shoulder", 0), ("elbow", 1)):
        found = measured(model, data, "joint_torque", joints=(name,))
        assert found == pytest.approx(abs(data.qfrc_inverse[i]), rel=1e-6)
    # The motor of the shoulder has a gear: its own force is the command.
    found = measured(model, data, "joint_torque", actuators=("shoulder",))
    assert found == pytest.approx(1.5, rel=1e-6)


def test_energy_against_the_balance_of_energy() -> None:
    model, data = arm(ctrl=[0.4, 0.0])
    model.opt.timestep = 1e-4
    row = Punishment([Punish("energy", 1e6, weight=1e6)], model, "card")
    work, still = 0.0, np.zeros((1, 2))
    before = data.energy.sum()
    for _ in range(2_000):
        mujoco.mj_step(model, data)
        power = terms.powers(data.actuator_force[None], data.actuator_velocity[None])
        work += float(power[0, 0]) * model.opt.timestep
        assert float(row([model], [data], still, still).total[0]) == 0.0
    mujoco.mj_forward(model, data)
    assert data.energy.sum() - before == pytest.approx(work, rel=2e-3)
    assert work > 0.01
    found = measured(model, data, "energy")
    assert found == pytest.approx(abs(0.4 * data.actuator_velocity[0]), rel=1e-6)


def test_contact_force_against_statics() -> None:
    model, data = arm(gravity=-9.81)
    model.opt.timestep = 0.002
    for _ in range(3_000):
        mujoco.mj_step(model, data)
    found = measured(model, data, "contact_force", bodies=("ball",))
    assert found == pytest.approx(3.0 * 9.81, rel=1e-3)
    both = measured(model, data, "contact_force", bodies=("ball", "world"))
    assert both >= found


def test_forces_of_several_contacts_add_up_by_hand() -> None:
    columns = np.array([[0, -1], [1, 0], [-1, -1], [1, 1], [-1, 1]])
    sizes = np.array([2.0, 3.0, 100.0, 5.0, 7.0])
    assert terms.pressed(columns, sizes, 3).tolist() == [5.0, 15.0, 0.0]
    assert terms.pressed(np.zeros((0, 2), int), np.zeros(0), 1).tolist() == [0.0]


def test_a_bar_on_two_feet_presses_with_both() -> None:
    text = """<mujoco><worldbody>
      <geom type="plane" size="5 5 .1"/>
      <body name="bar" pos="0 0 .1"> <freejoint/>
        <geom size=".1" pos="-1 0 0" mass="2"/> <geom size=".1" pos="1 0 0" mass="2"/>
      </body>
    </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_step(model, data, nstep=2_000)
    assert data.ncon == 2
    found = measured(model, data, "contact_force", bodies=("bar",))
    assert found == pytest.approx(4.0 * 9.81, rel=1e-3)


@pytest.mark.parametrize(("gap", "touches"), [(0.1, 0.0), (0.0, 1.0)])
def test_what_lies_in_a_gap_does_not_touch(gap: float, touches: float) -> None:
    """Two arms 5 cm apart on a trunk 5 cm above the floor, and margins of 10 cm."""
    text = f"""<mujoco>
    <default><geom size=".1" margin=".1" gap="{gap}"/> <joint type="slide"/></default>
    <worldbody>
      <geom name="floor" type="plane" size="5 5 .1"/>
      <body name="trunk" pos="0 0 .15"> <freejoint/> <geom/>
        <body name="left" pos="-.125 0 1"> <joint/> <geom/> </body>
        <body name="right" pos=".125 0 1"> <joint/> <geom/> </body>
      </body>
    </worldbody></mujoco>"""
    model = mujoco.MjModel.from_xml_string(text)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert sorted(data.contact.exclude) == [touches == 0.0] * 2
    assert charged(model, data, Punish("contact", geoms=("floor",))) == touches
    assert charged(model, data, Punish("self_collision")) == touches
    force = charged(model, data, Punish("contact_force", 1e-6, bodies=("trunk", "left")))
    assert force == touches


def test_contact_and_height_of_a_ball() -> None:
    model, data = arm(qpos=[0, 0, 0, 2, 0, -0.91])
    assert charged(model, data, Punish("contact", bodies=("ball",))) == 1.0
    assert charged(model, data, Punish("contact", geoms=("b*",))) == 1.0
    assert charged(model, data, Punish("contact", bodies=("hand", "fore"))) == 0.0
    assert charged(model, data, Punish("self_collision")) == 0.0
    model, data = arm(qpos=[0, 0, 0, 2, 0, 0.4])
    assert charged(model, data, Punish("contact", geoms=("floor",))) == 0.0
    assert charged(model, data, Punish("height", 0.5, bodies=("ball",))) == pytest.approx(0.2)


def test_self_collision_of_a_folded_arm() -> None:
    model, data = arm(qpos=[0.0, np.radians(175.0), np.radians(170.0)])
    pairs = {tuple(sorted(model.geom(int(g)).name for g in pair)) for pair in data.contact.geom}
    assert ("hand", "upper") in pairs
    assert charged(model, data, Punish("self_collision")) == 1.0
    assert charged(model, data, Punish("self_collision", bodies=("upper", "hand"))) == 1.0
    assert charged(model, data, Punish("self_collision", bodies=("upper", "ball"))) == 0.0


def test_tilt_is_the_angle_of_the_z_axis() -> None:
    model, data = arm(qpos=[np.radians(30.0), np.radians(15.0)])
    assert measured(model, data, "tilt", bodies=("upper",)) == pytest.approx(30.0, rel=1e-6)
    assert measured(model, data, "tilt", bodies=("hand",)) == pytest.approx(45.0, rel=1e-6)
    # About the vertical itself nothing leans.
    model, data = arm(qpos=[0, 0, 0, 2, 0, 0, np.cos(1.0), 0, 0, np.sin(1.0)])
    assert charged(model, data, Punish("tilt", 1e-3, bodies=("ball",))) == 0.0


def test_action_rate_and_region() -> None:
    model, data = arm(qpos=[0, 0, 0, 2.0, 0.3, 0.0])
    row = Punish("action_rate", 0.2)
    assert charged(model, data, row, [0.5, 0.5], [0.5, 0.8]) == pytest.approx(0.5)
    assert charged(model, data, row, [0.5, 0.5], [0.5, 0.5]) == 0.0
    box = Punish("region", 1.0, bodies=("ball",), low=(0, -1, -1), high=(1.6, 0, 1))
    assert charged(model, data, box) == pytest.approx(0.5)  # 0.4 and 0.3 m out
    inside = Punish("region", 1.0, bodies=("ball",), low=(0, -1, -1), high=(3, 1, 1))
    assert charged(model, data, inside) == 0.0


ALL = [
    Punish("speed", 0.5, bodies=("hand",), stream="limbs"),
    Punish("joint_position", 1.0, stream="joints"),
    Punish("joint_velocity", 1.0, weight=2.0, stream="joints"),
    Punish("joint_torque", 0.5),
    Punish("contact_force", 1.0, bodies=("ball",)),
    Punish("contact", bodies=("ball",)),
    Punish("tilt", 10.0, bodies=("hand",), form="step"),
    Punish("height", 1.0, bodies=("hand",)),
    Punish("self_collision"),
    Punish("energy", 0.1),
    Punish("action_rate", 0.1),
    Punish("region", 0.5, bodies=("ball",), low=(0, 0, 0), high=(1, 1, 1)),
]


def test_all_environments_at_once_are_each_by_itself_and_streams_add_up() -> None:
    rng = np.random.default_rng(0)
    model = arm()[0]
    datas = []
    for _ in range(5):
        _, data = arm(
            gravity=-9.81,
            qpos=[*rng.uniform(-1, 1, 3), 2, 0, rng.uniform(-0.92, -0.88)],
            qvel=rng.uniform(-2, 2, 5),
            ctrl=rng.uniform(-2, 2, 2),
        )
        datas.append(data)
    action, before = rng.random((2, 5, 2))
    punishment = Punishment(ALL, model, "card")
    assert {row.term for row in ALL} == set(terms.TERMS)
    assert punishment.streams == ("limbs", "joints", "")
    together = punishment([model] * 5, datas, action, before)
    assert together.terms.shape == (5, len(ALL))
    assert (together.terms > 0).any(axis=0).sum() >= 9
    np.testing.assert_array_equal(together.streams[:, 1], together.terms[:, 1:3].sum(axis=1))
    np.testing.assert_allclose(together.streams.sum(axis=1), together.total, rtol=1e-14)
    for i in range(5):
        alone = punishment([model], datas[i : i + 1], action[i : i + 1], before[i : i + 1])
        np.testing.assert_array_equal(alone.terms[0], together.terms[i])


def test_no_number_is_ever_passed_on() -> None:
    model, data = arm()
    for name in ("qpos", "qvel", "xpos", "xmat", "cvel", "actuator_force", "qfrc_actuator"):
        getattr(data, name)[:] = np.nan
    nothing = np.full((1, 2), np.nan)
    charge = Punishment(ALL, model, "card")([model], [data], nothing, nothing)
    assert np.isfinite(charge.terms).all()
    assert charge.terms[0, 0] == 1.0


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (Punish("sped", 1.0), ["term 'sped'", "speed"]),
        (Punish("speed", 1.0, bodies=("hnd",)), ["body 'hnd'", "hand"]),
        (Punish("speed", 1.0), ["needs 'bodies'"]),
        (Punish("speed", bodies=("hand",)), ["threshold", "m/s"]),
        (Punish("contact", 1.0, bodies=("hand",)), ["no threshold"]),
        (Punish("contact"), ["'bodies' or 'geoms'"]),
        (Punish("contact", geoms=("wall*",)), ["geom 'wall*'", "ball"]),
        (Punish("joint_velocity", 1.0, bodies=("hand",)), ["takes joints", "'bodies'"]),
        (Punish("joint_velocity", 1.0, joints=("ball",)), ["ball", "hinge"]),
        (Punish("joint_position", 1.0, joints=("wrist",)), ["wrist", "no range", "'low'"]),
        (Punish("joint_torque", 1.0, joints=("elbow",), actuators=("elbow",)), ["not both"]),
        (Punish("action_rate", 1.0, joints=("elbow",)), ["no names", "'joints'"]),
        (Punish("region", 1.0, bodies=("ball",), low=(0,), high=(1,)), ["x, y and z"]),
        (Punish("region", 1.0, bodies=("ball",), low=(0, 0, 0), high=(1, 0, 1)), ["below"]),
    ],
    ids=lambda row: row.term if isinstance(row, Punish) else "",
)
def test_what_a_term_cannot_use_is_said(row: Punish, words: list[str]) -> None:
    with pytest.raises(CardError) as raised:
        Punishment([row], arm()[0], "task card arm.toml")
    message = str(raised.value)
    assert message.startswith("task card arm.toml: [[punish]] 1")
    assert "\n" not in message
    for word in words:
        assert word in message
