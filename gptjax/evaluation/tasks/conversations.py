"""The task `questions`: conversations that the user ends. lm-evaluation-harness loads this file by its path."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from gptjax.tokenization.messages import read_messages

ConfigurableTask: Any = import_module("lm_eval.api.task").ConfigurableTask


class Questions(ConfigurableTask):
    """Asks with the whole conversation. The harness itself makes one message of a document."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(config={name: value for name, value in config.items() if name != "class"})

    def fewshot_context(
        self,
        doc: dict[str, Any],
        num_fewshot: int,
        *others: Any,
        apply_chat_template: bool = False,
        chat_template: Callable[..., str] | None = None,
        **options: Any,
    ) -> Any:
        """What the model reads. With examples, or without a chat template, it is the harness' own text."""
        if apply_chat_template and chat_template is not None and not num_fewshot:
            return chat_template(list_messages(doc), add_generation_prompt=True)
        options |= {"apply_chat_template": apply_chat_template, "chat_template": chat_template}
        return super().fewshot_context(doc, num_fewshot, *others, **options)


def list_messages(doc: dict[str, Any]) -> list[dict[str, str]]:
    """The conversation as roles and contents."""
    messages = read_messages(doc["messages"], where="questions")
    return [{"role": message.role, "content": message.content} for message in messages]


def join_messages(doc: dict[str, Any]) -> str:
    """The conversation as lines, for models that know no chats."""
    return "\n".join(message["content"] for message in list_messages(doc))
