"""Fine-tuning with TRL: its own trainer as it is, MM1's beside it, and runs from a file."""

import datasets
import pytest
import torch
import torch.nn.functional as F
from conversations import as_prompts, assistant, conversations, user
from ranks import run_ranks
from sft_ranks import of_one_rank, weights_after_a_step
from tiny import tiny_mm1, tiny_vision
from transformers import AutoModelForImageTextToText
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig, SFTTrainer, get_peft_config
from trl.scripts import sft as trl_script

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1TextConfig
from mm1_hf.data.collation import IGNORED, MM1Collator
from mm1_hf.model.losses import router_losses
from mm1_hf.training.lora import lora_config
from mm1_hf.training.sft import MM1SFTTrainer


LENGTH = 160


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def parts():
    """A dense MM1 over a Llama, whose images stay whole."""
    model, processor = tiny_mm1()
    processor.image_processor.image_splitting = "none"
    return model, processor


def sparse(model) -> MM1ForConditionalGeneration:
    """An MM1 of this package's own sparse decoder, with every loss on, for the processor of `model`."""
    text = {
        "vocab_size": model.config.text_config.vocab_size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_layer_period": 1,
        "router_aux_loss_coef": 0.5,
        "router_z_loss_coef": 0.1,
    }
    config = MM1Config(
        vision_config=tiny_vision().config,
        text_config=MM1TextConfig(**text),
        connector_config={"num_tokens": 4, "hidden_size": 16, "depth": 1},
        image_token_id=model.config.image_token_id,
        z_loss_coef=0.01,
    )
    torch.manual_seed(0)
    return MM1ForConditionalGeneration(config)


