"""Models are loaded for evaluation from a folder."""

import pytest
import torch
from peers import PEERS, picture
from tiny import tiny_mm1

from mm1_hf.evaluation.models import LocalModel, MM1LocalModel, load_model
from mm1_hf.evaluation.requests import Request


@pytest.mark.parametrize("family", ["mm1", "llava"])
def test_a_folder_answers_as_the_model_that_was_saved(family, tmp_path):
    model, processor = tiny_mm1() if family == "mm1" else PEERS[family]()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", batch_size=5)
    assert type(loaded) is (MM1LocalModel if family == "mm1" else LocalModel)
    assert (loaded.batch_size, loaded.model.dtype, loaded.name) == (5, torch.float32, str(tmp_path))
    request = Request((picture(0), "A photo of"), 4)
    assert loaded.answer([request]) == LocalModel(model, processor).answer([request])


def test_the_machine_decides_device_and_dtype(tmp_path, monkeypatch):
    model, processor = tiny_mm1()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    machine = type("Machine", (), {"device": torch.device("cpu"), "dtype": torch.bfloat16})
    monkeypatch.setattr("mm1_hf.evaluation.models.loading.this_machine", lambda: machine)
    loaded = load_model(str(tmp_path))
    assert loaded.model.dtype == torch.bfloat16
    assert loaded.answer([Request((picture(0), "A photo of"), 4)])[0].error is None
    assert load_model(str(tmp_path), device="meta").model.dtype == torch.float32
