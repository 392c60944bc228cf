"""Does every mutation of `scripts/mutants.py` still have its piece of source to break?"""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS = runpy.run_path(str(ROOT / "scripts" / "mutants.py"))["MUTATIONS"]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_its_piece_is_there_once_and_changes(mutation: Any) -> None:
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1
    assert mutation.new != mutation.old
    assert all((ROOT / test).exists() for test in mutation.tests.split())
