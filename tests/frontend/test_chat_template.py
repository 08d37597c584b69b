# SPDX-License-Identifier: MIT
import pytest

from tokenspeed_core.async_llm import TextCodec
from tokenspeed_core.chat_template import ChatTemplate, ChatTemplateError

USER = [{"role": "user", "content": "Hi"}]


def render(source: str, messages: list[dict[str, object]] | None = None, **limits: int) -> str:
    template = ChatTemplate.compile(source, {"bos_token": "<s>"}, **limits)
    return template.render(USER if messages is None else messages)


def test_the_models_own_template(codec: TextCodec) -> None:
    assert codec.template is not None
    assert codec.template.render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_list_of_text_parts_is_its_text(codec: TextCodec) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert codec.template is not None
    assert codec.template.render([{"role": "user", "content": parts}]) == (
        codec.template.render([{"role": "user", "content": "a\nb"}])
    )


@pytest.mark.parametrize(
    ("message", "named"),
    [
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "'image_url'"),
        ({"role": "user", "content": [{"type": "text"}]}, r"content\[0\]"),
        ({"role": "user", "content": ["x"]}, r"content\[0\] is of type 'str'"),
        ({"role": "user", "content": 5}, "content is int"),
        ({"role": "user"}, "content is NoneType"),
        ({"content": "x"}, "role is missing"),
        ({"role": 5, "content": "x"}, "role is missing"),
        ({"role": "tool", "content": "x"}, "template takes none"),
        ({"role": "critic", "content": "x"}, "'critic' is not built"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "has no name"),
        ({"role": "user", "content": "", "tool_calls": [{}]}, "tool_calls is not a list"),
    ],
)
def test_what_cannot_be_rendered_is_refused_by_name(
    codec: TextCodec, message: dict[str, object], named: str
) -> None:
    assert codec.template is not None
    with pytest.raises(ChatTemplateError, match=rf"messages\[1\].*{named}"):
        codec.template.render([*USER, message])


def test_the_hugging_face_dialect() -> None:
    assert render("{{ bos_token }}{{ messages | tojson }}") == (
        '<s>[{"role": "user", "content": "Hi"}]'
    )
    assert render("{{ {'b': '<é>', 'a': 1} | tojson(sort_keys=true) }}") == '{"a": 1, "b": "<é>"}'
    assert len(render("{{ strftime_now('%Y') }}")) == 4
    assert render("{% generation %}x{% endgeneration %}") == "x"
    assert render("{% for m in messages %}{% break %}{% endfor %}.") == "."
    assert render("  {% if true %}\n  x\n  {% endif %}\n") == "  x\n"  # blocks leave no white space
    with pytest.raises(ChatTemplateError, match="roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**10) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}xxxxxxxx{% endfor %}{% endfor %}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ messages[9].content.x }}",
        "{{ 1 / 0 }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__subclasses__() }}",
    ],
)
def test_a_hostile_template_fails_in_bounds(source: str) -> None:
    with pytest.raises(ChatTemplateError):
        render(source)


def test_a_template_that_does_not_compile_is_one_error() -> None:
    with pytest.raises(ChatTemplateError, match="does not compile"):
        ChatTemplate.compile("{% if %}", {})


def test_arguments_are_an_object_to_some_templates_and_text_to_others() -> None:
    text = '{"b":  1, "a": "é"}'
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": text}}
    messages = [*USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    arguments = "messages[1].tool_calls[0].function.arguments"
    for source, rendered in (
        (f"{{{{ {arguments} | tojson }}}}", '{"b": 1, "a": "é"}'),
        (
            f"{{% for k, v in {arguments}.items() %}}{{{{ k }}}}={{{{ v }}}};{{% endfor %}}",
            "b=1;a=é;",
        ),
        (f"{{{{ '<' + {arguments} + '>' }}}}", f"<{text}>"),
        (f"{{{{ {arguments} }}}}", text),
        (f"{{{{ {arguments} is string }}}} {{{{ {arguments} is mapping }}}}", "False True"),
    ):
        assert render(source + "{{ tools or '' }}", messages) == rendered
