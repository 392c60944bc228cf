"""Do task cards say what they may, and complain in one sentence about anything else?"""

from pathlib import Path

import pytest

from kcpr_safety.cards import MOST_OVERRIDES, TaskCard, card_names, load_card
from kcpr_safety.errors import CardError, UnknownNameError
from kcpr_safety.punishments import Punish, Stream

GOOD = """
task = "SafetyPointGoal1-v0"
title = "A title"
description = "Words."
punishment = "one step inside"
"""

OVERRIDE = """
[overrides.{name}]
value = {value}
reason = "because"
"""


BOTH = """
[[punish]]
term = "tilt"
threshold = 30
body = "torso"
stream = "a"
[streams.a]
budget = 1
meaning = "m"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "card.toml"
    path.write_text(text)
    return path


def test_every_shipped_card_loads_and_is_named_after_its_task() -> None:
    names = card_names()
    assert "SafetyHalfCheetahVelocity-v1" in names
    for name in names:
        card = load_card(name)
        assert card.task == name
        assert len(card.sha256) == 64
        assert card.title
        assert card.description
        assert card.punishment


def test_defaults_and_given_values(tmp_path: Path) -> None:
    card = load_card(written(tmp_path, GOOD))
    assert card.budget == TaskCard.budget
    assert card.overrides == {}
    text = GOOD + "budget = 10\n" + OVERRIDE.format(name="gamma", value=0.9)
    card = load_card(written(tmp_path, text))
    assert (card.budget, type(card.budget)) == (10.0, float)
    assert card.overrides["gamma"].value == 0.9
    assert card.overrides["gamma"].reason == "because"


def test_the_hash_is_of_the_bytes(tmp_path: Path) -> None:
    one = load_card(written(tmp_path, GOOD))
    other = load_card(written(tmp_path, GOOD + "# a comment\n"))
    assert one.sha256 != other.sha256


MAZE = '[maze]\ndrawing = "..."\ntime_limit = 3\n'
WALK = '[quadruped]\nrobot = "go1"\n'
ROBOT = '[robot]\nmodel = "my.xml"\n'
OPTIONS = "options = { a = 1 }\n"
STREAMS = "streams = { a = { budget = 1, meaning = 'm' } }\n"
TILT = '[[punish]]\nterm = "tilt"\nthreshold = 30\nbody = "torso"\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (MAZE + TILT, ["'maze'", "'punish'"]),
        (WALK + TILT, ["'quadruped'", "'punish'"]),
        (STREAMS + MAZE, ["'maze'", "'streams'"]),
        (STREAMS + WALK, ["'quadruped'", "'streams'"]),
        (OPTIONS + MAZE, ["'maze'", "'options'"]),
        (OPTIONS + WALK, ["'quadruped'", "'options'"]),
        (OPTIONS + ROBOT + TILT, ["'robot'", "'options'"]),
        ("commands = [[0.0], [1.0]]\n" + WALK, ["'quadruped'", "'commands'"]),
        ('environment = "Ant-v5"\n' + ROBOT + TILT, ["'robot'", "'environment'", "keep one"]),
        ('environment = "Ant-v5"\n' + MAZE, ["'maze'", "'environment'", "keep one"]),
        ('environment = "Ant-v5"\n' + WALK, ["'quadruped'", "'environment'", "keep one"]),
        (MAZE + WALK, ["'maze'", "'quadruped'", "keep one"]),
        (MAZE + ROBOT, ["'maze'", "'robot'", "keep one"]),
        (WALK + ROBOT, ["'quadruped'", "'robot'", "keep one"]),
    ],
)
def test_nothing_that_is_written_is_left_unread(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = written(tmp_path, GOOD + text)
    with pytest.raises(CardError) as raised:
        load_card(path)
    message = str(raised.value)
    assert message.startswith(f"task card {path}")
    assert "\n" not in message
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + 'colour = "red"\n', ["colour", "budget", "overrides"]),
        (GOOD + 'budget = "many"\n', ["budget", "a number", "many"]),
        (GOOD + "budget = true\n", ["budget", "a number"]),
        (GOOD + "budget = -1\n", ["budget", "at least 0"]),
        (GOOD + "budget = inf\n", ["budget", "finite"]),
        (GOOD.replace('"Words."', "3"), ["description", "text"]),
        (GOOD.replace('punishment = "one step inside"', ""), ["lacks", "punishment"]),
        (GOOD + "overrides = 3\n", ["overrides", "table"]),
        (GOOD + "[overrides]\ngamma = 0.9\n", ["gamma", "value", "reason"]),
        (GOOD + "[overrides.gamma]\nvalue = 0.9\n", ["gamma", "reason"]),
        (GOOD + '[overrides.gamma]\nreason = "so"\n', ["gamma", "value"]),
        (GOOD + '[overrides.gamma]\nvalue = "x"\nreason = "so"\n', ["gamma", "value", "'x'"]),
        (GOOD + '[overrides.gamma]\nvalue = nan\nreason = "so"\n', ["gamma", "finite"]),
        (GOOD + 'environment = "Ant-v5"\n', ["'environment'", "[[punish]]"]),
        (GOOD + "punish = []\n", ["'punish'", "[[punish]]"]),
        (GOOD + "punish = [3]\n", ["[[punish]] 1", "'term'"]),
        (GOOD + '[[punish]]\nterm = "tilt"\ntreshold = 3\n', ["treshold", "threshold"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nthreshold = -1\n', ["threshold", "at least 0"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nweight = nan\n', ["weight", "finite"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nform = "log"\n', ["form", "'log'", "share"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nbodies = [3]\n', ["bodies", "names"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nlow = ["a"]\n', ["low", "'a'"]),
        (GOOD + '[[punish]]\nterm = "tilt"\nstream = "a"\n', ["[streams.a]", "budget"]),
        (GOOD + '[[punish]]\nterm = "tilt"\n[streams.a]\nbudget = 1\n', ["without 'stream'"]),
        (GOOD + BOTH.replace("budget = 1", "budget = -1"), ["[streams.a]", "at least 0"]),
        (GOOD + BOTH.replace("budget = 1", ""), ["[streams.a]", "'budget'"]),
        (GOOD + BOTH + '[streams.b]\nbudget = 1\nmeaning = "m"\n', ["stream 'b'"]),
        ("this is = not toml =", ["not TOML"]),
    ],
)
def test_what_is_wrong_is_named_with_file_and_key(
    tmp_path: Path, text: str, words: list[str]
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(CardError) as raised:
        load_card(path)
    message = str(raised.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def test_three_overrides_are_allowed_and_four_are_not(tmp_path: Path) -> None:
    tables = [OVERRIDE.format(name=f"n{i}", value=i) for i in range(MOST_OVERRIDES + 1)]
    card = load_card(written(tmp_path, GOOD + "".join(tables[:-1])))
    assert len(card.overrides) == MOST_OVERRIDES
    with pytest.raises(CardError, match="at most 3"):
        load_card(written(tmp_path, GOOD + "".join(tables)))


def test_a_declared_punishment(tmp_path: Path) -> None:
    card = load_card(written(tmp_path, GOOD + BOTH))
    assert card.environment == card.task
    row = Punish("tilt", 30.0, bodies=("torso",), stream="a")
    assert card.punish == (row,)
    assert card.streams == (Stream("a", 1.0, "m"),)
    plain = BOTH.partition("stream")[0]
    other = 'environment = "m:Ant-v5"\noptions = { a = 1 }\n'
    card = load_card(written(tmp_path, GOOD + other + plain))
    assert (card.environment, card.options, card.streams) == ("m:Ant-v5", {"a": 1}, ())


def test_missing_files_and_names() -> None:
    with pytest.raises(CardError, match="nowhere"):
        load_card("nowhere/card.toml")
    with pytest.raises(UnknownNameError, match="SafetyPointGoal1-v0"):
        load_card("SafetyPointGoal1")
