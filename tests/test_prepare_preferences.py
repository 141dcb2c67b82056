"""Preferences: two documents a pair, scored on the completion only, and read back as they were given."""

import json
import re

import numpy as np
import pytest
from pipelines import run_pipeline

from data_pipelines.conversations.examples import EMPTY_IN_PAIR, NO_CHAT, REASONING, EncodePair
from data_pipelines.conversations.preference_formats import Pair, parse_pair
from data_pipelines.conversations.public_pairs import NEITHER
from data_pipelines.encode.bpe_trainer import train_bpe
from data_pipelines.prepare_preferences import PreparePreferences, prepare_preferences
from gptjax.core.errors import UserError, count_of
from gptjax.data.checksums import verify_shards
from gptjax.data.preferences import open_preferences
from gptjax.tokenization.chat import CHAT_TOKENS
from gptjax.tokenization.messages import InvalidRecord, UselessRecord
from gptjax.tokenization.tokenizer import load_tokenizer

TEXT = {"prompt": "The sky is", "chosen": " blue.", "rejected": " a <|endoftext|> é☕"}
ASKED = [("user", "Hi"), ("assistant", "Hello."), ("user", "2+2?")]


def messages(*turns):
    return [{"role": role, "content": content} for role, content in turns]


CHAT = {
    "prompt": messages(*ASKED),
    "chosen": messages(("assistant", "4.")),
    "rejected": messages(("assistant", "Well, 5."), ("user", "Sure?"), ("assistant", "No.")),
}


def write(path, records):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records))
    return str(path)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    directory = tmp_path_factory.mktemp("chat")
    texts = ["the sky is blue and the user is well\n"] * 20
    train_bpe(texts, vocab_size=280, special_tokens=CHAT_TOKENS).save(directory)
    return directory


@pytest.fixture
def run(tmp_path, chat):
    def run(source, name="out", **options):
        request = {"source": source, "tokenizer": str(chat), "output": tmp_path / name, "split": "none"} | options
        return prepare_preferences(PreparePreferences(**request))

    return run


def ids(tok, *parts):
    return [i for part in parts for i in ([tok.specials[part]] if part in tok.specials else tok.encode(part).tolist())]


def flat(tok, expected):
    """Tokens and marks of (part, mark), each part encoded for itself."""
    return ids(tok, *(part for part, _ in expected)), [mark for part, mark in expected for _ in ids(tok, part)]


def test_pairs_of_texts_hold_every_token(tmp_path, run):
    manifest = run(write(tmp_path / "x.jsonl", [TEXT]))
    assert verify_shards(tmp_path / "out") == manifest
    tok = load_tokenizer(tmp_path / "out")
    pairs = open_preferences(tmp_path / "out", "train")
    assert len(pairs) == 1
    pair = pairs[0]
    end = "<|endoftext|>"
    prompt = [*ids(tok, end), *tok.encode("The sky is").tolist()]
    for tokens, scored, text in [
        (pair.chosen, pair.chosen_loss_mask, TEXT["chosen"]),
        (pair.rejected, pair.rejected_loss_mask, TEXT["rejected"]),
    ]:
        completion = [*tok.encode(text).tolist(), tok.end_of_text]
        assert tokens.tolist() == prompt + completion
        assert scored.tolist() == [0] * len(prompt) + [1] * len(completion)
        assert (tokens.dtype, scored.dtype) == (np.int32, np.uint8)
    assert (pair.rejected == tok.end_of_text).sum() == 2, "its name in the text is ordinary text"
    counts = manifest.splits["train"]
    assert counts.documents == 2
    assert counts.bytes == 2 * len("The sky is") + len((TEXT["chosen"] + TEXT["rejected"]).encode())


def test_pairs_of_chats_hold_every_token(tmp_path, run):
    """What the assistant said in the prompt is not scored; of a longer completion, what the user says is not."""
    run(write(tmp_path / "x.jsonl", [CHAT]))
    tok = load_tokenizer(tmp_path / "out")
    pair = open_preferences(tmp_path / "out", "train")[0]

    def turn(role, content, mark):
        return [("<|im_start|>", 0), (f"{role}\n", 0), (content, mark), ("<|im_end|>", mark), ("\n", 0)]

    prompt = [("<|endoftext|>", 0), *turn("user", "Hi", 0), *turn("assistant", "Hello.", 0), *turn("user", "2+2?", 0)]
    rejected = [*turn("assistant", "Well, 5.", 1), *turn("user", "Sure?", 0), *turn("assistant", "No.", 1)]
    assert (pair.chosen.tolist(), pair.chosen_loss_mask.tolist()) == flat(tok, [*prompt, *turn("assistant", "4.", 1)])
    assert (pair.rejected.tolist(), pair.rejected_loss_mask.tolist()) == flat(tok, [*prompt, *rejected])


