"""What transformers' Trainer does around the model: losses, evaluation, accumulation, resuming, precision and memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_mm1
from transformers import MixtralConfig, Trainer, TrainingArguments, default_data_collator

from mm1_hf import MM1Config, MM1ConnectorConfig, MM1ForConditionalGeneration, MM1TextForCausalLM
from mm1_hf.data.collation import MM1Collator
from mm1_hf.model.segment_attention import SEGMENT_SDPA
from mm1_hf.model.versions import ENABLES_CHECKPOINTING
from mm1_hf.training.trainer import MM1Trainer


def build() -> tuple[MM1ForConditionalGeneration, MM1Collator]:
    model, processor = tiny_mm1(connector=MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1))
    processor.image_processor.image_splitting = "none"
    return model, MM1Collator(processor)


def rows(number: int = 4) -> list[dict]:
    """Every row of its own length and number of images, 0 to 2."""
    images = torch.rand(2 * number, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    return [
        {"text": index % 3 * "<image>" + "words"[: 3 + index % 3] * (1 + index), "images": list(images[: index % 3])}
        for index in range(number)
    ]


def trainer(folder, model=None, dataset=None, collator=None, kind=Trainer, **settings) -> Trainer:
    own, own_collator = build()
    settings = {
        "use_cpu": True,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 2,
        "train_sampling_strategy": "sequential",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "max_steps": 1,
        **settings,
    }
    return kind(
        model=own if model is None else model,
        args=TrainingArguments(output_dir=str(folder), **settings),
        train_dataset=rows() if dataset is None else dataset,
        eval_dataset=rows(),
        data_collator=own_collator if collator is None else collator,
    )


def weights(run: Trainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}


def test_accumulated_micro_batches_step_as_one_batch(tmp_path):
    """Micro-batches of unequal numbers of targets, one without an image."""
    plain = {"optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
    whole = trainer(tmp_path, per_device_train_batch_size=4, **plain)
    before = weights(whole)
    whole.train()
    parts = trainer(tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4, **plain)
    parts.train()
    after = weights(parts)
    for name, weight in weights(whole).items():
        torch.testing.assert_close(after[name] - before[name], weight - before[name], atol=2e-6, rtol=1e-3)


def test_label_smoothing_compares_each_place_with_its_next_token(tmp_path):
    run = trainer(tmp_path, label_smoothing_factor=0.1)
    batch = run.data_collator(rows())
    logits = run.model.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits
    expected = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), label_smoothing=0.1, ignore_index=-100
    )
    for training in (True, False):
        run.model.train(training)
        torch.testing.assert_close(run.compute_loss(run.model, dict(batch)), expected)


def with_losses(kind: str, **weights: float) -> torch.nn.Module:
    """A sparse model whose loss has these terms and no other."""
    config = MM1Config.from_preset("mm1-tiny-moe")
    if kind == "mixtral":
        sizes = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 4}
        config = MM1Config.from_preset("mm1-tiny", text_config=MixtralConfig(**sizes, **heads))
    top = config if kind != "mm1_text" else config.text_config
    for name in ("z_loss_coef", "router_aux_loss_coef", "router_z_loss_coef"):
        setattr(top if name == "z_loss_coef" else config.text_config, name, weights.get(name, 0.0))
    torch.manual_seed(0)
    return MM1TextForCausalLM(config.text_config) if kind == "mm1_text" else MM1ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        ("mm1", "z_loss_coef"),
        ("mm1", "router_aux_loss_coef"),
        ("mm1", "router_z_loss_coef"),
        ("mm1_text", "router_z_loss_coef"),
        ("mixtral", "router_aux_loss_coef"),
    ],
)
def test_label_smoothing_drops_none_of_the_model_s_losses(kind, loss, tmp_path):
    """It sees the logits alone, so it is refused where the model's loss has another term."""
    words = {"input_ids": list(range(5, 15)), "labels": list(range(5, 15))}
    settings = {"dataset": [words] * 2, "collator": default_data_collator}
    smoothed = {**settings, "label_smoothing_factor": 0.1}
    with pytest.raises(ValueError, match=f"leave out losses that the model itself would add: {loss}=0.1. Set"):
        trainer(tmp_path, with_losses(kind, **{loss: 0.1}), **smoothed).train()
    plain, heavy = (
        trainer(tmp_path, with_losses(kind, **weights), **settings).train() for weights in ({}, {loss: 0.1})
    )
    assert heavy.training_loss > plain.training_loss
    assert np.isfinite(trainer(tmp_path, with_losses(kind), **smoothed).train().training_loss)


def test_a_loss_of_one_s_own_may_add_the_router_s(tmp_path):
    """`compute_loss_func` gets no labels into the model either, but the router's losses if it asks for them."""
    words = {"input_ids": list(range(5, 15)), "labels": list(range(5, 15))}
    seen = []

    def loss(outputs, labels, num_items_in_batch):
        seen.append(outputs.aux_loss)
        cross_entropy = F.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        return cross_entropy / num_items_in_batch + outputs.aux_loss

    model = with_losses("mm1", router_aux_loss_coef=0.1)
    model.config.text_config.output_router_logits = True
    settings = {"dataset": [words] * 2, "collator": default_data_collator}
    own = trainer(tmp_path, model, **settings)
    own.compute_loss_func = loss
    expected = trainer(tmp_path, with_losses("mm1", router_aux_loss_coef=0.1), **settings).train()
    assert own.train().training_loss == pytest.approx(expected.training_loss, rel=1e-5)
    assert seen[0].requires_grad


