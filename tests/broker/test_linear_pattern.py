"""Patterns of clients: what Python's matcher says, but never in more steps than characters and states."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ottla_broker.linear_pattern import LinearPattern, PatternError


@pytest.mark.parametrize(
    ("pattern", "matched", "others"),
    [
        ("", [""], ["a"]),
        ("abc", ["abc"], ["ab", "abcd", "xabc", ""]),
        ("a|b|cd", ["a", "b", "cd"], ["c", "ab", ""]),
        ("orders-.*", ["orders-", "orders-1"], ["orders", "my-orders-1", "orders-\n"]),
        ("a*", ["", "a", "aaa"], ["b", "ab"]),
        ("a+b?", ["a", "ab", "aab"], ["", "b", "abb"]),
        ("(ab)+", ["ab", "abab"], ["", "aba"]),
        ("(?:a|b){2}", ["ab", "ba", "aa"], ["a", "abb"]),
        ("a{2,}", ["aa", "aaaa"], ["a", ""]),
        ("a{1,3}", ["a", "aa", "aaa"], ["", "aaaa"]),
        ("a{0,2}b", ["b", "ab", "aab"], ["aaab"]),
        ("a{0}b", ["b"], ["ab"]),
        ("a{,3}", ["a{,3}"], ["a"]),
        ("(?P<name>x)(?<other>y)", ["xy"], ["x"]),
        ("[a-c_]+", ["abc", "_"], ["d", ""]),
        ("[^a-c]", ["d", "-"], ["a", ""]),
        ("[]a]+", ["]a"], ["b"]),
        ("[a-]+", ["a-"], ["b"]),
        ("[\\]\\d]+", ["]9"], ["a"]),
        ("[a&&b]", ["a", "&"], ["c"]),
        ("\\d\\w\\s\\D\\W\\S", ["1_ a-x"], ["a_ a-x"]),
        ("\\.\\*\\\\", [".*\\"], ["a*\\"]),
        ("^a$", ["a"], ["ba"]),
        ("a^", [], ["a", "a^"]),
        ("\\Aa\\z", ["a"], ["ab"]),
        ("\\bfoo\\b.*", ["foo", "foo-1"], ["foobar"]),
        ("a\\Bb", ["ab"], ["a b"]),
        ("(?i)Orders", ["ORDERS", "orders"], ["order"]),
        ("(?s)a.b", ["a\nb"], ["ab"]),
        ("a.b", ["axb"], ["a\nb"]),
        ("a*?b+?", ["aabb"], ["a"]),
        ("()", [""], ["a"]),
        ("(|a)b", ["b", "ab"], ["a"]),
        ("\u00e4+", ["\u00e4\u00e4"], ["a"]),
    ],
)
def test_what_a_pattern_matches(pattern: str, matched: list[str], others: list[str]) -> None:
    compiled = LinearPattern(pattern)
    assert [text for text in matched if not compiled.matches(text)] == []
    assert [text for text in others if compiled.matches(text)] == []


@pytest.mark.parametrize(
    "pattern",
    [
        *("(", ")", "(a", "a)", "*", "a**", "a{2}{3}", "a{3,2}", "a{1001}", "[a", "[", "[z-a]", "[a-\\d]", "\\", "[\\"),
        *("(a)\\1", "(?=a)", "(?!a)", "(?<=a)b", "(?>a)", "(?#x)", "\\pL", "[[:alpha:]]", "\\Qa\\E", "\\x41"),
        *("(" * 60 + ")" * 60, "(a{100}){100}"),
    ],
)
def test_what_is_no_pattern_is_refused_with_a_reason(pattern: str) -> None:
    with pytest.raises(PatternError, match=r"\w+ \w+"):
        LinearPattern(pattern)


@pytest.mark.parametrize("pattern", ["(a+)+b", "(a*)*b", "(a|a)*b", "(a|aa)+b", ".*.*.*.*.*.*.*.*b", "(a?){50}a{50}b"])
def test_what_takes_python_for_ever_is_matched_at_once(pattern: str) -> None:
    compiled = LinearPattern(pattern)
    assert not compiled.matches("a" * 300)
    assert compiled.matches("a" * 90 + "b")


def patterns() -> st.SearchStrategy[str]:
    atoms = st.sampled_from(["a", "b", ".", "[ab]", "[^a]", "\\d", "^", "$", "\\b", "1"])
    counts = st.sampled_from(["", "", "*", "+", "?", "{2}", "{0,2}", "{1,}", "*?"])

    def wider(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        grouped = st.builds("({}){}".format, inner, counts)
        return st.one_of(
            grouped,
            st.lists(inner, min_size=1, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map("|".join).map("(?:{})".format),
        )

    counted = st.builds("{}{}".format, st.sampled_from(["a", "b", ".", "[ab]", "1"]), counts)
    return st.recursive(atoms | counted, wider, max_leaves=8)


@settings(max_examples=400)
@given(patterns(), st.lists(st.text("ab1-\n", max_size=8), min_size=1, max_size=5))
def test_it_is_what_python_says(pattern: str, texts: list[str]) -> None:
    python = re.compile(pattern.replace("$", "\\Z"))  # `$` of Python's also stands before a last line end
    compiled = LinearPattern(pattern)
    for text in texts:
        assert compiled.matches(text) == (python.fullmatch(text) is not None), (pattern, text)
