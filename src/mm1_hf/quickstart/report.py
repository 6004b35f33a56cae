"""The quickstart's report: one HTML page that needs nothing beside itself."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from mm1_hf.accounting.parameters import ParameterCount
from mm1_hf.reporting.page import write_html


@dataclass(frozen=True)
class KindAccuracy:
    """Shares of right answers, 0 to 1, to one kind of question."""

    model: float
    shuffled: float
    """By the same model with another picture in place of the right one."""
    majority: float
    """By always giving the most frequent answer of the training split."""
    count: int


@dataclass(frozen=True)
class Example:
    """A held-out picture with a question, the model's answer and the right one."""

    image: Image.Image
    question: str
    answer: str
    expected: str


@dataclass(frozen=True)
class QuickstartResults:
    """All that the report tells."""

    parameters: ParameterCount
    accuracies: dict[str, KindAccuracy]
    losses: Sequence[tuple[int, float]]
    examples: Sequence[Example]
    seconds: dict[str, float]
    environment: dict[str, str]
    model_dir: str


def write_report(path: Path, results: QuickstartResults) -> None:
    """Writes the report as one self-contained HTML file."""
    overall = results.accuracies["overall"]
    sections = [
        f"<h1>An MM1 that sees</h1>\n{_introduction(overall)}",
        f"<h2>Right answers on held-out pictures</h2>\n{_accuracies(results.accuracies)}",
        f"<h2>Pictures it had not seen</h2>\n{_gallery(results.examples)}",
        f"<h2>Training</h2>\n{_loss_curve(results.losses)}",
        f"<h2>Parts</h2>\n{_parts(results.parameters)}",
        f"<h2>How to go on</h2>\n{_how_to_go_on(results.model_dir)}",
        f"<h2>This run</h2>\n{_run(results.seconds, results.environment)}",
    ]
    body = "\n".join(f"<section>\n{section}\n</section>" for section in sections)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_html(path, "MM1 quickstart", _STYLE, body)


def _introduction(overall: KindAccuracy) -> str:
    return (
        f'<p class="lead">This model answers {overall.model:.1%} of {overall.count:,} questions about pictures that it was '
        f"not trained on. With the pictures shuffled it answers {overall.shuffled:.1%}: the difference is what it sees."
        "</p>\n"
        "<p>It was put together from a DINOv2 image encoder and the decoder SmolLM2-135M-Instruct, with a new C-Abstractor "
        "between them, and fine-tuned on easy-VQA with LoRA. easy-VQA draws one coloured shape per picture, and only 24 "
        "pairs of shape and colour exist. So this shows that the whole way works, from pixels to words; it is no result "
        "about vision-language models.</p>"
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
        '<div class="scroll"><table>\n<thead><tr><th scope="col">questions</th>'
        '<th scope="col"><span class="key model"></span>this model</th>'
        '<th scope="col"><span class="key shuffled"></span>pictures shuffled</th>'
        '<th scope="col"><span class="key majority"></span>most frequent answer</th>'
        f'<th scope="col">number</th><td></td></tr></thead>\n<tbody>\n{chr(10).join(rows)}\n</tbody>\n</table></div>'
    )


