"""
Trains small MM1s on rows of several images, with names that change and names that stay, and on single images, and measures
which of them learn a name from a demonstration's picture. benchmarks/README.md has the results.

    python examples/few_shot_names.py --fashion fashion/usr/share/datasets/fashion-mnist --output few-shot

A question shows a picture and asks for the name of its class. Names are made up and drawn anew for every question, so
that only the demonstrations can tell them, and only their pictures tell which of two names is right: whoever reads the
names alone is right in half of the cases. The same questions are asked with the demonstrations' pictures shuffled and
dropped. All classes of the test are held out from training, and the clothes of Fashion-MNIST are not even drawings.

- *several images*: each row of training is one document with pictures of two to six classes, whose names are drawn for
  this document.
- *several images, fixed names*: the same rows, but each class has one name, as in captions. So it differs from the first
  in the names alone, and from the next one in the rows alone.
- *single images*: a row holds as many documents of one picture, packed. Each class has one name.

All have the same number of rows, images and tokens, the same encoder (the quickstart's, frozen, so that its features
are computed once) and the same initial weights for a seed. The decoder is new and has two layers. A decoder that was
trained on text can already copy what followed something similar; a new one would need long to find that out. So its
first layer starts with attention to recent tokens, its second with attention to similar ones (after Trockman and
Kolter, Mimetic Initialization of Self-Attention Layers, 2023). The untrained model is measured too.

Install the parts first: pip install --no-deps -r parts.txt, and pip install matplotlib for the chart. Fashion-MNIST is
the Debian package dataset-fashion-mnist; the script says how to get it.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from functools import wraps
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from few_shot_pictures import PIXELS, VIEWS, Drawing, as_png, clothes, drawings
from few_shot_questions import CONTROLS, MOST_SHOTS, Question, questions, subject
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast
from transformers.modeling_outputs import BaseModelOutputWithPooling

import mm1_hf
from mm1_hf.evaluation.cells import EvaluationSettings
from mm1_hf.evaluation.environment import environment
from mm1_hf.evaluation.models import MM1LocalModel
from mm1_hf.evaluation.results import read_rows
from mm1_hf.evaluation.runner import evaluate
from mm1_hf.evaluation.statistics import standard_error
from mm1_hf.model.vision import encode
from mm1_hf.quickstart.embedded_parts import load_vision_encoder
from mm1_hf.training.parts import freeze


# One token each, so that a name is right or wrong as a whole.
NAMES = ["".join(parts) for parts in product(("ba", "do", "fi", "gu", "ke", "lo", "mi", "nu"), repeat=2)]
# The settings were chosen with the classes before the first one of the test.
TRAINING_CLASSES, FIRST_TEST_CLASS, TEST_CLASSES = 1200, 1350, 100
TEST_PICTURES_OF_CLOTHES = 12
ARMS = ("several images", "several images, fixed names", "single images")
WIDTH, LAYERS, HEADS = 64, 2, 4
ROWS, IMAGES, CLASSES = 32, 12, (2, 6)
LEARNING_RATE, WARMUP, DECAY = 4e-3, 50, 0.3
CONFIDENCE = 1.96


def made_up_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer in which each name is one token together with the space before it."""
    tokens = ["<eos>", "<unknown>", "\n", " ", *(f" {name}" for name in NAMES)]
    tokenizer = Tokenizer(
        models.WordLevel({token: index for index, token in enumerate(tokens)}, unk_token="<unknown>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[a-z]+|\s"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unknown>", pad_token="<eos>"
    )


@torch.no_grad()
def new_decoder() -> mm1_hf.MM1TextForCausalLM:
    """A small decoder whose first layer attends to recent tokens, and whose last one attends to similar tokens."""
    tokenizer = made_up_tokenizer()
    decoder = mm1_hf.MM1TextForCausalLM(
        mm1_hf.MM1TextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=256,
            initializer_range=WIDTH**-0.5,
            attention_bias=True,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    layers: Any = decoder.model.layers
    first, last = layers[0].self_attn, layers[-1].self_attn
    for attention in (first, last):
        attention.o_proj.weight.copy_(attention.v_proj.weight.T)
    last.k_proj.weight.copy_(last.q_proj.weight)
    for projection in (first.q_proj, first.k_proj):
        projection.weight.mul_(0.1)
        projection.bias.fill_(1.0)
    return decoder


@torch.no_grad()
def whiten(model: mm1_hf.MM1ForConditionalGeneration, features: torch.Tensor) -> None:
    """
    Initialises the connector with the principal components of the training pictures' features, each with the same
    variance, so that a few strong ones do not hide what distinguishes the pictures.
    """
    rows = features.flatten(0, -2)
    _, lengths, components = torch.linalg.svd(rows, full_matrices=False)
    rotation, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH))
    scale = model.config.text_config.initializer_range * len(rows) ** 0.5
    projection: Any = model.model.connector.projection
    projection.weight.copy_(rotation @ (components[:WIDTH] / lengths[:WIDTH, None]) * scale)
    projection.bias.zero_()


