r"""Values of a configuration as JSON and as text. Type and value survive both, whatever YAML can say.

JSON is how values are stored: `to_json` and `from_json`. Text is how values are read and typed, in a command, in
MLflow, in a table, and as a choice of an Optuna distribution: `to_text` writes it in Hydra's grammar, `from_text` reads
it. Python's `==` takes True, 1 and 1.0 for one value; compare with `same`.

A text with `${` is an interpolation for OmegaConf. In a configuration that is composed but not yet resolved, `\${` says
the two characters; `escaped` writes them so.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from overnight.config.override_parser import parse_override

# JSON has neither bytes, nor keys that are no texts, nor numbers that are not finite. Each is a mapping with one key.
_ITEMS, _BYTES, _FLOAT = "$items", "$bytes", "$float"

_NUMBER = r"[+-]?((\d[\d_]*)?\.?[\d_]*([eE][+-]?[\d_]+)?|inf|nan)"
# What Hydra reads as something else than a text, or splits at.
_TYPED = re.compile(rf"{_NUMBER}|true|false|null", re.IGNORECASE | re.ASCII)
_PLAIN = re.compile(r"[\w/.*%@|+-]+", re.ASCII)
# Keys of a mapping in Hydra's grammar take no quotes; some characters take a backslash.
_TYPABLE_KEY = re.compile(r"[\w/.*%@|+$?\\()\[\]{}:=, \t-]+", re.ASCII)
_ESCAPED_IN_KEY = re.compile(r"[\\()\[\]{}:=, \t]")
_CONTROL = {n: rf"\x{n:02x}" for n in (*range(32), 127)} | {9: r"\t", 10: r"\n", 13: r"\r"}


# JSON ---------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Convert a value to what JSON has. A tuple becomes a list; what JSON has already stays as it is."""
    if isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value) and not value.keys() & {_ITEMS, _BYTES, _FLOAT}:
            return {k: to_json(v) for k, v in value.items()}
        return {_ITEMS: [[to_json(k), to_json(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: str(value)}
    if isinstance(value, bytes):
        return {_BYTES: base64.b64encode(value).decode()}
    return value


def from_json(data: Any) -> Any:
    """The value that `to_json` converted."""
    if isinstance(data, list):
        return [from_json(v) for v in data]
    return _object({k: from_json(v) for k, v in data.items()}) if isinstance(data, dict) else data


def dumps(value: Any) -> str:
    """`to_json` as a text."""
    return json.dumps(to_json(value))


def loads(text: str) -> Any:
    """The value that `dumps` wrote."""
    return json.loads(text, object_hook=_object)


def _object(data: dict[str, Any]) -> Any:
    if _ITEMS in data:
        return dict(data[_ITEMS])
    if _FLOAT in data:
        return float(data[_FLOAT])
    return base64.b64decode(data[_BYTES]) if _BYTES in data else data


def json_or_text(value: Any) -> Any:
    """The value itself where JSON has it, and its text where not."""
    return value if to_json(value) == value else to_text(value)


def json_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters as every `--json` prints them."""
    return {name: json_or_text(value) for name, value in params.items()}


# Text ---------------------------------------------------------------------------------------------------------------


def to_text(value: Any) -> str:
    """Write a value in Hydra's grammar: [32,32], true, null, 0.1, relu, "a b". Different values have different texts.

    Hydra does not read bytes, nor every key of a mapping; see `is_typable`.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "null"
    if isinstance(value, str):
        return value if _PLAIN.fullmatch(value) and not _TYPED.fullmatch(value) else _quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(to_text, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key_text(k)}:{to_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, bytes):
        return f"bytes({_quoted(base64.b64encode(value).decode())})"
    return str(value)


def from_text(text: str) -> Any:
    """The value that `to_text` wrote. Raises ValueError where Hydra does not read the text as one value."""
    override = parse_override(f"value={text}")
    if override.is_sweep_override():
        raise ValueError(f"must be one value, got the sweep {text}")
    return override.value()


def is_typable(value: Any) -> bool:
    """Whether a command can hold the value: whether `from_text` reads what `to_text` writes."""
    if isinstance(value, Mapping):
        return all(_is_typable_key(k) and is_typable(v) for k, v in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_typable, value))
    return not isinstance(value, bytes) and "\0" not in str(value)  # no command line can hold a NUL


def short_text(value: Any, digits: int = 3) -> str:
    """A value for people, on one line: like `to_text`, with floats rounded."""
    if not isinstance(value, float) or not math.isfinite(value):
        return to_text(value).translate(_CONTROL)
    text = f"{value:.{digits}g}"
    return text if set(text) & set(".e") else f"{text}.0"  # 1.0 is another value than 1


def _quoted(text: str) -> str:
    """A text in quotes, as Hydra's grammar has them: a backslash is special only before a quote."""
    quote = "'" if '"' in text and "'" not in text else '"'
    doubled = re.sub(rf"(\\+)(?={quote}|\Z)", lambda m: m[1] * 2, text)
    return quote + doubled.replace(quote, f"\\{quote}") + quote


def _key_text(key: Any) -> str:
    if not isinstance(key, str):
        return to_text(key)
    return _ESCAPED_IN_KEY.sub(r"\\\g<0>", key) if _is_typable_key(key) else _quoted(key)


def _is_typable_key(key: Any) -> bool:
    if not isinstance(key, str):
        return key is not None and not isinstance(key, bytes)
    return _TYPABLE_KEY.fullmatch(key) is not None and not _TYPED.fullmatch(key)


# Comparison and interpolation ---------------------------------------------------------------------------------------


def fingerprint(value: Any) -> str:
    """A text that two values share if they are the same: also in type, and whatever the order of a mapping's keys."""
    return to_text(_sorted(value))


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same, also in type: True, 1 and 1.0 are three values, and nan is one."""
    return fingerprint(one) == fingerprint(other)


def _sorted(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _sorted(value[k]) for k in sorted(value, key=_key_text)}
    return [_sorted(v) for v in value] if isinstance(value, list | tuple) else value


def unescaped(value: Any) -> Any:
    """Return the value that `escaped` wrote."""
    if isinstance(value, str):
        return re.sub(r"(\\+)\$\{", lambda m: f"{m[1][: len(m[1]) // 2]}${{", value)
    if isinstance(value, Mapping):
        return {k: unescaped(v) for k, v in value.items()}
    return [unescaped(v) for v in value] if isinstance(value, list | tuple) else value


def escaped(value: Any) -> Any:
    r"""Write a resolved value for OmegaConf, which resolves it again: `${` as `\${`."""
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda m: rf"{m[1] * 2}\${{", value)
    if isinstance(value, Mapping):
        return {k: escaped(v) for k, v in value.items()}
    return [escaped(v) for v in value] if isinstance(value, list | tuple) else value
