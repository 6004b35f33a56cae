"""
`vllm serve` answers OpenAI's own client with the tokens that transformers' `generate` gives, from a folder as this package
saves it. Where not said otherwise it runs the code in the folder, and this package is not loaded.
"""

import base64
import contextlib
import io
import os
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from openai import BadRequestError, OpenAI
from peft import PeftModel, get_peft_model
from PIL import Image
from tiny import DECODER_SIZES, byte_tokenizer, tiny_vision
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from mm1_hf import MM1ConnectorConfig, MM1ImageProcessor, MM1TextConfig, MM1TextForCausalLM, assemble
from mm1_hf.quickstart.easy_vqa import load_split
from mm1_hf.training.lora import lora_config


# The attention kernel of vLLM for the CPU knows heads of 64 channels and more. Large weights make answers that differ from
# image to image.
SIZES = DECODER_SIZES | {
    "hidden_size": 128,
    "head_dim": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": None,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DECODERS = {
    "mm1_text": lambda: MM1TextForCausalLM(MM1TextConfig(**SIZES)),
    "mm1_text-sparse": lambda: MM1TextForCausalLM(MM1TextConfig(**SIZES, **EXPERTS)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
}
EAGER = ("--enforce-eager",)
# The index of an image in its request is part of its text, so nothing of it can be reused in another request.
WITHOUT_REUSE = ("--mm-processor-cache-gb", "0", "--no-enable-prefix-caching")
# One decoder is compiled, as it is by default. One processes long prompts in pieces, which end inside images.
OPTIONS = {
    "mm1_text": (),
    "mm1_text-sparse": EAGER,
    "llama": (*EAGER, *WITHOUT_REUSE),
    "qwen3": (*EAGER, "--max-num-batched-tokens", "64"),
}
START_SECONDS, ANSWER_SECONDS, STOP_SECONDS = 600, 120, 60


@dataclass(frozen=True)
class Question:
    """A text and the images before it."""

    text: str
    images: tuple[Image.Image, ...] = ()

    def messages(self, for_client: bool) -> list[dict]:
        content: list[dict] = [
            {"type": "image_url", "image_url": {"url": data_url(image)}}
            if for_client
            else {"type": "image", "image": image}
            for image in self.images
        ]
        return [{"role": "user", "content": [*content, {"type": "text", "text": self.text}]}]


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(3 * width * height))


SMALL, WIDE, LARGE = noise(50, 50, 1), noise(90, 40, 2), noise(300, 200, 3)
QUESTIONS = {
    "text": Question("Hello!"),
    "one image": Question("What is it?", (SMALL,)),
    "two images": Question("Which?", (SMALL, WIDE)),
    "many tiles": Question("What is it?", (LARGE,)),
    "two images of many tiles": Question("Which?", (LARGE, WIDE)),
}


@dataclass(frozen=True)
class Server:
    """A running server of a folder, and what it should answer."""

    name: str
    client: OpenAI
    url: str
    folder: Path
    model: Any
    processor: Any

    def ask(self, question: Question, **options: Any) -> Any:
        return self.client.chat.completions.create(
            model=self.name,
            messages=question.messages(for_client=True),
            max_tokens=16,
            temperature=0,
            extra_body={"return_token_ids": True},
            **options,
        )

    @torch.no_grad()
    def expected(self, question: Question) -> tuple[list[int], list[int]]:
        """The tokens of the prompt and of the answer."""
        inputs = self.processor.apply_chat_template(
            question.messages(for_client=False),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        tokens = self.model.generate(**inputs, max_new_tokens=16, do_sample=False)[0].tolist()
        length = inputs["input_ids"].shape[1]
        return tokens[:length], tokens[length:]


def is_up(url: str) -> bool:
    with contextlib.suppress(OSError):
        return urllib.request.urlopen(f"{url}/health", timeout=10).status == 200
    return False


@contextlib.contextmanager
def serving(folder: Path, command: list[str], options: tuple[str, ...], **environment: str) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = folder.parent / f"{folder.name}.log"
    address = ("--host", "127.0.0.1", "--port", str(port))
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, str(folder), *address, "--dtype", "float32", "--max-model-len", "1024", *options],
            stdout=output,
            stderr=subprocess.STDOUT,
            # So that no folder of the tests can be taken for a package.
            cwd=folder.parent,
            env=os.environ
            | {
                "OMP_NUM_THREADS": "1",
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
                "VLLM_CPU_KVCACHE_SPACE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                "HF_MODULES_CACHE": str(folder.parent / "modules"),
                "VLLM_CACHE_ROOT": str(folder.parent / "vllm"),
            }
            | environment,
        )
    url = f"http://127.0.0.1:{port}"
    client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=ANSWER_SECONDS)
    try:
        end = time.monotonic() + START_SECONDS
        while not is_up(url):
            assert process.poll() is None and time.monotonic() < end, log.read_text(encoding="utf-8")[-20_000:]
            time.sleep(0.5)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
        yield Server(str(folder), client, url, folder, model, AutoProcessor.from_pretrained(folder))
        assert process.poll() is None, log.read_text(encoding="utf-8")[-20_000:]
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_SECONDS)


