"""The command lines and code blocks of the README and of docs/, and a program that runs many lines in one process."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# What a synopsis names, and what a test puts there.
_PLACES = {
    "STUDY": "digits-mlp",
    "REF": "digits-mlp",
    "STUDY/NUMBER": "digits-mlp/1",
    "STUDY/7": "digits-mlp",
    "FILE": "images/0.png",
    "PATH": "images",
    "FOLDER": "images",
    "digit.png": "images/0.png",
    "FILE.csv": "trials.csv",
    "DIR": "another",
    "TEXT": "reason",
    "CONF": "mine/conf",
}
_OPTIONAL = re.compile(r"\[(?:OVERRIDE )?\.\.\.\]|(?<= )\.\.\.")


@dataclass(frozen=True)
class Block:
    page: str
    language: str
    text: str


@dataclass(frozen=True)
class Line:
    """A command line as a page has it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Its words, with something concrete in the place of STUDY, FILE and the like, and with what is optional."""
        text = _OPTIONAL.sub("", self.text)
        text = re.sub(r"\[([^\[\]=]+)\](?=\s|$)", r"\1", text)
        return [_PLACES.get(word, word.replace("best_STUDY", "best_digits-mlp")) for word in shlex.split(text)]


def blocks() -> list[Block]:
    return [block for page in PAGES for block in _blocks(page)]


def lines() -> list[Line]:
    """Every command line in a code block, without comments and prompts."""
    return [line for block in blocks() for line in _lines(block)]


def inline() -> list[Line]:
    """Every command of overnight in the prose. The page about completion has halves of lines."""
    return [
        Line(page.name, found.strip())
        for page in PAGES
        if page.name != "shell-completion.md"
        for found in re.findall(r"`(overnight [a-z][^`\n]*)`", page.read_text("utf-8"))
    ]


def _blocks(page: Path) -> Iterator[Block]:
    text = page.read_text("utf-8")
    for language, body in re.findall(r"^```\{?\.?(\w+)[^\n]*\n(.*?)^```", text, re.M | re.S):
        body = re.sub(r'^--8<-- "(.*)"\n', lambda m: (ROOT / m[1]).read_text("utf-8"), body, flags=re.M)
        yield Block(page.name, language, body)
    for body in re.findall(r"(?:^    [^\n]*\n|(?<=\n)\n(?=    ))+", text, re.M) if page.name == "README.md" else ():
        body = "\n".join(line[4:] for line in body.splitlines()).strip() + "\n"
        starts = {"overnight": "shell", "make": "shell", "import": "python", "model.": "yaml"}
        yield Block(page.name, next((kind for word, kind in starts.items() if body.startswith(word)), "text"), body)


def _lines(block: Block) -> Iterator[Line]:
    if block.language not in ("shell", "console"):
        return
    for line in re.sub(r"\\\n\s*", " ", block.text).splitlines():
        if block.language == "console":
            prompt, _, line = line.partition("$ ")
            line = "" if prompt else line
        line = re.split(r" {3,}|\s#", line)[0].strip()  # a comment, or the second column of the README's table
        first, *others = line.split(" | ") if line.startswith("overnight ") else [line]
        for text in (first, *(f"overnight {name}" for name in others)):  # `overnight list | export` is two commands
            if text and not text.startswith("#"):
                yield Line(block.page, text)


def main() -> None:
    """Run the commands in the JSON file argv[1], lists of words; print exit code and output of each as JSON."""
    from overnight.cli.main import main as overnight

    for words in json.loads(Path(sys.argv[1]).read_text("utf-8")):
        sys.argv = ["overnight", *words]
        print(f"\n@begin {json.dumps(words)}", flush=True)
        try:
            overnight()
            code: object = 0
        except SystemExit as error:
            code = error.code or 0
        except BaseException as error:
            code = repr(error)
        sys.stderr.flush()
        print(f"\n@end {json.dumps(code)}", flush=True)


if __name__ == "__main__":
    main()
