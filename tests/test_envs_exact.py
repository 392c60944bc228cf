"""Do the fast worlds give the official numbers: every observation, reward, punishment and end?

Two fast environments and two official ones start from the same seeds and get the same actions. On
the way, goals are forced (which uses the random numbers), everything that costs is brought to the
robot, an episode reaches its time limit, and a reset comes in the middle. Physics must be equal to
the last bit, punishments and ends too; rewards and observations to 1e-12.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mujoco
import numpy as np
import pytest

from kcpr_safety import envs
from kcpr_safety.envs import judging, navigation, sensing, velocity

NAVIGATION = [
    f"Safety{agent}{task}{level}-v0"
    for agent in ("Point", "Car", "Ant", "Racecar", "Doggo")
    for task in ("Goal", "Button", "Push", "Circle")
    for level in (0, 1, 2)
]
VELOCITY = [
    f"Safety{body}Velocity-{version}"
    for body in ("HalfCheetah", "Hopper", "Walker2d", "Swimmer", "Ant", "Humanoid")
    for version in ("v0", "v1")
]
FEW_NAVIGATION = [
    "SafetyPointGoal2-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush2-v0",
    "SafetyCarGoal1-v0",
    "SafetyAntCircle1-v0",
    "SafetyRacecarGoal0-v0",
    "SafetyDoggoPush0-v0",
]
FEW_VELOCITY = ["SafetyHalfCheetahVelocity-v1", "SafetyHumanoidVelocity-v1"]
CLOSE = 1e-12
EAST, NORTH = np.array([0.13, 0.0]), np.array([0.0, 0.12])  # [m]


@dataclass
class Differences:
    """The largest ones, and what happened on the way."""

    obs: float = 0.0
    reward: float = 0.0
    qpos: float = 0.0
    punishments: int = 0
    ends: int = 0
    seen: dict[str, int] = field(default_factory=lambda: {"goals": 0, "punished": 0, "ended": 0})

    def none(self) -> bool:
        return (
            self.obs <= CLOSE
            and self.reward <= CLOSE
            and (self.qpos, self.punishments, self.ends) == (0.0, 0, 0)
        )


class Pair:
    """A fast world and official environments, in step."""

    def __init__(self, task: str, threads: int = 1, num_envs: int = 2) -> None:
        self.world = envs.make_world(
            envs.resolve(task), num_envs, episode_seeds=self.seed, threads=threads
        )
        assert self.world.path == "fast"
        self.official = [envs.make_official(task) for _ in range(num_envs)]
        self.episodes = [0] * num_envs
        self.found = Differences()
        self.rng = np.random.default_rng(7)
        self.restart(first=True)

    @staticmethod
    def seed(environment: int, episode: int) -> int:
        return 31 * environment + episode

    def restart(self, first: bool = False) -> None:
        self.calm()
        obs, _ = self.world.reset()
        for i, env in enumerate(self.official):
            self.episodes[i] += 0 if first else 1
            self._same_obs(obs[i], env.reset(seed=self.seed(i, self.episodes[i]))[0])
            self._same_qpos(i)

    def step(self) -> None:
        world, found = self.world, self.found
        space = world.action_space
        action = self.rng.uniform(space.low, space.high)  # type: ignore[attr-defined]
        obs, reward, terminated, truncated, infos = world.step(action)
        steps = [env.step(action[i]) for i, env in enumerate(self.official)]
        if any(end or limit for *_, end, limit, _ in steps):
            self.calm()
        for i, env in enumerate(self.official):
            theirs, their_reward, cost, end, limit, info = steps[i]
            self._same_obs(infos["final_obs"][i], theirs)
            found.reward = max(found.reward, abs(float(reward[i]) - float(their_reward)))
            found.punishments += bool(infos["punishment"][i] != cost)
            found.ends += (terminated[i], truncated[i]) != (end, limit)
            found.seen["punished"] += cost > 0
            found.seen["goals"] += "goal_met" in info
            if end or limit:
                found.seen["ended"] += 1
                self.episodes[i] += 1
                theirs, _ = env.reset(seed=self.seed(i, self.episodes[i]))
            self._same_obs(obs[i], theirs)
            self._same_qpos(i)

    def both(self, change: Callable[[Any], None]) -> None:
        """The same interference with our tasks and theirs."""
        for task in self._all_tasks():
            change(task)
            mujoco.mj_forward(task.model, task.data)

    def _all_tasks(self) -> list[Any]:
        ours = getattr(self.world, "_tasks", [])
        theirs = [getattr(env.unwrapped, "task", None) for env in self.official]
        return [task for task in (*ours, *theirs) if task is not None]

    def calm(self) -> None:
        """No official episode may begin where something costs: lines back to their place."""
        for task in self._all_tasks():
            if hasattr(task, "sigwalls"):
                task.sigwalls.locate_factor = type(task.sigwalls).locate_factor

    def almost_out_of_time(self) -> None:
        limit = self.world.contract.time_limit
        self.world.elapsed[:] = limit - 1
        for env in self.official:
            env.unwrapped.steps = limit - 1
            env._elapsed_steps = limit - 1

    def _same_obs(self, ours: np.ndarray, theirs: np.ndarray) -> None:
        self.found.obs = max(self.found.obs, float(np.abs(ours - theirs).max()))

    def _same_qpos(self, i: int) -> None:
        unwrapped = self.official[i].unwrapped
        data = unwrapped.data if hasattr(unwrapped, "data") else unwrapped.task.data
        ours = self.world._datas[i].qpos  # type: ignore[attr-defined]
        self.found.qpos = max(self.found.qpos, float(np.abs(ours - data.qpos).max()))

    def close(self) -> None:
        self.world.close()
        for env in self.official:
            env.close()


def force_goal(task: Any) -> None:
    """Put the goal (or the goal button) where it counts as reached."""
    here = task.agent.pos[:2]
    if hasattr(task, "buttons"):
        button = task.model.body(f"button{task.buttons.goal_button}")
        button.pos[:] = task.agent.pos + np.append(NORTH, 0.0)
    elif hasattr(task, "push_box"):
        task._set_goal(task.push_box.pos[:2] + NORTH / 10)
    elif hasattr(task, "goal"):
        task._set_goal(here + NORTH / 2)


def force_harm(task: Any) -> None:
    """Bring everything that costs to the robot."""
    here = task.agent.pos[:2]
    if hasattr(task, "hazards"):
        task.model.body("hazard0").pos[:2] = here
    if hasattr(task, "pillars"):
        task.model.body("pillar0").pos[:2] = here + 2 * EAST
    if hasattr(task, "sigwalls"):
        task.sigwalls.locate_factor = 0.05
    for name in ("vase0", "gremlin0obj"):
        if hasattr(task, "vases" if name == "vase0" else "gremlins"):
            task.data.joint(name).qpos[:2] = here - EAST
    if hasattr(task, "buttons"):
        wrong = (task.buttons.goal_button + 1) % task.buttons.num
        task.model.body(f"button{wrong}").pos[:2] = here - NORTH


def drive(pair: Pair) -> Differences:
    """A hundred and sixty steps with everything in them."""
    for step in range(160):
        if step in (15, 45, 90, 140):
            pair.both(force_goal)
        if step in (30, 60):
            pair.both(force_harm)
        if step == 80:
            pair.almost_out_of_time()
        if step == 120:
            pair.restart()
        pair.step()
    pair.close()
    return pair.found


def costs_nothing(task: str) -> bool:
    return task.endswith("0-v0")


def navigate(task: str) -> None:
    found = drive(Pair(task))
    assert found.none(), found
    assert found.seen["ended"] >= 2
    if "Circle" not in task:
        assert found.seen["goals"] >= 2, found
    if not costs_nothing(task):
        assert found.seen["punished"] >= 2, found


def run(task: str, steps: int) -> None:
    pair = Pair(task)
    for step in range(steps):
        if step == steps // 2:
            pair.restart()
        pair.step()
    pair.close()
    assert pair.found.none(), pair.found


@pytest.mark.parametrize("task", FEW_NAVIGATION)
def test_navigation_tasks_are_exact(task: str) -> None:
    navigate(task)


@pytest.mark.parametrize("task", FEW_VELOCITY)
def test_velocity_tasks_are_exact(task: str) -> None:
    run(task, 160)


@pytest.mark.slow
@pytest.mark.parametrize("task", NAVIGATION)
def test_every_navigation_task_is_exact(task: str) -> None:
    navigate(task)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is out of date:DeprecationWarning")
@pytest.mark.parametrize("task", VELOCITY)
def test_every_velocity_task_is_exact(task: str) -> None:
    run(task, 1100)


def test_these_are_all_the_tasks_of_the_fast_path() -> None:
    fast = {row.task for row in envs.registered_tasks() if row.path == "fast"}
    cards = {task: envs.resolve(task) for task in fast}
    fast = {task for task, card in cards.items() if card.maze is None and card.quadruped is None}
    assert fast == {*NAVIGATION, *VELOCITY}


@pytest.mark.parametrize("task", ["SafetyPointGoal2-v0", "SafetyHopperVelocity-v1"])
def test_one_thread_and_three_give_the_same(task: str) -> None:
    rows = []
    for threads in (1, 3):
        world = envs.make_world(
            envs.resolve(task), 5, episode_seeds=lambda i, k: 7 * i + k, threads=threads
        )
        obs, _ = world.reset()
        rng = np.random.default_rng(1)
        seen = [obs]
        for _ in range(60):
            space = world.action_space
            obs, reward, *_, infos = world.step(
                rng.uniform(space.low, space.high)  # type: ignore[attr-defined]
            )
            seen += [obs, infos["final_obs"], reward[:, None], infos["punishment"][:, None]]
        rows.append(np.concatenate(seen, axis=1))
        world.close()
    assert np.array_equal(rows[0], rows[1])


@pytest.mark.parametrize(
    "task", ["SafetyPointGoal1-v0", "SafetyCarButton1-v0", "SafetyHumanoidVelocity-v1"]
)
def test_an_environment_does_not_feel_its_neighbours(task: str) -> None:
    """Its rows are the same to the last bit, alone or beside six others."""
    seen = []
    for num_envs in (1, 7):
        world = envs.make_world(
            envs.resolve(task), num_envs, episode_seeds=lambda i, k: 7 * i + k, threads=1
        )
        obs, _ = world.reset()
        rng = np.random.default_rng(1)
        space = world.single_action_space
        rows = [obs[0]]
        for _ in range(40):
            one = rng.uniform(space.low, space.high)  # type: ignore[attr-defined]
            obs, reward, *_, infos = world.step(np.tile(one, (num_envs, 1)))
            rows += [obs[0], np.array([reward[0], infos["punishment"][0]])]
        seen.append(np.concatenate(rows))
        world.close()
    assert np.array_equal(seen[0], seen[1])


# ------------------------------------------------------------- would the test notice a mistake?


def test_a_lidar_off_by_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = sensing._around
    monkeypatch.setattr(sensing, "_around", lambda bins: np.roll(right(bins), 1, axis=1))
    assert not drive(Pair("SafetyPointGoal1-v0")).none()


def test_a_contact_with_the_neighbour_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = judging.Punisher.__init__

    def beside(self: judging.Punisher, task: Any, model: Any) -> None:
        right(self, task, model)
        self._costly_geoms = np.roll(self._costly_geoms, 1)

    monkeypatch.setattr(judging.Punisher, "__init__", beside)
    assert not drive(Pair("SafetyPointPush2-v0")).none()


def test_a_random_number_too_many_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = navigation.NavigationWorld._pay_draws

    def one_more(self: navigation.NavigationWorld, i: int) -> None:
        self._owed[i] += 1
        right(self, i)

    monkeypatch.setattr(navigation.NavigationWorld, "_pay_draws", one_more)
    assert not drive(Pair("SafetyPointGoal1-v0")).none()


def test_a_step_too_late_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = velocity.VelocityWorld._reset_rows

    def stale(self: velocity.VelocityWorld, indices: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        rows = right(self, indices, seeds)
        self._place[indices] = 0.0
        return rows

    monkeypatch.setattr(velocity.VelocityWorld, "_reset_rows", stale)
    pair = Pair("SafetyHalfCheetahVelocity-v1")
    pair.step()
    assert not pair.found.none()
    pair.close()
