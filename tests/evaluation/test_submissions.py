import json

import pytest
from evaluated import FakeModel
from evaluation_runs import made

from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.samples import Sample


@pytest.mark.parametrize(
    ("form", "columns", "entry"),
    [
        ("vqa", {"question_id": "262144000"}, {"question_id": 262144000, "answer": "yes"}),
        (
            "vizwiz",
            {"question_id": "VizWiz_test_00000000.jpg"},
            {"image": "VizWiz_test_00000000.jpg", "answer": "yes"},
        ),
        ("docvqa", {"question_id": 57344}, {"questionId": 57344, "answer": "yes"}),
        ("captions", {"image_id": 7}, {"image_id": 7, "caption": "yes"}),
    ],
)
def test_the_file_has_the_servers_form(form, columns, entry, tmp_path):
    samples = [Sample(f"{index}", (), f"What is {index}?", columns=columns) for index in range(2)]
    for hidden in (("test",), ()):
        folder = tmp_path / str(len(hidden))
        subject = made("mine", samples, submission=form, hidden=hidden, shots={"split": "train"} if hidden else None)
        evaluate(FakeModel(("yes",)), [subject], EvaluationSettings(), folder)
        file = folder / "submissions" / "mine-0-shots.json"
        # A split that can be scored here needs no server.
        assert file.exists() == bool(hidden)
        if hidden:
            assert json.loads(file.read_text(encoding="utf-8")) == [entry, entry]


def test_an_unknown_form_is_refused(tmp_path):
    subject = made("mine", [Sample("0", (), "?")], submission="fax", hidden=("test",), shots={"split": "train"})
    with pytest.raises(ValueError, match="submission form 'fax'"):
        evaluate(FakeModel(), [subject], EvaluationSettings(), tmp_path)