def test_pairs_of_one_prompt_are_in_one_split(tmp_path, run, capsys):
    """PreferencePairs stay together and in order; all pairs with one prompt are on one side."""
    records = [{"prompt": f"{i % 100}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(300)]
    manifest = run(write(tmp_path / "x.jsonl", records), split="hash:0.2", shard_tokens=100)
    tok = load_tokenizer(tmp_path / "out")
    prompts = {}
    for split in ("train", "val"):
        pairs = open_preferences(tmp_path / "out", split)
        assert len(pairs) == manifest.splits[split].documents // 2
        every = [pairs[i] for i in range(len(pairs))]
        texts = [(tok.decode(pair.chosen), tok.decode(pair.rejected)) for pair in every]
        prompts[split] = {chosen.split("?")[0] for chosen, _ in texts}
        numbers = [int(chosen.split("yes ")[1].removesuffix("<|endoftext|>")) for chosen, _ in texts]
        assert numbers == sorted(numbers)
        assert all(b == a.replace("yes", "no") for a, b in texts)
    assert not prompts["train"] & prompts["val"]
    few = run(write(tmp_path / "few.jsonl", records[:3] * 2), "few", split="hash:0.000001").splits
    assert (few["train"].documents, few["val"].documents) == (8, 4), "one prompt of three"
    printed = capsys.readouterr().out
    assert re.search(r"^val +2 pairs ", printed, re.M)
    assert re.search(r"6 pairs have 3 different prompts, too few for hash:0.000001: split by hash:\S+ instead", printed)
    assert sum(manifest.splits[split].documents for split in ("train", "val")) == 600
    for index in (-1, len(open_preferences(tmp_path / "out", "val"))):
        with pytest.raises(IndexError):
            open_preferences(tmp_path / "out", "val")[index]


def test_equal_pairs_are_skipped_and_long_ones_cut(tmp_path, run, capsys):
    """Those that are equal, or become so when cut, have nothing to say; neither stops `--strict`."""
    same = TEXT | {"rejected": TEXT["chosen"]}
    alike = {"prompt": "Q", "chosen": "ha " * 60 + "A", "rejected": "ha " * 60 + "B"}
    long_prompt = {"prompt": "ha " * 60, "chosen": "A", "rejected": "B"}
    cut = {"prompt": "Q", "chosen": "ha " * 60, "rejected": "No"}
    source = write(tmp_path / "x.jsonl", [same, alike, long_prompt, cut, TEXT])
    run(source, max_document_tokens=30, strict=True)
    pairs = open_preferences(tmp_path / "out", "train")
    assert len(pairs) == 2
    assert len(pairs[0].chosen) == len(pairs[0].chosen_loss_mask) == 30 > len(pairs[0].rejected)
    printed = capsys.readouterr().out
    assert "1 pair skipped: chosen and rejected are equal" in printed
    assert "1 pair skipped: no answer is left at --max-document-tokens=30" in printed
    assert "1 pair skipped: no difference is left at --max-document-tokens=30" in printed
    assert "1 pair cut off at --max-document-tokens=30" in printed
    with pytest.raises(UserError, match=r"holds no usable pairs\..*chosen and rejected are equal"):
        run(write(tmp_path / "y.jsonl", [same]), "none")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "x", "chosen": "y"}, "got str, str, none"),
        ({"messages": CHAT["chosen"]}, "messages. Conversations are for python -m data_pipelines.prepare_chat."),
        (
            {**TEXT, "chosen": CHAT["chosen"]},
            "got str, list, str in an object with prompt, chosen, rejected",
        ),
        ({**TEXT, "prompt": " "}, '"prompt" is blank'),
        ({**TEXT, "rejected": ""}, '"rejected" is blank'),
        ({**CHAT, "chosen": []}, '"chosen": wanted a list of messages'),
        ({**CHAT, "rejected": messages(("robot", "x"))}, "\"rejected\": message 1: its role is 'robot'"),
        ({**CHAT, "chosen": messages(("user", "x"))}, 'a "chosen" that the assistant ends'),
        ({**CHAT, "prompt": messages(*ASKED[:2])}, 'a "prompt" that the user ends'),
        ({**CHAT, "prompt": messages(ASKED[1])}, '"prompt" with "chosen": message 1 is of the assistant'),
        ({**CHAT, "rejected": CHAT["rejected"][:2]}, 'a "rejected" that the assistant ends'),
        (
            {**CHAT, "prompt": messages(*ASKED[:2]), "chosen": messages(ASKED[2], ("assistant", "4."))},
            'a "prompt" that the user ends',
        ),
        ("{", "not a line of JSON"),
    ],
)
def test_invalid_pair_is_named(tmp_path, run, record, message):
    source = write(tmp_path / "x.jsonl", [TEXT, record, CHAT])
    with pytest.raises(UserError) as caught:
        run(source, strict=True)
    assert str(caught.value).startswith(f"{source}:2: ")
    assert message in str(caught.value)
    assert run(source).splits["train"].documents == 4


