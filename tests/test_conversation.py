"""What the model reads of a conversation, and what is kept of it."""

import json
from dataclasses import replace
from typing import Any

import pytest
from chat_models import PLAIN, TOKENIZER, Echo

from data_pipelines.conversations.chat_formats import parse_conversation
from gptjax.core.errors import UserError
from gptjax.serving.conversation import Conversation
from gptjax.tokenization.chat import with_jinja
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import END_OF_TEXT


def talk(echo: Echo, **options: Any) -> Conversation:
    return Conversation(echo, **options)


def test_history_is_read_with_each_message():
    echo = Echo(context_length=200)
    conversation = talk(echo, system_prompt="Be brief.")
    assert "".join(conversation.answer("Hi")) == "Hi"
    assert list(conversation.answer("<|im_start|> é")) == [*"<|im_start|> é"]
    assert echo.prompts[1] == (
        "<|endoftext|><|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\n<|im_start|> é<|im_end|>\n<|im_start|>assistant\n"
    )
    assert conversation.note is None
    conversation.reset()
    list(conversation.answer("again"))
    assert "Hi" not in echo.prompts[2]


def test_oldest_turns_leave_whole_and_it_says_so():
    echo = Echo(context_length=100)
    conversation = talk(echo, system_prompt="S", max_new_tokens=20)
    notes = []
    for word in ("first", "second", "third", "fourth"):
        list(conversation.answer(word))
        notes.append(conversation.note)
    assert notes[:2] == [None, None]
    assert notes[2] == "the oldest turn has left the context of 100 tokens; the model no longer knows it"
    last = echo.prompts[-1]
    assert last.count("<|im_start|>user") == 2
    assert last.startswith("<|endoftext|><|im_start|>system\nS<|im_end|>\n<|im_start|>user\nthird")
    assert len(conversation.messages) == 8, "what left the context is saved all the same"


def test_message_that_cannot_fit_is_refused_and_forgotten():
    conversation = talk(Echo(context_length=40))
    list(conversation.answer("one"))
    with pytest.raises(UserError, match=r"prompt of \d+ tokens, and the model's context has 40"):
        conversation.answer("x" * 50)
    with pytest.raises(UserError, match="blank"):
        conversation.answer(" \n")
    assert (len(conversation.messages), conversation.begin) == (2, 0)


def test_answer_that_is_stopped_is_kept_as_far_as_it_was_read():
    conversation = talk(Echo())
    parts = conversation.answer("hello")
    assert [next(parts), next(parts)] == ["h", "e"]
    parts.close()
    assert [message.content for message in conversation.messages] == ["hello", "he"]


def test_answers_take_the_room_that_is_left():
    echo = Echo(context_length=64)
    list(talk(echo).answer("abc"))
    assert echo.lengths == [64 - len(TOKENIZER.encode_with_specials(echo.prompts[0]))]


def test_system_prompt_that_fills_the_context_is_refused():
    with pytest.raises(UserError, match=r"the system prompt and an empty message have \d+ tokens, .* context has 64\."):
        talk(Echo(context_length=64), system_prompt="x" * 40)


def test_saved_conversation_is_read_by_preparation():
    conversation = talk(Echo(context_length=200), system_prompt="Sé brief.")
    list(conversation.answer("a\nb"))
    list(conversation.answer("\ud83d\ude00 \ud800"))  # as JSON and terminals may have them
    assert "😀 \ufffd".encode() in conversation.to_json_line().encode()
    conversation.messages = conversation.messages[:2]
    messages = parse_conversation(json.loads(conversation.to_json_line()), where="x").messages
    assert [message.content for message in messages] == ["Sé brief.", "a\nb", "a\nb"]


def test_model_without_a_chat_template_is_refused():
    with pytest.raises(UserError, match=r"was not trained on chats.*gptjax\.sample"):
        talk(Echo(tokenizer=TOKENIZER.with_chat_template(None)))


def test_model_of_transformers_is_asked_in_chatml_where_its_jinja_says_so():
    """Its template is not executed, only searched for the names of ChatML's tokens."""
    plain, jinja = TOKENIZER.with_chat_template(None), CHATML.to_jinja(begin=None)
    turns = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    for template, begin in [(jinja, ""), ("{{ bos_token }}" + jinja, END_OF_TEXT), (END_OF_TEXT + jinja, END_OF_TEXT)]:
        echo = Echo(tokenizer=with_jinja(plain, template), context_length=200)
        assert "".join(talk(echo).answer("Hi")) == "Hi"
        assert echo.prompts == [begin + turns]
    for tokenizer, template in [(plain, "[INST] {{ x }}"), (PLAIN, jinja)]:
        with pytest.raises(UserError, match=r"Jinja, which is not executed.*chat_template\.json"):
            talk(Echo(tokenizer=with_jinja(tokenizer, template), jinja_template=template))
    assert with_jinja(TOKENIZER, "[INST]") is TOKENIZER
    for end, begin in [("<|im_end|>", None), (END_OF_TEXT, "<|im_start|>")]:  # that begins a turn, not a document
        other = with_jinja(plain.with_end_of_text(end), jinja)
        other.begin_of_text_name = begin
        assert with_jinja(other.with_chat_template(None), jinja).chat_template == replace(CHATML, begins=False)
