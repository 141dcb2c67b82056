"""Conversations that are stored as trees: the exports of ChatGPT, and the trees of OpenAssistant."""

from typing import Any

from gptjax.core.errors import quote
from gptjax.tokenization.messages import NO_LIST, InvalidRecord, UselessRecord

TREE_FIELDS = ("mapping", "current_node")
"""Of ChatGPT's exports. OpenAssistant's trees are in the field `prompt`."""
UNANSWERED = "conversations skipped: nobody answers in the branch of the tree"
HIDDEN = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
"""Types of content that ChatGPT's pages do not show as messages."""


def find_branch(record: dict[str, Any], *, where: str) -> list[Any] | None:
    """The messages of the branch that was shown, or of the best one; None for a record that is no tree.

    Raises `InvalidRecord`, beginning with `where`, for a tree without an end, and `UselessRecord` without an answer.
    """
    root, nodes = record.get("prompt"), _find_nodes(record.get("mapping"))
    if nodes:
        found = _follow_parents(nodes, record.get("current_node"), where=where)
    elif isinstance(root, dict) and isinstance(root.get("replies"), list):
        found = _follow_replies(root)
    else:
        return None
    if all(message["role"] in ("user", "prompter", "system") for message in found):
        raise UselessRecord(UNANSWERED)
    return found


def _find_nodes(mapping: Any) -> dict[str, Any]:
    """The nodes of ChatGPT's tree; none for a `mapping` of anything else."""
    nodes = (
        {name: node for name, node in mapping.items() if isinstance(node, dict)} if isinstance(mapping, dict) else {}
    )
    return nodes if any("message" in node or "children" in node for node in nodes.values()) else {}


def _follow_parents(nodes: dict[str, Any], last: Any, *, where: str) -> list[Any]:
    """ChatGPT's: from the last node of the page up to the root. Without one, the last node without children."""
    leaves = [name for name, node in nodes.items() if not node.get("children")]
    name = last if isinstance(last, str) and last in nodes else leaves[-1] if leaves else None
    found = list[Any]()
    for _ in range(len(nodes)):
        if not isinstance(name, str) or name not in nodes:
            return found[::-1]
        message, name = nodes[name].get("message"), nodes[name].get("parent")
        if not isinstance(message, dict):
            continue
        if (read := _read_node(message)) is not None:
            found.append(read)
        elif found and _find_kind(message) == "thoughts":  # those that led to the message after them
            found[-1]["thoughts"] = True
    if isinstance(name, str) and name in nodes:
        raise InvalidRecord(f"{where}: its nodes are each other's parents, such as {quote(name)}.", NO_LIST)
    return found[::-1]


def _read_node(message: dict[str, Any]) -> dict[str, Any] | None:
    """A message of ChatGPT under OpenAI's names; None for one that was not shown, or is an empty one of the system."""
    author, content = message.get("author"), message.get("content")
    role = author.get("role") if isinstance(author, dict) else None
    kind, parts = _find_kind(message), content.get("parts") if isinstance(content, dict) else None
    metadata = message.get("metadata")
    is_hidden = isinstance(metadata, dict) and metadata.get("is_visually_hidden_from_conversation")
    if is_hidden or kind in HIDDEN or (role == "system" and not (any(parts) if isinstance(parts, list) else parts)):
        return None
    if kind not in ("text", "multimodal_text"):
        parts = [{"type": kind}]  # code, and what tools said
    return {"role": role, "content": parts}


def _find_kind(message: dict[str, Any]) -> Any:
    content = message.get("content")
    return content.get("content_type") if isinstance(content, dict) else None


def _follow_replies(root: dict[str, Any]) -> list[Any]:
    """OpenAssistant's: from the prompt on the reply of the lowest rank, or else the first."""
    found, node = list[Any](), root
    while isinstance(node, dict):
        found.append({"role": node.get("role"), "content": node.get("text")})
        replies = node.get("replies")
        replies = [reply for reply in replies if isinstance(reply, dict)] if isinstance(replies, list) else []
        node = min(replies, key=_rank, default=None)
    return found if len(found) % 2 == 0 else found[:-1]  # a question that nobody answered


def _rank(reply: dict[str, Any]) -> float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else float("inf")