def test_only_chats_need_the_chat_tokens(tmp_path, run, capsys):
    plain = train_bpe(["the sky is blue\n"] * 9, vocab_size=262)
    plain.save(tmp_path / "plain")
    assert run(write(tmp_path / "x.jsonl", [TEXT]), tokenizer=str(tmp_path / "plain")).vocab_size == 262
    assert run(write(tmp_path / "y.jsonl", [{}, CHAT]), "chats", tokenizer=str(tmp_path / "plain")).vocab_size == 264
    assert "<|im_start|> and <|im_end|> were added to bpe-262: a model needs 264 ids" in capsys.readouterr().out
    run(write(tmp_path / "x.jsonl", [TEXT]), "bytes", tokenizer="bytes")
    pair = open_preferences(tmp_path / "bytes", "train")[0]
    assert bytes(pair.chosen.astype(np.uint8)) == b"The sky is blue."
    assert pair.chosen_loss_mask.tolist() == [0] * 10 + [1] * 6


@pytest.mark.parametrize(("tokenizer", "is_chat"), [("bytes", False), (None, True)])
def test_texts_and_turns_of_one_file_are_both_kept_in_any_order(tmp_path, run, tokenizer, is_chat):
    """As texts by a tokenizer that cannot have the tokens of a chat."""
    train_bpe(["the sky is blue\n"] * 9, vocab_size=262).save(tmp_path / "plain")
    asked = {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": " 4", "rejected": " 5"}
    for name, records in (("a", [TEXT, asked]), ("b", [asked, TEXT])):
        source = write(tmp_path / f"{name}.jsonl", records * 2)
        manifest = run(source, name, tokenizer=tokenizer or str(tmp_path / "plain"))
        assert manifest.splits["train"].documents == 8
        asked_ids = open_preferences(tmp_path / name, "train")[records.index(asked)].chosen.tolist()
        tok = load_tokenizer(tmp_path / name)
        assert ("<|im_start|>user\n2+2?" in tok.decode(asked_ids)) == is_chat
        assert ("Human: 2+2?" in tok.decode(asked_ids)) != is_chat
    with pytest.raises(UserError, match="cannot take special tokens"):
        run(write(tmp_path / "c.jsonl", [TEXT, CHAT]), "c", tokenizer="bytes")


def test_plain_text_becomes_turns_where_asked(tmp_path, run, capsys):
    """Also by a tokenizer that has no tokens of a chat yet. The system's text is a message, too."""
    train_bpe(["the sky is blue\n"] * 9, vocab_size=262).save(tmp_path / "plain")
    text = {"system": "Be brief.", "prompt": "2+2?", "chosen": " 4.", "rejected": "5."}
    turned = {"prompt": messages(("system", "Be brief."), ("user", "2+2?")), "chosen": messages(("assistant", "4."))}
    turned["rejected"] = messages(("assistant", "5."))
    sources = [write(tmp_path / f"{name}.jsonl", [one]) for name, one in (("text", text), ("turned", turned))]
    for tokenizer in ({}, {"tokenizer": str(tmp_path / "plain")}):
        for source, name, asked in zip(sources, "ab", ({"as_turns": True}, {}), strict=True):
            run(source, name, **tokenizer, **asked, overwrite=True)
        pairs = [open_preferences(tmp_path / name, "train")[0] for name in "ab"]
        for ours, wanted in zip(*pairs, strict=True):
            np.testing.assert_array_equal(ours, wanted)
    capsys.readouterr()
    run(sources[0], "c")
    assert "not turns, though the tokenizer is for chats: --as-turns makes turns of them" in capsys.readouterr().out
    with pytest.raises(UserError, match='has no "prompt", which would be the turn of the user'):
        run(write(tmp_path / "d.jsonl", [{"chosen": "a b c", "rejected": "a b d"}]), "d", as_turns=True, strict=True)


def test_without_tokens_of_a_chat_texts_stay_texts_and_messages_are_named(tmp_path):
    encode = EncodePair(load_tokenizer("bytes"), {})
    asked = {"prompt": "\n\nHuman: 2+2?\n\nAssistant:", "chosen": " 4", "rejected": " 5"}
    text = encode(asked, "x:1").documents[0]
    assert bytes(text.tokens.astype(np.uint8)) == b"\n\nHuman: 2+2?\n\nAssistant: 4"
    with pytest.raises(InvalidRecord, match=r"x:2: it has messages.*data_pipelines\.extend_tokenizer") as caught:
        encode(CHAT, "x:2")
    assert caught.value.note == NO_CHAT


def test_command_skips_invalid_pairs(tmp_path, chat, capsys):
    source = write(tmp_path / "x.jsonl", [TEXT, CHAT, {}])
    words = [f"--source={source}", f"--tokenizer={chat}", f"--output={tmp_path / 'out'}", "--split=none"]
    assert run_pipeline("prepare_preferences", *words) == 0
    printed = capsys.readouterr().out
    assert "2 pairs" in printed
    turned = (
        "next: python -m data_pipelines.prepare_preferences {} --as-turns --overwrite\nor, with the data as they are:"
    )
    assert f"{turned.format(' '.join(words))}\nnext: python -m gptjax.train" in printed
    assert f'{source}:3: wanted "prompt", "chosen", "rejected"' in printed


def dialogue(*turns):
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"\n\n{names[role]}: {content}" for role, content in turns)


