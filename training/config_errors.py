"""What pydantic says of a configuration, in one line: the key, its value, what is expected, the nearest name.

Usage: ``describe(error, valid_names(PretrainConfig))`` gives
``arch.hiden_size=64: unknown key, the nearest valid name is arch.hidden_size``.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHOWN_ERRORS = 3
_SHOWN_VALUE = 60

_EXPECTED = {
    "bool_type": "expected true or false",
    "int_type": "expected an integer",
    "float_type": "expected a number",
    "string_type": "expected text",
    "string_too_short": "expected some text",
    "model_type": "expected a group of keys, not one value",
    "model_attributes_type": "expected a group of keys, not one value",
    "finite_number": "expected a finite number",
    "greater_than": "expected more than {gt:g}",
    "greater_than_equal": "expected at least {ge:g}",
    "less_than": "expected less than {lt:g}",
    "less_than_equal": "expected at most {le:g}",
    "too_short": "expected at least {min_length} entry",
    "missing": "a value is required",
    "union_tag_not_found": "expected {{name: module@Class}}",
}


def valid_names(annotation: Any, name: str = "") -> list[str]:
    """Dotted names of every key of a model, sections included; in lists they are ``evaluators[].name``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        names = []
        for key, field in annotation.model_fields.items():
            full = f"{name}.{key}" if name else key
            names += [full, *valid_names(field.annotation, full)]
        return names
    inner = f"{name}[]" if get_origin(annotation) is list else name
    return [found for option in get_args(annotation) for found in valid_names(option, inner)]


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate most like `name`, as a whole or in its last part (a forgotten ``arch.``), if any is."""

    def likeness(candidate: str) -> float:
        whole = difflib.SequenceMatcher(None, name, candidate).ratio()
        last = difflib.SequenceMatcher(None, name.rpartition(".")[2], candidate.rpartition(".")[2]).ratio()
        # Where the last parts are equally alike, the whole names decide.
        return max(whole, 0.95 * last + 0.05 * whole)

    best = max(candidates, key=likeness, default=None)
    return best if best is not None and likeness(best) >= 0.7 else None


def describe(error: ValidationError, names: Sequence[str], prefix: str = "") -> str:
    """One line for the first errors. `names` are the valid dotted names; `prefix` goes before the keys."""
    errors = error.errors(include_url=False)
    # Unknown keys first: a key that was misspelt is what else may be missing.
    errors.sort(key=lambda details: details["type"] != "extra_forbidden")
    lines = [_describe_one(details, names, prefix) for details in errors[:_SHOWN_ERRORS]]
    if len(errors) > _SHOWN_ERRORS:
        lines.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return "; ".join(lines)


def _describe_one(details: ErrorDetails, names: Sequence[str], prefix: str) -> str:
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "value_error":  # one of our own checks of a combination, which names its keys
        said = str(context["error"])
        return said if said.startswith(prefix) else f"{prefix.removesuffix('.')}: {said}"
    key = prefix + _dotted(details["loc"])
    if kind == "extra_forbidden":
        key, value = _first_leaf(key, value)
        near = nearest(re.sub(r"\[\d+\]", "[]", key), names)
        hint = f", the nearest valid name is {near}" if near else "; --help lists the valid ones"
        return f"{key}={show(value)}: unknown key{hint}"
    if kind == "missing":
        return f"{key}: {_EXPECTED[kind]}"
    if kind == "literal_error":
        return f"{key}={show(value)}: expected {context['expected']}"
    if kind == "union_tag_invalid":
        return f"{key}.name={show(context['tag'])}: expected one of {context['expected_tags']}"
    if kind == "list_type":
        return f"{key}={show(value)}: expected a list, as in {key}=[{show(value)}]"
    expected = _EXPECTED.get(kind)
    return f"{key}={show(value)}: {expected.format(**context) if expected else details['msg']}"


def _dotted(location: tuple[int | str, ...]) -> str:
    """``("evaluators", 0, "arc@ARC", "pass_Ks")`` is ``evaluators[0].pass_Ks``: the option is no key, and neither is
    ``list[...]`` or ``literal[...]``, the alternative of a value that may be of several types."""
    text = ""
    for before, part in zip(("", *location), location, strict=False):
        if isinstance(part, int):
            text += f"[{part}]"
        elif not (isinstance(before, int) and "@" in part) and not part.endswith("]"):
            text += f".{part}" if text else part
    return text


def _first_leaf(key: str, value: Any) -> tuple[str, Any]:
    """``("ach", {"H_cycles": 3})`` is ``("ach.H_cycles", 3)``: what the user wrote."""
    while isinstance(value, Mapping) and value:
        child, value = next(iter(value.items()))
        key = f"{key}.{child}"
    return key, value


def show(value: Any) -> str:
    """The value as it is written in an override, cut short."""
    text = str(value)
    if not isinstance(value, str):
        dumped = yaml.safe_dump(value, default_flow_style=True, width=sys.maxsize, allow_unicode=True)
        text = dumped.removesuffix("...\n")  # what ends a document that is one scalar
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_VALUE else text[: _SHOWN_VALUE - 1] + "…"
