"""Which of its three settings does each agent of `reproduce rprl` get? The same rule for all.

    python scripts/tune_rprl.py    3 tuning seeds, two grid-worlds (6 minutes)

Score: mean of return - punishment at the end of training, over worlds and seeds. The comparison
uses other seeds. The winners stand in `kcpr_safety/studies/rprl_plan.py`.
"""

import json

import numpy as np
from rich.progress import track

from kcpr_safety.studies.rprl_cells import Cell, train_cell
from kcpr_safety.studies.rprl_plan import ABLATED_WORLDS, STEPS, TUNABLE, settings_of

SEEDS = (100, 101, 102)

if __name__ == "__main__":
    for agent, candidates in TUNABLE.items():
        for own in track(candidates, agent, transient=True):
            scores, returns, punishments = [], [], []
            for world in ABLATED_WORLDS:
                settings = settings_of(agent, world, STEPS, own)
                for row in train_cell(Cell(world, agent, settings, SEEDS, STEPS)):
                    scores.append(row["return_mean"] - row["punishment_mean"])
                    returns.append(row["return_mean"])
                    punishments.append(row["punishment_mean"])
            print(
                f"{agent:8} {json.dumps(dict(own)):80} score {np.mean(scores):7.3f}  "
                f"return {np.mean(returns):7.3f}  punishment {np.mean(punishments):6.3f}",
                flush=True,
            )