VLLM_SERVE = [str(Path(sys.executable).with_name("vllm")), "serve"]
MM1_SERVE = [sys.executable, "-m", "mm1_command", "serve"]
# vLLM loads only the plugins named here, and MM1 is not among them.
WITHOUT_PACKAGE = {"VLLM_PLUGINS": "none"}


@pytest.fixture(scope="module", params=DECODERS)
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm") / "model"
    torch.manual_seed(4)
    images = MM1ImageProcessor(
        size={"height": 56, "width": 56},
        image_splitting="dynamic",
        position_indicators="index" if request.param == "llama" else "seps",
    )
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1)
    decoder = DECODERS[request.param]().eval()
    for part in assemble(
        tiny_vision(), decoder, connector, tokenizer=byte_tokenizer(), image_processor=images, verbose=False
    ):
        part.save_pretrained(folder)
    options = ("--trust-remote-code", *OPTIONS[request.param])
    with serving(folder, VLLM_SERVE, options, **WITHOUT_PACKAGE) as server:
        assert list((folder.parent / "modules").rglob("modeling_mm1.py"))
        yield server


def is_expected(server: Server, question: Question) -> bool:
    given = server.ask(question)
    return (given.prompt_token_ids, given.choices[0].token_ids) == server.expected(question)


@pytest.mark.parametrize("question", QUESTIONS.values(), ids=QUESTIONS)
def test_tokens_are_those_of_generate(question, served):
    given = served.ask(question)
    prompt, tokens = served.expected(question)
    assert given.prompt_token_ids == prompt
    assert given.choices[0].token_ids == tokens


def test_answers_depend_on_the_images(served):
    """Without it, equal answers would say little about images."""
    answers = [served.expected(Question("What is it?", (noise(50, 50, seed),)))[1] for seed in range(4)]
    assert len({tuple(tokens) for tokens in answers}) == 4


@pytest.mark.parametrize("question", [QUESTIONS["text"], QUESTIONS["two images"]], ids=["text", "two images"])
def test_it_streams(question, served):
    chunks = [chunk for chunk in served.ask(question, stream=True) if chunk.choices]
    tokens = [token for chunk in chunks for token in getattr(chunk.choices[0], "token_ids", None) or ()]
    assert tokens == served.expected(question)[1]
    assert (
        "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        == served.ask(question).choices[0].message.content
    )
    assert len(chunks) > 2


def test_thirty_two_at_once_get_their_own_answers(served):
    kinds = list(QUESTIONS.values())
    asked = [
        replace(kinds[number % len(kinds)], text=f"Question {number}?", images=kinds[number % len(kinds)].images)
        for number in range(32)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        given = list(pool.map(served.ask, asked))
    for question, answered in zip(asked, given, strict=True):
        assert answered.choices[0].token_ids == served.expected(question)[1], question.text


def test_three_images_are_not_split(served):
    """As in training: the request is counted as a whole, where vLLM has not kept an image of it."""
    question = Question("Which?", tuple(noise(200, 100, seed) for seed in (11, 12, 13)))
    assert is_expected(served, question)
    assert served.expected(question)[0].count(served.model.config.image_token_id) == 3 * 4


def test_an_image_may_be_split_in_one_request_and_whole_in_another(served, request):
    if "llama" not in request.node.callspec.id:
        pytest.skip("the server reuses images")
    image = noise(200, 100, 21)
    for question in (Question("Which?", (image, SMALL, WIDE)), Question("Which?", (WIDE, image))):
        assert is_expected(served, question)


def test_what_users_spell_does_not_end_it(served):
    for question in (Question("Hello <image>!"), Question("What <image>?", (SMALL,))):
        assert served.ask(question).choices[0].finish_reason in ("length", "stop")
    assert is_expected(served, QUESTIONS["one image"])


def test_a_broken_image_is_refused(served):
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}
    with pytest.raises(BadRequestError):
        served.client.chat.completions.create(model=served.name, messages=[message], max_tokens=4)
    assert is_expected(served, QUESTIONS["text"])


