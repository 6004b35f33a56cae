import pytest
import torch
from tiny import tiny_mm1

from mm1_hf.training.parts import PARTS, freeze, parameter_groups
from mm1_hf.training.recipes import recipe
from mm1_hf.training.trainer import MM1Trainer


def names(model, group):
    by_id = {id(weight): name for name, weight in model.named_parameters()}
    return {by_id[id(weight)] for weight in group["params"]}


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_does_not_move(part, tmp_path):
    model, _ = tiny_mm1()
    freeze(model, [part])
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    token = model.config.image_token_id
    row = {"input_ids": [token] * 4 + [65, 66, 67], "labels": [-100] * 4 + [65, 66, 67]}
    arguments = recipe(model).training_arguments(
        str(tmp_path),
        num_devices=1,
        gradient_accumulation_steps=1,
        max_steps=1,
        warmup_steps=0,
        bf16=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        learning_rate=1e-2,
        dataloader_pin_memory=False,
    )

    def collate(rows):
        batch = {key: torch.tensor([row[key] for row in rows]) for key in ("input_ids", "labels")}
        return {**batch, "pixel_values": torch.rand(len(rows), 3, 56, 56)}

    MM1Trainer(model=model, args=arguments, train_dataset=[row], data_collator=collate).train()
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    prefix = {
        "encoder": ("model.vision_tower",),
        "connector": ("model.connector",),
        "decoder": ("model.lang", "lm_head"),
    }
    assert moved and not any(name.startswith(prefix[part]) for name in moved)
    for other in set(PARTS) - {part}:
        assert any(name.startswith(prefix[other]) for name in moved), other


def test_parts_learn_at_their_own_rates():
    model, _ = tiny_mm1()
    groups = parameter_groups(model, 1e-4, 0.1, {"connector": 1e-3})
    for group in groups:
        assert {"connector" in name for name in names(model, group)} == {group["lr"] == 1e-3}
    grouped = [name for group in groups for name in names(model, group)]
    assert sorted(grouped) == sorted(name for name, _ in model.named_parameters())


def test_weights_decay_where_it_belongs():
    model, _ = tiny_mm1()
    decayed = {
        name for group in parameter_groups(model, 1e-4, 0.1) if group["weight_decay"] for name in names(model, group)
    }
    exempt = {name for name, _ in model.named_parameters()} - decayed
    assert all(any(word in name for word in ("norm", "bias", "position", "class_embedding")) for name in exempt)
    assert not any(any(word in name for word in ("norm", "bias", "position")) for name in decayed)
    assert {"lm_head.weight", "model.language_model.embed_tokens.weight"} <= decayed


def test_unknown_parts_are_refused():
    model, _ = tiny_mm1()
    with pytest.raises(ValueError, match="no part vision; the parts are encoder, connector, decoder"):
        freeze(model, ["vision"])
    with pytest.raises(ValueError, match="no part head"):
        parameter_groups(model, 1e-4, 0.1, {"head": 1e-3})
