"""What MM1Trainer logs, against forward passes and counts of their own."""

import pytest
import torch
from metered import DENSE, MOE, SOURCES, batches, build, train


def expected_logs(model, micro_batches) -> dict[str, float]:
    """By a forward of each row alone, and in Python's numbers."""
    losses = {name: [] for name in SOURCES}
    real = positions = 0
    for batch in micro_batches:
        segments = batch["segment_ids"]
        real, positions = real + int((segments != 0).sum()), positions + segments.numel()
        tile = 0
        for row, source in enumerate(batch["sources"].tolist()):
            inputs = {name: batch[name][row : row + 1] for name in ("input_ids", "segment_ids", "labels")}
            tiles = int((inputs["input_ids"] == 63).sum()) // 4
            if tiles:
                inputs["pixel_values"] = batch["pixel_values"][tile : tile + tiles]
            tile += tiles
            with torch.no_grad():
                logits = model.eval()(**inputs, use_expert_capacity=True).logits[0]
            for place, target in enumerate(inputs["labels"][0, 1:].tolist()):
                if target != -100 and source >= 0:
                    losses[SOURCES[source]].append(-logits[place].log_softmax(-1)[target].item())
    means = {f"loss/{name}": sum(values) / len(values) for name, values in losses.items() if values}
    return {**means, "utilisation": real / positions}


@pytest.mark.parametrize("fields", [DENSE, MOE], ids=["dense", "moe"])
def test_losses_by_source_are_those_of_separate_forwards(fields, tmp_path):
    run = train(build(**fields), str(tmp_path), accumulation=4)
    first, second = run["logs"]
    expected = expected_logs(build(**fields), batches()[:4])
    assert {name: first[name] for name in first if "/" in name or name == "utilisation"} == pytest.approx(
        expected, abs=1e-5
    )
    # Each period has its own rows: the second one other lengths.
    assert second["utilisation"] == pytest.approx(expected_logs(build(**fields), batches()[4:])["utilisation"])
    assert first["grad_norm"] > 0
