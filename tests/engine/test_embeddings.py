# SPDX-License-Identifier: MIT
"""Embeddings of a tiny Qwen3 over two real ranks, by the real client, against transformers."""

import base64
import random
from collections.abc import Iterator
from pathlib import Path

import attrs
import httpx
import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from tokenizers import Tokenizer
from transformers import Qwen3Model

from tests.engine.embedders import END, SIZE, expected, save_tiny_embedder, write
from tokenspeed_core import LLM
from tokenspeed_core.config import ConfigError, EngineConfig
from tokenspeed_core.embedding import Vector
from tokenspeed_core.launch import Engine
from tokenspeed_core.model_check import check
from tokenspeed_core.model_definition import define
from tokenspeed_core.pooling import EmbeddingError, Pooling, PoolingError
from tokenspeed_core.served_model import ServedModel

LENGTHS = (1, 7, 40, 75, 20, 33, 75)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-embedder")


@pytest.fixture(scope="module")
def oracle(path: Path) -> Qwen3Model:
    return save_tiny_embedder(path)


def config(path: Path) -> EngineConfig:
    """Chunks of 32 tokens, blocks of 16."""
    return EngineConfig(
        model=str(path), port=0, num_blocks=200, max_running=8, max_step_tokens=32, threads=1
    )


@pytest.fixture(scope="module")
def engine(path: Path, oracle: Qwen3Model) -> Iterator[Engine]:
    settings = attrs.evolve(
        config(path), tp=2, served_model_name="tiny", matryoshka=True, max_model_len=128
    )
    with Engine.start(settings, serve_http=True) as engine:
        engine.wait_ready(120)
        yield engine


@pytest.fixture
def client(engine: Engine) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="none", max_retries=0)


def texts(seed: int) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices("abcdefgh ijk", k=length)) for length in LENGTHS]


