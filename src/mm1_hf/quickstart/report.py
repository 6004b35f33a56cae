"""Writes the quickstart's report as one self-contained HTML page."""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mm1_hf.accounting.parameters import ParameterCount
from mm1_hf.reporting.page import data_uri, encoded_uri, write_html


@dataclass(frozen=True)
class KindAccuracy:
    """Shares of right answers (0 to 1) to one kind of question."""

    model: float
    shuffled: float
    """Share of the same model when every question is asked about a wrong image."""
    majority: float
    """Share reached by always giving the most frequent answer of the training split."""
    count: int


@dataclass(frozen=True)
class Example:
    """A held-out picture with a question, the model's answer and the right answer."""

    image: Image.Image
    question: str
    answer: str
    expected: str


@dataclass(frozen=True)
class QuickstartResults:
    """Everything that the report shows."""

    parameters: ParameterCount
    accuracies: dict[str, KindAccuracy]
    losses: Sequence[tuple[int, float]]
    examples: Sequence[Example]
    seconds: dict[str, float]
    environment: dict[str, str]
    model_dir: str


def write_results(path: Path, results: QuickstartResults) -> None:
    """
    Writes the figures of the report as JSON.

    Args:
        path: where to write the file.
        results: what the report shows.
    """
    figures = {
        "accuracies": {kind: asdict(accuracy) for kind, accuracy in results.accuracies.items()},
        "losses": list(results.losses),
        "seconds": results.seconds,
        "environment": results.environment,
    }
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def write_report(path: Path, results: QuickstartResults) -> None:
    """Writes the report as one self-contained HTML file."""
    overall = results.accuracies["overall"]
    sections = [
        f"<h1>An MM1 that sees</h1>\n{_introduction(overall)}",
        f"<h2>Accuracy on held-out pictures</h2>\n{_accuracies(results.accuracies)}",
        f"<h2>Examples from the held-out pictures</h2>\n{_gallery(results.examples)}",
        f"<h2>Training</h2>\n{_loss_curve(results.losses)}",
        f"<h2>Parts</h2>\n{_parts(results.parameters)}",
        f"<h2>Next steps</h2>\n{_next_steps(results.model_dir)}",
        f"<h2>This run</h2>\n{_run(results.seconds, results.environment)}",
    ]
    write_html(path, "MM1 quickstart", sections, _STYLE)


def _introduction(overall: KindAccuracy) -> str:
    return (
        f'<p class="lead">This model gives the right answer to {overall.model:.1%} of {overall.count:,} questions '
        "about pictures that it was not trained on. With the images shuffled among the questions, the share is "
        f"{overall.shuffled:.1%}: the difference comes from seeing the right image.</p>\n"
        "<p>It was assembled from a DINOv2 image encoder and the decoder SmolLM2-135M-Instruct, with a new "
        "C-Abstractor between them, and fine-tuned on easy-VQA with LoRA. Each picture of easy-VQA shows one coloured "
        "shape, and only 24 pairs of shape and colour exist. So the result shows that the whole pipeline works, from "
        "pixels to words; it says nothing about how well vision-language models understand real photographs.</p>"
    )


def _accuracies(accuracies: dict[str, KindAccuracy]) -> str:
    rows = []
    for kind, accuracy in accuracies.items():
        bars = "".join(
            f'<div class="bar {name}" style="width:{share:.1%}"></div>'
            for name, share in (
                ("model", accuracy.model),
                ("shuffled", accuracy.shuffled),
                ("majority", accuracy.majority),
            )
        )
        rows.append(
            f'<tr><th scope="row">{escape(kind)}</th><td>{accuracy.model:.1%}</td><td>{accuracy.shuffled:.1%}</td>'
            f'<td>{accuracy.majority:.1%}</td><td>{accuracy.count:,}</td><td class="bars">{bars}</td></tr>'
        )
    return (
        '<table class="accuracies">\n<thead><tr><th scope="col">questions</th>'
        f'<th scope="col">{_key("model", "this")} model</th><th scope="col">{_key("shuffled", "images")} shuffled</th>'
        f'<th scope="col">{_key("majority", "most")} frequent answer</th><th scope="col">number</th>'
        f'<td class="bars"></td></tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table>'
    )


def _key(name: str, word: str) -> str:
    """The colour of a bar before the first word of its heading, from which no line break parts it."""
    return f'<span class="name"><span class="key {name}"></span>{word}</span>'


def _gallery(examples: Sequence[Example]) -> str:
    figures = []
    for example in examples:
        right = example.answer == example.expected
        verdict = "&#10003; right" if right else f"&#10007; wrong, it is <b>{escape(example.expected)}</b>"
        figures.append(
            f'<figure class="{"right" if right else "wrong"}">'
            f'<img src="{data_uri(example.image)}" alt="{escape(example.question)}" width="160" height="160">'
            f"<figcaption>{escape(example.question)}<br><b>{escape(example.answer) or '&hellip;'}</b> "
            f'<span class="verdict">{verdict}</span></figcaption></figure>'
        )
    return (
        "<p>The examples are spread evenly over the held-out questions. Wrong answers come last; their share here is "
        "not the model's error rate.</p>\n"
        f'<div class="gallery">\n{chr(10).join(figures)}\n</div>'
    )


