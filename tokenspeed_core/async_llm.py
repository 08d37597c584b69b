# SPDX-License-Identifier: MIT
"""The asynchronous client with text: the ZeroMQ SDK plus tokenizer, chat template, detokenizer."""

import asyncio
import contextlib
import secrets
from array import array
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import attrs
import numpy as np

from .chat_template import Message, Rendering
from .completion import REASONS, Completion, CompletionText, TextDelta, Usage, joined
from .config import EngineConfig
from .detokenizer import TokenText
from .embedding import Embedding, vector_of
from .grammar.compiler import Compiler
from .grammar.grammar import Grammar
from .ipc.messages import Sampling, SessionAction
from .ipc.run_directory import RunDirectory
from .pooling import EmbeddingError, Pooling
from .sampling_params import MAX_SCORED_PROMPT, SamplingError, SamplingParams
from .sdk import RESUME_S, Client, RequestStream
from .session import Session
from .shaping import shaping
from .text_codec import Prompt as Prompt
from .text_codec import PromptError as PromptError
from .text_codec import TextCodec as TextCodec
from .urgency import Urgency

if TYPE_CHECKING:
    from .launch import Engine

# A step with the last token gives the row; what it samples has no meaning.
_EMBEDS = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)


class AsyncLLM:
    """Generates text: `async with AsyncLLM("smollm2") as llm: await llm.generate("...")`.

    With `run_dir` it joins an engine that runs already and stops nothing on leaving; a `codec` that
    is loaded already is not loaded again; `resume_s` as for `Client`.
    """

    def __init__(
        self,
        model: str | EngineConfig,
        *,
        run_dir: Path | str | None = None,
        codec: TextCodec | None = None,
        name: str = "llm",
        resume_s: float = RESUME_S,
    ) -> None:
        self.config = model if isinstance(model, EngineConfig) else EngineConfig(model=model)
        self._run_dir = run_dir
        self._codec = codec
        self._name = name
        self._resume_s = resume_s
        self._engine: Engine | None = None

    async def __aenter__(self) -> Self:
        run_dir = self._run_dir
        if run_dir is None:
            from .launch import Engine

            self._engine = await asyncio.to_thread(Engine.start, self.config)
            run_dir = self._engine.run.path
        try:
            codec = self._codec
            if codec is None:
                codec = await asyncio.to_thread(TextCodec.load, self.config.model)
            if self._engine is not None:
                await asyncio.to_thread(self._engine.wait_ready)
            self.client = Client(run_dir, name=self._name, resume_s=self._resume_s)
            await self.client.connect()
            assert self.client.welcome is not None
            codec = attrs.evolve(codec, sorts_tools=self.config.sort_tools)
            if codec.pooling is not None and self.config.matryoshka:
                codec = attrs.evolve(codec, pooling=attrs.evolve(codec.pooling, is_matryoshka=True))
            self.codec = codec.within(self.client.welcome.max_model_len)
            self.grammars = Compiler(
                RunDirectory(Path(run_dir)).grammars,
                self.config.grammar_backend,
                self.config.grammar_deadline_s,
                self.config.grammar_memory,
            )
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Abort what is in flight, disconnect, and stop the engine if it was started here."""
        if hasattr(self, "client"):
            await self.client.close()
        if hasattr(self, "grammars"):
            await self.grammars.close()
        if self._engine is not None:
            await asyncio.to_thread(self._engine.stop, 0.0)
            self._engine = None

    async def generate(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        session: Session | None = None,
        urgency: Urgency | None = None,
    ) -> Completion:
        """Return the completion of one prompt: a text, or token ids.

        Raises:
            EmbeddingError: the model generates no text.
            PromptError: the prompt is empty, too long or holds unknown ids.
            GrammarError, GrammarBusyError, CompilerLostError: see `grammar.compiler`.
            EngineLostError, RejectedError, RequestFailedError: see `tokenspeed_core.sdk`.
        """
        return joined([delta async for delta in self.stream(prompt, params, session, urgency)])

    async def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        session: Session | None = None,
        urgency: Urgency | None = None,
    ) -> Completion:
        """Return the assistant's answer to a conversation.

        Raises:
            ChatTemplateError: the messages do not fit the model's template.
            PromptError, EngineLostError, RejectedError, RequestFailedError: as `generate`.
        """
        how = Rendering(salt=session.salt) if session is not None else None
        prompt = await self.codec.chat(messages, how)
        return await self.generate(prompt.ids, params, session, urgency)

    async def embed(
        self,
        prompt: Prompt,
        dimensions: int | None = None,
        session: Session | None = None,
        urgency: Urgency | None = None,
    ) -> Embedding:
        """Return the embedding of a text or of token ids, or its first `dimensions` values.

        Raises:
            EmbeddingError: the model has none, or none of so many values.
            PromptError, EngineLostError, RejectedError, RequestFailedError: as `generate`.
        """
        pooling = self.embedder()
        pooling.check(dimensions)
        ids = await self.embedding_prompt(prompt)
        (delta,) = [delta async for delta in self.embedded(ids, session, urgency)]
        return Embedding(vector_of(delta.hidden, pooling, dimensions), delta.usage)

    def embedder(self) -> Pooling:
        """Return how the model's embeddings are made; EmbeddingError if it has none."""
        if self.codec.pooling is None:
            raise EmbeddingError(
                "model",
                "model_has_no_embeddings",
                f"the model {self.config.model_name!r} generates text and has no embeddings; ask a "
                f"server of an embedder: a causal model with a modules.json that pools its last "
                f"token, as Qwen3-Embedding has",
            )
        return self.codec.pooling

    def check_generates(self) -> None:
        """Raise EmbeddingError if the model generates no text."""
        if self.codec.pooling is not None:
            raise EmbeddingError(
                "model",
                "model_only_embeds",
                f"the model {self.config.model_name!r} is an embedder and generates no text; ask "
                f"it for embeddings, or a server of a model that generates",
            )

    async def embedding_prompt(self, prompt: Prompt) -> Sequence[int]:
        """Return the ids of what is embedded of a text, or the ids themselves.

        Raises:
            PromptError: it is empty, too long or holds unknown ids.
        """
        pooling, limits = self.embedder(), self.client.welcome
        assert limits is not None, "not connected"
        ids = await self.codec.prompt(
            pooling.prompt + prompt if isinstance(prompt, str) else prompt
        )
        longest = min(pooling.max_tokens or limits.max_model_len, limits.max_model_len - 1)
        if len(ids) > longest:
            raise PromptError(
                "context_length_exceeded",
                f"the input has {len(ids)} tokens; this model embeds at most {longest}",
            )
        self._check(ids, _EMBEDS, limits.max_model_len, limits.vocab_size)
        return ids

    async def embedded(
        self,
        ids: Sequence[int],
        session: Session | None = None,
        urgency: Urgency | None = None,
        on_submit: Callable[[RequestStream], None] = lambda _: None,
    ) -> AsyncGenerator[TextDelta, None]:
        """Yield one delta, without text, that has an embedder's hidden row; as `stream` else."""
        request = self.submit(ids, _EMBEDS, session, urgency)
        on_submit(request)
        try:
            async for delta in request:
                usage = Usage(len(ids), 0, delta.cached_tokens, delta.report)
                reason = REASONS[delta.finish_reason]
                course = delta.course
                yield TextDelta("", [], [], reason, None, usage, course, hidden=request.hidden)
        finally:
            request.abort()

    def hint(self, session: Session, action: SessionAction, ttl_ms: int = 0) -> None:
        """Tell the engine what is known about a session's future; see `Client.hint`."""
        self.client.hint(session, action, ttl_ms)

    async def stream(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        session: Session | None = None,
        urgency: Urgency | None = None,
        table: TokenText | None = None,
        on_submit: Callable[[RequestStream], None] = lambda _: None,
    ) -> AsyncGenerator[TextDelta, None]:
        """Yield text as it becomes final; leaving early aborts the request.  Raises as `generate`.

        The last delta has a finish reason, and only it.  `table` spells the tokens, default: the
        codec's, in which special tokens have no text.  `on_submit` gets the request as it is sent.
        """
        self.check_generates()
        params = params or SamplingParams()
        ids = await self.codec.prompt(prompt)
        table = table or self.codec.table
        async with self._compiled(params.grammar, table) as grammar:
            request = self.submit(ids, params, session, urgency, grammar)
            on_submit(request)
            text = CompletionText(table, params.stop, len(ids), logprobs=params.logprobs)
            scored = params.prompt_logprobs is not None  # told with the first delta
            try:
                async for delta in request:
                    with self.codec.stages.stage("detokenise"):
                        piece = text.push(delta)
                    if scored:
                        piece = attrs.evolve(piece, prompt_scores=request.prompt_scores())
                        scored = False
                    yield piece
                    if piece.finish_reason is not None:
                        break
            finally:
                request.abort(text.kept)

    @contextlib.asynccontextmanager
    async def _compiled(self, grammar: Grammar | None, table: TokenText) -> AsyncIterator[str]:
        """Yield the name of a grammar compiled for tokens that `table` spells, "" for none."""
        if grammar is None:
            yield ""
            return
        limits = self.client.welcome
        assert limits is not None, "not connected"
        ends = self.codec.tokenizer.eos_ids
        async with self.grammars.using(grammar, table, limits.vocab_size, ends) as name:
            yield name

    def submit(
        self,
        ids: Sequence[int],
        params: SamplingParams,
        session: Session | None = None,
        urgency: Urgency | None = None,
        grammar: str = "",
    ) -> RequestStream:
        """Send a request of token ids and return its stream of token deltas.

        `grammar` names what was compiled of the parameters' grammar.

        Raises:
            PromptError, SamplingError: see `generate`.
            EngineLostError, RejectedError: there is no scheduler, or it is full.
        """
        limits = self.client.welcome
        assert limits is not None, "not connected"
        self._check(ids, params, limits.max_model_len, limits.vocab_size)
        if params.prompt_logprobs is not None:
            # What is cached is not computed, and so cannot be told of.
            session = Session(salt=secrets.token_hex(16))
        rest = limits.max_model_len - len(ids)
        max_tokens = params.max_tokens
        if max_tokens is None:  # ask for no more than the cache can ever hold
            room = (limits.num_blocks - 1) * limits.block_size - len(ids)
            max_tokens = max(1, min(rest, room))
        is_endless = params.ignore_eos and not grammar
        eos = () if is_endless else sorted(self.codec.tokenizer.eos_ids)
        ends = (*eos, *params.stop_token_ids)
        return self.client.submit(
            ids,
            max_tokens=min(max_tokens, rest),
            sampling=Sampling(
                float(params.temperature),
                params.top_k,
                float(params.top_p),
                params.drawn_seed(),
                params.logprobs,
                shaping(params, ids, ends, self.codec.tokenizer, grammar),
            ),
            stop_ids=ends,
            session=session,
            urgency=urgency,
        )

    def _check(
        self, ids: Sequence[int], params: SamplingParams, max_model_len: int, vocab_size: int
    ) -> None:
        if not ids:
            raise PromptError("empty_prompt", "the prompt is empty; give at least one token")
        if len(ids) >= max_model_len:
            raise PromptError(
                "context_length_exceeded",
                f"the prompt has {len(ids)} tokens; prompt and answer together have at most "
                f"{max_model_len}, so shorten the prompt",
            )
        if not _are_within(ids, vocab_size):
            bad = next(id for id in ids if not 0 <= id < vocab_size)
            raise PromptError(
                "invalid_token_id",
                f"the prompt holds token id {bad}, outside the vocabulary of {vocab_size}",
            )
        if params.stop_token_ids and max(params.stop_token_ids) >= vocab_size:
            bad = max(params.stop_token_ids)
            raise SamplingError(
                "stop_token_ids", f"holds {bad}, outside the vocabulary of {vocab_size}"
            )
        biased = max((id for id, _ in params.logit_bias), default=0)
        if biased >= vocab_size:
            raise SamplingError(
                "logit_bias", f"holds {biased}, outside the vocabulary of {vocab_size}"
            )
        if params.prompt_logprobs is not None and len(ids) > MAX_SCORED_PROMPT:
            raise SamplingError(
                "prompt_logprobs",
                f"is given for {len(ids)} tokens; at most {MAX_SCORED_PROMPT} can be scored",
            )
        if params.max_tokens is not None and params.min_tokens > params.max_tokens:
            raise SamplingError("min_tokens", f"is {params.min_tokens}, over max_tokens")


def _are_within(ids: Sequence[int], vocab_size: int) -> bool:
    if isinstance(ids, array) and ids.typecode == "i":
        return bool(np.frombuffer(ids, np.uint32).max() < vocab_size)  # negative ones are large
    return min(ids) >= 0 and max(ids) < vocab_size