@torch.no_grad()
def subtract(model: mm1_hf.MM1ForConditionalGeneration, mean: torch.Tensor) -> None:
    """Lets the connector, which was trained on features without their mean, subtract this mean itself."""
    projection: Any = model.model.connector.projection
    projection.bias.sub_(projection.weight @ mean)


def new_model(seed: int, features: torch.Tensor | None = None) -> tuple[Any, Any]:
    """
    A model and its processor: one token for each picture.

    Args:
        seed: seed of the new weights.
        features:
            `(classes, views, 1, width)` of the training pictures, without their mean. Unset, the connector stays
            random.
    """
    torch.manual_seed(seed)
    model, processor = mm1_hf.assemble(
        load_vision_encoder(),
        new_decoder(),
        mm1_hf.MM1ConnectorConfig(connector_type="average", num_tokens=1),
        tokenizer=made_up_tokenizer(),
        image_size=PIXELS,
        vision_feature_layer=-2,
        dtype=torch.float32,
        verbose=False,
    )
    processor.image_processor.image_splitting = "none"
    freeze(model, ["encoder"])
    if features is not None:
        whiten(model, features)
    return model, processor


@torch.no_grad()
def encoded(model: Any, processor: Any, classes: Sequence[Drawing]) -> torch.Tensor:
    """`(classes, views, 1, width)`: the mean patch feature of each picture, of which the connector makes its token."""
    rows = []
    for drawing in tqdm(classes, desc="encoding", unit="drawing"):
        pixels = processor.image_processor([[view] for view in drawing.views()], return_tensors="pt")["pixel_values"]
        _, patches = encode(model.model.vision_tower, pixels, final_norm=model.config.vision_feature_norm)
        rows.append(patches.mean(1, keepdim=True))
    return torch.stack(rows)


def remember(encoder: torch.nn.Module) -> torch.nn.Module:
    """Makes the frozen encoder keep what it computed, so that all models together encode each test picture once."""
    known: dict[bytes, Any] = {}
    compute = encoder.forward

    @wraps(compute)
    def forward(pixel_values: torch.Tensor, **settings: Any) -> Any:
        key = hashlib.sha256(pixel_values.numpy().tobytes()).digest()
        if key not in known:
            known[key] = compute(pixel_values, **settings)
        return known[key]

    encoder.forward = forward
    return encoder


def draw_row(arm: str, classes: int, draw: random.Random) -> list[tuple[int, int, str]]:
    """Class, view and name of the pictures of a row."""
    if arm == "single images":
        chosen = draw.choices(range(classes), k=IMAGES)
        return [(each, draw.randrange(VIEWS), NAMES[each % len(NAMES)]) for each in chosen]
    number = draw.randint(*CLASSES)
    if arm == "several images":
        named = list(zip(draw.sample(range(classes), number), draw.sample(NAMES, number), strict=True))
    else:
        # No two classes of a row have the same name here either.
        places = draw.sample(range(min(classes, len(NAMES))), number)
        named = [(draw.choice(range(place, classes, len(NAMES))), NAMES[place]) for place in places]
    return draw.sample([(each, view, name) for each, name in named for view in range(VIEWS)], IMAGES)


