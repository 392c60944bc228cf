"""Which commands are there, in the order of the overview?"""

from kcpr_safety.cli.benching import Bench
from kcpr_safety.cli.benchmarking import Benchmark
from kcpr_safety.cli.deploying import Calibrate, Keygen, Stress, Verify
from kcpr_safety.cli.embedding import Header
from kcpr_safety.cli.inspection import Check, Doctor, Policies, Tasks
from kcpr_safety.cli.learning import Demo, Evaluate, Export, Report, Resume, Train
from kcpr_safety.cli.options import Command
from kcpr_safety.cli.reproducing import Grid, Reproduce

COMMANDS: dict[str, type[Command]] = {
    command.__name__.lower(): command
    for command in (
        Demo,
        Tasks,
        Train,
        Resume,
        Evaluate,
        Calibrate,
        Stress,
        Export,
        Verify,
        Report,
        Policies,
        Benchmark,
        Keygen,
        Header,
        Reproduce,
        Grid,
        Check,
        Bench,
        Doctor,
    )
}
