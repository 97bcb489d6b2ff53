"""Values typed by people: `k=v` on the command line, scalars in YAML, and what they mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import InputError, unreadable


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars: `1e-5` is a number, `no` and `on` are words."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    """The value that `text` spells in YAML; InputError names `where`, line and column, also of a key that stands in a
    mapping twice."""
    try:
        _require_single_keys(yaml.compose(text, Loader=_Loader))
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        raise InputError(f"This is not YAML: {error.problem}.", place, "Mend that line.") from error
    except yaml.YAMLError as error:
        raise InputError("This is not YAML.", where, "Mend the file.") from error


def _require_single_keys(root: yaml.Node | None) -> None:
    """MarkedYAMLError for a key that stands in a mapping twice, of which YAML's loaders take the last."""
    left, seen = [root], set()
    while left:
        node = left.pop()
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            continue
        seen.add(id(node))  # an alias is the very node that it stands for
        if isinstance(node, yaml.SequenceNode):
            left += node.value
            continue
        keys = set()
        for key, value in node.value:
            if (named := (key.tag, str(key.value))) in keys and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands there twice", problem_mark=key.start_mark
                )
            keys.add(named)
            left += [key, value]


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; InputError where it is missing, unreadable or no mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        what = f"The recipe cannot be read: {unreadable(error)}."
        raise InputError(what, str(path), "Name a YAML text file; `recipes/` has examples.") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise InputError("A recipe is a mapping of names to values.", str(path), "See `recipes/` for examples.")
    return value


def parse_assignments(assignments: Iterable[str]) -> dict[str, Any]:
    """`["a.b=1e-5", "c=x"]` as `{"a.b": 1e-05, "c": "x"}`; values are YAML scalars or flow lists."""
    settings: dict[str, Any] = {}
    for assignment in assignments:
        key, value = _pair(assignment, "--set", "NAME=VALUE", "learning_rate=1e-5")
        if key in settings:
            raise InputError(f"{key!r} is set twice.", "--set", "Give it once.")
        try:
            settings[key] = parse_yaml(value, f"--set {key}")
        except InputError as error:
            fix = "Give a number, a word, or a list such as [1, 2]; quote other text."
            raise InputError(f"{value!r} is no value.", f"--set {key}", fix) from error
    return settings


def parse_files(assignments: Iterable[str], option: str) -> dict[str, str]:
    """`["people=x.jsonl"]` as `{"people": "x.jsonl"}`; InputError names the `option` that they were given to."""
    files: dict[str, str] = {}
    for assignment in assignments:
        name, file = _pair(assignment, option, "NAME=FILE", "people=people.jsonl")
        if name in files:
            raise InputError(f"Two files are called {name!r}.", option, "Give each a name of its own.")
        files[name] = file
    return files


def _pair(assignment: str, option: str, form: str, example: str) -> tuple[str, str]:
    """What stands before and after the first =."""
    key, _, value = assignment.partition("=")
    if not value or not re.fullmatch(r"[A-Za-z_][\w.@-]*", key):
        raise InputError(f"{option} needs {form}, not {assignment!r}.", option, f"For example {option} {example}.")
    return key, value


def assign(tree: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """A copy of `tree` with each dotted key of `settings` set, inner mappings made as needed."""
    result = dict(tree)
    for dotted, value in settings.items():
        head, _, rest = dotted.partition(".")
        if rest:
            inner = result.get(head) or {}
            if not isinstance(inner, dict):
                raise InputError(f"{head!r} holds a value, not a mapping.", f"--set {dotted}", f"Use --set {head}=...")
            result[head] = assign(inner, {rest: value})
        else:
            result[head] = value
    return result


def merge(tree: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with `over` laid over it; mappings under one key are merged, anything else is replaced."""
    both = {k: merge(tree[k], v) if _mappings(tree.get(k), v) else v for k, v in over.items()}
    return {**tree, **both}


def _mappings(one: object, other: object) -> bool:
    return isinstance(one, Mapping) and isinstance(other, Mapping)