def train(model: Any, processor: Any, features: torch.Tensor, arm: str, steps: int, seed: int) -> float:
    """Trains on features without their mean. Returns the mean loss of the last tenth of the steps."""
    draw = random.Random(seed)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1.0, (steps - step) / (DECAY * steps))
    )
    image = processor.image_token_id
    losses = []
    model.train()
    for _ in tqdm(range(steps), desc=f"{arm}, seed {seed}", unit="step"):
        rows = [draw_row(arm, len(features), draw) for _ in range(ROWS)]
        texts = ["".join(f"{processor.image_token} {name}\n" for _, _, name in row) for row in rows]
        ids = processor.tokenizer(texts, return_tensors="pt").input_ids
        shown = torch.stack([features[each, view] for row in rows for each, view, _ in row])
        # A document of one picture must not see those before it in its row.
        segments = (ids == image).cumsum(1) if arm == "single images" else torch.ones_like(ids)
        tokens = BaseModelOutputWithPooling(pooler_output=model.model.connector(shown))
        loss = model(
            input_ids=ids,
            labels=ids.masked_fill(ids == image, -100),
            segment_ids=segments,
            mm_encoder_outputs={"image": tokens},
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return fmean(losses[-max(1, steps // 10) :])


def measure(model: Any, processor: Any, asked: dict[str, list[Question]], folder: Path) -> dict[str, list[float]]:
    """The score of each question, by pictures, control and number of demonstrations."""
    subjects = [subject(name, each, control) for name, each in asked.items() for control in CONTROLS]
    groups = tuple(shots for shots in (0, 1, 2, 4) if shots <= MOST_SHOTS)
    evaluate(MM1LocalModel(model, processor, batch_size=64), subjects, EvaluationSettings(shots=groups), folder)
    scores: dict[str, list[float]] = {}
    for row in read_rows(folder):
        # A group of the runner is one demonstration of each of the two classes.
        scores.setdefault(f"{row['task']}, {2 * row['shots']} shots", []).append(row["score"])
    return scores


def summary(by_seed: dict[int, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """The mean over seeds, with its 95 % interval over questions, and the score of each seed."""
    result = {}
    for name in next(iter(by_seed.values())):
        means = [fmean(scores) for scores in zip(*(scores[name] for scores in by_seed.values()), strict=True)]
        half = CONFIDENCE * standard_error(means)
        result[name] = {
            "score": fmean(means),
            "interval": [max(0.0, fmean(means) - half), min(1.0, fmean(means) + half)],
            "by_seed": {str(seed): fmean(scores[name]) for seed, scores in by_seed.items()},
        }
    return result


def chart(scores: dict[str, dict[str, dict[str, Any]]], pictures: Sequence[str], path: Path) -> None:
    """Draws the scores over the number of demonstrations, one panel for each set of pictures."""
    import matplotlib.pyplot as plt

    lines = [
        ("several images", "as they are", "#0b6e99", "-"),
        ("several images", "shuffled", "#0b6e99", "--"),
        ("several images", "dropped", "#0b6e99", ":"),
        ("several images, fixed names", "as they are", "#7a4fa3", "-"),
        ("single images", "as they are", "#c4501b", "-"),
        ("untrained", "as they are", "#777777", "-"),
    ]
    figure, panels = plt.subplots(1, len(pictures), figsize=(5.4 * len(pictures), 4.2), sharey=True, squeeze=False)
    shots = [0, 2, 4, 8]
    for panel, name in zip(panels[0], pictures, strict=True):
        for offset, (arm, control, colour, style) in enumerate(lines):
            found = [scores[arm][f"{name}, pictures {control}, {each} shots"] for each in shots]
            values = [100 * each["score"] for each in found]
            errors = [100 * (each["interval"][1] - each["score"]) for each in found]
            label = f"{arm}" + ("" if control == "as they are" else f", shots' pictures {control}")
            # Moved apart, so that the intervals of equal scores do not cover each other.
            places = [place + 0.04 * (offset - 2.5) for place in range(len(shots))]
            panel.errorbar(places, values, errors, color=colour, linestyle=style, marker="o", capsize=3, label=label)
        panel.axhline(50, color="#999999", linewidth=0.8)
        panel.text(-0.2, 52, "a guess between the two", color="#666666", fontsize=7)
        panel.set(title=name, xlabel="demonstrations", ylim=(-3, 103), xticks=range(len(shots)), xticklabels=shots)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("right names, %")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="lower center", ncol=3, frameon=False, fontsize=8)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion", type=Path, required=True, help="folder with the files of Fashion-MNIST")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs, the results and the chart")
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each model (default: 1000)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: 3)")
    parser.add_argument("--questions", type=int, default=250, help="questions of each set of pictures (default: 250)")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    classes = drawings()
    held_out = classes[FIRST_TEST_CLASS : FIRST_TEST_CLASS + TEST_CLASSES]
    asked = {
        "OpenMoji": questions(
            [[as_png(view) for view in drawing.views()] for drawing in held_out], NAMES, options.questions
        ),
        "Fashion-MNIST": questions(
            [[as_png(each) for each in some] for some in clothes(options.fashion, TEST_PICTURES_OF_CLOTHES)],
            NAMES,
            options.questions,
        ),
    }
    kept = options.output / "features.pt"
    if not kept.exists():
        torch.save(encoded(*new_model(0), classes[:TRAINING_CLASSES]), kept)
    features = torch.load(kept)
    # What all pictures share is much larger than what distinguishes them: with it, a connector does not learn (loss
    # 1.30 after 2,400 steps, against 1.08 after 600 without it).
    mean = features.mean((0, 1, 2))
    features -= mean

    encoder = remember(new_model(0)[0].model.vision_tower)
    scores: dict[str, dict[int, dict[str, list[float]]]] = {arm: {} for arm in ("untrained", *ARMS)}
    losses: dict[str, dict[int, float]] = {arm: {} for arm in ARMS}
    results: dict[str, Any] = {}
    for seed in range(options.seeds):
        for arm in scores:
            if arm == "untrained" and seed:
                continue
            model, processor = new_model(seed, features)
            model.model.vision_tower = encoder
            if arm in ARMS:
                losses[arm][seed] = train(model, processor, features, arm, options.steps, seed)
            subtract(model, mean)
            folder = options.output / f"{arm} {seed}".replace(" ", "-")
            scores[arm][seed] = measure(model.eval(), processor, asked, folder)
        results = {
            "what": "share of made-up names that are right; the demonstrations show two classes in turn",
            "interval": "95 %, over questions, of the mean over seeds",
            "seeds": seed + 1,
            "steps": options.steps,
            "rows_per_step": ROWS,
            "images_per_row": IMAGES,
            "tokens": options.steps * ROWS * IMAGES * 3,
            "training_classes": len(features),
            "test_classes": len(held_out),
            "questions": options.questions,
            "parameters_trained": sum(each.numel() for each in model.parameters() if each.requires_grad),
            "final_loss": losses,
            "scores": {arm: summary(by_seed) for arm, by_seed in scores.items()},
            "environment": environment(),
        }
        # After each seed, so that a run that is stopped leaves what it has.
        (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        chart(results["scores"], list(asked), options.output / "few_shot_names.png")
    for arm, found in results["scores"].items():
        for name, score in found.items():
            low, high = score["interval"]
            print(f"{arm:<16} {name:<52} {100 * score['score']:5.1f} %  ({100 * low:.1f} to {100 * high:.1f})")


if __name__ == "__main__":
    main()
