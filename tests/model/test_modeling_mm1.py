import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
import transformers
from packaging.version import Version
from ranks import gradients_of_one_rank, run_ranks
from tiny import tiny_vision
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Dinov2WithRegistersConfig,
)

from mm1_hf import MM1Config, MM1ForConditionalGeneration, MM1Model, MM1TextConfig


IMAGE = 63
TOKENS = 4
SPARSE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "router_aux_loss_coef": 0.5}
TEXT = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {"num_key_value_heads": 2}
# Fields that make the tiny decoder show what is particular about its kind.
FOREIGN = {
    "llama": GROUPED,
    # A window smaller than the segments of the packed rows below.
    "mistral": {**GROUPED, "sliding_window": 3},
    "qwen3": {**GROUPED, "head_dim": 8},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 3, "final_logit_softcapping": 5.0},
    "gemma3_text": {
        **GROUPED,
        "head_dim": 8,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "gpt_neox": {},
    "granite": {**GROUPED, "logits_scaling": 4.0, "embedding_multiplier": 3.0},
    "cohere": {**GROUPED, "logit_scale": 0.3},
}


def text_config(kind: str = "mm1_text", **fields):
    if kind == "mm1_text":
        return MM1TextConfig(**{**TEXT, **GROUPED, **fields})
    return CONFIG_MAPPING[kind](**{**TEXT, **FOREIGN.get(kind, {}), **fields})


def build(
    text: str = "mm1_text", vision: str = "clip", connector: dict | None = None, top: dict | None = None, **fields
):
    if vision == "dinov2-registers":
        vision_config = Dinov2WithRegistersConfig(
            hidden_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=56, patch_size=14
        )
    else:
        vision_config = tiny_vision(vision).config
    config = MM1Config(
        vision_config=vision_config,
        text_config=text_config(text, **fields),
        connector_config={"num_tokens": TOKENS, "hidden_size": 16, "depth": 1, **(connector or {})},
        image_token_id=IMAGE,
        **(top or {}),
    )
    torch.manual_seed(0)
    model = MM1ForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, mean=1.0 if "norm" in name and "weight" in name else 0.0, std=0.2)
    model.tie_weights()
    return model.eval()


def tiles(number: int, side: int = 56, seed: int = 3) -> torch.Tensor:
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def words(number: int, seed: int = 5) -> list[int]:
    return torch.randint(3, IMAGE, (number,), generator=torch.Generator().manual_seed(seed)).tolist()


def row(*parts: int) -> torch.Tensor:
    """Text of so many words, an image for each 0: row(3, 0, 2) is 3 words, an image and 2 words."""
    ids = []
    for number, part in enumerate(parts):
        ids += words(part, seed=number) if part else [IMAGE] * TOKENS
    return torch.tensor([ids])


def mixed_batch() -> dict[str, torch.Tensor]:
    """Two images in the first row, none in the second, one in the third."""
    input_ids = torch.cat([row(2, 0, 3, 0, 1), row(14), row(0, 10)])
    return {"input_ids": input_ids, "pixel_values": tiles(3)}


def labels_of(input_ids: torch.Tensor) -> torch.Tensor:
    labels = input_ids.masked_fill(input_ids == IMAGE, -100)
    labels[:, 0] = -100
    return labels


