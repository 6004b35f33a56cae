"""
Asks a model behind an endpoint that speaks OpenAI's protocol, such as `mm1 serve` or vLLM, through datatrove's
inference runner, which keeps many requests under way, and checkpoints of their answers.

The runner's own client of an endpoint takes neither a key nor a timeout for a local server, and does not repeat a
request after an error of the server, so the requests are sent from here. An endpoint that is busy or fails is asked
again, each time after a longer wait. If one request fails each time, although the endpoint answers another one, this
is the request's answer; an endpoint that answers nothing ends the task.
"""

import asyncio
import base64
import os
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import httpx
from datatrove.data import Document as EngineDocument
from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
from datatrove.pipeline.inference.servers import InferenceServer
from datatrove.pipeline.inference.types import GenerateFunction, InferenceError, RolloutFunction, ServerError
from datatrove.pipeline.writers.jsonl import JsonlWriter

from mm1_hf.corpus.captioning.answers import (
    CHUNK,
    Ask,
    ModelAnswer,
    Question,
    clean,
    no_answer,
    require_same_writer,
)
from mm1_hf.corpus.captioning.writers import CaptionWriter
from mm1_hf.data.documents import ImagePart, Unusable
from mm1_hf.data.raw_records import parse_json
from mm1_hf.data.wall import result_or_reason


# Seconds before the first repetition of a failed request; each further one waits twice as long.
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
RETRIES = 6
# Seconds without any data after which a request has failed.
TIMEOUT = 300.0
# No caption is as long, and a server must not fill the memory.
MOST_BYTES = 1 << 22

REFUSED = "the endpoint refuses the request"
FAILS = "the endpoint fails at this request each time"
TOO_LARGE = "the answer is too large"

_REFUSALS = frozenset({400, 413, 422})
_TEMPORARY = frozenset({408, 409, 425, 429})
_KEY = "OPENAI_API_KEY"
_RESULTS = "answer"


class _EndpointDownError(ServerError):
    """The endpoint does not answer, or refuses every request. datatrove does not retry after errors of this kind."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


class _TooLarge(Exception):  # noqa: N818 (it never leaves this file)
    """An answer of more than `MOST_BYTES`."""


def check_address(url: str) -> str:
    """
    The address of an endpoint, without a slash at its end.

    Args:
        url: the address, such as `http://localhost:8000/v1`.

    Raises:
        ValueError: it is no address of `http` or `https`, or holds a password.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"The endpoint is {url!r}; give its address, such as http://localhost:8000/v1.")
    if parts.username or parts.password:
        raise ValueError(
            f"The address of the endpoint at {parts.hostname} holds a name or password. Set the key in {_KEY} instead."
        )
    return url.rstrip("/")


def only_model(url: str) -> str:
    """
    The name of the only model that an endpoint lists.

    Args:
        url: address of the endpoint.

    Raises:
        ValueError: the endpoint lists several models, or none.
        ConnectionError: the endpoint does not answer.
    """
    url = check_address(url)
    try:
        reply = httpx.get(f"{url}/models", headers=_headers(), timeout=30.0)
        reply.raise_for_status()
        listed = reply.json()
        names = [str(entry["id"]) for entry in listed["data"]]
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise ConnectionError(
            f"{url}/models does not list the models of an endpoint: {_said(error)}. Start the endpoint, or name its "
            "model."
        ) from error
    if len(names) != 1:
        raise ValueError(f"{url} lists {len(names)} models ({', '.join(names[:10])}). Name the one to ask.")
    return names[0]


