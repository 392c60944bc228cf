"""What may be left out of a model, and of making it, because no number depends on it?

Every reset of a navigation task compiles a model. Nearly all of that time and memory is the sky
(six 5000 x 5000 pictures) and an arena of hundreds of megabytes; what remains is XML in Python.
Left out are: the sky and most of the arena, unless pictures are taken; for worlds, also meshes that
touch nothing and weigh nothing; and reading the same assets again.
"""

import functools
import importlib
from contextvars import ContextVar
from typing import Any
from xml.sax.saxutils import quoteattr

import yaml

from kcpr_safety.envs.overlay import Overlay

ARENA_BYTES = 8 * 2**20
"""Room for contacts and constraints of one environment; random play uses a twentieth of it."""

_pictures: ContextVar[bool] = ContextVar("pictures", default=True)
_only_physics: ContextVar[bool] = ContextVar("only_physics", default=False)


def models_without_pictures() -> None:
    """The sky is 191 MB of every model and the arena 472 MB of every simulation: used by no number.

    `<size njmax nconmax>` sizes the arena as older MuJoCo did and caps nothing since 2.3.
    """
    world: Any = importlib.import_module("safety_gymnasium.world")
    underlying = importlib.import_module("safety_gymnasium.bases.underlying").Underlying
    build = underlying._build

    def unparse(tree: Any, **options: Any) -> str:
        if not _pictures.get():
            mujoco_tree = tree["mujoco"]
            assets = mujoco_tree["asset"]
            assets["texture"] = [t for t in assets["texture"] if t.get("@type") != "skybox"]
            mujoco_tree["size"] = {"@memory": str(ARENA_BYTES)}
            if _only_physics.get():
                drop_ornaments(mujoco_tree)
            return to_xml(tree)
        return str(original.unparse(tree, **options))

    def build_for_use(self: Any) -> None:
        wanted = bool(getattr(self, "takes_pictures", True)) or self.observe_vision
        tokens = _pictures.set(wanted), _only_physics.set(getattr(self, "only_physics", False))
        try:
            build(self)
        finally:
            _pictures.reset(tokens[0])
            _only_physics.reset(tokens[1])

    original = world.xmltodict
    world.xmltodict = Overlay(original, unparse=unparse)
    underlying._build = build_for_use


def drop_ornaments(tree: dict[str, Any]) -> None:
    """Meshes that touch nothing and weigh nothing: 20 MB and 20 ms of every Racecar.

    They are what touches nothing by its flags, and either has no density or belongs to a body whose
    inertia is given. Nothing that a world reads depends on them; natural lidars would see them.
    """
    used: set[str] = set()

    def visit(body: dict[str, Any]) -> None:
        kept = []
        for geom in _listed(body.get("geom")):
            is_mesh = geom.get("@type") == "mesh"
            touches = (geom.get("@contype"), geom.get("@conaffinity")) != ("0", "0")
            weighs = geom.get("@density") != "0" and "inertial" not in body
            if not is_mesh or touches or weighs:
                kept.append(geom)
                used.update(geom[key] for key in ("@mesh",) if key in geom)
        if "geom" in body:
            body["geom"] = kept
        for child in _listed(body.get("body")):
            visit(child)

    visit(tree["worldbody"])
    assets = tree["asset"]
    assets["mesh"] = [mesh for mesh in _listed(assets["mesh"]) if mesh.get("@name") in used]


def _listed(node: Any) -> list[Any]:
    """xmltodict gives a single child as itself, several as a list, none as None."""
    return node if isinstance(node, list) else [] if node is None else [node]


def assets_read_once() -> None:
    """Every reset parses the same 140 lines of YAML in Python, only to read them."""
    world: Any = importlib.import_module("safety_gymnasium.world")

    @functools.cache
    def parsed(text: str) -> Any:
        return yaml.safe_load(text)

    world.yaml = Overlay(yaml, load=lambda file, Loader: parsed(file.read()))


def to_xml(tree: dict[str, Any]) -> str:
    """What `xmltodict.unparse` writes for attributes and children, in a tenth of its time."""
    parts: list[str] = []

    def write(name: str, node: Any) -> None:
        for item in node if isinstance(node, list) else [node]:
            children = item or {}
            attributes = "".join(
                f" {key[1:]}={quoteattr(str(value))}"
                for key, value in children.items()
                if key[0] == "@"
            )
            parts.append(f"<{name}{attributes}>")
            for key, value in children.items():
                if key[0] != "@":
                    write(key, value)
            parts.append(f"</{name}>")

    for name, node in tree.items():
        write(name, node)
    return "".join(parts)
