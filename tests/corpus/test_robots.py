import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.corpus.robots import MAX_ROBOTS_BYTES, RobotRules, matches, opted_out, robot_rules


@pytest.mark.parametrize(
    ("text", "allowed", "forbidden"),
    [
        ("", ["/", "/a.png"], []),
        ("User-agent: *\nDisallow: /", [], ["/", "/a.png"]),
        ("User-agent: *\nDisallow:", ["/", "/a.png"], []),
        ("User-agent: *\nDisallow: /private", ["/", "/a/private"], ["/private", "/private/a", "/privately"]),
        # The longest pattern decides, whatever the order; an allowing one where both are as long.
        ("User-agent: *\nAllow: /a/b\nDisallow: /a", ["/a/b/c", "/b"], ["/a", "/a/c"]),
        ("User-agent: *\nDisallow: /a\nAllow: /a", ["/a"], []),
        ("User-agent: *\nDisallow: /*.jpg$", ["/a.jpg?b", "/a.jpgs"], ["/a.jpg", "/b/c.jpg"]),
        ("User-agent: *\nDisallow: /*/thumbs/*.png", ["/thumbs/a.png"], ["/a/thumbs/b.png?c"]),
        ("User-agent: *\nDisallow: /a?b=", ["/a", "/a?c=1"], ["/a?b=1"]),
        # A group of one's own takes the place of the general one, and several groups of one's own are one.
        ("User-agent: *\nDisallow: /\n\nUser-agent: Painter/2.0\nDisallow: /b", ["/a"], ["/b"]),
        ("User-agent: painter\nDisallow: /a\nUser-agent: x\nDisallow: /c\nUser-agent: painter\nDisallow: /b",
         ["/c"], ["/a", "/b"]),
        ("User-agent: x\nUser-agent: painter\nDisallow: /a\nUser-agent: *\nAllow: /", ["/b"], ["/a"]),
        ("User-agent: painter\nUser-agent: *\nDisallow: /a\n", ["/b"], ["/a"]),
        ("User-agent: otherpainter\nDisallow: /", ["/"], []),
        ("USER-AGENT : * # all\r\ndisallow\t: /a # b\rDisallow: /c", ["/b"], ["/a", "/c"]),
        ("User-agent: *\nSitemap: https://a.example/s\nDisallow: /a\nnonsense\n: x", ["/b"], ["/a"]),
        ("Disallow: /", ["/"], []),
        ("User-agent: *\nDisallow: /%61/é", ["/b"], ["/a/%C3%A9", "/a/%c3%a9"]),
        ("User-agent: *\nDisallow: /a%2Fb", ["/a/b"], ["/a%2Fb"]),
    ],
)  # fmt: skip
def test_what_may_be_fetched(text, allowed, forbidden):
    rules = robot_rules(text, "Painter")
    assert all(rules.allow(f"https://a.example{target}") for target in allowed)
    assert not any(rules.allow(f"https://a.example{target}") for target in forbidden)


def test_an_address_without_a_path_is_the_root():
    assert not robot_rules("User-agent: *\nDisallow: /", "a").allow("https://a.example")


def test_long_files_are_cut():
    rules = robot_rules("User-agent: *\n" + "#\n" * MAX_ROBOTS_BYTES + "Disallow: /", "a")
    assert rules == RobotRules()


@given(st.text("ab*$/", max_size=8), st.text("ab/", max_size=10))
def test_patterns_are_those_of_a_regular_expression(pattern, target):
    body, end = (pattern[:-1], "$") if pattern.endswith("$") else (pattern, "")
    expression = "".join(".*" if letter == "*" else re.escape(letter) for letter in body)
    assert matches(pattern, target) == bool(re.match(expression + ("\\Z" if end else ""), target, re.DOTALL))


def test_a_hostile_pattern_takes_no_time():
    # A regular expression of it would try the ways to divide the address into forty parts.
    assert not matches("/" + "*a" * 40 + "*b", "/" + "a" * 10_000)


@given(st.text(max_size=300), st.text(max_size=50))
def test_any_file_can_be_read(text, target):
    robot_rules(text, "a").allow(f"https://a.example/{target}")


@pytest.mark.parametrize(
    ("headers", "said"),
    [
        ([("X-Robots-Tag", "noai")], "X-Robots-Tag: noai"),
        ([("x-robots-tag", "nofollow, NOIMAGEAI")], "X-Robots-Tag: noimageai"),
        ([("X-Robots-Tag", "nofollow"), ("X-Robots-Tag", "noindex")], "X-Robots-Tag: noindex"),
        ([("X-Robots-Tag", "painter: noai")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "*: noai")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "other: noai, noindex")], None),
        ([("X-Robots-Tag", "unavailable_after: 2030-01-01, noai")], "X-Robots-Tag: noai"),
        ([("X-Robots-Tag", "nofollow, noarchive"), ("Content-Type", "noai")], None),
        ([("TDM-Reservation", " 1 ")], "TDM-Reservation: 1"),
        ([("TDM-Reservation", "0")], None),
        ([], None),
    ],
)
def test_headers_that_opt_out(headers, said):
    assert opted_out(headers, "Painter") == said
