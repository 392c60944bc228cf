"""Which type checker watches the shapes of tensors while tests run?

pytest's option `--jaxtyping-packages=...,shapes.checked` (in pyproject.toml) puts it around every
function of the packages named there: an argument whose shape or dtype is not the one in the
signature fails the test that passed it. Outside pytest nothing is checked and nothing is slower.
"""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""beartype that takes an int where a float is asked for, as Python's type checkers do."""
