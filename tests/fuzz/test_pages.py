"""Broken and hostile web pages: a document, or `Unusable`."""

import random

import pytest
from fuzzing import PARTS, Tally, mutate, number_of_cases

from mm1_hf.corpus.html import html_document
from mm1_hf.data.documents import Unusable


KIND = "pages"
WHOLE = """<!doctype html><html lang="en"><head><title>A page</title><base href="/below/">
<style>p {color: red}</style></head>
<body><nav><a href="x">Away</a></nav><h1>Head &amp; line</h1><p>First <b>bold</b> &#x1F600; text.<br>Second line.</p>
<img src="a.png" alt="A"><picture><source srcset="b.png 1x, c.png 2x"><img src="b.png"></picture>
<table><tr><td>1<td>2</tr></table><ul><li>one<li>two</ul><pre>  kept   as is</pre><svg><text>drawn</text></svg>
<template><p>hidden</p></template><noscript><img src="d.png"></noscript><select><option>no</select>
<img src="data:image/png;base64,iVBORw0KGgo="><img src="//other.example/e.png"><footer>end</footer></body></html>"""
PIECES = (
    b"<div> <p </ <table><tr><td> <a <!-- --> <svg> <math><mi> <template> &#x110000; &amp <img/src=../../etc/x.png> "
    b"<img/src=file:///etc/x.png> <img/src='http://[::1'> \xed\xa0\x80 <b><i> <select> <frameset> <plaintext> "
    b"<base/href='file:///'> <script> <x/y=\" \0 <li> <button><p>"
).split(b" ")


def broken(draw: random.Random) -> bytes:
    page = mutate(WHOLE.encode(), draw)
    for _ in range(draw.randint(0, 4)):
        place = draw.randrange(len(page) + 1)
        times = draw.choice((1, 2, 30, 3000))
        page = page[:place] + b"".join(draw.choices(PIECES, k=draw.randint(1, 3))) * times + page[place:]
    return page


@pytest.mark.parametrize("part", range(PARTS))
def test_broken_pages(part, tally: Tally):
    for case in range(part, number_of_cases(KIND), PARTS):
        draw = random.Random(case)
        page = broken(draw)
        base = draw.choice(("https://a.example/x/page.html", "/data/pages/page.html"))
        tally.run(f"case {case}", lambda own=page, at=base: html_document(own, at), (Unusable,))
    assert tally.outcomes["read"] > 0
