"""A small world, made from a seed: texts, questions and preferences for `configs/chat_cpu.py`.

    python -m data_pipelines.small_world --output=data/small_world
    python -m data_pipelines.small_world --output=data/other_world --seed=2

The world has people with a home, a pet and a favourite colour, words to spell, and sums. Four files are written:

- `text.jsonl`: texts to pretrain on, in several wordings: all people, all sums, and how some words are spelled. Many
  are questions with their answers, but of what is held out there are statements only.
- `chat.jsonl`: conversations of questions and answers. Half of the answers begin with "Sure: ", half with "Well, ".
- `held_out.jsonl`: questions with all answers that are right. What they ask is asked nowhere else, in no wording.
  People and sums are known from the texts. Words stand nowhere else, so spelling must have been learned as a rule.
- `pairs.jsonl`: the facts of `chat.jsonl`, where the answer with "Sure: " is the chosen one. Both answers have as many
  characters.
"""

import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_pipelines.runtime.options import require_at_least, run_command
from gptjax.core.errors import UserError, count_of
from gptjax.core.files import expand_path, write_atomically

OPENINGS = ("Sure: ", "Well, ")
"""How answers begin: the preferred way, and the other one of the same length."""
INTERJECTIONS = ("", "I think: ", "That is easy to say: ", "Let me see. It is ", "As far as I know, the answer is ")
"""What stands before an answer in the texts. Their lengths differ, so that an answer is not found by its distance."""
FORMS = 2
"""Ways in which each fact is asked for."""
ASKED_WORDS = 10
"""How many times more words are in the questions than in a copy of the texts: few words would be learned by heart."""
MOST_TURNS = 3
"""Questions of a conversation at most."""
HELD_OUT = 0.15
"""Share of the questions that are held out."""
SYLLABLES = tuple(a + b for a, b in itertools.product("bdfgklmnprstv", "aeiou"))
MOST_NAMES = len(SYLLABLES) * (len(SYLLABLES) - 1)
"""Names of two syllables."""
MOST_WORDS = MOST_NAMES // (ASKED_WORDS + 2)
"""So that words for the questions, for what is held out and for the texts differ."""


@dataclass(frozen=True)
class SmallWorld:
    """Make the world's texts, questions and preferences."""

    output: Path
    """Directory that receives the four files."""
    seed: int = 0
    """Decides names, facts and which questions are held out."""
    people: int = 100
    """People with facts to learn."""
    words: int = 100
    """Words to spell in each copy of the texts. Ten times as many others are asked for in the questions, once each."""
    largest: int = 12
    """Largest number of a sum."""
    copies: int = 150
    """Times that people and sums are told, each in another order and with other wordings next to it."""

    def __post_init__(self) -> None:
        require_at_least(1, people=self.people, words=self.words, copies=self.copies)
        require_at_least(0, largest=self.largest)
        for name, count, most in (("people", self.people, MOST_NAMES), ("words", self.words, MOST_WORDS)):
            if count > most:
                raise UserError(f"--{name}={count}: wanted at most {most:,}; there are {MOST_NAMES:,} names.")


class Fact(NamedTuple):
    """Something to know: statements of it, questions about it, and their answer."""

    statements: list[str]
    questions: list[str]
    answer: str

    @property
    def tellings(self) -> list[str]:
        """The statements, and the questions with their answer."""
        asked = itertools.product(self.questions, INTERJECTIONS)
        return [*self.statements, *(f"{question} {words}{self.answer}" for question, words in asked)]


