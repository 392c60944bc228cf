"""How does the `kcpr-safety` command start, and how does it end?

Exit codes: 0 done; 1 `check` or `verify` found something; 2 a fault that its reader can mend (one
sentence on stderr, no traceback); 130 stopped by Ctrl-C. Whatever else escapes is a defect of this
package and keeps its traceback.
"""

import os
import sys
from collections.abc import Sequence

from kcpr_safety.errors import EXIT_CODE, KcprError

INTERRUPTED = 130
BROKEN_PIPE = 141

_HELP_WORDS = ("-h", "--help", "help")

_EPILOG = """
First steps:
  kcpr-safety doctor                       is everything installed?
  kcpr-safety demo                         train, evaluate, export, report: about ten minutes
  kcpr-safety tasks                        what can be trained
  kcpr-safety train SafetyPointGoal1-v0    train it, with a live display
  kcpr-safety COMMAND --help               options and examples of one command

The same from Python: from kcpr_safety import train, evaluate, export, load_policy, report"""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = list(sys.argv[1:] if args is None else args)
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except KcprError as fault:
        print(f"kcpr-safety: {fault}", file=sys.stderr)
        return EXIT_CODE
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "kcpr_safety":
            raise
        print(
            f"kcpr-safety: {error.name} is not installed; run: kcpr-safety doctor", file=sys.stderr
        )
        return EXIT_CODE
    except KeyboardInterrupt:
        print("kcpr-safety: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`| head`). Python would complain once more when it
        # flushes at exit: give it somewhere harmless to write.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return BROKEN_PIPE


def _dispatch(words: list[str]) -> int:
    from kcpr_safety.cli import parsing, show
    from kcpr_safety.cli.commands import COMMANDS

    if not words or words[0] in _HELP_WORDS:
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from kcpr_safety import __version__

        print(f"kcpr-safety {__version__}")
        return 0
    name, *rest = words
    if name not in COMMANDS:
        raise parsing.unknown_command(name, list(COMMANDS))
    chosen = COMMANDS[name]
    command = parsing.parse(chosen, name, chosen.examples, rest)
    if not command.json:
        record, code = command.run()
        command.show(record)
        return code
    with parsing.stdout_kept_clean() as real:
        record, code = command.run()
        show.emit_json(record, real)
        return code


def _overview() -> str:
    from kcpr_safety.cli.commands import COMMANDS

    lines = [
        "usage: kcpr-safety COMMAND [OPTIONS]",
        "",
        "KL-coupled reward-punishment learning for safe control.",
        "",
        "Commands:",
    ]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<10} {(command.__doc__ or '').splitlines()[0]}")
    return "\n".join(lines) + "\n" + _EPILOG
