import codecs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm1_hf.corpus.encodings import decode_page


@pytest.mark.parametrize(
    ("page", "declared", "text"),
    [
        ("<p>café".encode(), None, "<p>café"),
        # No UTF-8 and nothing declared: Windows-1252.
        (b"<p>caf\xe9 \x93quoted\x94", None, "<p>café “quoted”"),
        # Browsers read Latin-1 as Windows-1252.
        (b"\x93caf\xe9\x94", "ISO-8859-1", "“café”"),
        (b"\x93caf\xe9\x94", "us-ascii", "“café”"),
        ("日本".encode("shift_jis"), "Shift_JIS", "日本"),
        ("中文".encode("gbk"), "gb2312", "中文"),
        # The page says it itself, in any way of HTML or XML.
        (b"<meta charset=windows-1251>" + "мир".encode("cp1251"), None, "<meta charset=windows-1251>мир"),
        (
            b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">' + "мир".encode("koi8-r"),
            None,
            '<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">мир',
        ),
        (
            b"<?xml version='1.0' encoding='iso-8859-2'?>" + "ł".encode("iso-8859-2"),
            None,
            "<?xml version='1.0' encoding='iso-8859-2'?>ł",
        ),
        # The server goes first, a byte order mark before it.
        (b"<meta charset=windows-1251>\xe9", "windows-1252", "<meta charset=windows-1251>é"),
        (codecs.BOM_UTF8 + "é".encode(), "windows-1252", "é"),
        (codecs.BOM_UTF16_LE + "é".encode("utf-16-le"), None, "é"),
        ("é".encode("utf-16-be"), "utf-16-be", "é"),
        # A page that is read as ASCII to find this out is no UTF-16.
        (b"<meta charset=utf-16>" + "é".encode(), None, "<meta charset=utf-16>é"),
        # What is no encoding of the web, or none at all, is passed over.
        (b"<meta charset=rot13>" + "é".encode(), "zip", "<meta charset=rot13>é"),
        ("é".encode(), "unicode_escape", "é"),
        ("é".encode(), "\0", "é"),
        (b"a\xff", "utf-8", "a\N{REPLACEMENT CHARACTER}"),
        (b"", None, ""),
    ],
)
def test_pages_are_decoded_as_in_a_browser(page, declared, text):
    assert decode_page(page, declared) == text


@given(st.binary(max_size=200), st.none() | st.text(max_size=12))
def test_any_bytes_become_valid_text(page, declared):
    decode_page(page, declared).encode()