class EndpointAnswers(InferenceRunner):
    """
    Asks an endpoint about every document and writes the answers, as the last step of a stage.

    Args:
        writer: the model and its prompt. The environment variable `OPENAI_API_KEY` holds the key that is sent with each
            request, if there is one.
        ask: makes the question of a document.
        folder: folder of the answers.
        requests: number of requests under way.

    Raises:
        ValueError: the writer's endpoint is no address.
    """

    name = "ask an endpoint"
    type = "MM1"

    def __init__(self, writer: CaptionWriter, ask: Ask, folder: str | os.PathLike[str], requests: int = 16) -> None:
        config = InferenceConfig(
            server_type="endpoint",
            endpoint_url=check_address(str(writer.endpoint)),
            model_name_or_path=writer.model,
            max_concurrent_generations=requests,
            # A few more than there are requests, so that the images of the next ones are encoded meanwhile.
            max_concurrent_documents=requests + 2,
            default_generation_params={"max_tokens": writer.max_tokens, "temperature": 0},
            # Longer than any task: nothing is reported to the log.
            metric_interval=1 << 30,
        )
        self.writer = writer
        self.ask = ask
        self.folder = os.fspath(folder)
        self.checkpoints = f"{self.folder}-checkpoints"
        output = JsonlWriter(self.folder, "${rank}_chunk_${chunk_index}.jsonl", None, _answer_of)
        super().__init__(cast(RolloutFunction, _rollout), config, output, None, self.checkpoints, CHUNK, _RESULTS)

    def run(self, data: Iterable[EngineDocument], rank: int = 0, world_size: int = 1) -> None:
        """
        Asks about the documents of one task.

        Args:
            data: the documents.
            rank: number of the task.
            world_size: number of tasks.

        Raises:
            ConnectionError: the endpoint does not answer any more. All answers that arrived are kept.
            ValueError: the folder holds answers of another model, or to another prompt.
        """
        require_same_writer(self.folder, rank, self.writer.provenance())
        _mend_checkpoints(self.checkpoints, rank)
        try:
            super().run(self._questions(data), rank, world_size)
        except ServerError as error:
            raise ConnectionError(str(error)) from error

    def _questions(self, data: Iterable[EngineDocument]) -> Iterator[EngineDocument]:
        for number, document in enumerate(data):
            body = result_or_reason(lambda asked: _body(self.ask(asked)), document, document.id)
            yield _Asked(number, document.id, body)

    def _init_server(self, rank: int) -> InferenceServer:
        return _Endpoint(self.config, rank, self.stat_update)

    async def _save_document(
        self, document: Any, output_writer_context: Any, rank: int, chunk_index: int, count_processed_stat: bool = True
    ) -> None:
        # The runner's own goes on after a failure, for example when the disk is full, and the answer is lost.
        await self.checkpoint_manager.write_document(document, rank, chunk_index, output_writer_context)


class _Asked(EngineDocument):
    """
    What the runner carries of a document: no more than its checkpoints need to hold. Its id is the number of the
    document, because the runner takes two documents of one id for the same. Its text may not be empty, or the runner
    would leave it out of a resumed run. The body of the request is no field, so that checkpoints do not hold the
    image.
    """

    __slots__ = ("body", "name")

    def __init__(self, number: int, name: str, body: dict[str, Any] | Unusable) -> None:
        super().__init__(str(number), str(number))
        self.name = name
        self.body = body


async def _rollout(document: EngineDocument, generate: GenerateFunction) -> dict[str, Any]:
    assert isinstance(document, _Asked)
    number = int(document.id)
    if isinstance(document.body, Unusable):
        return no_answer(number, document.name, document.body).to_json()
    # The body is not needed once it is sent.
    body, document.body = document.body, Unusable("asked")
    try:
        result = await generate(body)
    except InferenceError as error:
        reason, _, detail = str(error.error).partition(": ")
        return no_answer(number, document.name, Unusable(reason, detail)).to_json()
    return ModelAnswer(number, document.name, result.text, result.finish_reason == "length").to_json()


def _answer_of(self: JsonlWriter, document: EngineDocument) -> dict[str, Any]:
    (answer,) = document.metadata[_RESULTS]
    return answer


def _body(question: Question) -> dict[str, Any]:
    content: Any = question.text
    if question.image is not None:
        image = {"type": "image_url", "image_url": {"url": _data_url(question.image)}}
        content = [image, {"type": "text", "text": question.text}]
    return {"messages": [{"role": "user", "content": content}]}


def _data_url(part: ImagePart) -> str:
    """An image as base64. It is decoded first, so that a broken one is found here and not by the server."""
    image = part.load()
    if image.format in ("JPEG", "PNG") and image.mode in ("RGB", "L"):
        kind, content = image.format.lower(), part.read()
    else:
        file = BytesIO()
        (image if image.mode in ("RGB", "L") else image.convert("RGBA")).save(file, "PNG")
        kind, content = "png", file.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _mend_checkpoints(folder: str, rank: int) -> None:
    """Removes what a kill left half-written: the runner could not read it."""
    last = Path(folder) / "last_chunk" / f"{rank:05d}.txt"
    if last.exists() and not last.read_text().strip().isdecimal():
        last.unlink()
    for chunk in (Path(folder) / f"{rank:05d}").glob("chunk_*.jsonl"):
        content = chunk.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(chunk, whole)