def _gallery(examples: Sequence[Example]) -> str:
    figures = []
    for example in examples:
        right = example.answer == example.expected
        verdict = "&#10003; right" if right else f"&#10007; wrong, it is <b>{escape(example.expected)}</b>"
        figures.append(
            f'<figure class="{"right" if right else "wrong"}">'
            f'<img src="{_data_uri(example.image)}" alt="{escape(example.question)}" width="160" height="160">'
            f"<figcaption>{escape(example.question)}<br><b>{escape(example.answer) or '&hellip;'}</b> "
            f'<span class="verdict">{verdict}</span></figcaption></figure>'
        )
    return (
        "<p>Spread evenly over the test; wrong answers come last and are shown more often than they occur.</p>\n"
        f'<div class="gallery">\n{chr(10).join(figures)}\n</div>'
    )


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _loss_curve(losses: Sequence[tuple[int, float]]) -> str:
    """The training loss over steps as a line on a logarithmic scale, drawn with matplotlib."""
    # Only the report draws.
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "svg.hashsalt": "mm1"}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.add_subplot()
        axes.plot([step for step, _ in losses], [loss for _, loss in losses], color="#3b6fd4", linewidth=1.5)
        axes.set(xlabel="training step", ylabel="loss (nats per answer token)", yscale="log")
        axes.grid(color="#8884", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img class="chart" src="data:image/svg+xml;base64,{encoded}" alt="Training loss over steps">'


def _parts(parameters: ParameterCount) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{count.parameters:,}</td><td>{count.trainable:,}</td></tr>'
        for name, count in parameters.parts()
    )
    total = parameters.total
    return (
        '<div class="scroll"><table>\n<thead><tr><th scope="col">part</th><th scope="col">parameters</th>'
        f'<th scope="col">trained</th></tr></thead>\n<tbody>\n{rows}\n</tbody>\n'
        f'<tfoot><tr><th scope="row">together</th><td>{total.parameters:,}</td><td>{total.trainable:,}</td></tr></tfoot>'
        "\n</table></div>"
    )


def _how_to_go_on(model_dir: str) -> str:
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
        f"<p>Ask it about a picture:</p>\n<pre>{escape(command)}</pre>\n<p>Or from Python:</p>\n<pre>{escape(code)}</pre>\n"
        "<p>For pictures of the world, assemble an MM1 from an encoder and a decoder of that size "
        "(<code>mm1_hf.assemble</code>) and train it on your data.</p>"
    )


def _run(seconds: dict[str, float], environment: dict[str, str]) -> str:
    rows = [(name, f"{value:,.0f} s") for name, value in seconds.items()] + list(environment.items())
    cells = "\n".join(f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>' for name, value in rows)
    return f'<div class="scroll"><table>\n<tbody>\n{cells}\n</tbody>\n</table></div>'


_STYLE = """\
:root { color-scheme: light dark; --text: #1d2430; --muted: #5c6675; --page: #fbfbfc; --panel: #eef1f5; --line: #d5dae2;
  --model: #3b6fd4; --shuffled: #c9793a; --majority: #9aa3b0; --right: #1f7a45; --wrong: #b3372f; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e9ee; --muted: #a0a9b8; --page: #15181d; --panel: #20252d; --line: #343b46;
    --model: #7aa2f0; --shuffled: #e0a068; --majority: #6d7684; --right: #6fcf97; --wrong: #f08a80; }
  .chart { filter: invert(0.9) hue-rotate(180deg); } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 58rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
section { margin-bottom: 2.75rem; }
h1 { font-size: 2.1rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 0 0 0.75rem; }
p { max-width: 44rem; margin: 0 0 0.9rem; }
.lead { font-size: 1.2rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 0.4rem 1.1rem 0.4rem 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: middle; }
th:first-child { text-align: left; font-weight: 600; }
thead th { color: var(--muted); font-weight: 500; vertical-align: bottom; }
tfoot th, tfoot td { font-weight: 600; border-bottom: 0; }
.bars { width: 14rem; min-width: 9rem; padding-right: 0; }
.bar { height: 6px; margin: 2px 0; border-radius: 2px; }
.key { display: inline-block; width: 0.7em; height: 0.7em; border-radius: 2px; margin-right: 0.4em; }
.model { background: var(--model); } .shuffled { background: var(--shuffled); } .majority { background: var(--majority); }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: 1.25rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; max-width: 10rem; height: auto; aspect-ratio: 1; image-rendering: pixelated;
  border-radius: 4px; border: 1px solid var(--line); }
figcaption { font-size: 0.88rem; line-height: 1.4; margin-top: 0.4rem; }
.verdict { white-space: nowrap; } .right .verdict { color: var(--right); } .wrong .verdict { color: var(--wrong); }
.chart { display: block; width: 100%; max-width: 46rem; height: auto; }
pre { background: var(--panel); padding: 0.9rem 1rem; border-radius: 6px; overflow-x: auto; font-size: 0.85rem;
  line-height: 1.5; }
code { background: var(--panel); padding: 0.1em 0.3em; border-radius: 4px; font-size: 0.92em; }"""
