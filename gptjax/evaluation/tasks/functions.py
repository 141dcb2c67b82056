"""Functions of the task files beside this one. lm-evaluation-harness loads it by its path."""

import re
from typing import Any

TEST_BYTES = 5_000_000
WHOLE_BYTES = 100_000_000
GAP = "XXXXX"


def cbt_choices(doc: dict[str, Any]) -> list[str]:
    """The question with each option in its gap."""
    return [doc["question"].replace(GAP, option) for option in doc["options"]]


def take_test_part(docs: Any) -> Any:
    """The last 5,000,000 bytes of a text of 100,000,000."""
    return docs.map(lambda doc: {"text": cut_test_part(doc["text"])})


def cut_test_part(text: str) -> str:
    content = text.encode()
    return content[-TEST_BYTES:].decode(errors="ignore") if len(content) == WHOLE_BYTES else text


def score_text(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """Log-likelihood of a text with its words and bytes."""
    return _score(doc["text"], results[0], words=len(doc["text"].split()))


def score_lines(doc: dict[str, Any], results: tuple[float]) -> dict[str, tuple[float, int]]:
    """The same, where a line end is a word."""
    text = doc["text"]
    return _score(text, results[0], words=len(text.split()) + text.count("\n"))


def _score(text: str, log_likelihood: float, *, words: int) -> dict[str, tuple[float, int]]:
    size = len(text.encode())
    return {
        "word_perplexity": (log_likelihood, words),
        "byte_perplexity": (log_likelihood, size),
        "bits_per_byte": (log_likelihood, size),
    }


def score_number(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Whether the number in the answer is the right one, compared as text without commas and a final full stop."""
    gold = doc["answer"].split("####")[-1].strip().replace(",", "").rstrip(".")
    return {"exact_match": float((find_number(results[0]) or "") == gold)}


def find_number(text: str) -> str | None:
    """The number after `####`, after "answer is", or else the last one."""
    for pattern in (r"####\s*([\d,.-]+)", r"(?i)answer is\s*([\d,.-]+)"):
        if match := re.search(pattern, text):
            return match.group(1).replace(",", "").rstrip(".")
    numbers = re.findall(r"[\d,]+\.?\d*", text)
    return numbers[-1].replace(",", "").rstrip(".") if numbers else None
