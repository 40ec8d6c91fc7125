"""Config files of a user: what keeps Hydra from reading one, with file, line and column."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any


def file_problem(path: Path) -> str | None:
    """What keeps Hydra from reading a config file, or None."""
    import yaml

    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.load(file, Loader=_loader())
    except Exception as error:  # the YAML reader fails in many ways, for example with a RecursionError
        return reading_problem(error, path) or f"{path}: must be a config, and reading it fails with {error!r}"
    if content is not None and not isinstance(content, dict):
        return f"{path}: must hold keys with values, got {_kind_of(content)}; write KEY: VALUE, one a line"
    return None


def reading_problem(error: BaseException, path: Path | None = None) -> str | None:
    """Describe an error of reading a YAML file; None for any other error.

    Args:
        path: the file, where the error does not name it.
    """
    import yaml

    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark, problem = error.problem_mark, error.problem or "must be YAML"
        problem = f"{error.context} {problem}" if problem.startswith("but ") else problem
        remedy = "; indent with spaces" if "'\\t'" in problem else ""
        return f"{path or mark.name}, line {mark.line + 1}, column {mark.column + 1}: {problem}{remedy}"
    if isinstance(error, yaml.reader.ReaderError):
        name = path or error.name
        return f"{name}{_position(path, error.position)}: must be text, and holds the character #x{error.character:04x}"
    if isinstance(error, UnicodeDecodeError):
        line = error.object[: error.start].count(b"\n") + 1
        return f"{path or 'conf'}, line {line}: must be UTF-8, and holds the byte 0x{error.object[error.start]:02x}"
    if isinstance(error, OSError):
        return f"{path or error.filename}: must be a file that can be read: {error.strerror}"
    return None


def _position(path: Path | None, position: int) -> str:
    """Where a character is: ", line 2, column 1"; empty if the file is not known."""
    if path is None:
        return ""
    before = path.read_text(encoding="utf-8", errors="replace")[:position]
    return f", line {before.count(chr(10)) + 1}, column {len(before) - before.rfind(chr(10))}"


def _kind_of(content: Any) -> str:
    return "a list" if isinstance(content, list) else repr(content)


@functools.cache
def _loader() -> type[Any]:
    """OmegaConf's loader, which finds a key that is given twice if it is a text. This one finds any."""
    import yaml
    from omegaconf._utils import get_yaml_loader

    class Loader(get_yaml_loader()):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if not isinstance(key, yaml.ScalarNode):
                    continue
                if (key.tag, key.value) in seen:
                    context, problem = "while constructing a mapping", f"found duplicate key {key.value}"
                    raise yaml.constructor.ConstructorError(context, node.start_mark, problem, key.start_mark)
                seen.add((key.tag, key.value))
            return super().construct_mapping(node, deep=deep)

    return Loader