def test_evaluation_gathers_the_logits_and_labels_of_every_row(tmp_path):
    run = trainer(tmp_path)
    output = run.predict(rows())
    assert isinstance(output.predictions, np.ndarray), "logits alone: no caches, router logits or image tokens"
    assert output.predictions.shape[:2] == output.label_ids.shape
    losses = []
    for index, row in enumerate(rows()):
        batch = run.data_collator([row])
        length = batch["input_ids"].shape[1]
        expected = run.model(**batch)
        np.testing.assert_allclose(output.predictions[index, :length], expected.logits[0].detach(), atol=1e-4)
        assert output.label_ids[index, :length].tolist() == batch["labels"][0].tolist()
        assert (output.label_ids[index, length:] == -100).all()
        losses.append(expected.loss.item())
    only_loss = trainer(tmp_path, prediction_loss_only=True).evaluate()
    assert output.metrics["test_loss"] == pytest.approx(only_loss["eval_loss"], rel=1e-5)


def test_resumed_training_ends_where_uninterrupted_training_does(tmp_path):
    straight = trainer(tmp_path / "straight", max_steps=4, save_strategy="steps", save_steps=2)
    straight.train()
    resumed = trainer(tmp_path / "resumed", max_steps=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "straight" / "checkpoint-2"))
    assert resumed.state.global_step == 4
    after = weights(resumed)
    for name, weight in weights(straight).items():
        assert torch.equal(after[name], weight), name


def saved_bytes(model: MM1ForConditionalGeneration, batch) -> int:
    """What autograd keeps for the backward of the image encoder."""
    kept = []
    tower = model.model.vision_tower
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t)
    original = tower.forward

    def forward(*args, **kwargs):
        with hooks:
            return original(*args, **kwargs)

    tower.forward = forward
    model(**batch).loss.backward()
    tower.forward = original
    return sum(kept)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_with_a_frozen_encoder_keeps_no_graph_of_it(reentrant, tmp_path):
    model, collator = build()
    batch = collator(rows())
    assert saved_bytes(model.train(), batch) > 0
    model.model.vision_tower.requires_grad_(False)
    checkpointing = ENABLES_CHECKPOINTING.removesuffix("_enable")
    settings = {checkpointing: True, f"{checkpointing}_kwargs": {"use_reentrant": reentrant}}
    run = trainer(tmp_path, model, **settings)
    before = weights(run)
    run.train()
    assert getattr(model, f"is_{checkpointing}")
    model.zero_grad()
    # PEFT does so before it trains adapters on a frozen model.
    model.enable_input_require_grads()
    assert saved_bytes(model, batch) == 0
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    after = weights(run)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert not [name for name in changed if "vision_tower" in name]
    assert [name for name in changed if "connector" in name] and [name for name in changed if "language_model" in name]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains(precision, tmp_path):
    """Autocast on the CPU; fp16 as the weights' own type, since Trainer's fp16 needs a GPU's gradient scaler."""
    if precision == "bf16":
        run = trainer(tmp_path, bf16=True, max_steps=2)
    else:
        run = trainer(tmp_path, build()[0].to(torch.float16), optim="sgd", max_steps=2)
    before = weights(run)
    assert np.isfinite(run.train().training_loss)
    after = weights(run)
    assert all(weight.isfinite().all() for weight in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_a_batch_that_does_not_fit_is_halved_with_its_tiles(tmp_path):
    class Small(Trainer):
        """Memory for two rows."""

        def training_step(self, model, inputs, *args, **kwargs):
            if len(inputs["input_ids"]) > 2:
                raise RuntimeError("CUDA out of memory.")
            sizes.append(len(inputs["input_ids"]))
            return super().training_step(model, inputs, *args, **kwargs)

    sizes = []
    run = trainer(tmp_path, kind=Small, auto_find_batch_size=True, per_device_train_batch_size=4, max_steps=2)
    run.train()
    assert sizes == [2, 2]


def test_a_compiled_step_is_the_plain_one(tmp_path):
    plain, compiled = (
        trainer(tmp_path, optim="sgd", max_grad_norm=0.0, learning_rate=0.1, **settings)
        for settings in ({}, {"torch_compile": True, "torch_compile_backend": "eager"})
    )
    plain.train()
    compiled.train()
    after = weights(compiled)
    for name, weight in weights(plain).items():
        torch.testing.assert_close(after[name], weight, atol=1e-5, rtol=1e-4)


def test_parts_on_disk_give_the_same_logits(tmp_path):
    """accelerate's device_map reads a part's weights as it runs."""
    model, collator = build()
    batch = collator(rows())
    model.save_pretrained(tmp_path / "model")
    places = {"model.vision_tower": "disk", "model.connector": "cpu", "model.language_model": "disk", "lm_head": "cpu"}
    offloaded = MM1ForConditionalGeneration.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offload")
    )
    assert next(offloaded.model.vision_tower.parameters()).device.type == "meta"
    with torch.no_grad():
        torch.testing.assert_close(offloaded(**batch).logits, model(**batch).logits)


def test_on_a_cpu_packed_rows_are_attended_to_by_segment(tmp_path):
    model, _ = build()
    trainer(tmp_path, model, kind=MM1Trainer)
    assert model.model.language_model.config._attn_implementation == SEGMENT_SDPA
    assert model.model.vision_tower.config._attn_implementation == "sdpa"
    # What the user chose stays, and so does what has no way to be told of segments.
    model.set_attn_implementation("eager")
    trainer(tmp_path, model, kind=MM1Trainer)
    assert model.model.language_model.config._attn_implementation == "eager"
    model.set_attn_implementation("sdpa")
    model.model.language_model._supports_flash_attn = False
    trainer(tmp_path, model, kind=MM1Trainer)
    assert model.model.language_model.config._attn_implementation == "sdpa"
