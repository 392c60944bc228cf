"""Do today's packages give the numbers of the stack that Safety-Gymnasium was published with?

Runs alone under either stack (Python 3.10 and the published pins, or this repository's), so that
the two can be compared:

    python3.10 -m venv old && old/bin/pip install safety-gymnasium==1.0.0
    old/bin/python scripts/parity.py record old.npz
    .venv/bin/python scripts/parity.py record new.npz
    .venv/bin/python scripts/parity.py compare old.npz new.npz

Recorded for every task: first observations and positions (qpos) of eight seeds, positions along
three traces of 500 steps, and return and cost of 48 episodes of 250 steps; actions are the same
smooth noise for both.
"""

import sys
import types

import numpy as np

TASKS = (
    "SafetyHalfCheetahVelocity-v1",
    "SafetyHopperVelocity-v1",
    "SafetyWalker2dVelocity-v1",
    "SafetySwimmerVelocity-v1",
    "SafetyAntVelocity-v1",
    "SafetyHumanoidVelocity-v1",
    "SafetyPointGoal1-v0",
    "SafetyPointButton1-v0",
    "SafetyPointPush1-v0",
    "SafetyPointCircle1-v0",
    "SafetyCarGoal1-v0",
    "SafetyRacecarGoal1-v0",
    "SafetyDoggoGoal1-v0",
    "SafetyAntGoal1-v0",
)
SEEDS = 8
TRACES, TRACE_STEPS = 3, 500
EPISODES, EPISODE_STEPS = 48, 250
SAME = 1e-9


def maker():
    """How environments are made here: as published, or through this repository's mends."""
    try:
        from kcpr_safety.envs import make_official
    except ImportError:
        pass
    else:
        return make_official
    import safety_gymnasium
    import safety_gymnasium.world as world

    # The sky costs seconds a reset and changes no number.
    original = world.xmltodict

    def unparse(tree):
        assets = tree["mujoco"]["asset"]
        assets["texture"] = [t for t in assets["texture"] if t.get("@type") != "skybox"]
        return original.unparse(tree)

    world.xmltodict = types.SimpleNamespace(parse=original.parse, unparse=unparse)
    return safety_gymnasium.make


def actions(space, seed, steps):
    """Smooth noise inside the bounds, so that robots get somewhere."""
    rng = np.random.RandomState(seed)
    noise = np.zeros(space.shape)
    rows = []
    for _ in range(steps):
        noise = 0.9 * noise + 0.44 * rng.normal(size=space.shape)
        rows.append(space.low + (np.tanh(noise) + 1) / 2 * (space.high - space.low))
    return np.array(rows, dtype=np.float64)


def qpos(env):
    inner = env.unwrapped
    return np.array((inner.task.data if hasattr(inner, "task") else inner.data).qpos)


def record(path):
    make = maker()
    store = {}
    for task in TASKS:
        env = make(task)
        first = [(env.reset(seed=seed)[0], qpos(env)) for seed in range(SEEDS)]
        store[f"{task}/first_obs"] = np.array([obs for obs, _ in first])
        store[f"{task}/first_qpos"] = np.array([state for _, state in first])
        for seed in range(TRACES):
            env.reset(seed=seed)
            rows = []
            for action in actions(env.action_space, seed, TRACE_STEPS):
                *_, terminated, truncated, _ = env.step(action)
                rows.append(qpos(env))
                if terminated or truncated:
                    break
            store[f"{task}/trace{seed}"] = np.array(rows)
        sums = np.zeros((EPISODES, 2))
        for seed in range(EPISODES):
            env.reset(seed=100 + seed)
            for action in actions(env.action_space, 100 + seed, EPISODE_STEPS):
                _, reward, cost, terminated, truncated, _ = env.step(action)
                sums[seed] += reward, cost
                if terminated or truncated:
                    break
        store[f"{task}/sums"] = sums
        print(task, flush=True)
    import mujoco

    store["mujoco"] = np.array(mujoco.__version__)
    np.savez_compressed(path, **store)


def differs(old, new):
    """Mean of the paired difference, in standard errors; 0 where nothing differs at all."""
    gap = new - old
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    return 0.0 if error == 0 else gap.mean() / error


def gap(old, new):
    """The largest difference, in words; rounding of the last digit is none."""
    size = np.abs(old - new).max()
    return "equal" if size < 1e-13 else f"{size:.0e}"


def compare(old_path, new_path):
    old, new = np.load(old_path), np.load(new_path)
    print(
        f"| task | first positions | first observation | positions same to {SAME:g} for "
        "| return, old / new | s.e. | cost, old / new | s.e. |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for task in TASKS:
        first = [gap(old[f"{task}/{k}"], new[f"{task}/{k}"]) for k in ("first_qpos", "first_obs")]
        kept, whole = [], True
        for seed in range(TRACES):
            a, b = old[f"{task}/trace{seed}"], new[f"{task}/trace{seed}"]
            steps = min(len(a), len(b))
            apart = np.abs(a[:steps] - b[:steps]).max(axis=1) > SAME
            kept.append(int(np.argmax(apart)) if apart.any() else steps)
            whole = whole and len(a) == len(b) and not apart.any()
        a, b = old[f"{task}/sums"], new[f"{task}/sums"]
        print(
            f"| {task} | {' | '.join(first)} | {'whole traces' if whole else f'{min(kept)} steps'} "
            f"| {a[:, 0].mean():.3f} / {b[:, 0].mean():.3f} | {differs(a[:, 0], b[:, 0]):+.1f} "
            f"| {a[:, 1].mean():.2f} / {b[:, 1].mean():.2f} | {differs(a[:, 1], b[:, 1]):+.1f} |"
        )
    print(f"\nmujoco {old['mujoco']} against {new['mujoco']}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"] and len(sys.argv) == 3:
        record(sys.argv[2])
    elif sys.argv[1:2] == ["compare"] and len(sys.argv) == 4:
        compare(sys.argv[2], sys.argv[3])
    else:
        raise SystemExit(__doc__)
