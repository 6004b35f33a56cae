"""Answers of models in this process: the same ones in batches, alone and after a kill."""

import json
from functools import partial

import pytest
from captioning import pair
from tiny import byte_tokenizer, tiny_decoder, tiny_mm1

from mm1_hf.corpus.captioning import local_model
from mm1_hf.corpus.captioning.answers import CHUNK, read_answers
from mm1_hf.corpus.captioning.local_model import LocalAnswers
from mm1_hf.corpus.captioning.writers import CaptionWriter, question


TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}<assistant>"


@pytest.fixture(scope="module")
def eye(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("eye")
    model, processor = tiny_mm1()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[None, TEMPLATE], ids=["no template", "template"])
def pen(request, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("pen")
    tiny_decoder().save_pretrained(folder)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = request.param
    tokenizer.save_pretrained(folder)
    return str(folder)


def asked(model: str, folder, *, sees: bool, batch_size: int = 4) -> LocalAnswers:
    writer = CaptionWriter("Say: {alt_text}", sees, model, max_tokens=5)
    return LocalAnswers(writer, partial(question, prompt=writer.prompt, sees=sees), folder, batch_size)


def test_a_model_that_sees_answers_about_each_image(eye, tmp_path):
    asked(eye, tmp_path / "answers", sees=True).run(iter(pair(index * 40) for index in range(6)))
    answers = list(read_answers(tmp_path / "answers", 0))
    assert [answer.id for answer in answers] == [f"pair-{index * 40}" for index in range(6)]
    assert all(answer.error is None and answer.text for answer in answers)
    # The limit of five tokens ends the noise of an untrained model.
    assert all(answer.cut_off for answer in answers)


def test_a_language_model_answers_with_and_without_a_chat_template(pen, tmp_path):
    asked(pen, tmp_path / "answers", sees=False).run(iter(pair(index) for index in range(5)))
    assert len(list(read_answers(tmp_path / "answers", 0))) == 5


def test_prompts_of_different_lengths_do_not_change_each_others_answers(pen, tmp_path):
    documents = [pair(index, "word " * (1 + 7 * (index % 3))) for index in range(6)]
    for batch_size in (1, 2):
        asked(pen, tmp_path / f"{batch_size}", sees=False, batch_size=batch_size).run(iter(documents))
    alone, paired = (list(read_answers(tmp_path / name, 0)) for name in ("1", "2"))
    assert alone == paired


def test_an_image_that_cannot_be_read_is_its_own_answer(eye, tmp_path):
    documents = [pair(index) for index in range(5)]
    documents[1].media[0].media_bytes = b"\x89PNG garbage"
    asked(eye, tmp_path / "answers", sees=True).run(iter(documents))
    errors = [answer.error for answer in read_answers(tmp_path / "answers", 0)]
    assert errors == [None, "corrupt image", None, None, None]


def test_a_resumed_run_only_asks_for_unfinished_chunks(pen, tmp_path, monkeypatch):
    number = CHUNK + 7
    asked(pen, tmp_path / "whole", sees=False).run(iter(pair(index) for index in range(number)))
    asked_of: list[str] = []
    write = local_model._Model.write

    def dying(self, questions, after: int):
        if len(asked_of) >= after:
            raise MemoryError("killed")
        asked_of.extend(text for text, _ in questions)
        return write(self, questions)

    for after in (20, CHUNK + 20):
        monkeypatch.setattr(
            local_model._Model, "write", lambda self, questions, after=after: dying(self, questions, after)
        )
        with pytest.raises(MemoryError):
            asked(pen, tmp_path / "answers", sees=False).run(iter(pair(index) for index in range(number)))
    monkeypatch.setattr(local_model._Model, "write", write)
    asked(pen, tmp_path / "answers", sees=False).run(iter(pair(index) for index in range(number)))
    files = {
        folder: {path.name: path.read_bytes() for path in sorted((tmp_path / folder).iterdir())}
        for folder in ("whole", "answers")
    }
    assert files["whole"] == files["answers"]


def test_control_tokens_of_an_alt_text_are_words_to_the_model(pen, monkeypatch):
    seen = []
    model = local_model._Model(CaptionWriter("", False, pen))
    model.processor.chat_template = TEMPLATE
    monkeypatch.setattr(model.processor, "apply_chat_template", lambda chats, **options: seen.extend(chats))
    model._inputs([("a<eos>b", None)])
    ((message,),) = seen
    assert message["content"] != "a<eos>b" and message["content"].replace("\u200b", "") == "a<eos>b"


def test_answers_to_another_batch_size_are_not_mixed_in(pen, tmp_path):
    asked(pen, tmp_path / "answers", sees=False).run(iter([pair(0)]))
    with pytest.raises(ValueError, match="batch_size: 4 before, 8 now"):
        asked(pen, tmp_path / "answers", sees=False, batch_size=8).run(iter([pair(0)]))
    assert json.loads((tmp_path / "answers" / "00000_writer.json").read_text())["batch_size"] == 4