def ids_of(path: Path, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_file(str(path / "tokenizer.json")).encode(text).ids
    return ids


def assert_equal(values: list[float] | Vector, wanted: object) -> None:
    assert np.abs(np.asarray(values) - np.asarray(wanted)).max() < 1e-5


async def test_the_real_client_reads_what_transformers_computes(
    client: openai.AsyncOpenAI, path: Path, oracle: Qwen3Model
) -> None:
    """Several chunks a text, all texts at once; then by token ids, of which most are cached."""
    given = texts(1)
    ids = [ids_of(path, text) for text in given]
    assert all(each[-1] == END for each in ids)
    first = await client.embeddings.create(model="tiny", input=given)  # in base64, by itself
    again = await client.embeddings.create(model="tiny", input=ids, encoding_format="float")
    for answer in (first, again):
        assert [item.index for item in answer.data] == list(range(len(given)))
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == sum(map(len, ids))
        for item, each in zip(answer.data, ids, strict=True):
            assert len(item.embedding) == SIZE
            assert_equal(item.embedding, expected(oracle, each))
    cached = again.usage.model_extra["prompt_tokens_details"]["cached_tokens"]
    assert cached == sum((len(each) - 1) // 16 * 16 for each in ids)


async def test_one_text_in_another_cache_and_by_its_first_values(
    client: openai.AsyncOpenAI, path: Path, oracle: Qwen3Model
) -> None:
    text = texts(1)[3]
    whole = expected(oracle, ids_of(path, text))
    answer = await client.embeddings.create(
        model="tiny", input=text, dimensions=8, user="me", extra_body={"cache_salt": "mine"}
    )
    assert_equal(answer.data[0].embedding, whole[:8] / whole[:8].norm())
    assert answer.usage.model_extra["prompt_tokens_details"]["cached_tokens"] == 0


async def test_bytes_are_little_endian(client: openai.AsyncOpenAI) -> None:
    asked = {"model": "tiny", "input": "ab"}
    url = f"{client.base_url}embeddings"
    async with httpx.AsyncClient() as http:
        floats = (await http.post(url, json=asked)).json()["data"][0]
        coded = (await http.post(url, json={**asked, "encoding_format": "base64"})).json()
    values = np.frombuffer(base64.b64decode(coded["data"][0]["embedding"]), "<f4")
    assert values.tolist() == floats["embedding"]
    assert floats["object"] == "embedding"


@pytest.mark.parametrize(
    ("field", "value", "param", "told"),
    [
        ("input", [], "input", "0 items"),
        ("input", ["a"] * 2049, "input", "2049 items; give 1 to 2048"),
        ("input", ["a", 1.5], "input", r"input\[1\] is neither"),
        ("input", ["a", "b" * 127], "input", r"input\[1\]: the input has 128 tokens.* most 127"),
        ("input", ["a", "b" * 10_000], "input", r"input\[1\]: the prompt has 10000 characters"),
        ("input", [[1], [2, 260]], "input", r"input\[1\]: the prompt holds token id 260"),
        ("dimensions", 0, "dimensions", "give 1 to 48"),
        ("dimensions", 49, "dimensions", "give 1 to 48"),
        ("encoding_format", "int8", "encoding_format", "give float or base64"),
        ("priority", 101, "priority", "100"),
        ("session_id", "x" * 1000, "session_id", "at most"),
    ],
)
async def test_what_cannot_be_embedded_is_named(
    client: openai.AsyncOpenAI, field: str, value: object, param: str, told: str
) -> None:
    body = {"model": "tiny", "input": "a", field: value}
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        await client.post("/embeddings", body=body, cast_to=object)
    assert caught.value.param == param


async def test_an_embedder_generates_no_text(client: openai.AsyncOpenAI) -> None:
    turn: list[dict[str, str]] = [{"role": "user", "content": "Hi"}]
    for path, body in {
        "/chat/completions": {"messages": turn},
        "/completions": {"prompt": "Hi"},
        "/responses": {"input": "Hi"},
        "/messages": {"messages": turn, "max_tokens": 2},
    }.items():
        with pytest.raises(openai.BadRequestError, match="'tiny' is an embedder") as caught:
            await client.post(path, body={"model": "tiny", **body}, cast_to=object)
        assert "model_only_embeds" in str(caught.value.body)


async def test_operators_see_that_it_embeds(client: openai.AsyncOpenAI, engine: Engine) -> None:
    counted = "tokenspeed_prompt_tokens_total"

    def count() -> float:
        page = httpx.get(f"{engine.url}/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in page if line.startswith(counted))

    before = count()
    await client.embeddings.create(model="tiny", input=["abc", "de"])
    assert count() == before + 7
    assert httpx.get(f"{engine.url}/v1/models").json()["data"][0]["embeds"] is True
    told = httpx.get(f"{engine.url}/server_info").json()["embeds"]
    assert told["size"] == SIZE
    assert told["normalises"]


def test_answers_are_as_the_openapi_document_tells(engine: Engine) -> None:
    document = httpx.get(f"{engine.url}/openapi.json").json()
    assert "dimensions" in document["components"]["schemas"]["EmbeddingFields"]["properties"]
    told = document["paths"]["/v1/embeddings"]["post"]["responses"]["200"]["content"]
    schema = {**told["application/json"]["schema"], "components": document["components"]}
    validator = Draft202012Validator(schema)
    for kind in ("float", "base64"):
        body = {"model": "tiny", "input": ["a", "b"], "encoding_format": kind}
        answer = httpx.post(f"{engine.url}/v1/embeddings", json=body).json()
        validator.validate(answer)
        assert not validator.is_valid({**answer, "data": [{**answer["data"][0], "embedding": 1}]})


def test_from_a_script_without_a_server(path: Path, oracle: Qwen3Model, engine: Engine) -> None:
    with LLM(engine.config, run_dir=engine.run.path) as llm:
        given = texts(2)
        for text, found in zip(given, llm.embed(given), strict=True):
            assert_equal(found.values, expected(oracle, ids_of(path, text)))
            assert found.usage.prompt_tokens == len(text) + 1
        with pytest.raises(EmbeddingError, match="generates no text"):
            llm.generate("abc")


def test_the_checker_finds_an_embedder(path: Path, oracle: Qwen3Model) -> None:
    found = list(check(define(str(path))))
    assert all(each.holds for each in found), "\n".join(map(str, found))
    assert any(each.what.startswith("hidden rows") for each in found)


def test_values_by_parts_need_a_model_that_was_trained_for_it() -> None:
    with pytest.raises(EmbeddingError, match="48 values which mean nothing by parts"):
        Pooling(48, True).check(8)
    some = Pooling(48, True, is_matryoshka=True, sizes=(8, 16))
    some.check(16)
    some.check(48)
    some.check(None)
    with pytest.raises(EmbeddingError, match="dimensions is 9; give 8, 16"):
        some.check(9)


MODULES = [("Transformer", ""), ("Pooling", "1_Pooling")]


@pytest.mark.parametrize(
    ("modules", "pooling", "told"),
    [
        (MODULES, {"pooling_mode_mean_tokens": True}, "pools by mean_tokens"),
        (MODULES, {"pooling_mode_cls_token": True}, "pools by cls_token"),
        (MODULES, {"pooling_mode": "mean"}, "pools by mean"),
        (MODULES, {}, "pools by nothing"),
        ([*MODULES, ("Dense", "2_Dense")], {}, "lists Transformer, Pooling, Dense"),
        ([MODULES[0], ("Pooling", "../x")], {}, "no plain name"),
    ],
)
def test_other_embeddings_are_refused_before_anything_loads(
    tmp_path: Path, modules: list[tuple[str, str]], pooling: dict[str, object], told: str
) -> None:
    write(tmp_path / "config.json", {"hidden_size": 8, "architectures": ["Qwen3Model"]})
    listed = [{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in modules]
    write(tmp_path / "modules.json", listed)
    write(tmp_path / "1_Pooling" / "config.json", {"word_embedding_dimension": 8, **pooling})
    with pytest.raises(PoolingError, match=told):
        Pooling.of(tmp_path)


def test_what_the_checkpoint_says_beside_the_pooling(tmp_path: Path) -> None:
    save_tiny_embedder(tmp_path)
    stored = {"matryoshka_dimensions": [8, 16], "hidden_size": 8}
    write(tmp_path / "config.json", stored)
    write(tmp_path / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    prompts = {"prompts": {"query": "Q: "}, "default_prompt_name": "query"}
    write(tmp_path / "config_sentence_transformers.json", prompts)
    found = Pooling.of(tmp_path)
    assert found == Pooling(8, True, "Q: ", 30, True, (8, 16))
    write(tmp_path / "1_Pooling" / "config.json", {"pooling_mode": "lasttoken"})
    assert Pooling.of(tmp_path) == found


def test_a_flag_for_embedders_needs_one(tiny_llama: Path) -> None:
    with pytest.raises(ConfigError, match="is no embedder"):
        ServedModel.of(EngineConfig(model=str(tiny_llama), matryoshka=True), serve_http=False)
