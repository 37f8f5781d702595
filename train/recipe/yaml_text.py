"""YAML text to plain values: YAML 1.2's scalars, no tags, and bounds on size, depth and aliases.

A recipe may come from a stranger. It is read by PyYAML's parser, but its nodes are turned to values
here: what an alias stands for is counted before it is copied, nothing is constructed but mappings,
lists, texts, numbers, truth values and null, and texts stay as they were written where texts are
meant (a label `001`, `no` or `2024-05-06`). 10,000 labels take 0.5 s, the most that is read 8 s.
"""

import math
import re
from typing import Any

import yaml
from yaml.events import AliasEvent, NodeEvent
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

BYTES = 2**20  # of a recipe; the longest list of labels is far below
NODES = 100_000  # with every alias counted as what it stands for
DEPTH = 32  # a recipe's keys are 6 deep
DIGITS = 40  # of a number
TAG = "tag:yaml.org,2002:"
NULL, MERGE, TEXT = f"{TAG}null", f"{TAG}merge", f"{TAG}str"
SCALARS = {  # the core schema of YAML 1.2, https://yaml.org/spec/1.2.2/#1032-tag-resolution
    NULL: (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    MERGE: (r"(?:<<)$", ["<"]),
    f"{TAG}bool": (r"(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    f"{TAG}int": (r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$", list("-+0123456789")),
    f"{TAG}float": (
        r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        list("-+.0123456789"),
    ),
}
COLLECTIONS = {f"{TAG}seq": SequenceNode, f"{TAG}map": MappingNode}
# Dotted keys whose plain scalars are texts, whatever they look like.
LABELS = re.compile(r"tasks\.[^.]+\.labels\.\d+")
TEXTS = re.compile(
    r"tasks\.[^.]+\.(data\.(path|name|data_dir|revision|text|text_pair|negative|tokens|label(\.\d+)?"
    r"|separator|group_by|license|splits\.[^.]+|data_files(\.[^.]+)*)|prompts\.\d+|examples\.\d+(\.\d+){0,2})"
    r"|distill\.teachers\.[^.]+|card\.(license|limits|language\.\d+)|output_dir|encoder|encoder\.tokenizer"
)


def read_yaml(text: str, key: str = "") -> Any:
    """The values of a YAML text.

    Args:
        text: the whole text.
        key: dotted key at which the values will stand; it tells which scalars are texts.

    Returns:
        dicts with texts as keys, lists, texts, ints, floats, bools and None; none is shared.

    Raises:
        yaml.YAMLError: it is no YAML, or has more in it than a recipe may.
    """
    if len(text.encode("utf-8", "surrogatepass")) > BYTES:
        raise yaml.YAMLError(f"it is longer than {BYTES:,} bytes, which no recipe needs")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _value(node, key)
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """SafeLoader's parser, with bounds; of its constructor nothing is used."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own, filled below

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.nodes = 0
        self.open_anchors: set[str] = set()
        self.sizes: dict[str, int] = {}  # anchor to the nodes that it stands for

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        """As PyYAML's; refuses recursion, expansion, depth and tags before they are followed."""
        event = self.peek_event()
        mark = event.start_mark
        anchor = event.anchor if isinstance(event, NodeEvent) else None
        if isinstance(event, AliasEvent):
            if anchor in self.open_anchors:
                raise _fault(f"*{anchor} stands inside what it names; take it out", mark)
            self._count(self.sizes.get(str(anchor), 1), mark)
            return super().compose_node(parent, index)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!", TEXT, *SCALARS, *COLLECTIONS) or tag == MERGE:
            raise _fault(f"the tag {tag} is not allowed in a recipe; take it out", mark)
        self._count(1, mark)
        self.depth += 1
        if self.depth > DEPTH:
            raise _fault(f"it is nested more than {DEPTH} deep", mark)
        before = self.nodes
        if anchor is not None:
            self.open_anchors.add(anchor)
        node = super().compose_node(parent, index)
        if anchor is not None:
            self.open_anchors.discard(anchor)
            self.sizes[anchor] = self.nodes - before + 1
        self.depth -= 1
        return node

    def _count(self, nodes: int, mark: Any) -> None:
        self.nodes += nodes
        if self.nodes > NODES:
            raise _fault(f"with its aliases it has more than {NODES:,} values", mark)


for _tag, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _fault(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


def _value(node: Node, key: str) -> Any:
    """The value of a node that stands at a dotted key."""
    expected = COLLECTIONS.get(node.tag)
    if isinstance(node, ScalarNode):
        if expected is not None:
            raise _fault(f"{node.value!r:.60} is no {node.tag.removeprefix(TAG)}", node.start_mark)
        return _scalar(node, key)
    if expected is None or not isinstance(node, expected):
        kind = node.tag.removeprefix(TAG)
        raise _fault(f"a list or mapping is tagged {kind}", node.start_mark)
    if isinstance(node, SequenceNode):
        return [_value(part, f"{key}.{number}") for number, part in enumerate(node.value)]
    return _mapping(node, key)


def _mapping(node: Node, key: str) -> dict[str, Any]:
    """A mapping; what it merges in (`<<`) stands behind its own keys."""
    merged: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if not isinstance(key_node, ScalarNode):
            raise _fault("a key has to be a word, not a list or mapping", key_node.start_mark)
        if key_node.tag == MERGE and key_node.style is None:
            several = isinstance(value_node, SequenceNode)
            for part in value_node.value if several else [value_node]:
                if not isinstance(part, MappingNode):
                    raise _fault("<< merges mappings only", part.start_mark)
                for name, value in _mapping(part, key).items():
                    merged.setdefault(name, value)
            continue
        name = key_node.value
        if name in values:
            raise _fault(f"key {name:.60} stands twice", key_node.start_mark)
        values[name] = _value(value_node, f"{key}.{name}".lstrip("."))
    return {**merged, **values}


def _scalar(node: ScalarNode, key: str) -> Any:
    text: str = node.value
    kind = node.tag
    plain = node.style is None
    if kind in (TEXT, "!") or (plain and text and LABELS.fullmatch(key)):
        return text
    if kind == NULL and (text == "" or re.match(SCALARS[NULL][0], text)):
        return None
    if plain and TEXTS.fullmatch(key):
        return text
    if kind == MERGE:
        return text
    if not re.match(SCALARS[kind][0], text):
        raise _fault(f"{text!r:.60} is no {kind.removeprefix(TAG)}", node.start_mark)
    if kind == f"{TAG}bool":
        return text.lower() == "true"
    if len(text) > DIGITS:
        raise _fault(f"a number of more than {DIGITS} signs", node.start_mark)
    if kind == f"{TAG}int":
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text, base)
    if text.lower().endswith(("inf", "nan")):
        return -math.inf if text.startswith("-") else float(text.lower().replace(".", ""))
    return float(text)
