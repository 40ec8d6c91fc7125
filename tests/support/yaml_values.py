"""Values that a YAML file can hold, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

# Texts that YAML, Hydra, OmegaConf, bash or CSV take for something else.
HOSTILE = (
    *("null", "true", "1", "1e-3", "1_000", "0x1F", "nan", "-inf", "00", "~", "1:30", "2024-01-01", "32-true", "yes"),
    *("", " lead", "trail ", "a b", "it's", 'say "hi"', "\"'", "\\", "\\'", "a\\", "e,f", "c=d", "x:y", "[1]", "{a:1}"),
    *("${a}", "\\${a}", "\\\\${a}", "${oc.env:HOME}", "$HOME", "`id`", "!x", "#c", "a;b", "a\nb", "a\tb", "\r", "\x85"),
    *("interval(0,1)", "choice(a,b)", "choice", "length", "üñ", "🌙", "\u2028", "-", "+a", "~a", "a@b", "a/b", "%20"),
)
texts = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=6),
    st.text("a0 '\"\\,{}[]()$:=-.+e_\n", max_size=8),
).filter(lambda text: text != "???")  # OmegaConf's mark of a missing value
scalars = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.floats(), texts)
keys = st.one_of(st.booleans(), st.integers(-99, 99), st.floats(allow_nan=False), texts)
values = st.recursive(
    st.one_of(scalars, st.binary(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
