import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from mm1_hf.corpus.html import html_document
from mm1_hf.corpus.page_cost import page_steps
from mm1_hf.data.documents import ImagePart, Unusable


def parts(page: str | bytes, base: str = "https://a.example/b/c.html", folder: str | None = None) -> list:
    """Texts, and images by their addresses in angle brackets."""
    document = html_document(page, base, folder)
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
    assert parts(f'a<img src="{source}">b', base, "/pages" if base.startswith("/") else None) == [
        "a",
        f"<{expected}>",
        "b",
    ]


@pytest.mark.parametrize("source", ["../d.png", "/etc/d.png", "e/../../d.png", "..%2fd.png"])
def test_a_local_page_names_no_file_outside_of_its_folder(source):
    with pytest.raises(Unusable, match="is not in the data's folder /pages/b"):
        html_document(f'a<img src="{source}">b', "/pages/b/c.html")


@pytest.mark.parametrize("base", ["https://a.example/c.html", "/pages/c.html"])
@pytest.mark.parametrize(
    "source", ["file:///etc/d.png", "blob:https://a.example/1", "FILE:/etc/d.png", "ftp://a/d.png"]
)
def test_only_addresses_that_others_can_see_are_images(base, source):
    assert parts(f'a<img src="{source}">b', base) == ["ab"]


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


def quadratic_pages(size: int) -> dict[str, str]:
    """Pages on which lexbor takes time that is quadratic in their size."""
    return {
        "elements": "<div>" * size,
        "elements with false end tags": "<div></b><!--</div>-->" * size,
        "end tags in scripts": "<div><script></div></script>" * size,
        "end tags in scripts in scripts": "<div><script><!--<script></script></div></script>" * size,
        "end tags that tables shield": "<div><table><tr><td></div>" * size,
        "end tags in attributes": '<div a="</div>">' * size,
        "repeated formatting": "".join(f"<b a={number}><p>" for number in range(size)),
        "attributes": "<div " + " ".join(f"a{number}" for number in range(size)) + ">",
        "options": "<select>" + "<option>" * size,
        "elements of an SVG": "<svg>" + "<li><option>" * size,
    }


@pytest.mark.parametrize("name", quadratic_pages(1))
def test_pages_that_would_take_quadratic_time_are_refused_before_they_are_parsed(name, monkeypatch):
    monkeypatch.setattr("mm1_hf.corpus.html.LexborHTMLParser", lambda _: pytest.fail("parsed"))
    with pytest.raises(Unusable, match="page nested too deeply"):
        html_document("a" + quadratic_pages(20_000)[name], "/x.html")


def test_a_large_page_is_refused_and_a_long_one_is_read(monkeypatch):
    page = (
        "<table>" + "<tr><td><b>a</b><p>b<li>c</td></tr>" * 5000 + "</table>" + "<script>'<div>'</script><p>x" * 5000
    )
    assert parts(page)[0].startswith("a\n\nb")
    monkeypatch.setattr("mm1_hf.corpus.page_cost.MAX_PAGE_BYTES", 1000)
    with pytest.raises(Unusable, match=r"page too large: /x\.html has "):
        html_document(page, "/x.html")


TAGS_OF_EVERY_MODE = (
    "<div> </div> <b> </b> <table> </table> <td> <svg> </svg> <p> </p> <li> <script> </script> <!-- --> <![CDATA[ ]]> "
    "<noscript> </noscript> <title> </title> <select> <option> <button> </button> <template> </template> <a> </a> "
    "<textarea> </textarea> <rt> <path/> <frameset> <plaintext> <font> </font>"
)
FEW_TAGS = st.lists(
    st.sampled_from([*TAGS_OF_EVERY_MODE.split(), '<div a="</div>">', '<div a"b>', "</ div>"]), min_size=2, max_size=8
)


@settings(max_examples=150, deadline=None)
@given(FEW_TAGS)
def test_the_parser_s_tree_is_never_much_deeper_than_it_was_taken_for(tags):
    """Each tag costs at least the number of elements that are open, in every mode of the parser."""
    page = "".join(tags) * 40
    root, deepest, waiting = LexborHTMLParser(page).root, 0, []
    if root is not None:
        waiting = [(root, 0)]
    while waiting:
        node, depth = waiting.pop()
        deepest = max(deepest, depth)
        waiting += [(child, depth + 1) for child in node.iter(include_text=False)]
    # Elements of tables are not counted: up to three for each.
    least = max(deepest - 12, 0) / 3
    assert page_steps(page.encode()) >= least * (least - 1) / 2
