"""What lmms-eval says of a request is read rightly or refused. This needs no lmms-eval."""

import pytest
from PIL import Image

from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.evaluation.lmms_eval import TASKS, TEXT_TASKS
from mm1_hf.evaluation.lmms_eval.messages import (
    MAX_NEW_TOKENS,
    completion,
    generation_settings,
    messages_of,
    turns_of,
)
from mm1_hf.evaluation.requests import Request, Turn
from mm1_hf.evaluation.tasks import load_task, task_names


RED, BLUE = Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (MAX_NEW_TOKENS, ())),
        ({"max_new_tokens": 5, "until": "\n"}, (5, ("\n",))),
        ({"until": None, "temperature": 0.0, "do_sample": False, "top_p": 1.0, "num_beams": 1}, (MAX_NEW_TOKENS, ())),
        ({"until": ["", "A", "B"], "do_sample": True, "temperature": 0}, (MAX_NEW_TOKENS, ("A", "B"))),
        ({"temperature": 0.7, "do_sample": False, "image_aspect_ratio": "original"}, (MAX_NEW_TOKENS, ())),
        ({"temperature": None, "num_beams": None}, (MAX_NEW_TOKENS, ())),
    ],
)
def test_greedy_settings_are_honoured(settings, expected):
    assert generation_settings(settings) == expected


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.7}, {"do_sample": True}, {"do_sample": True, "temperature": 1}, {"num_beams": 4}]
)
def test_sampling_is_refused(settings):
    with pytest.raises(ValueError, match="decodes greedily"):
        generation_settings(settings)


def test_an_unknown_setting_is_refused_by_name():
    with pytest.raises(ValueError, match="max_agentic_steps"):
        generation_settings({"max_new_tokens": 4, "max_agentic_steps": 3})


def test_messages_are_turns():
    turns = (
        Turn("user", (ImagePart(RED), "Colour?")),
        Turn("assistant", ("red",)),
        Turn("user", ("And ", ImagePart(BLUE), "?")),
    )
    messages = messages_of(Request(turns, 4))
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in messages[2]["content"]] == ["text", "image", "text"]
    assert turns_of(messages) == turns


def test_images_of_other_modes_become_rgb():
    (message,) = messages_of(Request((Turn("user", (ImagePart(Image.new("RGBA", (2, 2), (0, 0, 0, 0))),)),), 4))
    image = message["content"][0]["url"]
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (255, 255, 255))


def test_a_broken_image_is_named():
    with pytest.raises(Unusable):
        messages_of(Request((Turn("user", (ImagePart(b"no image"),)),), 4))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_other_media_are_refused(kind):
    with pytest.raises(ValueError, match=f"about a {kind}"):
        turns_of([{"role": "user", "content": [{"type": kind, "url": "x"}]}])


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}]])
def test_a_chat_ends_with_the_user(messages):
    with pytest.raises(ValueError, match="must end with a user's message"):
        turns_of(messages)


def test_images_stand_at_their_marks():
    one, two = ImagePart(RED), ImagePart(BLUE)
    assert completion("What?", [RED]) == (one, "What?")
    assert completion("<image> and <image>", [RED, BLUE]) == ("", one, " and ", two, "")
    # Marks that are not for these images are text.
    assert completion("<image>", [RED, BLUE]) == (one, two, "<image>")
    assert completion("", []) == ("",)


@pytest.mark.parametrize(
    ("folder", "kind", "name"),
    [(TASKS, "task.FewShotTask", "mm1_{}"), (TEXT_TASKS, "text_task.FewShotTextTask", "mm1_text_{}")],
)
def test_the_folders_hold_every_task_that_a_metric_scores(folder, kind, name):
    expected = []
    for task in map(load_task, task_names()):
        if task.metric and task.split not in task.hidden and (task.kind != "likelihood" or folder == TEXT_TASKS):
            expected.append(task.name)
            assert (folder / f"{task.name}.yaml").read_text(encoding="utf-8") == (
                f"class: !function mm1_hf.evaluation.lmms_eval.{kind}\n"
                f"task: {name.format(task.name)}\ndataset_path: {task.name}\n"
            )
    assert sorted(path.stem for path in folder.iterdir()) == sorted(expected)
