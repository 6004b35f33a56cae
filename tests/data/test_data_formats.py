"""Every row of the tables in docs/data-formats.md is a record that becomes what the row says."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image
from tiny import tiny_mm1

from mm1_hf.data.chats import FORMS, Chat
from mm1_hf.data.collation import MM1Collator
from mm1_hf.data.documents import Document, ImagePart, Unusable
from mm1_hf.data.layouts import LAYOUTS
from mm1_hf.data.messages import said_beside
from mm1_hf.data.two_captions import TwoCaptions


PAGE = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
CASES = [
    (layout, record, result)
    for layouts, record, result in re.findall(r"^\| (`[^|]+`) \| `(\{.+\})` \| (.+) \|$", PAGE, flags=re.MULTILINE)
    for layout in re.findall(r"`(\w+)`", layouts)
]


def shown(document) -> str:
    images = iter(document.images)
    if isinstance(document, TwoCaptions):
        alt = Document(document.kind, document.parts, document.name)
        return f"{shown(alt)}` or `{shown(document.synthetic)}"
    if not isinstance(document, Chat):
        return "".join(f"[{part.source}]" if isinstance(part, ImagePart) else part for part in document.parts)
    turns = []
    for message in document.messages:
        parts = [part["text"] if part["type"] == "text" else f"[{next(images).source}]" for part in message["content"]]
        turns.append(f"{message['role']}: {''.join(parts + said_beside(message))}")
    return " / ".join(turns)


@pytest.mark.parametrize(("layout", "record", "result"), CASES)
def test_rows(layout, record, result):
    try:
        found = f"`{shown(LAYOUTS[layout](json.loads(record)))}`"
    except Unusable as error:
        found = f"refused: {error.reason}"
    assert found.replace("\n", "⏎") == result


def test_every_layout_and_form_has_a_row():
    assert len(CASES) > 50
    assert {layout for layout, _, _ in CASES} == set(LAYOUTS)
    records = [json.loads(record) for layout, record, _ in CASES]
    assert all(any(form.holds(record) for record in records) for form in FORMS.values())


@pytest.mark.parametrize(
    ("record", "result"), [case[1:] for case in CASES if case[0] == "chat" and "https" not in case[1]]
)
def test_the_collator_reads_and_refuses_the_same(record, result, tmp_path):
    for number in range(3):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(tmp_path / f"{number}.jpg")
    example = json.loads(record) | {"__folder__": str(tmp_path)}
    processor = tiny_mm1()[1]
    processor.image_processor.image_splitting = "none"
    if result.startswith("refused"):
        with pytest.raises(ValueError, match=result.removeprefix("refused: ")):
            MM1Collator(processor)([example])
        return
    if "iVBORw0=" in record:
        with pytest.raises(ValueError, match="cannot be read"):
            MM1Collator(processor)([example])
        return
    text = processor.decode(MM1Collator(processor)([example])["input_ids"][0]).replace("\u200b", "")
    for turn in result.strip("`").split(" / "):
        words = re.sub(r"\[(?:\d\.jpg|data:[^]]*)\]", "<image>" * processor.num_image_tokens, turn.partition(": ")[2])
        assert "tool_call" in turn or words.replace("⏎", "\n") in text
        text = text.partition("<|im_end|>")[2]
