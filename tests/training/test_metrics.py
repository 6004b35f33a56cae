"""What MM1Trainer logs, against forward passes and counts of their own."""

from collections import Counter

import pytest
import torch
from metered import DENSE, MOE, ROWS, SOURCES, batches, build, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainer_ranks import only_row
from transformers import Trainer, TrainerCallback, TrainingArguments

from mm1_hf.accounting.flops import causal_pairs, flops_formula
from mm1_hf.training import metrics
from mm1_hf.training.parts import freeze
from mm1_hf.training.trainer import MM1Trainer


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


def test_the_router_is_counted_token_by_token(tmp_path):
    (first, _) = train(build(**MOE), str(tmp_path), accumulation=4)["logs"]
    model = build(**MOE).eval()
    load, balances, dropped = Counter(), [], 0
    for batch in batches()[:4]:
        inputs = {name: value for name, value in batch.items() if name != "sources"}
        with torch.no_grad():
            outputs = model(**inputs, output_router_logits=True, use_expert_capacity=True)
        (logits,) = outputs.router_logits
        balances.append((outputs.aux_loss - 0.001 * _z(logits, batch["segment_ids"])).item() / 0.01)
        for row, segments in enumerate(batch["segment_ids"].tolist()):
            length = sum(segment != 0 for segment in segments)
            ranked = logits.view(len(batch["input_ids"]), -1, 4)[row, :length].argsort(descending=True).tolist()
            room = Counter(dict.fromkeys(range(4), max(1, int(length * 0.75 / 4))))
            for choice in (0, 1):
                for token in ranked:
                    load[token[choice]] += 1
                    dropped += room[token[choice]] <= 0
                    room[token[choice]] -= 1
    assert first["router_balance"] == pytest.approx(sum(balances) / 4, abs=1e-5)
    assert first["router_max_load"] == pytest.approx(max(load.values()) / (load.total() / 4))
    assert dropped and first["router_dropped"] == pytest.approx(dropped / load.total())


def _z(logits: torch.Tensor, segments: torch.Tensor) -> torch.Tensor:
    return logits[segments.flatten() != 0].logsumexp(-1).square().mean()


class Clock(TrainerCallback):
    """A clock that only data, forward passes and checkpoints move."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(metrics.time, "perf_counter", lambda: self.now)
        for name, seconds in (("get_batch_samples", 2.0), ("training_step", 0.5)):
            self.slow_down(monkeypatch, name, seconds)

    def slow_down(self, monkeypatch, name: str, seconds: float) -> None:
        method = getattr(Trainer, name)

        def slow(*args, **kwargs):
            self.now += seconds
            return method(*args, **kwargs)

        monkeypatch.setattr(Trainer, name, slow)

    def on_save(self, args, state, control, **kwargs):
        self.now += 100


@pytest.mark.parametrize("frozen", [(), ("encoder",)], ids=["all", "encoder frozen"])
def test_rates_are_counts_over_the_time_of_the_steps(frozen, tmp_path, monkeypatch):
    """Data and passes take time that counts, checkpoints some that does not."""
    clock = Clock(monkeypatch)
    model = build()
    freeze(model, frozen)
    settings = {"save_strategy": "steps", "save_steps": 1, "callbacks": [clock], "peak_tflops": 1e-3}
    _, second = train(model, str(tmp_path), accumulation=4, **settings)["logs"]
    seconds = 2.0 + 4 * 0.5
    rows = [row for batch in ROWS[4:] for row in batch]
    assert second["tokens_per_second"] == pytest.approx(sum(length for length, _, _ in rows) / seconds)
    assert second["images_per_second"] == pytest.approx(6 / seconds)
    flops = flops_formula(model).training(
        positions=sum(len(batch) * max(length for length, _, _ in batch) for batch in ROWS[4:]),
        tiles=6,
        # Each example but for its first token, without the images' tokens.
        targets=sum(length - 2 - max(4 * tiles - 1, 0) for length, tiles, _ in rows),
        pairs=sum(causal_pairs(length - 3, 3) for length, _, _ in rows),
        frozen=frozen,
    )
    assert second["mfu"] == pytest.approx(flops.total / seconds / 1e9)


def test_without_a_peak_there_is_no_mfu(tmp_path):
    (log, _) = train(build(), str(tmp_path), accumulation=4)["logs"]
    assert "mfu" not in log and log["tokens_per_second"] > 0


def test_tensorboard_gets_what_is_logged(tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "runs"))
    logs = train(build(**MOE), str(tmp_path), accumulation=4, report_to=["tensorboard"])["logs"]
    written = EventAccumulator(str(tmp_path / "runs")).Reload()
    for name in ("loss/caption", "utilisation", "tokens_per_second", "router_max_load", "grad_norm"):
        values = [event.value for event in written.Scalars(f"train/{name}")]
        assert values == pytest.approx([log[name] for log in logs]), name


def test_a_peak_and_names_that_cannot_be_used_are_refused(tmp_path):
    with pytest.raises(ValueError, match="989; got 0"):
        train(build(), str(tmp_path), accumulation=4, peak_tflops=0)
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        train(build(), str(tmp_path), accumulation=4, label_smoothing_factor=0.1)


def test_evaluation_takes_batches_with_sources(tmp_path):
    model = build()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to="none", per_device_eval_batch_size=1
    )
    trainer = MM1Trainer(
        model=model, args=arguments, eval_dataset=batches(), data_collator=only_row, source_names=SOURCES
    )
    assert trainer.evaluate()["eval_loss"] > 0
    assert not [entry for entry in trainer.state.log_history if "utilisation" in entry]
