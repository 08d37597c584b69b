# SPDX-License-Identifier: MIT
"""Answers that must have a form: JSON of a schema, one of several words, a pattern.

    python examples/10_structured_output.py [MODEL]

Over HTTP the same is asked with `response_format`, `structured_outputs` or `tool_choice`.  It needs
`pip install 'tokenspeed-core[grammar]'`.
"""

import json
import sys

import attrs

from tokenspeed_core import LLM, SamplingParams
from tokenspeed_core.grammar.grammar import Grammar, choice, json_schema, regex

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "pattern": "^[A-Z][a-z]{2,11}$"},
        "population": {"type": "integer", "minimum": 1000, "maximum": 40_000_000},
        "on_the_sea": {"type": "boolean"},
    },
    "required": ["city", "population", "on_the_sea"],
}
FORMS = {
    "Describe Paris.": json_schema(CITY),
    "Is water wet?": choice(["yes", "no", "it depends"]),
    "When did people first land on the moon?": regex("[0-9]{4}-[0-9]{2}-[0-9]{2}"),
}


def main(model: str) -> None:
    greedy = SamplingParams(temperature=0, max_tokens=100)
    with LLM(model) as llm:
        for question, form in FORMS.items():
            params = attrs.evolve(greedy, grammar=Grammar.of(form))
            answer = llm.chat([{"role": "user", "content": question}], params)
            print(f"{question} {answer.text}")
            if form["type"] == "json_schema":
                assert set(json.loads(answer.text)) == set(CITY["properties"])


if __name__ == "__main__":
    main(*sys.argv[1:] or ["smollm2"])
