"""Hostile inputs from a seed: texts, values, overrides and command lines that nobody should type, and somebody does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

TEXTS = (
    "range(0,1e9,1e-9)", "range(0,1e18)",
    "", " ", "null", "~", "nan", "inf", "-inf", "1e999", "-1", "0", "-0.0", "1e-400", "1" + "0" * 30, "9" * 5000,
    "true", "no", "[]", "{}", "[[[1]]]", "[1,[2,{a:3}]]", "{a:{b:1}}", "{1:2}", "{a:1,a:2}", "'", '"', "''",
    "'it\\'s'", "\\", "\\'", "\x00", "\x1b[2J", "\r", "\n", "a\nb", "é", "数据", "\udcff", "\u202e", "a b", " a",
    "a ", "a,b", "a,", ",", ",,", "=", "==", "a=b", "+", "~a", "@", "a@b", "#", "%", "%s", "{0}", "?", "*", "..",
    "../..", "/", "/dev/null", "/proc/self/mem", "/nope/x", "~", "~/x", "~nobody-here/x", ":", "a:b", "http://",
    "sqlite://", "sqlite:///x.db", "postgresql://u:p@h/d", "://", "file:x", "${", "}", "${}", "${nope}", "${model}",
    "${seed}", "${oc.env:HOME}", "${oc.env:NOPE}", "${oc.env:NOPE,1}", "${now:%Y}", "${model.lr}", "${.a}",
    "${..a}", "${a", "$(id)", "`id`", "$HOME", "???", "!!python/name:os.system", "&a", "*a", "<<", "interval(0,1)",
    "interval(1,0)", "interval(1,1)", "interval(-inf,inf)", "interval(nan,1)", "interval(0,1e308)",
    "interval(-1e308,1e308)", "interval(a,b)", "interval()", "interval(1)", "int(interval(0,1e30))",
    "int(interval(1,3))", "int(interval(0.5,0.6))", "tag(log,interval(0,1))", "tag(log,interval(1e-320,1))",
    "tag(log,interval(1e-5,1))", "tag(a,b,interval(0,1))", "tag(log,1,2)", "tag(log,int(interval(1,100)))",
    "range(1,10)", "range(10,1)", "range(0,1,0)", "range(0,1,0.3)", "range(10,1,-1)", "range(1)", "choice()",
    "choice(a)", "choice(1,1.0,true,null)", "choice([1,2],[3])", "choice({a:1},{b:2})", "choice(choice(1,2),3)",
    "glob(*)", "glob([a*],x)", "shuffle(1,2,3)", "shuffle(range(1,5))", "sort(3,2,1)", "sort(a,1)", "str(1,2)",
    "float(x)", "int(a)", "json_str({a:1})", "extend_list(1)", "bool(1,2)", "1,2,3", "1,a,null", "0.1,0.1",
    "relu,tanh", "relu,nope", "mlp,cnn", "digits,diabetes", "7:00", "25:61", "2020-01-01T00:00", "9999-99-99T00:00",
    "1999-1-1", "0001-01-01T00:00", "9999-12-31T23:59", "07:00", "val/loss", "train//loss", "x" * 300, "(" * 50,
    "[" * 400, "{" * 50, "os.system", "torch.load", "__main__.Net", ".a", "a..b",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 10**30, 2**63, -(2**63), 0.0, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    float("-inf"), "", "x", b"x", [], [[]], [None], [1, "a"], {}, {"a": {}}, {1: 2}, {None: 1}, {"a": [{"b": 1}]},
    (), (1,), {1, 2}, object(), 1j,
)  # fmt: skip
SIGNS = ("", "", "", "", "", "", "+", "++", "~", "-", "!", "@")


class Hostile:
    """Draws hostile inputs. The same seed draws the same inputs."""

    def __init__(self, seed: int, keys: Sequence[str]) -> None:
        self.random = random.Random(seed)
        self.keys = list(keys)

    def text(self) -> str:
        """A hostile text, or two of them joined, or one with a character changed."""
        text, kind = self.random.choice(TEXTS), self.random.random()
        if kind < 0.1:
            return text[:200] + self.random.choice(TEXTS)[:200]
        if kind < 0.15 and text:
            place = self.random.randrange(len(text))
            return (
                text[:place] + chr(self.random.choice((0, 39, 44, 123, 36, 92, 10, 233, 0x1F600))) + text[place + 1 :]
            )
        return text

    def argument(self) -> str:
        """A text that a command line can hold."""
        return self.text().replace("\x00", "\x01")

    def value(self) -> Any:
        return self.random.choice((*VALUES, self.text()))

    def key(self) -> str:
        """A key, which may be misspelt or unknown."""
        kind, key = self.random.random(), self.random.choice(self.keys)
        if kind < 0.08:
            return f"{key}.{self.random.choice(('x', '0', '_target_', 'length', ''))}"
        if kind < 0.16:
            return key[: self.random.randrange(len(key) + 1)]
        return self.text()[:40] if kind < 0.2 else key

    def override(self) -> str:
        kind = self.random.random()
        if kind < 0.05:
            return self.text()
        sign, equals = self.random.choice(SIGNS), "" if kind < 0.08 else "="
        return f"{sign}{self.key()}{equals}{self.text()}"

    def overrides(self, most: int = 3) -> list[str]:
        return [self.override() for _ in range(self.random.randint(1, most))]

    def yaml(self) -> str:
        """A config file with hostile keys and values."""
        lines = [
            f"{self.random.choice(('_target_', 'a', 'b', self.text()[:30]))}: {self.text()[:200]}" for _ in range(3)
        ]
        return "\n".join(self.random.sample(lines, self.random.randint(0, 3)))
