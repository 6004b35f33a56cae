"""
TRL's preference and reward trainers, as they are: every row is judged with its own images, though the tiles of a batch lie
flat. The oracle is each row alone, in text spelled out here.
"""

import copy
import re
from collections.abc import Sequence

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import byte_tokenizer, tiny_mm1, tiny_vision
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer

from mm1_hf import (
    MM1ConnectorConfig,
    MM1ForConditionalGeneration,
    MM1Processor,
    MM1TextConfig,
    MM1TextForCausalLM,
    assemble,
)
from mm1_hf.training.lora import lora_config


ANSWERS = ("It is noise.", "Much of it!", "No.")
# (width, height) of each prompt's images: one, two or none, of one tile or several.
IMAGE_SIZES = [[(56, 56)], [(150, 60), (40, 40)], [], [(60, 150), (120, 120)], [(40, 40)], [(56, 56), (50, 50)]]
BETA = 0.3


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    model, processor = tiny_mm1()
    # 1 to 5 tiles.
    processor.image_processor.image_splitting = "dynamic"
    processor.image_processor.min_tiles, processor.image_processor.max_tiles = 1, 4
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def images(prompt: int) -> list[Image.Image]:
    draw = np.random.default_rng(prompt)
    return [
        Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for width, height in IMAGE_SIZES[prompt]
    ]


