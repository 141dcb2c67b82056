"""A small world, made from a seed: texts, questions and preferences for `configs/chat_cpu.py`.

    python -m data_pipelines.small_world --output=data/small_world

The world has people with a home, a pet and a favourite colour, words to spell, and sums. Four files are written:

- `text.jsonl`: everything that there is to know, in several wordings, to pretrain on.
- `chat.jsonl`: questions with answers. Half of the answers begin with "Sure: ", half with "Well, ".
- `held_out.jsonl`: questions that are never asked in training, with all answers that are right.
- `pairs.jsonl`: the same questions as in `chat.jsonl`, where the answer with "Sure: " is the chosen one. Both answers
  have as many characters.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.runtime.options import require_at_least, run_command
from gptjax.core.errors import UserError
from gptjax.core.files import expand_path, write_atomically

OPENINGS = ("Sure: ", "Well, ")
"""How answers begin: the preferred way, and the other one of the same length."""
HELD_OUT = 0.15
"""Share of the questions that are held out."""
SYLLABLES = tuple(a + b for a, b in itertools.product("bdfgklmnprstv", "aeiou"))
MOST_NAMES = len(SYLLABLES) * (len(SYLLABLES) - 1)


@dataclass(frozen=True)
class SmallWorld:
    """Make the world's texts, questions and preferences."""

    output: Path
    """Directory that receives the four files."""
    seed: int = 0
    """Decides names, facts and which questions are held out."""
    people: int = 12
    words: int = 12
    largest: int = 4
    """Largest number of a sum."""
    copies: int = 100
    """Times that everything is told, each in another order and with other wordings next to it."""

    def __post_init__(self) -> None:
        require_at_least(1, people=self.people, words=self.words, copies=self.copies)
        require_at_least(0, largest=self.largest)
        if (most := max(self.people, self.words)) > MOST_NAMES:
            raise UserError(f"--people or --words is {most}: there are only {MOST_NAMES:,} names of two syllables.")


class Fact(NamedTuple):
    """Something to know: statements of it, and a question with its answer."""

    statements: list[str]
    question: str
    answer: str


def make_small_world(request: SmallWorld) -> None:
    """Write the files, and print what they hold."""
    rng = random.Random(request.seed)
    words = make_words(request.words * (request.copies + 1), rng)
    known = [*make_people(request.people, rng), *make_sums(request.largest)]
    facts = [*known, *itertools.islice(words, request.words)]
    rng.shuffle(facts)
    cut = round(len(facts) * HELD_OUT)
    held_out, asked = facts[:cut], facts[cut:]
    asked_both = [(fact, opening) for fact in asked for opening in OPENINGS]
    rng.shuffle(asked_both)
    files: dict[str, list[dict[str, Any]]] = {
        "text": list(tell(known, words, request, rng=rng)),
        "chat": [{"messages": [ask(fact), reply(fact, opening)]} for fact, opening in asked_both],
        "held_out": [{"messages": [ask(fact)], "answers": [o + fact.answer for o in OPENINGS]} for fact in held_out],
        "pairs": [
            {"prompt": [ask(fact)], "chosen": [reply(fact, OPENINGS[0])], "rejected": [reply(fact, OPENINGS[1])]}
            for fact in asked
        ],
    }
    output = expand_path(request.output)
    output.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        write_atomically(output / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        print(f"{output / name}.jsonl: {len(records):,} records")


def ask(fact: Fact) -> dict[str, str]:
    return {"role": "user", "content": fact.question}


def reply(fact: Fact, opening: str) -> dict[str, str]:
    return {"role": "assistant", "content": opening + fact.answer}


def tell(known: list[Fact], words: Iterator[Fact], request: SmallWorld, *, rng: random.Random) -> Iterator[Any]:
    """Documents of a few statements. Every known fact is told in each copy, beside other words each time."""
    for _ in range(request.copies):
        left = [*known, *itertools.islice(words, request.words)]
        rng.shuffle(left)
        while left:
            count = rng.randint(1, 4)
            told, left = left[:count], left[count:]
            yield {"text": " ".join(rng.choice(fact.statements) for fact in told)}


def make_names(count: int, rng: random.Random, *, syllables: int) -> list[str]:
    """Different words of so many syllables."""
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.sample(SYLLABLES, syllables))] = None
    return list(found)


def make_people(count: int, rng: random.Random) -> Iterator[Fact]:
    """Where people live, which pet they have and which colour they like."""
    cities = [name.capitalize() for name in make_names(8, rng, syllables=2)]
    pets, colours = ("cat", "dog", "hen", "fish", "goat"), ("red", "blue", "green", "black", "white")
    for name in make_names(count, rng, syllables=2):
        name, city, pet, colour = name.capitalize(), rng.choice(cities), rng.choice(pets), rng.choice(colours)
        yield Fact(
            [f"{name} lives in {city}.", f"The home of {name} is {city}.", f"{name} has a house in {city}."],
            f"Where does {name} live?",
            f"{city}.",
        )
        yield Fact(
            [f"{name} has a {pet}.", f"The pet of {name} is a {pet}.", f"{name} goes out with a {pet}."],
            f"Which pet has {name}?",
            f"{pet}.",
        )
        yield Fact(
            [f"{name} likes {colour}.", f"The colour of {name} is {colour}.", f"{name} wears {colour}."],
            f"Which colour likes {name}?",
            f"{colour}.",
        )


def make_words(count: int, rng: random.Random) -> Iterator[Fact]:
    """How words are spelled."""
    for word in make_names(count, rng, syllables=3):
        letters = "-".join(word)
        yield Fact(
            [f"{word} is spelled {letters}.", f"To spell {word}, write {letters}."],
            f"How is {word} spelled?",
            f"{letters}.",
        )


def make_sums(largest: int) -> Iterator[Fact]:
    """Sums of two numbers."""
    for a, b in itertools.product(range(largest + 1), repeat=2):
        yield Fact([f"{a} + {b} = {a + b}.", f"{a} plus {b} is {a + b}."], f"What is {a} + {b}?", f"{a + b}.")


if __name__ == "__main__":
    run_command(make_small_world, SmallWorld)
