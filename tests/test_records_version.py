"""Prepared data is out of date as soon as the same records become other tokens."""

import hashlib

import numpy as np

from data_pipelines.conversations.examples import EncodeConversation, EncodePair
from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.scored_shards import RECORDS_VERSION
from gptjax.core.errors import UserError
from gptjax.tokenization.chat import ChatEncoder
from gptjax.tokenization.chat_template import CHATML


def turns(*texts, names=("user", "assistant"), keys=("role", "content")):
    return [dict(zip(keys, (names[number % 2], text), strict=True)) for number, text in enumerate(texts)]


MARKED = "P\n<extra_id_1>Assistant\nQ\n<extra_id_1>User\nR\n<extra_id_1>Assistant\n"
HUMAN = "\n\nHuman: P\n\nAssistant: Q\n\nHuman: R\n\nAssistant:"
RANKED = {"prompt": HUMAN, "answers": [{"answer": " x ", "rank": 2}, {"answer": " y", "rank": 1}]}
SHAREGPT = turns("P", "Q", names=("human", "gpt"), keys=("from", "value"))
CHATS = [
    {"messages": [{"role": "system", "content": "S"}, *turns("P", " Q\n")]},
    turns("P", "Q", "R", "T"),
    {"conversations": SHAREGPT, "system": "S"},
    {"instruction": "P", "input": "I", "output": "Q", "history": [["H", "G"]]},
    {"prompt": turns("R"), "completion": turns("R", "T")[1:], "history": [["P", "Q"]]},
    *({"prompt": text, "completion": " T"} for text in (MARKED, HUMAN, "Human: a\nBot: b\n\nAssistant:")),
    {"text": "### Human: P### Assistant: Q"},
    {"text": "<|im_start|>user\nP<|im_end|>\n<|im_start|>assistant\nQ<|im_end|>"},
    {"conversation": [{"system": "S", "input": "P", "output": "Q"}]},
    {"context": "C", "question": "P", "answers": {"text": ["Q"]}},
    RANKED,
    {"messages": [*turns("P", "Q", "R"), {"role": "assistant", "content": "T", "weight": 0}]},
    {"messages": [*turns("P", "Q", "R"), {"role": "assistant", "content": "T", "train": False}]},
    {"messages": turns("P", "Q", "Q", "")},
    [["human", "P"], ["gpt", "Q"]],
    ["human", "P"],
    {"messages": [{"user": "P"}, {"assistant": "Q"}]},
    {"Messages": turns("P", "Q", keys=("Role", "Content"))},
    {"messages": '[["user", "P"], ["assistant", "Q"]]'},
    {"prompt": {"role": "user", "content": "P"}, "response": ["assistant", "Q"], "context": "C"},
    *({"prompt": "R", "completion": "T", "history": [["user", "P"], [name, "Q"]]} for name in ("bot", "X")),
]
NESTED = [{"d": {"m": turns("P", "Q"), "system": "S"}} | beside for beside in ({}, {"system": ""}, {"system": "T"})]
SIDES = {"chosen": " x", "rejected": " y "}
ANSWER = turns("R", "x")[1:]
LISTS = {side: turns("R", text) for side, text in SIDES.items()}
PAIRS = [
    *({"prompt": prompt} | SIDES for prompt in ("P", MARKED, HUMAN, turns("P", "Q", "R"))),
    *({"prompt": "R", "history": history} | SIDES for history in ([["P", "Q"]], '[["P", "Q"]]', turns("P", "Q"))),
    *(LISTS | more for more in ({}, {"system": "S"}, {"prompt": "R"}, {"history": [["P", "Q"]]})),
    {side: f"\n\nHuman: R\n\nAssistant:{text}" for side, text in SIDES.items()},
    {"chosen": "Say it so", "rejected": "Say it soon", "system": "S"},
    {"prompt": "P", "response_1": "x", "response_2": "y", "preference_strength": -2, "system_prompt": "S"},
    {"prompt": '["P","R"]', "response_a": '["x","y"]', "response_b": '["y","x"]', "winner": "model_b"},
    RANKED,
    {"instruction": "P", "completions": [{"response": text, "overall_score": ord(text)} for text in "xyz"]},
    {"input": {"messages": turns("R")}, "preferred_output": ANSWER, "non_preferred_output": turns("R", "y")[1:]},
    {"info": {"post": "P", "title": "T"}, "summaries": [{"text": "x"}, {"text": "y"}], "choice": 1},
    {"prompt": HUMAN, "chosen": "", "rejected": "y"},
    {"prompt": {"user": "R"}, "chosen": ["assistant", "x"], "rejected": ["assistant", "y"]},
    {"prompt": "R", "chosen": [["gpt", "x"]], "rejected": [{"assistant": "y"}]},
    {"prompt": {"role": "user", "content": "R"}} | {side: {"Role": "gpt", "Content": side} for side in SIDES},
]


def test_the_version_tells_every_change_of_what_records_become():
    """Where this fails, `RECORDS_VERSION` needs the next number, and the sum here is the new one."""
    tokenizer = train_bpe(["0101"], vocab_size=260, special_tokens=CHATML.special_tokens).with_chat_template(CHATML)
    found = hashlib.sha256()
    for kind, records in (
        (EncodeConversation(ChatEncoder(tokenizer), {}), CHATS),
        (EncodePair(tokenizer, {}), PAIRS),
        (EncodeConversation(ChatEncoder(tokenizer), {"d.m": "messages"}), NESTED),
    ):
        for record in records:
            try:
                documents = kind(record, "x").documents
            except UserError as error:
                found.update(type(error).__name__.encode())
                continue
            for tokens, marks in documents:
                found.update(np.asarray(tokens, "<i4").tobytes() + np.asarray(marks, "u1").tobytes() + b"|")
    assert (RECORDS_VERSION, found.hexdigest()[:16]) == (11, "8284965771e1adec")
