"""Chat templates as formats, against strings and token ids written by hand."""

import copy

import pytest
from transformers import PreTrainedTokenizerBase

from sande import formats, prompts
from sande.errors import UserError
from sande.models import chat
from sande.types import Example, LanguageModel

# As SmolLM2-Instruct's: a default system prompt.
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# As Llama 3's: BOS, trimmed messages, a day.
LLAMA3 = (
    "{{ bos_token }}{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|h|>\n\n' + message['content'] | trim"
    " + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|h|>\n\n' }}{% endif %}"
)
# As Gemma's: BOS, no system prompt, the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}"
    "{% endif %}{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
)
# As Mistral's: spaces around the answer, EOS after it.
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + eos_token }}{% else %}{{ raise_exception('no system') }}{% endif %}{% endfor %}"
)
# As Mistral's of 2024: the system prompt is in the last of the user's turns.
MISTRAL_LATE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set rule = messages[0]['content'] %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}{% for message in turns %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + (rule + '\n\n' if loop.last and rule is defined else '')"
    " + message['content'] + ' [/INST]' }}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
# As Qwen3's, which opens an answer with an empty thought.
THINKING = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if loop.last and message['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = Example("Name a color.", "Red", input="For a car.")
RULED = Example("Name a color.", "Red", system="Be brief.")
SECOND = Example("And two?", "Blue", history=(("Name a color.", "Red"),))


def tokenizer(tiny: LanguageModel, template: str) -> PreTrainedTokenizerBase:
    made = copy.deepcopy(tiny.tokenizer)
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<|h|>"]})
    made.chat_template = template
    formats.attach(made, chat.chat(made))
    return made


@pytest.mark.parametrize(
    ("template", "example", "text"),
    [
        (
            CHATML,
            PLAIN,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nName a color.\nFor a car.<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            CHATML,
            RULED,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nName a color.<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        (
            CHATML,
            SECOND,
            "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nName a color.<|im_end|>\n"
            "<|im_start|>assistant\nRed<|im_end|>\n<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            LLAMA3,
            RULED,
            "<s><|im_start|>system<|h|>\n\nBe brief.<|im_end|><|im_start|>user<|h|>\n\nName a color.<|im_end|>"
            "<|im_start|>assistant<|h|>\n\n",
        ),
        (
            GEMMA,
            RULED,
            "<s><|im_start|>user\nBe brief.\n\nName a color.<|im_end|>\n<|im_start|>model\n",
        ),
        (
            GEMMA,
            SECOND,
            "<s><|im_start|>user\nName a color.<|im_end|>\n<|im_start|>model\nRed<|im_end|>\n<|im_start|>user\n"
            "And two?<|im_end|>\n<|im_start|>model\n",
        ),
        (MISTRAL, SECOND, "<s>[INST] Name a color. [/INST] Red<|end|>[INST] And two? [/INST]"),
        (MISTRAL_LATE, SECOND, "<s>[INST] Name a color. [/INST] Red<|end|>[INST] And two? [/INST]"),
        (MISTRAL_LATE, RULED, "<s>[INST] Be brief.\n\nName a color. [/INST]"),
        (
            THINKING,
            SECOND,
            "<|im_start|>user\nName a color.<|im_end|>\n<|im_start|>assistant\nRed<|im_end|>\n"
            "<|im_start|>user\nAnd two?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        ),
    ],
    ids=[
        *("chatml", "chatml system", "chatml turns", "llama", "gemma system", "gemma turns"),
        *("mistral", "late turns", "late system", "thinking"),
    ],
)
def test_a_chat_template_is_compiled_to_its_own_text(
    tiny: LanguageModel, template: str, example: Example, text: str
) -> None:
    assert formats.of(tokenizer(tiny, template)).prompt(example).text == text


@pytest.mark.parametrize(
    ("template", "opening", "answer", "response"),
    [
        (
            CHATML,
            ["<|im_start|>", "system\nYou help.", "<|im_end|>", "\n", "<|im_start|>", "user\n"],
            ["<|im_end|>", "\n", "<|im_start|>", "assistant\n"],
            ["You are", "<|im_end|>"],
        ),
        (
            GEMMA,
            ["<s>", "<|im_start|>", "user\n"],
            ["<|im_end|>", "\n", "<|im_start|>", "model\n"],
            ["You are", "<|im_end|>"],
        ),
        (MISTRAL, ["<s>", "[INST] "], [" [/INST]"], [" You are", "<|end|>"]),
    ],
    ids=["chatml", "gemma", "mistral"],
)
def test_rows_have_the_ids_of_the_pieces(
    tiny: LanguageModel, template: str, opening: list[str], answer: list[str], response: list[str]
) -> None:
    made = tokenizer(tiny, template)

    def ids(texts: list[str]) -> tuple[int, ...]:
        return tuple(token for text in texts for token in made(text, add_special_tokens=False)["input_ids"])

    (row,) = prompts.encode(made, [Example("Hi", "You are")])
    assert made.decode(row.prompt[: row.start]).rstrip() == "".join(opening).rstrip()
    assert made.decode(row.prompt[row.start : row.end]).strip() == "Hi"
    assert row.prompt == (*ids(opening), *ids(["Hi"]), *ids(answer)) or template == MISTRAL
    assert row.response == ids(response)
    assert row.prompt.count(made.bos_token_id) == (template != CHATML)
    assert prompts.response_ids(made, "You are") == ids(response[:1])


def test_both_ends_of_an_answer_stop_decoding(tiny: LanguageModel) -> None:
    made = tokenizer(tiny, GEMMA)
    assert formats.end_ids(made) == set(made.convert_tokens_to_ids(["<|im_end|>", "<|end|>"]))


def test_the_days_date_is_fixed(tiny: LanguageModel) -> None:
    dated = "{{ strftime_now('%Y-%m-%d') }} {% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
    assert formats.of(tokenizer(tiny, dated)).opening == "26 Jul 2024 user:"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "takes too long"),
        ("{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}", "too much"),
        ("{{ messages.__class__.__mro__ }}", "does not write each message once"),
        ("{{ messages[0]['content'] | upper }}", "does not write each message once"),
        ("{% for m in messages %}{{ m.content ~ loop.index }}{% endfor %}", "does not write fixed text"),
        ("{{ 'x' * 300000 }}", "does not write each message once"),
        ("{{", "does not write each message once"),
        ("x" * 200_001, "more than 200000 characters"),
    ],
    ids=["long", "large", "escape", "changed", "counted", "long text", "broken", "long template"],
)
def test_a_template_that_is_no_format_is_one_sentence(
    tiny: LanguageModel, template: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if said == "takes too long":
        monkeypatch.setattr(chat, "SECONDS", 2)
    with pytest.raises(UserError, match=f"^prompt format chat: .*{said}") as caught:
        tokenizer(tiny, template)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_template_has_no_chat_format(tiny: LanguageModel) -> None:
    with pytest.raises(UserError, match="the tokenizer has no chat template; use paper, alpaca or a template file"):
        chat.resolve("chat", tiny.tokenizer)
    assert chat.resolve("auto", tiny.tokenizer) == formats.PAPER


def test_an_unknown_format_lists_those_that_there_are(tiny: LanguageModel) -> None:
    with pytest.raises(UserError, match="'chatml': there is no such format or file; use paper, alpaca, chat, or"):
        chat.resolve("chatml", tiny.tokenizer)