GOOD, BAD = [*ASKED, ("assistant", "4.")], [*ASKED, ("assistant", "5.")]
SAME = {"prompt": messages(*ASKED), "chosen": messages(GOOD[-1]), "rejected": messages(BAD[-1])}


@pytest.mark.parametrize(
    "record",
    [
        {"chosen": messages(*GOOD), "rejected": messages(*BAD)},
        {"prompt": "2+2?", "chosen": messages(*GOOD), "rejected": messages(*BAD), "score_chosen": 8.0},
        {"chosen": json.dumps(messages(*GOOD)), "rejected": repr(messages(*BAD))},
        {"chosen": dialogue(*GOOD), "rejected": dialogue(*BAD)},
        {"chosen": dialogue(*GOOD).strip(), "rejected": dialogue(*BAD).strip()},
        {"prompt": messages(*ASKED), "chosen": messages(*GOOD), "rejected": messages(*BAD)},
        {"prompt": messages(*ASKED), "chosen": messages(GOOD[-1])[0], "rejected": messages(BAD[-1])[0]},
        {
            "input": {"messages": messages(*ASKED)},
            "preferred_output": messages(GOOD[-1]),
            "non_preferred_output": messages(BAD[-1]),
        },
    ],
)
def test_public_forms_become_the_same_pair(tmp_path, run, record):
    run(write(tmp_path / "a.jsonl", [SAME]), "a", strict=True)
    run(write(tmp_path / "b.jsonl", [record]), "b", strict=True)
    for ours, wanted in zip(*(open_preferences(tmp_path / name, "train")[0] for name in "ba"), strict=True):
        np.testing.assert_array_equal(ours, wanted)


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2+2?", "response_0": "5.", "response_1": "4.", "better_response_id": 1, "safer_response_id": 0},
        {"history": "2+2?", "human_ref_A": "4.", "human_ref_B": "5.", "labels": 1},
        {"history": "2+2?", "human_ref_A": "5.", "human_ref_B": "4.", "labels": 0},
        {"instruction": "2+2?", "input": "", "output_1": "5.", "output_2": "4.", "preference": "2"},
    ],
)
def test_a_label_says_which_answer_is_better(record):
    assert parse_pair(record, where="x") == Pair("2+2?", "4.", "5.")