def make_small_world(request: SmallWorld) -> None:
    """Write the files, and print what they hold."""
    rng = random.Random(request.seed)
    words = list(make_words(rng))
    known = [*make_people(request.people, rng), *make_sums(request.largest)]
    rng.shuffle(known)
    few, many = (round(count * HELD_OUT) for count in (request.words, len(known)))
    held_out, asked = [*known[:many], *words[:few]], known[many:]
    asked_words, other_words = words[few:][: request.words * ASKED_WORDS], words[few + request.words * ASKED_WORDS :]
    texts = [*(fact.statements for fact in known[:many]), *(fact.tellings for fact in asked)]
    kinds = list(itertools.product(range(FORMS), OPENINGS))
    questions: list[tuple[Fact, int, str]] = [(fact, *kind) for fact in asked for kind in kinds]
    questions += [(fact, *kind) for fact, kind in zip(asked_words, itertools.cycle(kinds), strict=False)]
    rng.shuffle(questions)
    compared = [*asked, *asked_words[: request.words]]
    files: dict[str, list[dict[str, Any]]] = {
        "text": list(tell(texts, other_words, request, rng=rng)),
        "chat": list(converse(questions, rng)),
        "held_out": [
            {"messages": [ask(fact, number % FORMS)], "answers": [opening + fact.answer for opening in OPENINGS]}
            for number, fact in enumerate(held_out)
        ],
        "pairs": [
            {
                "prompt": [ask(fact, number % FORMS)],
                "chosen": [reply(fact, OPENINGS[0])],
                "rejected": [reply(fact, OPENINGS[1])],
            }
            for number, fact in enumerate(compared)
        ],
    }
    output = expand_path(request.output)
    output.mkdir(parents=True, exist_ok=True)
    for name, records in files.items():
        write_atomically(output / f"{name}.jsonl", "".join(json.dumps(record) + "\n" for record in records))
        print(f"{output / name}.jsonl: {count_of(len(records), 'records')}")


def ask(fact: Fact, form: int) -> dict[str, str]:
    return {"role": "user", "content": fact.questions[form]}


def converse(asked: list[tuple[Fact, int, str]], rng: random.Random) -> Iterator[dict[str, Any]]:
    """Conversations of a few questions with their answers, so that chats may have several turns, too."""
    while asked:
        count = rng.randint(1, MOST_TURNS)
        turns, asked = asked[:count], asked[count:]
        yield {
            "messages": [message for fact, form, begin in turns for message in (ask(fact, form), reply(fact, begin))]
        }


def reply(fact: Fact, opening: str) -> dict[str, str]:
    return {"role": "assistant", "content": opening + fact.answer}


def tell(known: list[list[str]], words: list[Fact], request: SmallWorld, *, rng: random.Random) -> Iterator[Any]:
    """Documents of a few tellings. Every known fact is told in each copy, beside some of the words."""
    for _ in range(request.copies):
        left = [*known, *(fact.tellings for fact in rng.sample(words, request.words))]
        rng.shuffle(left)
        while left:
            count = rng.randint(1, 4)
            told, left = left[:count], left[count:]
            yield {"text": " ".join(map(rng.choice, told))}


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
            [
                f"{name} lives in {city}.",
                f"The home of {name} is {city}.",
                f"{name} has a house in {city}.",
                f"Where {name} lives is {city}.",
            ],
            [f"Where does {name} live?", f"What is the home of {name}?"],
            f"{city}.",
        )
        yield Fact(
            [
                f"{name} has a {pet}.",
                f"The pet of {name} is a {pet}.",
                f"{name} goes out with a {pet}.",
                f"What {name} feeds is a {pet}.",
            ],
            [f"Which pet does {name} have?", f"What is the pet of {name}?"],
            f"{pet}.",
        )
        yield Fact(
            [
                f"{name} likes {colour}.",
                f"The colour of {name} is {colour}.",
                f"{name} wears {colour}.",
                f"What {name} paints is {colour}.",
            ],
            [f"Which colour does {name} like?", f"What is the colour of {name}?"],
            f"{colour}.",
        )


def make_words(rng: random.Random) -> Iterator[Fact]:
    """How words are spelled: all of two syllables, in any order."""
    for word in rng.sample([one + other for one, other in itertools.permutations(SYLLABLES, 2)], MOST_NAMES):
        letters = "-".join(word)
        yield Fact(
            [
                f"{word} is spelled {letters}.",
                f"To spell {word}, write {letters}.",
                f"The word {word} has the letters {letters}.",
            ],
            [f"How is {word} spelled?", f"How do you write {word}?"],
            f"{letters}.",
        )


def make_sums(largest: int) -> Iterator[Fact]:
    """Sums of two numbers."""
    for a, b in itertools.product(range(largest + 1), repeat=2):
        yield Fact(
            [f"{a} + {b} = {a + b}.", f"{a} plus {b} is {a + b}.", f"The sum of {a} and {b} is {a + b}."],
            [f"What is {a} + {b}?", f"What is the sum of {a} and {b}?"],
            f"{a + b}.",
        )


if __name__ == "__main__":
    run_command(make_small_world, SmallWorld)