def arguments(tmp_path, **fields) -> SFTConfig:
    settings = {
        "output_dir": str(tmp_path / "run"),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "max_length": None,
        "max_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    return SFTConfig(**settings | fields)


# TRL's own trainer


def stock_batch(processor, dataset, tmp_path, **fields):
    model, _ = tiny_mm1()
    trainer = SFTTrainer(model, arguments(tmp_path, **fields), train_dataset=dataset, processing_class=processor)
    return trainer.data_collator(list(dataset))


def test_trl_s_defaults_learn_placeholders_and_assistant_only_does_not(parts, tmp_path):
    _, processor = parts
    dataset = conversations(4)
    ours = MM1Collator(processor)(list(dataset))
    stock = stock_batch(processor, dataset, tmp_path)
    assert (stock["labels"] == processor.image_token_id).any()
    assert torch.equal(stock["labels"] != IGNORED, stock["attention_mask"] == 1), "the question too"
    chosen = stock_batch(processor, dataset, tmp_path, assistant_only_loss=True)
    for name in ("input_ids", "labels", "pixel_values", "attention_mask"):
        assert torch.equal(chosen[name], ours[name])


def test_trl_s_prompts_and_completions(parts, tmp_path):
    _, processor = parts
    dataset = as_prompts(conversations(4))
    batch, ours = stock_batch(processor, dataset, tmp_path), MM1Collator(processor)(list(dataset))
    assert torch.equal(batch["input_ids"], ours["input_ids"])
    for row, (given, own) in enumerate(zip(batch["labels"], ours["labels"], strict=True)):
        text, expected = (processor.decode(each[each != IGNORED]) for each in (given, own))
        # TRL's ends with what the template writes after the end mark.
        assert text == expected + "\n", row


@pytest.mark.parametrize("way", ["path", "model"])
def test_trl_s_scripts_run_unchanged(way, parts, tmp_path):
    for part in parts:
        part.save_pretrained(tmp_path / "model")
    for split in ("train", "test"):
        conversations(6).to_parquet(tmp_path / "data" / f"{split}.parquet")
    options = {
        "model_name_or_path": tmp_path / "model",
        "dataset_name": tmp_path / "data",
        "output_dir": tmp_path / "run",
        "max_steps": 2,
        "max_length": 512,
        "learning_rate": 1e-3,
        "per_device_train_batch_size": 3,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "dtype": "float32",
        "use_peft": way == "model",
        # With the decoder's layers named from the model's root.
        "lora_target_modules": r"model\.language_model\..*_proj",
    }
    command = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    script, training, model_options, data = trl_script.make_parser().parse_args_and_config(command)
    if way == "path":
        trl_script.main(script, training, model_options, data)
        trained = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
        before = dict(parts[0].named_parameters())
        assert any(not torch.equal(weight, before[name]) for name, weight in trained.named_parameters())
        return
    # As TRL's example for vision models does it: with the model loaded by its Auto class.
    dataset = datasets.load_dataset(script.dataset_name)
    trainer = SFTTrainer(
        model=AutoModelForImageTextToText.from_pretrained(model_options.model_name_or_path, dtype="float32"),
        args=training,
        train_dataset=dataset["train"],
        eval_dataset=dataset["test"],
        peft_config=get_peft_config(model_options),
    )
    trainer.train()
    trainer.save_model(training.output_dir)
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()
    trained = {name for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert trained and not any("vision_tower" in name or "connector" in name for name in trained)


def test_what_trl_leaves_out_of_the_loss(parts, tmp_path):
    dense, processor = parts
    model, dataset = sparse(dense), conversations(4)
    batch = dict(MM1Collator(processor)(list(dataset)))
    own = MM1SFTTrainer(model, arguments(tmp_path), train_dataset=dataset, processing_class=processor)
    own_loss = own.compute_loss(own.model.eval(), dict(batch))
    stock = SFTTrainer(sparse(dense), arguments(tmp_path), train_dataset=dataset, processing_class=processor)
    stock_loss = stock.compute_loss(stock.model.eval(), dict(batch))

    outputs = sparse(dense).eval()(**batch, output_router_logits=True)
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    entropy = F.cross_entropy(logits, labels)
    z = logits[labels != IGNORED].logsumexp(-1).square().mean()
    balance, router_z = router_losses(outputs.router_logits, batch["attention_mask"], "sum")
    mixtral = load_balancing_loss_func(outputs.router_logits, 4, 2, batch["attention_mask"])
    torch.testing.assert_close(own_loss, entropy + 0.01 * z + 0.5 * balance + 0.1 * router_z)
    torch.testing.assert_close(stock_loss, entropy + 0.5 * mixtral)
    assert (own_loss - stock_loss).abs() > 0.1


# MM1's


def gradients(trainer, micro_batches: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and gradients of one step over the whole data set."""
    batches = iter(trainer.get_train_dataloader())
    trainer.current_gradient_accumulation_steps = micro_batches
    samples, targets = trainer.get_batch_samples(batches, micro_batches, trainer.args.device)
    assert next(batches, None) is None
    losses = [trainer.training_step(trainer.model, batch, targets) for batch in samples]
    return sum(losses), {
        name: weight.grad for name, weight in trainer.model.named_parameters() if weight.grad is not None
    }


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_packed_rows_have_the_loss_and_gradient_of_unpacked_ones(kind, parts, tmp_path):
    model, processor = parts
    dataset = conversations(12)
    results = []
    for packing in (True, False):
        trainer = MM1SFTTrainer(
            sparse(model) if kind == "sparse" else tiny_mm1()[0],
            # Router statistics are those of a micro-batch: both have everything in one.
            arguments(tmp_path, packing=packing, max_length=LENGTH, per_device_train_batch_size=12),
            train_dataset=dataset,
            processing_class=processor,
        )
        assert not packing or len(trainer.train_dataset) <= 5
        results.append(gradients(trainer, 1))
    (packed_loss, packed), (loss, unpacked) = results
    torch.testing.assert_close(packed_loss, loss, atol=1e-5, rtol=1e-5)
    assert set(packed) == set(unpacked) and any("vision_tower" in name for name in packed)
    for name, gradient in packed.items():
        torch.testing.assert_close(
            gradient, unpacked[name], atol=1e-5, rtol=1e-5, msg=lambda text, at=name: f"{at}: {text}"
        )


@pytest.mark.slow
def test_two_ranks_take_the_step_of_one(parts, tmp_path):
    for part in parts:
        part.save_pretrained(tmp_path / "model")
    expected = weights_after_a_step(str(tmp_path / "model"), str(tmp_path / "run"), 4)
    ranks = run_ranks(of_one_rank, tmp_path, str(tmp_path / "model"), str(tmp_path / "run"), 2)
    before = dict(parts[0].named_parameters())
    assert any((weight - before[name]).abs().max() > 1e-2 for name, weight in expected.items())
    for weights in ranks:
        for name, weight in expected.items():
            torch.testing.assert_close(weights[name], weight, atol=1e-5, rtol=1e-5, msg=name)


def test_training_packs_logs_and_learns(parts, tmp_path):
    model, processor = parts
    settings = {
        "packing": True,
        "max_length": LENGTH,
        "max_steps": -1,
        "num_train_epochs": 6,
        "per_device_train_batch_size": 2,
        "learning_rate": 1e-3,
        "optim": "adafactor",
        "eval_strategy": "epoch",
    }
    given = arguments(tmp_path, **settings)
    trainer = MM1SFTTrainer(
        model,
        given,
        train_dataset=conversations(12),
        eval_dataset=conversations(6),
        processing_class=processor,
        learning_rates={"connector": 2e-3},
    )
    assert given.packing and {group["lr"] for group in trainer.create_optimizer().param_groups} == {1e-3, 2e-3}
    trainer.train()
    history = trainer.state.log_history
    held_out = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    assert len(held_out) == 6 and held_out[-1] < held_out[0]
    assert all(entry["tokens_per_second"] > 0 for entry in history if "loss" in entry)


def test_adapters_are_trained_and_saved(parts, tmp_path):
    model, processor = parts
    trainer = MM1SFTTrainer(
        model,
        arguments(tmp_path, packing=True, max_length=LENGTH),
        train_dataset=conversations(6),
        processing_class=processor,
        peft_config=lora_config(model, "decoder"),
    )
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_what_cannot_be_trained_on_is_refused_at_once(parts, tmp_path):
    model, processor = parts

    def refused(message: str, dataset=None, **fields) -> None:
        with pytest.raises(ValueError, match=message):
            MM1SFTTrainer(
                model,
                arguments(tmp_path, **fields),
                train_dataset=conversations(4) if dataset is None else dataset,
                processing_class=processor,
            )

    refused("max_length is None. Set it", packing=True)
    refused("cannot be packed: chat longer than a row: record", packing=True, max_length=30)
    refused("more than max_length=20", max_length=20)
    refused("loss_type='dft' would have no effect", loss_type="dft")
    refused("packing_strategy='wrapped'", packing=True, packing_strategy="wrapped", max_length=LENGTH)
    refused("this one is a stream. Load it", conversations(4).to_iterable_dataset(), packing=True, max_length=LENGTH)
    place = [{"type": "image"}, {"type": "text", "text": "q"}]
    missing = datasets.Dataset.from_list([{"messages": [user(place), assistant([place[1]])], "images": []}])
    refused("has 0 images, but its chat has 1 places", missing)
    refused("has 0 images, but its chat has 1 places", missing, packing=True, max_length=LENGTH)
    refused("has nothing to learn", datasets.Dataset.from_list([{"messages": [user("q")]}]))
    processor.chat_template = processor.chat_template.replace("generation -%}", "filter trim -%}", 1).replace(
        "endgeneration", "endfilter"
    )
    refused("no {% generation %} marks")
    refused("no {% generation %} marks", packing=True, max_length=LENGTH)


def test_what_trl_itself_refuses(parts, tmp_path):
    model, processor = parts

    def refused(message: str, dataset, error=ValueError, **fields) -> None:
        with pytest.raises(error, match=message):
            trainer = SFTTrainer(
                model, arguments(tmp_path, **fields), train_dataset=dataset, processing_class=processor
            )
            trainer.train()

    refused("truncation to 8 tokens would cut", conversations(4), max_length=8)
    refused("max_length. .8. is too short", as_prompts(conversations(4)), max_length=8)
    refused("Packing is not supported for vision", conversations(4), packing=True, max_length=LENGTH)
    place = [{"type": "image"}, {"type": "text", "text": "q"}]
    missing = datasets.Dataset.from_list([{"messages": [user(place), assistant([place[1]])], "images": []}])
    refused("does not match number of image placeholders", missing)
    processor.chat_template = processor.chat_template.replace("generation -%}", "filter trim -%}", 1).replace(
        "endgeneration", "endfilter"
    )
    refused("not training-compatible", conversations(4), assistant_only_loss=True)


def test_a_record_that_cannot_be_collated_is_left_out_of_its_batch(parts, tmp_path):
    """Alone in a batch, it leaves one without targets."""
    model, processor = parts
    records = [{"messages": [user(f"q{number}"), assistant("yes")]} for number in range(8)]
    dataset = datasets.Dataset.from_list(records)
    trainer = MM1SFTTrainer(model, arguments(tmp_path), train_dataset=dataset, processing_class=processor)
    collate = trainer.data_collator
    bad = {"messages": [user("half \ud83d"), assistant("yes")]}
    batch = collate([records[1], bad, records[2]])
    assert torch.equal(batch["input_ids"], collate([records[1], records[2]])["input_ids"])
    alone = collate([bad])
    assert alone["input_ids"].shape[0] == 1 and (alone["labels"] == -100).all()
    assert collate.drops.report()["the data set"]["dropped"] == {"text is not valid Unicode": 2}
