import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mm1_hf.corpus.html import html_document
from mm1_hf.data.documents import ImagePart, Unusable


def parts(page: str | bytes, base: str = "https://a.example/b/c.html") -> list:
    """Texts, and images by their addresses in angle brackets."""
    document = html_document(page, base)
    assert document.kind == ("interleaved" if document.images else "text")
    return [f"<{part.source}>" if isinstance(part, ImagePart) else part for part in document.parts]


PAGE = """<!DOCTYPE html><html><head><title>Title</title><style>p {}</style></head><body>
<header><h1>Site</h1><img src="logo.png"></header>
<nav><a href="/">Home</a></nav>
<div class="sphinxsidebar"><p>Contents</p></div>
<main>
  <article><header><h1>On   <em>whales</em></h1></header>
  <p>Whales are
     big.<br/>Very <b>big</b>!<a class="headerlink" href="#x">¶</a></p>
  <figure><img src="../whale.jpg" alt="a whale"><figcaption>A whale.</figcaption></figure>
  <ul><li>One</li><li>Two <img src="/two.png"> with a picture</li></ul>
  <script>alert("no")</script><button>Click</button><!-- a remark -->
  <table><tr><th>sea</th><td>salt</td></tr><tr><td>lake</td><td>fresh</td></tr></table>
  <pre>
def f():
    return   1
</pre>
  <p hidden>secret</p>
  </article>
</main>
<footer>Imprint</footer></body></html>"""


def test_the_text_body_keeps_its_images_in_place():
    expected = [
        "On whales\n\nWhales are big.\nVery big!\n\n",
        "<https://a.example/whale.jpg>",
        "A whale.\n\nOne\nTwo ",
        "<https://a.example/two.png>",
        "with a picture\n\nsea salt\nlake fresh\n\ndef f():\n    return   1",
    ]
    assert parts(PAGE) == expected
    assert parts(PAGE.encode()) == expected


@pytest.mark.parametrize(
    ("base", "source", "expected"),
    [
        ("https://a.example/b/c.html", "d.png", "https://a.example/b/d.png"),
        ("https://a.example/b/c.html", "//e.example/d.png?x=1", "https://e.example/d.png?x=1"),
        ("https://a.example/b/c.html", "data:image/png;base64,AAAA", "data:image/png;base64,AAAA"),
        ("/pages/b/c.html", "../d%20e.png?v=2#x", "/pages/d e.png"),
        ("pages/c.html", "d.png", "pages/d.png"),
        ("/pages/c.html", "https://e.example/d.png", "https://e.example/d.png"),
        ("/pages/c.html", "//e.example/d.png", "https://e.example/d.png"),
    ],
)
def test_addresses_are_taken_from_the_page_s(base, source, expected):
    assert parts(f'a<img src="{source}">b', base) == ["a", f"<{expected}>", "b"]


def test_images_that_load_late_have_their_own_address():
    page = '<p>a</p><img src="data:image/gif;base64,R0" data-src="big.jpg"><img><img src="">'
    assert parts(page, "/c.html") == ["a\n\n", "</big.jpg>"]


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        # What stands for an image elsewhere is text here.
        ("<p>the &lt;image&gt; tag, ![x](y.png)</p>", "the <image> tag, ![x](y.png)"),
        ("<p>a<b> b</b>c <i>d</i>\n<i>e</i></p>", "a bc d e"),
        ("<div><div>a</div></div><div><p>b</p></div>", "a\n\nb"),
        # Old pages wrap everything into a form; ids of sections are not those of menus.
        ("<form><p>a</p><input value=x><section id='context-menu'>b</section></form>", "a\n\nb"),
        ("<p>unclosed <b>tags<p>everywhere", "unclosed tags\n\neverywhere"),
        ("no tags at all", "no tags at all"),
        ("<div>" * 3000 + "deep", "deep"),
    ],
)
def test_text_is_as_a_browser_shows_it(page, expected):
    assert parts(page) == [expected]


def test_the_text_beside_an_image_that_is_left_out_stays_apart():
    document = html_document("<p>a</p><p><img src=1.png></p><p>b <img src=2.png> c</p>", "/x.html")
    assert "".join(part for part in document.parts if isinstance(part, str)) == "a\n\nb c"


@pytest.mark.parametrize("page", ["", "<nav>Home</nav>", "<img src=a.png>", "<html></html>"])
def test_a_page_without_text_is_unusable(page):
    with pytest.raises(Unusable) as caught:
        html_document(page, "/x.html")
    assert (caught.value.reason, caught.value.detail) == ("no text", "/x.html")


TAGS = st.sampled_from(["<p>", "<div>", "</div>", "<b>", "<li>", "<table>", "<td>", "<pre>", "</pre>", "<br>", "<a>"])
ODD_TAGS = st.sampled_from(["<main>", "<svg>", "<math>", "<script>", "</script>", '<img src="a">', "<!--", "-->"])
SOUP = st.lists(TAGS | ODD_TAGS | st.text(max_size=5))


@settings(max_examples=60, deadline=None)
@given(SOUP.map("".join) | st.binary())
def test_any_page_is_a_document_or_unusable(page):
    try:
        document = html_document(page, "/x.html")
    except Unusable:
        return
    texts = [part for part in document.parts if isinstance(part, str)]
    assert all(texts) and texts[0] == texts[0].lstrip("\n ")
