# SPDX-License-Identifier: MIT
import pytest

from tokenspeed_core.grammar.vocabulary import Vocabulary
from tokenspeed_core.text_codec import TextCodec


@pytest.fixture(scope="session")
def codec() -> TextCodec:
    return TextCodec.load("smollm2")


@pytest.fixture(scope="session")
def vocabulary(codec: TextCodec) -> Vocabulary:
    return Vocabulary.of(codec.table, codec.tokenizer.vocab_size, codec.tokenizer.eos_ids)