@pytest.fixture(scope="module")
def split_model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vllm") / "model"
    torch.manual_seed(4)
    images = MM1ImageProcessor(size={"height": 56, "width": 56}, image_splitting="dynamic")
    connector = MM1ConnectorConfig(num_tokens=4, hidden_size=32, depth=1)
    for part in assemble(
        tiny_vision(),
        DECODERS["llama"]().eval(),
        connector,
        tokenizer=byte_tokenizer(),
        image_processor=images,
        verbose=False,
    ):
        part.save_pretrained(folder)
    return folder


def adapter(folder: Path, parts: Any, output: Path) -> Path:
    """Saves an adapter that changes every answer."""
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_pretrained(folder)
    adapted: Any = get_peft_model(model, lora_config(model, parts, r=8))
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    adapted.save_pretrained(output)
    return output


def test_it_serves_adapters_of_the_decoder(split_model, tmp_path):
    decoder = adapter(split_model, "decoder", tmp_path / "decoder")
    with_connector = adapter(split_model, "decoder+connector", tmp_path / "with-connector")
    options = ("--trust-remote-code", *EAGER, "--enable-lora", "--lora-modules", f"adapted={decoder}")
    with serving(
        split_model, VLLM_SERVE, options, **WITHOUT_PACKAGE, VLLM_ALLOW_RUNTIME_LORA_UPDATING="True"
    ) as server:
        adapted = replace(
            server, name="adapted", model=PeftModel.from_pretrained(server.model, decoder).merge_and_unload().eval()
        )
        for question in QUESTIONS.values():
            assert is_expected(adapted, question)
        # A part that was trained whole is in the way.
        request = urllib.request.Request(
            f"{server.url}/v1/load_lora_adapter",
            data=f'{{"lora_name": "whole", "lora_path": "{with_connector}"}}'.encode(),
            headers={"Content-Type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
        assert "modules_to_save" in error.value.read().decode()


def test_mm1_serve_starts_it_with_the_package(split_model, tmp_path):
    """No code of the folder is run, and images are split as the others of their request demand."""
    with serving(split_model, MM1_SERVE, ("--engine", "vllm", *EAGER), HF_MODULES_CACHE=str(tmp_path)) as server:
        image = noise(200, 100, 21)
        for question in (
            *QUESTIONS.values(),
            Question("Which?", (image, SMALL, WIDE)),
            Question("What?", (image,)),
        ):
            assert is_expected(server, question)
    assert not list(tmp_path.rglob("modeling_mm1.py"))


def test_without_images_it_serves_text(split_model):
    """It passes tokens then, and an image token that a user spells is one of them."""
    options = ("--trust-remote-code", *EAGER, "--limit-mm-per-prompt", '{"image": 0}')
    with serving(split_model, VLLM_SERVE, options, **WITHOUT_PACKAGE) as server:
        assert server.ask(Question("Hello <image>!")).choices[0].finish_reason in ("length", "stop")
        assert is_expected(server, QUESTIONS["text"])


@pytest.mark.skipif("'MM1_QUICKSTART' not in os.environ", reason="MM1_QUICKSTART names no folder of `mm1 quickstart`")
def test_the_quickstart_answers_two_hundred_questions_alike(tmp_path):
    folder = tmp_path / "quickstart"
    folder.symlink_to(Path(os.environ["MM1_QUICKSTART"]).resolve())
    asked = [
        (Question(question.text, (picture.image(),)), question.answer)
        for picture in load_split("test")[:60]
        for question in picture.questions
    ][:200]
    with serving(folder, VLLM_SERVE, ("--trust-remote-code",), **WITHOUT_PACKAGE) as server:
        with ThreadPoolExecutor(32) as pool:
            given = [
                answered.choices[0].token_ids for answered in pool.map(server.ask, (question for question, _ in asked))
            ]
        expected = [server.expected(question)[1] for question, _ in asked]
        right = [
            sum(
                server.processor.decode(tokens, skip_special_tokens=True).strip() == answer
                for tokens, (_, answer) in zip(answers, asked, strict=True)
            )
            for answers in (given, expected)
        ]
    print(f"\nvLLM answers {right[0]} of {len(asked)} questions correctly, transformers {right[1]}.")
    assert len(asked) == 200 and given == expected and right[0] == right[1]