class _Endpoint(InferenceServer):
    """
    The client of an endpoint.

    Args:
        config: settings of the runner.
        rank: number of the task.
        count: adds to the statistics of the step.
    """

    def __init__(self, config: InferenceConfig, rank: int, count: Callable[[str], None]) -> None:
        super().__init__(config, rank)
        self._count = count
        self._client = httpx.AsyncClient(headers=_headers(), timeout=TIMEOUT)

    def get_base_url(self) -> str:
        return str(self.config.endpoint_url)

    async def start_server(self) -> None:
        """There is nothing to start: an endpoint runs elsewhere."""

    async def monitor_health(self) -> None:
        await asyncio.Future()

    async def is_ready(self) -> bool:
        # An endpoint that does not answer is found by the first request, which is repeated.
        return True

    async def __aexit__(self, exc_type: Any, exc_val: Any, exc_tb: Any) -> None:
        await super().__aexit__(exc_type, exc_val, exc_tb)
        await self._client.aclose()

    async def _make_request(self, payload: dict[str, Any]) -> dict[str, Any]:
        reason = ""
        for attempt in range(RETRIES + 1):
            if attempt:
                self._count("requests repeated")
            pause = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
            try:
                return _reply(await self._post(payload))
            except httpx.HTTPStatusError as error:
                status, reason = error.response.status_code, _said(error)
                if status in _REFUSALS:
                    raise InferenceError(None, f"{REFUSED}: {reason}") from error
                if status < 500 and status not in _TEMPORARY:
                    raise _EndpointDownError(
                        f"{self.get_base_url()} refuses requests: {reason}. Check the address, the name of the model "
                        f"and the key ({_KEY})."
                    ) from error
                asked = (error.response.headers.get("Retry-After") or "").strip()
                pause = max(pause, min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0)
            except _TooLarge as error:
                raise InferenceError(None, f"{TOO_LARGE}: more than {MOST_BYTES:,} bytes") from error
            # Broken connections, timeouts, and answers that are not what OpenAI's protocol says.
            except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
                reason = _said(error)
            if attempt < RETRIES:
                await asyncio.sleep(pause)
        if await self._is_alive(payload["model"]):
            raise InferenceError(None, f"{FAILS}: {reason}")
        raise _EndpointDownError(
            f"{self.get_base_url()} does not answer (asked {RETRIES + 1} times): {reason}. Start it again, and repeat "
            "the command: what has been answered is kept."
        )

    async def _post(self, payload: dict[str, Any]) -> Any:
        async with self._client.stream("POST", f"{self.get_base_url()}/chat/completions", json=payload) as reply:
            content = bytearray()
            async for piece in reply.aiter_bytes():
                content += piece
                if len(content) > MOST_BYTES:
                    raise _TooLarge
            if not reply.is_success:
                said = " ".join(bytes(content[:300]).decode(errors="replace").split())
                raise httpx.HTTPStatusError(
                    f"{reply.status_code} {reply.reason_phrase}: {said}", request=reply.request, response=reply
                )
        return parse_json(bytes(content))

    async def _is_alive(self, model: str) -> bool:
        """Whether the endpoint answers a short request."""
        short = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
        try:
            _reply(await self._post(short))
        except (_TooLarge, httpx.HTTPError, ValueError, LookupError, TypeError):
            return False
        return True


def _headers() -> dict[str, str]:
    key = os.environ.get(_KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _reply(reply: Any) -> dict[str, Any]:
    """
    What the runner reads of a reply, each of it of the right type.

    Raises:
        ValueError, LookupError, TypeError: the reply is not what OpenAI's protocol says.
    """
    choice = reply["choices"][0]
    text = choice["message"]["content"]
    if not isinstance(text, str | None):
        raise TypeError(f"the content of the answer is {type(text).__name__}, not text")
    usage = reply.get("usage")
    counts = {
        name: count
        for name in ("prompt_tokens", "completion_tokens")
        if isinstance(usage, dict) and isinstance(count := usage.get(name), int)
    }
    return {
        "choices": [{"message": {"content": clean(text or "")}, "finish_reason": str(choice.get("finish_reason"))}],
        "usage": counts,
    }


def _said(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, httpx.HTTPStatusError):
        return str(error)
    return f"{kind}: {str(error)[:300]}" if str(error) else kind