def test_conversations_of_the_arena_have_a_winner():
    record = {"conversation_a": messages(*BAD), "conversation_b": messages(*GOOD), "winner": "model_b"}
    assert parse_pair(record, where="x") == parse_pair(SAME, where="x")
    for label in ("tie", "tie (bothbad)", None, ""):
        with pytest.raises(UselessRecord, match="neither answer is better"):
            parse_pair(record | {"winner": label}, where="x")


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        ({"preference": "response-2"}, ["b", "a"]),
        ({"preference.responses": ["response-1", "response-1"], "preference": "response-2"}, ["a", "b"]),
        ({"preference": "tie"}, NEITHER),
        ({"preference.responses": ["response-1", "response-2"]}, NEITHER),
        ({"preference": 1}, 'has the label "preference": 1; wanted "response-1" or "response-2"'),
        ({}, 'says which of "response-1" and "response-2" is better. Write "chosen" and "rejected", or'),
        ({"liked": "response-1"}, 'says which of "response-1" and "response-2" is better'),
    ],
)
def test_a_label_may_name_the_field_of_the_better_answer(label, wanted):
    """Argilla's. Without a label, or with a number, no renaming that invents a preference is offered."""
    record = {"prompt": "P", "response-1": "a", "response-2": "b"} | label
    if isinstance(wanted, list):
        assert parse_pair(record, where="x") == Pair("P", *wanted)
        return
    with pytest.raises(UserError, match=re.escape(wanted)) as caught:
        parse_pair(record, where="x")
    assert "--rename-fields" not in str(caught.value)


def test_fields_of_a_pair_may_have_other_names():
    wanted = Pair("2+2?", "4.", "5.")
    assert parse_pair({"Prompt": "2+2?", "Chosen": "4.", "Rejected": "5."}, where="x") == wanted
    assert parse_pair({"prompt": "2+2?", "accepted": "4.", "rejected": "5."}, where="x") == wanted
    record = {"q": "2+2?", "good": "4.", "bad": "5."}
    assert parse_pair(record, where="x", renamed={"q": "prompt", "good": "chosen", "bad": "rejected"}) == wanted
    with pytest.raises(UserError, match="--rename-fields=q:prompt,good:chosen,bad:rejected"):
        parse_pair(record, where="x")
    with pytest.raises(UserError) as caught:  # a label may say that the second is better
        parse_pair(record | {"better": 1}, where="x")
    assert "--rename-fields" not in str(caught.value)


def test_prompt_string_begins_answers_without_a_question(tmp_path, run):
    rated = [{"response": text, "overall_score": score} for text, score in (("5.", 2), ("4.", 9.5), ("6.", 3))]
    records = [
        {"prompt": "2+2?", "chosen": messages(("assistant", "4.")), "rejected": messages(("assistant", "5."))},
        {"instruction": "2+2?", "completions": rated},
        {"instruction": "2+2?", "completions": [{"response": "a", "overall_score": 1}] * 2},
    ]
    run(write(tmp_path / "x.jsonl", records), strict=True)
    pairs = open_preferences(tmp_path / "out", "train")
    assert len(pairs) == 2
    np.testing.assert_array_equal(pairs[0].chosen, pairs[1].chosen)
    np.testing.assert_array_equal(pairs[0].rejected, pairs[1].rejected)


def test_texts_without_a_prompt_begin_alike(tmp_path, run):
    """The prompt ends before the white space where a word differs."""
    tok = load_tokenizer(
        run(write(tmp_path / "a.jsonl", [{"chosen": "Say it so", "rejected": "Say it soon"}])) and tmp_path / "out"
    )
    pair = open_preferences(tmp_path / "out", "train")[0]
    assert tok.decode(pair.chosen[pair.chosen_loss_mask == 1]) == " so<|endoftext|>"
    assert tok.decode(pair.rejected[pair.rejected_loss_mask == 1]) == " soon<|endoftext|>"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"chosen": "yes ", "rejected": "no"}, "have no common beginning"),
        ({"chosen": messages(*GOOD), "rejected": messages(("user", "x"), GOOD[-1])}, "begin with different messages"),
        ({"chosen": dialogue(*GOOD), "rejected": dialogue(("user", "x"), GOOD[-1])}, "begin with different messages"),
        ([1], "wanted an object with"),
    ],
)
def test_pairs_with_nothing_in_common_are_named(tmp_path, run, record, message):
    source = write(tmp_path / "x.jsonl", [SAME, record])
    with pytest.raises(UserError, match=message) as caught:
        run(source, strict=True)
    assert str(caught.value).startswith(f"{source}:2: ")


