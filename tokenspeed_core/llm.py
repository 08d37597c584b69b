# SPDX-License-Identifier: MIT
"""The blocking face of `AsyncLLM`, for scripts."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from .async_llm import AsyncLLM, Prompt
from .chat_template import Message
from .completion import Completion, TextDelta
from .config import EngineConfig
from .embedding import Embedding
from .sampling_params import SamplingParams

Result = TypeVar("Result")


class LLM:
    """Generates text from a script: `LLM("smollm2").generate(["..."])`.

    It starts an engine, or joins the one at `run_dir`; leaving the context, or `close()`, stops
    what it started.
    """

    def __init__(self, model: str | EngineConfig, *, run_dir: Path | str | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="llm", daemon=True)
        self._thread.start()
        self._llm = AsyncLLM(model, run_dir=run_dir)
        try:
            self._run(self._llm.__aenter__())
        except BaseException:
            self._stop_loop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop the engine that was started here; idempotent."""
        if self._thread.is_alive():
            self._run(self._llm.close())
            self._stop_loop()

    def generate(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None = None
    ) -> list[Completion]:
        """Return the completions of prompts (texts or token ids), in their order.

        They run together.  Raises what `AsyncLLM.generate` does.
        """
        return self._run(self._all([self._llm.generate(p, params) for p in _listed(prompts)]))

    def embed(
        self, prompts: Prompt | Sequence[Prompt], dimensions: int | None = None
    ) -> list[Embedding]:
        """Return the embeddings of texts or token ids, in their order; see `AsyncLLM.embed`."""
        return self._run(self._all([self._llm.embed(p, dimensions) for p in _listed(prompts)]))

    def chat(self, messages: Sequence[Message], params: SamplingParams | None = None) -> Completion:
        """Return the assistant's answer to one conversation.  Raises what `AsyncLLM.chat` does."""
        return self._run(self._llm.chat(messages, params))

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[TextDelta]:
        """Yield text as it becomes final; leaving early aborts the request."""
        deltas: AsyncIterator[TextDelta] = self._llm.stream(prompt, params)
        try:
            while (delta := self._run(_next(deltas))) is not None:
                yield delta
        finally:
            self._run(deltas.aclose())  # type: ignore[attr-defined]

    def stream_chat(
        self, messages: Sequence[Message], params: SamplingParams | None = None
    ) -> Iterator[TextDelta]:
        """Yield the assistant's answer as it becomes final; leaving early aborts the request."""
        yield from self.stream(self._run(self._llm.codec.chat_prompt(messages)), params)

    async def _all(self, answers: list[Coroutine[Any, Any, Result]]) -> list[Result]:
        return list(await asyncio.gather(*answers))

    def _run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _stop_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _next(deltas: AsyncIterator[TextDelta]) -> TextDelta | None:
    return await anext(deltas, None)


def _listed(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and isinstance(prompts[0], int):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