def _loss_curve(losses: Sequence[tuple[int, float]]) -> str:
    """An image of the training loss over the steps, on a logarithmic scale."""
    # Imported here because only the report needs matplotlib.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "mm1"}):
        # Small, so that its text can still be read where the page is as narrow as a phone.
        figure = Figure(figsize=(6.4, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([step for step, _ in losses], [loss for _, loss in losses], color="#3b6fd4", linewidth=1.5)
        axes.set(xlabel="training step", ylabel="loss (nats per answer token)", yscale="log")
        axes.grid(color="#8884", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    uri = encoded_uri("image/svg+xml", buffer.getvalue())
    return f'<img class="chart" src="{uri}" alt="Training loss over steps">'


def _parts(parameters: ParameterCount) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{count.parameters:,}</td><td>{count.trainable:,}</td></tr>'
        for name, count in parameters.parts()
    )
    total = parameters.total
    return (
        '<div class="scroll"><table>\n<thead><tr><th scope="col">part</th><th scope="col">parameters</th>'
        f'<th scope="col">trained</th></tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        f'<tfoot><tr><th scope="row">total</th><td>{total.parameters:,}</td><td>{total.trainable:,}</td></tr></tfoot>'
        "\n</table></div>"
    )


def _next_steps(model_dir: str) -> str:
    question = "What shape is in the image?"
    command = f'mm1 ask --model {model_dir} --image FILE "{question}"'
    code = f"""\
import mm1_hf  # registers MM1 with transformers
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

model = AutoModelForImageTextToText.from_pretrained({model_dir!r}, dtype="auto")
processor = AutoProcessor.from_pretrained({model_dir!r})
picture = {{"type": "image", "image": Image.open("FILE")}}
chat = [{{"role": "user", "content": [picture, {{"type": "text", "text": "{question}"}}]}}]
inputs = processor.apply_chat_template(
    chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
).to(model.device, model.dtype)
tokens = model.generate(**inputs, max_new_tokens=8)
print(processor.decode(tokens[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
    return (
        f"<p>Ask the model about a picture:</p>\n<pre>{escape(command)}</pre>\n"
        f"<p>Or from Python:</p>\n<pre>{escape(code)}</pre>\n"
        "<p>For real photographs, assemble an MM1 from a larger encoder and a larger decoder "
        "(<code>mm1_hf.assemble</code>) and train it on your data.</p>"
    )


def _run(seconds: dict[str, float], environment: dict[str, str]) -> str:
    rows = [(name, f"{value:,.0f} s") for name, value in seconds.items()] + list(environment.items())
    cells = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table>\n<tbody>\n{cells}\n</tbody>\n</table></div>'


_STYLE = """\
:root { --model: #3b6fd4; --shuffled: #c9793a; --majority: #9aa3b0; --right: #1f7a45; --wrong: #b3372f; }
@media (prefers-color-scheme: dark) {
  :root { --model: #7aa2f0; --shuffled: #e0a068; --majority: #6d7684; --right: #6fcf97; --wrong: #f08a80; }
  .chart { filter: invert(0.9) hue-rotate(180deg); } }
main { max-width: 58rem; }
h1 { font-size: 2.1rem; line-height: 1.2; }
p { max-width: 44rem; margin: 0 0 0.9rem; }
.lead { font-size: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 1.1rem 0.4rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: middle; }
th:first-child { text-align: left; font-weight: 600; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
.accuracies thead th { white-space: nowrap; }
.bars { width: 14rem; }
.bar { height: 6px; margin: 2px 0; border-radius: 2px; }
.name { white-space: nowrap; }
.key { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px; margin-right: 0.4em; }
.model { background: var(--model); } .shuffled { background: var(--shuffled); } .majority { background: var(--majority); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1.25rem; }
figure img { display: block; width: 100%; max-width: 10rem; height: auto; aspect-ratio: 1; image-rendering: pixelated;
  border-radius: 4px; border: 1px solid var(--line); }
figcaption { font-size: 0.88rem; line-height: 1.4; margin-top: 0.4rem; }
.verdict { white-space: nowrap; } .right .verdict { color: var(--right); } .wrong .verdict { color: var(--wrong); }
.chart { display: block; width: 100%; max-width: 40rem; height: auto; }
pre { background: var(--panel); padding: 0.9rem 1rem; border-radius: 6px; overflow-x: auto; font-size: 0.85rem;
  line-height: 1.5; }
code { background: var(--panel); padding: 0.1em 0.3em; border-radius: 4px; font-size: 0.92em; }
@media (max-width: 60rem) {
  .accuracies { display: grid; grid-template-columns: repeat(5, auto); }
  .accuracies :is(thead, tbody, tr) { display: grid; grid-column: 1 / -1; grid-template-columns: subgrid; }
  .accuracies tr { align-items: end; border-bottom: 1px solid var(--line); }
  .accuracies :is(th, td) { border-bottom: 0; }
  .accuracies thead th { white-space: normal; }
  .accuracies td:nth-child(5), .accuracies th:nth-child(5) { padding-right: 0; }
  .bars { grid-column: 1 / -1; width: auto; padding-top: 0; }
  thead .bars { display: none; } }
@media (max-width: 44rem) { th, td { padding-right: 0.6rem; font-size: 0.88rem; } }"""