def messages(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def rows(prompts: Sequence[int]) -> list[dict]:
    return [{"images": images(index), "prompt": messages("user", f"sample {index}?")} for index in prompts]


def arguments(config_class: type, folder, **fields):
    return config_class(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        bf16=False,
        use_cpu=True,
        beta=BETA,
        report_to="none",
        disable_tqdm=True,
        **fields,
    )


def prompt_text(prompt: int) -> str:
    places = "<image>" * len(IMAGE_SIZES[prompt])
    return f"<|im_start|>user\n{places}sample {prompt}?<|im_end|>\n<|im_start|>assistant\n"


def prompts_of(processor: MM1Processor, input_ids: torch.Tensor) -> list[int]:
    return [int(re.search(r"sample (\d)\?", text)[1]) for text in processor.batch_decode(input_ids)]


@torch.no_grad()
def scores(model, processor: MM1Processor, prompt: int, completion: list[int], pictures: list | None = None):
    """Log-probabilities of the vocabulary at each of a completion's tokens, of this row alone."""
    pictures = images(prompt) if pictures is None else pictures
    inputs = processor(images=[pictures] if pictures else None, text=[prompt_text(prompt)], return_tensors="pt")
    ids = torch.cat([inputs["input_ids"], torch.tensor([completion])], dim=1)
    # Through the class, since TRL puts a forward of its own on the instance.
    outputs = MM1ForConditionalGeneration.forward(model, ids, inputs.get("pixel_values"), use_cache=False)
    return outputs.logits[0, -len(completion) - 1 : -1].log_softmax(-1)


def logps(model, processor: MM1Processor, prompt: int, completion: list[int], **kwargs) -> torch.Tensor:
    """Those of the tokens themselves."""
    table = scores(model, processor, prompt, completion, **kwargs)
    return table.gather(1, torch.tensor(completion)[:, None]).squeeze(1)


def answer_ids(processor: MM1Processor, answer: str) -> list[int]:
    return processor.tokenizer(answer + "<|im_end|>\n", add_special_tokens=False)["input_ids"]


def answer_logps(model, processor: MM1Processor, prompts: list[int], answers: list[str]) -> torch.Tensor:
    """One sum per row."""
    pairs = zip(prompts, answers, strict=True)
    return torch.stack([logps(model, processor, prompt, answer_ids(processor, text)).sum() for prompt, text in pairs])


@torch.no_grad()
def move(model) -> None:
    """Takes the policy away from its reference."""
    torch.manual_seed(1)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(torch.randn_like(weight), alpha=0.02)


def test_the_oracle_sees_the_pictures(model_folder):
    model = MM1ForConditionalGeneration.from_pretrained(model_folder)
    processor = MM1Processor.from_pretrained(model_folder)
    completion = answer_ids(processor, ANSWERS[0])
    own = logps(model, processor, 0, completion).sum()
    others = logps(model, processor, 0, completion, pictures=images(4)).sum()
    assert (own - others).abs() > 1e-3, "far more than what the comparisons below let pass"


@pytest.mark.parametrize("adapted", [False, True], ids=["whole", "lora"])
def test_dpo_weighs_every_pair_with_its_own_images(adapted, model_folder, tmp_path):
    data = [
        {**row, "chosen": messages("assistant", ANSWERS[0]), "rejected": messages("assistant", ANSWERS[index % 2 + 1])}
        for index, row in enumerate(rows(range(len(IMAGE_SIZES))))
    ]
    # As given, it is its own reference while its adapter is off; by its folder, it is loaded a second time.
    base = MM1ForConditionalGeneration.from_pretrained(model_folder)
    trainer = DPOTrainer(
        model=base if adapted else model_folder,
        args=arguments(DPOConfig, tmp_path, max_length=None),
        train_dataset=datasets.Dataset.from_list(data),
        peft_config=lora_config(base, "decoder+connector", r=4) if adapted else None,
    )
    assert (trainer.ref_model is None) == adapted
    processor, trained = trainer.processing_class, trainer.model
    policy = trained.get_base_model() if adapted else trained
    reference = MM1ForConditionalGeneration.from_pretrained(model_folder)
    move(trained)
    seen = []
    for batch in trainer.get_train_dataloader():
        prompts = prompts_of(processor, batch["input_ids"])
        assert prompts[:2] == prompts[2:]
        prompts = prompts[:2]
        answers = [ANSWERS[0]] * 2, [ANSWERS[prompt % 2 + 1] for prompt in prompts]
        expected = [answer_logps(reference, processor, prompts, texts) for texts in answers]
        for given, wanted in zip(
            trainer.compute_ref_log_probs(trainer.ref_model or trained, batch), expected, strict=True
        ):
            torch.testing.assert_close(given, wanted, rtol=1e-5, atol=1e-4)
        ratios = [
            answer_logps(policy, processor, prompts, texts) - base
            for texts, base in zip(answers, expected, strict=True)
        ]
        loss = -F.logsigmoid(BETA * (ratios[0] - ratios[1])).mean()
        torch.testing.assert_close(trainer.compute_loss(trained, batch), loss, rtol=1e-4, atol=1e-4)
        seen += prompts
    assert sorted(seen) == list(range(len(IMAGE_SIZES)))


def test_kto_weighs_every_answer_with_its_own_images(model_folder, tmp_path):
    data = [
        {**row, "completion": messages("assistant", ANSWERS[index % 3]), "label": index % 2 == 0}
        for index, row in enumerate(rows(range(len(IMAGE_SIZES))))
    ]
    trainer = KTOTrainer(
        model=model_folder,
        args=arguments(KTOConfig, tmp_path, max_length=None),
        train_dataset=datasets.Dataset.from_list(data),
    )
    processor, policy, reference = trainer.processing_class, trainer.model, trainer.ref_model
    move(policy)
    for batch in trainer.get_train_dataloader():
        prompts = prompts_of(processor, batch["input_ids"])
        answers = [ANSWERS[prompt % 3] for prompt in prompts]

        def ratios(texts, prompts=prompts):
            first, second = (answer_logps(model, processor, prompts, texts) for model in (policy, reference))
            return first - second

        # The policy's distance from its reference, on each prompt with another's answer.
        distance = ratios(answers[-1:] + answers[:-1]).mean().clamp(min=0)
        sign = torch.tensor([1.0 if prompt % 2 == 0 else -1.0 for prompt in prompts])
        loss = (1 - torch.sigmoid(BETA * sign * (ratios(answers) - distance))).mean()
        torch.testing.assert_close(trainer.compute_loss(policy, batch), loss, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
@pytest.mark.parametrize(("prompts", "tiles"), [((0, 1, 2, 3), 13), ((0, 4, 5, 2), 4)], ids=["several", "one"])
def test_rewards_are_earned_with_one_s_own_images(method, prompts, tiles, model_folder, tmp_path):
    """Two completions per prompt, generated in one batch, shuffled and cut into four: each keeps its tiles."""
    trainer_class, config_class = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}[method]
    trainer = trainer_class(
        model=model_folder,
        reward_funcs=[lambda completions, **_: [float(len(turns[0]["content"])) for turns in completions]],
        args=arguments(
            config_class,
            tmp_path,
            num_generations=2,
            steps_per_generation=4,
            max_completion_length=6,
            generation_kwargs={"do_sample": False},
        ),
        train_dataset=datasets.Dataset.from_list(rows(prompts)),
    )
    processor, policy, reference = trainer.processing_class, trainer.model, trainer.ref_model
    move(policy.train())
    # As Trainer's loop does.
    trainer.current_gradient_accumulation_steps = 1
    trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    assert sum(len(part["pixel_values"]) for part in trainer._buffered_inputs) == 2 * tiles
    seen = []
    for part in trainer._buffered_inputs:
        of_part = prompts_of(processor, part["prompt_ids"])
        pictures = [images(prompt) for prompt in of_part]
        if any(pictures):
            texts = [prompt_text(prompt) for prompt in of_part]
            expected = processor(images=pictures, text=texts, padding=True, return_tensors="pt")["pixel_values"]
            assert torch.equal(part["pixel_values"], expected)
        for index, prompt in enumerate(of_part):
            tokens = part["completion_ids"][index][part["completion_mask"][index].bool()].tolist()
            table = scores(policy, processor, prompt, tokens)
            table[:, policy.config.image_token_id] = -torch.inf
            assert table.argmax(-1).tolist() == tokens, "generated with its own images"
            own = table.gather(1, torch.tensor(tokens)[:, None]).squeeze(1)
            if method == "rloo":
                torch.testing.assert_close(part["old_logps"][index], own.sum(), rtol=1e-4, atol=1e-4)
                continue
            base = logps(reference, processor, prompt, tokens)
            kept = slice(len(tokens))
            torch.testing.assert_close(part["old_per_token_logps"][index, kept], own, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(part["ref_per_token_logps"][index, kept], base, rtol=1e-4, atol=1e-4)
        assert torch.isfinite(trainer.compute_loss(policy, part))
        seen += of_part
    assert sorted(seen) == sorted([*prompts, *prompts])


@pytest.mark.parametrize("experts", [0, 4])
def test_the_own_decoder_s_experts_are_balanced_where_there_are_any(experts, tmp_path):
    torch.manual_seed(0)
    decoder = MM1TextForCausalLM(
        MM1TextConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_experts=experts,
            router_aux_loss_coef=0.5,
            eos_token_id=256,
        )
    )
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32)
    model, processor = assemble(tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), verbose=False)
    answers = {"chosen": messages("assistant", ANSWERS[0]), "rejected": messages("assistant", ANSWERS[1])}
    trainer = DPOTrainer(
        model=model,
        ref_model=copy.deepcopy(model),
        args=arguments(DPOConfig, tmp_path, max_length=None),
        train_dataset=datasets.Dataset.from_list([{**row, **answers} for row in rows((0, 1))]),
        processing_class=processor,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    balance = torch.tensor(0.0)
    if experts:
        inputs = {key: batch[key] for key in ("input_ids", "pixel_values", "attention_mask")}
        outputs = MM1ForConditionalGeneration.forward(model, **inputs, output_router_logits=True)
        balance = load_balancing_loss_func(outputs.router_logits, experts, 2, batch["attention_mask"])
    # Policy and reference are equal.
    expected = torch.tensor(2.0).log() + 0.5 * balance
    torch.testing.assert_close(trainer.compute_loss(model, batch), expected, rtol=1e-4, atol=1e-4)
