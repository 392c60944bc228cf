"""How does `python -m kcpr_safety` start?  As the `kcpr-safety` command does."""

from kcpr_safety.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
