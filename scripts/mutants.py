"""Would the tests notice? Break one thing at a time on purpose and see them fail.

    python scripts/mutants.py            every mutation below, in a copy of the repository
    python scripts/mutants.py excess     those whose name contains the word

Each mutation replaces one piece of source that must occur exactly once, and runs the tests that are
responsible for it. Exit code 1 if any mutation survives.
"""

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    tests: str


MUTATIONS = (
    Mutation(
        "sign of the punishment in its target",
        "kcpr_safety/ops/bellman.py",
        "return (punishment + discount * (next_q.mean(0) + regularisation)).clamp_min(0.0)",
        "return (-punishment + discount * (next_q.mean(0) + regularisation)).clamp_min(0.0)",
        "tests/test_agents.py",
    ),
    Mutation(
        "pessimism the wrong way round",
        "kcpr_safety/ops/bellman.py",
        "return least + 0.5 * (1.0 - pessimism) * (q.amax(0) - least)",
        "return least + 0.5 * pessimism * (q.amax(0) - least)",
        "tests/test_agents.py",
    ),
    Mutation(
        "sign of the punishment in its actor",
        "kcpr_safety/agents/continuous.py",
        "g = gradients.through_tanh(action[1], punishment_slope, tau)",
        "g = gradients.through_tanh(action[1], -punishment_slope, tau)",
        "tests/test_agents.py",
    ),
    Mutation(
        "sign of the punishment in the loss",
        "kcpr_safety/ops/losses.py",
        "return (entropy * log_prob + q.mean(0) + k * kl).mean()",
        "return (entropy * log_prob - q.mean(0) + k * kl).mean()",
        "tests/test_ops_gradients.py",
    ),
    Mutation(
        "softening in the KL",
        "kcpr_safety/ops/gaussian.py",
        "per_dim = softening * (log_ratio.exp() + distance)",
        "per_dim = (log_ratio.exp() + distance)",
        "tests/test_ops_gaussian.py",
    ),
    Mutation(
        "softening in the coupling's pull",
        "kcpr_safety/ops/gradients.py",
        "companion.square * std, value=-k * softening)",
        "companion.square * std, value=-k)",
        "tests/test_ops_gradients.py",
    ),
    Mutation(
        "excess term, reward module",
        "kcpr_safety/ops/gradients.py",
        "inner.sum(-1).sub_(constant)",
        "inner.sum(-1).sub_(constant * (1.0 + math.log(softening)) / softening)",
        "tests/test_agents.py tests/test_ops_gradients.py",
    ),
    Mutation(
        "excess term, punishment module",
        "kcpr_safety/ops/gradients.py",
        "outer.sum(-1).sub_(constant)",
        "outer.sum(-1).sub_(constant * (1.0 + math.log(softening)) / softening)",
        "tests/test_agents.py tests/test_ops_gradients.py",
    ),
    Mutation(
        "tanh correction",
        "kcpr_safety/ops/gaussian.py",
        "per_dim = torch.add(pre_tanh, softplus(pre_tanh, beta=-2.0), alpha=-2.0).mul_(2.0)",
        "per_dim = torch.zeros_like(pre_tanh)",
        "tests/test_ops_gaussian.py",
    ),
    Mutation(
        "tanh correction in the gradient",
        "kcpr_safety/ops/gradients.py",
        "action, alpha=2.0 * entropy",
        "action, alpha=0.0 * entropy",
        "tests/test_ops_gradients.py",
    ),
    Mutation(
        "truncation bootstrap",
        "kcpr_safety/training/loop.py",
        "continues=1.0 - _tensor(terminated),",
        "continues=1.0 - _tensor(terminated | truncated),",
        "tests/test_training.py",
    ),
    Mutation(
        "discount after termination",
        "kcpr_safety/agents/continuous.py",
        "discount = self.gamma * batch.continues",
        "discount = self.gamma * torch.ones_like(batch.continues)",
        "tests/test_agents.py",
    ),
    Mutation(
        "true last observation",
        "kcpr_safety/training/loop.py",
        'next_obs=_tensor(infos["final_obs"]),',
        "next_obs=_tensor(next_obs),",
        "tests/test_training.py",
    ),
    Mutation(
        "action scaling in the controller",
        "kcpr_safety/controller.py",
        "torch.tanh(mean).add_(self.one), self.half_span)",
        "torch.tanh(mean), self.half_span)",
        "tests/test_controller.py",
    ),
    Mutation(
        "weight of punishment in the choice of a command",
        "kcpr_safety/controller.py",
        "* reward + self.logit_weights[1] * values",
        "* reward - self.logit_weights[1] * values",
        "tests/test_discrete.py",
    ),
    Mutation(
        "fallback chooses by reward",
        "kcpr_safety/controller.py",
        "return self._choose(preference), self._choose(values)",
        "return self._choose(preference), self._choose(reward)",
        "tests/test_discrete.py",
    ),
    Mutation(
        "a signature by nobody",
        "kcpr_safety/deploy/manifest.py",
        "key = next((key for key in trusted if key.fits(manifest, signature)), None)",
        "key = next(iter(trusted), None)",
        "tests/test_keys.py",
    ),
    Mutation(
        "a fallback that did not earn its place",
        "kcpr_safety/training/calibration.py",
        "suffered <= EARNED_SHARE * nominal_suffered",
        "suffered <= 2.0 * nominal_suffered",
        "tests/test_calibration.py",
    ),
    Mutation(
        "hard ranges as narrow as what was seen",
        "kcpr_safety/assurance.py",
        "hard_high=tuple(b + span for b, span in zip(high, spans, strict=True)),",
        "hard_high=tuple(b for b, span in zip(high, spans, strict=True)),",
        "tests/test_assured.py",
    ),
    Mutation(
        "near-contact goes unpunished",
        "kcpr_safety/envs/maze.py",
        "np.clip(1.0 - clearance / NEAR, 0.0, 1.0)",
        "np.zeros_like(clearance)",
        "tests/test_maze.py",
    ),
    Mutation(
        "companion: the reward policy no longer feels it",
        "kcpr_safety/agents/continuous.py",
        "heads.companion, heads.std[0], settings.coupling, settings.softening",
        "heads.companion, heads.std[0], 0.0, settings.softening",
        "tests/test_agents.py",
    ),
    Mutation(
        "punishment value of the wrong policy",
        "kcpr_safety/agents/continuous.py",
        "actions = torch.stack([action[0], action[-1], torch.tanh(deployed)])",
        "actions = torch.stack([action[0], action[0], torch.tanh(deployed)])",
        "tests/test_agents.py",
    ),
)


def survives(mutation: Mutation) -> bool:
    """Whether the responsible tests still pass with the mutation in place."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "build", "dist")
        shutil.copytree(ROOT, copy, ignore=ignored)
        target = copy / mutation.file
        source = target.read_text(encoding="utf-8")
        if source.count(mutation.old) != 1:
            sys.exit(f"{mutation.name}: its piece of {mutation.file} is not there exactly once")
        mutated = source.replace(mutation.old, mutation.new)
        if "math." in mutation.new:
            mutated = mutated.replace("\nimport torch\n", "\nimport math\nimport torch\n", 1)
        target.write_text(mutated, encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow"]
        command += mutation.tests.split()
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=False)
        # 0: all passed; 1: a test failed; anything else: the tests did not run.
        if done.returncode not in (0, 1):
            sys.exit(f"{mutation.name}: the tests did not run\n{done.stdout}{done.stderr}")
        return done.returncode == 0


def main() -> int:
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    survivors = 0
    for mutation in MUTATIONS:
        if wanted in mutation.name:
            alive = survives(mutation)
            survivors += alive
            print(f"{'SURVIVES' if alive else 'noticed '}  {mutation.name}", flush=True)
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