def test_reasoning_of_a_pair_is_left_out_and_told(tmp_path, run, capsys):
    thought = CHAT | {"chosen": [CHAT["chosen"][0] | {"reasoning_content": "Hm."}]}
    run(write(tmp_path / "x.jsonl", [CHAT, thought]))
    assert f"{count_of(1, REASONING)}; the first: {tmp_path}/x.jsonl:2" in capsys.readouterr().out


def test_a_dialogue_that_an_answer_quotes_is_no_turn():
    chosen, rejected = (dialogue(*ASKED, ("assistant", f"So:\nHuman: a\nUser: {end}")) for end in "bc")
    pair = parse_pair({"chosen": chosen, "rejected": rejected}, where="x")
    assert [len(part) for part in pair] == [3, 1, 1]


def test_empty_answers_are_kept_and_told(tmp_path, run, capsys):
    run(write(tmp_path / "x.jsonl", [CHAT, CHAT | {"rejected": messages(("assistant", ""))}]))
    assert f"{count_of(1, EMPTY_IN_PAIR)}; the first: {tmp_path}/x.jsonl:2" in capsys.readouterr().out


def test_pairs_that_are_equal_without_a_prompt_are_counted(tmp_path, run, capsys):
    same = [{"chosen": value, "rejected": value} for value in ("a b", messages(*GOOD))]
    run(write(tmp_path / "x.jsonl", [*same, SAME]), strict=True)
    assert "2 pairs skipped: chosen and rejected are equal; the first:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"question": "2+2=", "response_j": "4", "response_k": "5"}, "2+2="),
        ({"instruction": "Add.", "input": "2+2", "chosen": "4", "rejected": "5"}, "Add.\n\n2+2"),
        ({"system": "Be brief.", "prompt": "2+2=", "chosen": "4", "rejected": "5"}, "Be brief.\n\n2+2="),
    ],
)
def test_all_that_belongs_to_a_prompt_is_in_it(record, prompt):
    assert parse_pair(record, where="x") == (prompt, "4", "5")


@pytest.mark.parametrize("prompt", ["2+2?", {"user": "2+2?"}, {"role": "user", "content": "2+2?"}, [["user", "2+2?"]]])
@pytest.mark.parametrize(
    "answer",
    [
        lambda text: ["assistant", text],
        lambda text: [["gpt", text]],
        lambda text: [{"assistant": text}],
        lambda text: {"Role": "assistant", "Content": text},
    ],
)
def test_the_messages_of_a_pair_have_the_forms_of_a_chat(prompt, answer):
    record = {"prompt": prompt, "chosen": answer("4."), "rejected": answer("5.")}
    assert parse_pair(record, where="x") == parse_pair(SAME | {"prompt": messages(("user", "2+2?"))}, where="x")


def test_a_system_message_begins_the_prompt():
    record = {"system": "Be brief.", "prompt": "2+2?", "chosen": messages(GOOD[-1]), "rejected": messages(BAD[-1])}
    assert [message.role for message in parse_pair(record, where="x").prompt] == ["system", "user"]


@pytest.mark.parametrize(
    "asked",
    [
        {"system": "Be brief.", "prompt": "2+2?"},
        {"system": "Be brief.", "prompt": [{"role": "user", "content": "2+2?"}]},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"from": "human", "value": "2+2?", "weight": None}]},
    ],
)
def test_a_question_that_the_sides_repeat_is_there_once(asked):
    chosen, rejected = (messages(("user", "2+2?"), answer) for answer in (GOOD[-1], BAD[-1]))
    pair = parse_pair({**asked, "chosen": chosen, "rejected": rejected}, where="x")
    assert [message.role for message in pair.prompt] == ["system", "user"]
    assert [[message.role for message in side] for side in pair[1:]] == [["assistant"]] * 2


def test_sides_of_a_model_answer_the_prompt():
    sides = ([{"role": "Model", "content": text}] for text in "45")
    pair = parse_pair(dict(zip(("prompt", "chosen", "rejected"), ("2+2?", *sides), strict=True)), where="x")
    assert [len(part) for part in pair] == [1, 1, 1]
