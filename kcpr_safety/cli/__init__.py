"""How does the command line start?  (See `kcpr-safety --help`.)"""


def main() -> int:
    """Entry point of the `kcpr-safety` command."""
    raise SystemExit("being written")