def close(got, expected, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# Features and their places


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2", "dinov2-registers"])
def test_each_image_stands_at_its_tokens(vision):
    model = build(vision=vision)
    batch = mixed_batch()
    features = model.get_image_features(batch["pixel_values"]).pooler_output
    assert features.shape == (3, TOKENS, 32)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    mask = (batch["input_ids"] == IMAGE)[..., None].expand_as(embeds)
    embeds = embeds.masked_scatter(mask, features)
    output = model(**batch)
    close(output.logits, model(inputs_embeds=embeds).logits)
    close(output.image_hidden_states, features)
    # Exchanged images change what is seen, so the order counts.
    exchanged = model(batch["input_ids"], batch["pixel_values"].flip(0)).logits
    assert (exchanged[0] - output.logits[0]).abs().max() > 1e-3
    # The row without an image does not see those of its neighbours.
    close(exchanged[1], output.logits[1])


@pytest.mark.parametrize("top", [{"vision_feature_layer": -2}, {"vision_feature_norm": True}])
def test_the_configured_features_are_used(top):
    model = build(top=top)
    plain = build()
    plain.load_state_dict(model.state_dict(), strict=False)
    one, other = (each.get_image_features(tiles(1)).pooler_output for each in (model, plain))
    assert (one - other).abs().max() > 1e-3


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2"])
def test_layers_behind_the_feature_layer_are_not_built(vision, tmp_path):
    model = build(vision=vision, top={"vision_feature_layer": -2}).train()
    batch = mixed_batch()
    model(**batch, labels=labels_of(batch["input_ids"])).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    model.save_pretrained(tmp_path)
    again, loading = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert again.config.vision_feature_layer == -2 and again.config.vision_config.num_hidden_layers == 3
    same_weights(model, again)
    close(again(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2"])
@pytest.mark.parametrize("connector", ["c_abstractor", "average", "attention"])
def test_twice_the_resolution_gives_as_many_tokens(vision, connector):
    model = build(vision=vision, connector={"connector_type": connector, "num_attention_heads": 4})
    assert model.get_image_features(tiles(2, 112)).pooler_output.shape == (2, TOKENS, 32)
    assert model(row(2, 0, 3), tiles(1, 112)).logits.shape == (1, 9, 64)
    half = copy.deepcopy(model).bfloat16().get_image_features(tiles(2, 112)).pooler_output.float()
    exact = model.get_image_features(tiles(2, 112)).pooler_output
    assert (half - exact).norm() / exact.norm() < 0.05


def test_a_connector_without_reduction_refuses_another_resolution():
    model = build(connector={"connector_type": "linear", "num_tokens": None})
    with pytest.raises(ValueError, match="one token per patch: these tiles gave 64"):
        model.get_image_features(tiles(1, 112))


@pytest.mark.parametrize(
    ("input_ids", "images", "tokens", "features"),
    [(row(3, 0, 2), 2, 4, 8), (row(3, 0, 2)[:, :5], 1, 2, 4), (row(3, 0, 2), 0, 4, 0), (row(3), 1, 0, 4)],
)
@pytest.mark.parametrize("as_embeds", [False, True])
def test_numbers_of_tokens_and_features_must_agree(input_ids, images, tokens, features, as_embeds):
    model = build()
    batch = {"input_ids": input_ids} if not as_embeds else {"inputs_embeds": model.get_input_embeddings()(input_ids)}
    if images:
        batch["pixel_values"] = tiles(images)
    message = f"^Image features and image tokens do not match, tokens: {tokens}, features: {features}"
    if as_embeds and not images:
        # Another token may have this embedding, or another program has put the images in.
        model(**batch)
        return
    with pytest.raises(ValueError, match=message):
        model(**batch)


@pytest.mark.parametrize(
    ("pixels", "got"),
    [
        (tiles(1)[0], r"shape \(3, 56, 56\)"),
        (tiles(1)[None], r"shape \(1, 1, 3, 56, 56\)"),
        (tiles(1)[:, :1], r"shape \(1, 1, 56, 56\)"),
        (tiles(1).movedim(1, -1), r"shape \(1, 56, 56, 3\)"),
        (tiles(1).long(), "values of type torch.int64"),
        (tiles(1).bool(), "values of type torch.bool"),
        ([tiles(1)], "a list"),
    ],
)
def test_what_are_no_tiles_is_refused_by_its_form(pixels, got):
    """Before its image tokens are counted."""
    model = build()
    for call in (model, model.model, model.generate):
        with pytest.raises(ValueError, match=rf"must be the tiles .* \(tiles, 3, height, width\).*; got .*{got}"):
            call(input_ids=row(2, 0, 3), pixel_values=pixels)
    with pytest.raises(ValueError, match=got):
        model.get_image_features(pixels)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_tiles_of_any_floating_type_are_taken(dtype):
    model = build()
    given = model(row(2, 0, 3), tiles(1).to(dtype)).logits
    torch.testing.assert_close(given, model(row(2, 0, 3), tiles(1).to(dtype).float()).logits)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2", "dinov2-registers"])
def test_no_tiles_are_as_good_as_none(vision):
    """What a collator leaves of a batch of text alone if it joins the tiles of all rows."""
    model = build(vision=vision)
    ids, empty = row(6), tiles(1)[:0]
    assert torch.equal(model(ids, empty).logits, model(ids).logits)
    assert model.get_image_features(empty).pooler_output.shape == (0, TOKENS, 32)
    for settings in ({}, {"num_beams": 2}):
        assert torch.equal(answer(model, ids, empty, **settings), answer(model, ids, **settings))
    with pytest.raises(ValueError, match="tokens: 4, features: 0"):
        model(row(2, 0, 3), empty)


def test_embeddings_in_place_of_tokens():
    model = build()
    batch = mixed_batch()
    embeds = model.get_input_embeddings()(batch["input_ids"])
    close(model(inputs_embeds=embeds, pixel_values=batch["pixel_values"]).logits, model(**batch).logits, 0)
    for wrong in ({}, {"input_ids": batch["input_ids"], "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="exactly one"):
            model(**wrong)


def test_encoded_images_in_place_of_pixels():
    model = build()
    batch = mixed_batch()
    encoded = {"image": model.get_image_features(batch["pixel_values"])}
    close(model(batch["input_ids"], mm_encoder_outputs=encoded).logits, model(**batch).logits, 0)
    with pytest.raises(ValueError, match="not both"):
        model(**batch, mm_encoder_outputs=encoded)


# The decoder


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_decoder_s_text_logits_are_its_own_model_s(kind):
    model = build(kind)
    source = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    close_keys = source.base_model.load_state_dict(model.model.language_model.state_dict(), strict=False)
    assert not close_keys.unexpected_keys
    source.get_output_embeddings().weight = model.lm_head.weight
    ids = row(12)
    close(model(ids).logits, source(ids).logits)
    # And it reads images.
    batch = mixed_batch()
    seen, other = model(**batch).logits, model(batch["input_ids"], tiles(3, seed=9)).logits
    assert (seen - other)[0].abs().max() > 1e-3


def test_mm1_text_inside_equals_mm1_text_alone():
    model = build(**SPARSE)
    alone = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    alone.model.load_state_dict(model.model.language_model.state_dict())
    alone.lm_head.load_state_dict(model.lm_head.state_dict())
    ids = row(12)
    ours, theirs = (each(ids, labels=ids, output_router_logits=True) for each in (model, alone))
    for name in ("logits", "loss", "aux_loss"):
        close(ours[name], theirs[name], 0)
    assert len(ours.router_logits) == 1


# The loss


def declared_loss(logits: torch.Tensor, labels: torch.Tensor, z_loss_coef: float, num_items: int | None):
    terms = []
    for each, target in zip(logits.double(), labels, strict=True):
        for position in range(1, labels.shape[1]):
            if target[position] != -100:
                scores = each[position - 1]
                normaliser = scores.exp().sum().log()
                terms.append(normaliser - scores[target[position]] + z_loss_coef * normaliser**2)
    return sum(terms) / (num_items or len(terms))


@pytest.mark.parametrize("kind", ["mm1_text", "gemma2"])
@pytest.mark.parametrize("z_loss_coef", [0.0, 0.1])
@pytest.mark.parametrize("num_items", [None, 40, torch.tensor(40)])
def test_loss_equals_the_declared_formula(kind, z_loss_coef, num_items):
    model = build(kind, top={"z_loss_coef": z_loss_coef, "lm_head_bias": True})
    batch = mixed_batch()
    labels = labels_of(batch["input_ids"])
    expected = declared_loss(model(**batch).logits, labels, z_loss_coef, None if num_items is None else 40)
    for training in (False, True):
        loss = model.train(training)(**batch, labels=labels, num_items_in_batch=num_items).loss
        assert loss.dtype == torch.float32
        close(loss.double(), expected)


@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
def test_skipping_logits_changes_neither_loss_nor_gradients(fields):
    model = build(top={"z_loss_coef": 0.01}, **fields).train()
    batch = mixed_batch()
    results = []
    for skip in (None, False):
        model.zero_grad()
        output = model(**batch, labels=labels_of(batch["input_ids"]), skip_logits=skip)
        assert (output.logits is None) == (skip is None)
        output.loss.backward()
        results.append([output.loss.detach(), *[parameter.grad.clone() for parameter in model.parameters()]])
    for skipped, full in zip(*results, strict=True):
        torch.testing.assert_close(skipped, full, atol=1e-6, rtol=1e-4)


def test_labels_are_taken_as_they_are():
    """The collator leaves image tokens out; a model that did so too would disagree with Trainer's count of targets."""
    model = build()
    batch = mixed_batch()
    everything = batch["input_ids"].clone()
    expected = declared_loss(model(**batch).logits, everything, 0.0, None)
    close(model(**batch, labels=everything).loss.double(), expected)


@pytest.mark.parametrize("vision", ["clip", "siglip", "aimv2", "dinov2", "dinov2-registers"])
@pytest.mark.parametrize("top", [{}, {"vision_feature_norm": True}])
@pytest.mark.parametrize("connector", ["c_abstractor", "average", "attention"])
def test_a_training_step_reaches_every_weight(vision, top, connector):
    """What data-parallel training asks for."""
    model = build(
        vision=vision, top=top, connector={"connector_type": connector, "num_attention_heads": 4}, **SPARSE
    ).train()
    batch = mixed_batch()
    model(**batch, labels=labels_of(batch["input_ids"])).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]


@pytest.mark.parametrize("kind", ["mm1_text", "llama"])
def test_gradient_checkpointing_gives_the_same_gradients(kind):
    model = build(kind, **(SPARSE if kind == "mm1_text" else {})).train()
    batch = mixed_batch()
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            assert any(getattr(m, "gradient_checkpointing", False) for m in model.model.vision_tower.modules())
        model.zero_grad()
        model(**batch, labels=labels_of(batch["input_ids"])).loss.backward()
        results.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-4)


def test_a_frozen_tower_keeps_no_graph_and_the_connector_trains():
    model = build().train()
    model.model.vision_tower.requires_grad_(False)
    features = model.get_image_features(tiles(1))
    assert not features.last_hidden_state.requires_grad and features.pooler_output.requires_grad
    batch = mixed_batch()
    model(**batch, labels=labels_of(batch["input_ids"])).loss.backward()
    assert all(parameter.grad is None for parameter in model.model.vision_tower.parameters())
    assert all(parameter.grad is not None for parameter in model.model.connector.parameters())


def test_data_parallel_replicas_are_refused():
    model = build().model
    replica = model._replicate_for_data_parallel()
    with pytest.raises(ValueError, match="torchrun or accelerate launch"):
        replica(**mixed_batch())


def test_ranks_without_images_train_with_the_others(tmp_path):
    """Their gradients of the encoder and connector are 0, so the average is a third of the first rank's."""
    model = build(**SPARSE)
    model.save_pretrained(tmp_path)
    ids = [row(2, 0, 3), row(9), row(7)]
    batches = [{"input_ids": each, "labels": labels_of(each)} for each in ids]
    batches[0]["pixel_values"] = tiles(1)
    batches[2]["pixel_values"] = tiles(0)
    first, *others = run_ranks(gradients_of_one_rank, tmp_path, str(tmp_path), batches, world_size=3)
    for batch in batches:
        (model.train()(**batch).loss / 3).backward()
    for name, parameter in model.named_parameters():
        for other in others:
            torch.testing.assert_close(first[name], other[name], atol=0, rtol=0)
        torch.testing.assert_close(first[name], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("num_items", [None, 0, torch.tensor(0), torch.tensor([0])], ids=str)
@pytest.mark.parametrize("mask", [None, 1, 0])
@pytest.mark.parametrize("kind", ["dense", "sparse", "z-loss", "qwen3_moe"])
def test_a_batch_without_a_target_has_no_loss_and_changes_nothing(kind, mask, num_items):
    """Rows of images alone: 0, and not 0 / 0."""
    foreign = {"text": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    fields = {"dense": {}, "sparse": SPARSE, "z-loss": {"top": {"z_loss_coef": 1e-3}}, "qwen3_moe": foreign}[kind]
    model = build(**fields).train()
    ids = row(0, 0)
    mask = None if mask is None else torch.full_like(ids, mask)
    labels = torch.full_like(ids, -100)
    output = model(ids, tiles(2), attention_mask=mask, labels=labels, num_items_in_batch=num_items)
    output.loss.sum().backward()
    assert output.loss.sum() == 0
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert gradients and all((gradient == 0).all() for gradient in gradients)


def test_a_rank_without_a_target_trains_with_the_others(tmp_path):
    model = build(**SPARSE)
    model.save_pretrained(tmp_path)
    ids = [row(2, 0, 3), row(0)]
    batches = [{"input_ids": each, "labels": labels_of(each), "pixel_values": tiles(1)} for each in ids]
    batches[1]["labels"][:] = -100
    first, second = run_ranks(gradients_of_one_rank, tmp_path, str(tmp_path), batches)
    (model.train()(**batches[0]).loss / 2).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(first[name], second[name], atol=0, rtol=0)
        torch.testing.assert_close(first[name], parameter.grad, atol=1e-5, rtol=1e-4)


# Packed rows


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["mm1_text", "llama", "mistral", "qwen3", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("use_cache", [None, True])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_packed_rows_equal_separate_rows(kind, attention, use_cache, mask, training):
    fields = {"gpt_neox": {"hidden_dropout": 0.0, "attention_dropout": 0.0}}.get(kind, {})
    model = build(kind, **fields).train(training)
    model.set_attn_implementation(attention)
    examples = [row(2, 0, 3), row(6), row(0, 5)]
    packed = torch.cat([*examples, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    segments = torch.tensor([[1] * 9 + [2] * 6 + [3] * 9 + [0] * 3])
    kwargs = {} if use_cache is None else {"use_cache": use_cache}
    if mask:
        kwargs["attention_mask"] = torch.ones_like(packed)
    output = model(packed, tiles(2), segment_ids=segments, **kwargs)
    assert output.past_key_values is None
    pixels = [tiles(2)[:1], None, tiles(2)[1:]]
    expected = [model(ids, pixel).logits for ids, pixel in zip(examples, pixels, strict=True)]
    close(output.logits[:, :24], torch.cat(expected, dim=1))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["mm1_text", "llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("mask", [False, True])
def test_restarting_positions_are_segments_in_training(kind, attention, mask):
    """Trainer turns the cache off at the top configuration only, and the decoder's own stays on: the trap."""
    model = build(kind).train()
    model.set_attn_implementation(attention)
    assert model.config.text_config.use_cache
    examples = [row(2, 0, 3), row(0, 5)]
    kwargs = {"attention_mask": torch.ones(1, 18, dtype=torch.long)} if mask else {}
    positions = torch.tensor([[*range(9), *range(9)]])
    packed = model(torch.cat(examples, dim=1), tiles(2), position_ids=positions, **kwargs).logits
    expected = [model(ids, tiles(2)[number, None]).logits for number, ids in enumerate(examples)]
    close(packed, torch.cat(expected, dim=1))


@pytest.mark.parametrize("kind", ["mm1_text", "mistral", "gemma3_text"])
def test_a_neighbour_never_shows(kind):
    model = build(kind)
    packed = torch.cat([row(2, 0, 3), row(0, 5)], dim=1)
    segments = torch.tensor([[1] * 9 + [2] * 9])
    pixels = [torch.cat([tiles(1, seed=seed), tiles(1)]) for seed in (8, 9)]
    first, second = (model(packed, pixel, segment_ids=segments).logits for pixel in pixels)
    assert torch.equal(first[:, 9:], second[:, 9:])
    assert not torch.equal(first[:, 8], second[:, 8])


@pytest.mark.parametrize("kind", ["mm1_text", "mistral"])
def test_packed_gradients_equal_separate_ones(kind):
    model = build(kind).train()
    examples = [row(2, 0, 3), row(0, 5)]
    packed, segments = torch.cat(examples, dim=1), torch.tensor([[1] * 9 + [2] * 9])
    labels = [labels_of(each) for each in examples]
    total = sum(int((each[:, 1:] != -100).sum()) for each in labels)
    model(
        packed, tiles(2), segment_ids=segments, labels=torch.cat(labels, 1), num_items_in_batch=total
    ).loss.backward()
    together = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for number, (ids, target) in enumerate(zip(examples, labels, strict=True)):
        model(ids, tiles(2)[number, None], labels=target, num_items_in_batch=total).loss.backward()
    for got, parameter in zip(together, model.parameters(), strict=True):
        torch.testing.assert_close(got, parameter.grad, atol=1e-5, rtol=1e-4)


def test_padding_does_not_count_in_the_router_s_statistics():
    model = build(**SPARSE)
    ids = torch.cat([row(2, 0, 3), row(6)], dim=1)
    padded = F.pad(ids, (0, 5), value=9)
    segments = torch.tensor([[1] * 9 + [2] * 6 + [0] * 5])
    alone = model(ids, tiles(1), segment_ids=segments[:, :15], labels=labels_of(ids))
    labels = F.pad(labels_of(ids), (0, 5), value=-100)
    output = model(padded, tiles(1), segment_ids=segments, labels=labels)
    close(output.aux_loss, alone.aux_loss)
    close(output.loss, alone.loss)
    # Weighed, it would be another number.
    assert (model(padded, tiles(1), labels=labels).aux_loss - alone.aux_loss).abs() > 1e-4


@pytest.mark.parametrize("kind", ["opt", "bloom", "falcon", "gpt_oss", "mamba"])
def test_decoders_that_would_leak_are_refused_by_name(kind):
    fields = {
        "opt": {"ffn_dim": 32, "word_embed_proj_dim": 32},
        "gpt_oss": {**GROUPED, "head_dim": 8, "num_local_experts": 4},
    }.get(kind, {})
    model = build(kind, **fields).train()
    ids, segments = row(6), torch.tensor([[1, 1, 1, 2, 2, 2]])
    # Since 5.24 Falcon's mask follows the positions.
    if kind == "falcon" and Version(transformers.__version__) >= Version("5.24"):
        model.eval()
        alone = torch.cat([model(ids[:, :3]).logits, model(ids[:, 3:]).logits], dim=1)
        close(model(ids, segment_ids=segments).logits, alone)
        return
    with pytest.raises(ValueError, match=rf"Model \({kind}\).*cannot keep the segments of a packed row apart"):
        model(ids, segment_ids=segments)
    assert model.training and all(module.training for module in model.modules())
    # One example per row is fine.
    assert model(row(2, 0, 3), tiles(1)).logits.shape == (1, 9, 64)


def test_segments_refuse_a_filled_cache_and_generation():
    for kind in ("mm1_text", "llama"):
        model = build(kind)
        ids, segments = row(6), torch.tensor([[1, 1, 1, 2, 2, 2]])
        cache = model(ids, use_cache=True).past_key_values
        with pytest.raises(ValueError, match="past_key_values holds 6 tokens"):
            model(ids, segment_ids=segments, past_key_values=cache)
        with pytest.raises(ValueError, match="refuses segment_ids"):
            model.generate(ids, segment_ids=segments, max_new_tokens=2)


# Generation


def answer(model, input_ids, pixel_values=None, **kwargs) -> torch.Tensor:
    kwargs = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, **kwargs}
    output = model.generate(input_ids=input_ids, pixel_values=pixel_values, **kwargs)
    return output[:, input_ids.shape[1] :]


@pytest.mark.parametrize("kind", ["mm1_text", "mistral", "gemma3_text"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_batched_generation_equals_single(kind, num_beams):
    model = build(kind)
    prompts = [row(2, 0, 3, 0, 1), row(5), row(0, 3)]
    pixels = [tiles(3)[:2], None, tiles(3)[2:]]
    alone = [answer(model, prompt, pixel, num_beams=num_beams) for prompt, pixel in zip(prompts, pixels, strict=True)]
    batch = torch.cat([F.pad(prompt, (14 - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.cat([F.pad(torch.ones_like(prompt), (14 - prompt.shape[1], 0)) for prompt in prompts])
    together = answer(model, batch, tiles(3), attention_mask=mask, num_beams=num_beams)
    assert torch.equal(together, torch.cat(alone))
    # The answers hang on the images, or the comparison says little.
    assert not torch.equal(answer(model, prompts[0], tiles(2, seed=11)), answer(model, prompts[0], tiles(2, seed=12)))


@pytest.mark.parametrize("fields", [{}, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("cache", [{"cache_implementation": "static"}, {"use_cache": False}])
def test_the_cache_changes_nothing(fields, cache):
    model = build(**fields)
    prompt = row(2, 0, 3, 0, 1)
    assert torch.equal(answer(model, prompt, tiles(2), **cache), answer(model, prompt, tiles(2)))


def test_images_are_encoded_once_in_generate():
    model = build()
    calls = []
    model.model.vision_tower.register_forward_hook(lambda *_: calls.append(1))
    answer(model, row(2, 0, 3), tiles(1))
    assert len(calls) == 1


# Weights on disk


def same_weights(model, other) -> None:
    expected, got = model.state_dict(), other.state_dict()
    assert got.keys() == expected.keys()
    assert all(torch.equal(got[name], expected[name]) for name in expected)


@pytest.mark.parametrize("vision", ["clip", "dinov2-registers"])
@pytest.mark.parametrize("kind", ["mm1_text", "gpt_neox", "gemma3_text"])
@pytest.mark.parametrize("tied", [False, True])
def test_save_and_load_is_bit_equal(vision, kind, tied, tmp_path):
    model = build(kind, vision, tie_word_embeddings=tied, top={"lm_head_bias": True, "vision_feature_norm": True})
    model.save_pretrained(tmp_path)
    again, loading = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    same_weights(model, again)
    assert (again.lm_head.weight is again.get_input_embeddings().weight) == tied
    base, loading = MM1Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"]
    same_weights(model.model, base)
    # Tensors mapped from a file lie at other addresses, where matrix products round differently.
    close(again(**mixed_batch()).logits, model(**mixed_batch()).logits)


@pytest.mark.parametrize("vision", ["clip", "aimv2", "dinov2-registers"])
def test_copies_and_pickles_are_the_same_model(vision):
    model = build(vision=vision, **SPARSE)
    batch = {**mixed_batch(), "pixel_values": tiles(3, 112)}
    expected = model(**batch).logits
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(**batch).logits, expected)


def test_initial_weights_are_the_declared_ones():
    torch.manual_seed(0)
    config = build(connector={"connector_type": "c_abstractor", "initializer_range": 0.1}).config
    table = MM1Model(config).connector.position_embedding
    assert 0.07 < table.std() < 0.11 and table.abs().max() > 0
    config.connector_config.connector_type = "attention"
    config.connector_config.num_attention_heads = 4
    assert 0.07 < MM1Model(config).connector.queries.std() < 0.11
