"""Tokenizers that the library encodes: ids, bytes, streams, special tokens, files, and what reads and writes them."""

import io
import json
import pickle
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from library_tokenizers import FORMS, write_form

from data_pipelines.prepare import Prepare, prepare
from data_pipelines.prepare_chat import PrepareChat, prepare_chat
from data_pipelines.preview import Painter, paint_tokens
from data_pipelines.verify import verify_prepared
from gptjax.core.errors import UserError
from gptjax.data.config import TokenShards
from gptjax.evaluation.protocols import find_protocol, place_windows
from gptjax.evaluation.texts import encode_text, sum_documents
from gptjax.huggingface.gguf_export import choose_gguf_architecture
from gptjax.huggingface.model_dir import read_tokenizer
from gptjax.huggingface.tokenizer_files import write_tokenizer
from gptjax.model.config import GPTConfig
from gptjax.tokenization.chat import ChatEncoder, encode_together, with_jinja
from gptjax.tokenization.chat_template import CHATML, ChatTemplate, Message, RoleFormat
from gptjax.tokenization.library_tokenizer import LibraryTokenizer
from gptjax.tokenization.text_stream import TextStream
from gptjax.tokenization.tokenizer import load_tokenizer

TEXTS = (
    "",
    "a",
    " ",
    "  the cat  sat",
    "trailing  ",
    "a\tb\t\tc\x00\x07",
    "x\r\ny\r\n\r\n\n",
    "e\u0301 \u1100\u1161\u11a8 ﬁ ＡＢＣ",
    "你好，世界！🤗👩\u200d👩\u200d👧🇩🇪",
    "a" + " " * 40 + "b",
    "<tool_call>{}<b>\u00a0\ufeffx \ufdd0|\ufdd1",
    "the theatre of the thing. " * 9,
)
TURNS = [
    Message("user", "e\u0301 </s> <|im_end|> <｜User｜> hi  "),
    Message("assistant", "  12 🤗\n"),
    Message("user", "\n x"),
    Message("assistant", "ok"),
]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("forms")
    return {form: write_form(root / form, form) for form in FORMS}


@pytest.fixture(scope="module")
def loaded(directories: dict[str, Path]) -> dict[str, LibraryTokenizer]:
    found = {form: load_tokenizer(directory) for form, directory in directories.items()}
    return {form: tok for form, tok in found.items() if isinstance(tok, LibraryTokenizer)}


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_texts_are_the_librarys(
    loaded: dict[str, LibraryTokenizer], directories: dict[str, Path], form: str
) -> None:
    tok, library = loaded[form], tokenizers.Tokenizer.from_file(str(directories[form] / "tokenizer.json"))
    assert (tok.kind, tok.vocab_size) == ("tokenizers", library.get_vocab_size(with_added_tokens=True))
    for text in TEXTS:
        ids = tok.encode(text)
        assert ids.dtype == np.int32
        if "\ufdd0" not in text:  # what stands for special tokens inside
            assert ids.tolist() == library.encode(text, add_special_tokens=False).ids
        assert tok.decode(ids) == library.decode(ids.tolist(), skip_special_tokens=False)
    assert tok.decode([tok.vocab_size, -1]) == "\ufffd\ufffd"


@pytest.mark.parametrize("form", FORMS)
def test_bytes_of_tokens_are_those_of_the_text(loaded: dict[str, LibraryTokenizer], form: str) -> None:
    tok = loaded[form]
    for text in TEXTS:
        ids, sizes = tok.encode_with_sizes(text)
        assert ids.tolist() == tok.encode(text).tolist()
        assert sizes.sum() == (len(text.encode()) if len(ids) else 0)
    assert not tok.bytes_per_token[list(tok.specials.values())].any()
    ids = tok.encode("the cat sat on the thing")
    assert 0 <= tok.bytes_per_token[ids].sum() - len(tok.decode(ids)) <= 1  # a blank in front


@pytest.mark.parametrize("form", FORMS)
def test_a_stream_of_single_tokens_is_the_text_of_all(loaded: dict[str, LibraryTokenizer], form: str) -> None:
    tok, draw = loaded[form], random.Random(0)
    texts = [tok.encode(text).tolist() for text in TEXTS]
    ordinary = sorted({*range(tok.vocab_size)} - {*tok.specials.values()})
    for ids in [*texts, *(draw.choices(ordinary, k=25) for _ in range(12))]:
        stream = TextStream(tok)
        assert "".join(stream.add([i]) for i in ids) + stream.finish() == tok.decode(ids) == stream.text
        after = texts[3]
        stream = TextStream(tok, after=after)
        assert tok.decode(after) + "".join(stream.add([i]) for i in ids) + stream.finish() == tok.decode([*after, *ids])


def test_a_text_goes_on_with_its_blank_and_an_answer_begins_without(loaded: dict[str, LibraryTokenizer]) -> None:
    tok = loaded["llama"]
    word = tok.encode("the").tolist()
    assert tok.decode(word) == "the"
    assert tok.decode_after(tok.encode("on").tolist(), word) == " the"
    assert tok.decode_after([*tok.encode("on").tolist(), tok.specials["<s>"]], word) == "the"


def test_a_preview_shows_the_blank_of_an_answer(loaded: dict[str, LibraryTokenizer]) -> None:
    tok = loaded["llama"]
    tokens, marks = encode_together(tok, "on", " the")
    begin, end = tok.specials["<s>"], tok.specials["</s>"]
    shown = paint_tokens(np.array([begin, *tokens, end]), np.array([0, *marks, 1]), tok, Painter(has_colors=False))
    assert shown == "<s>on⟦ the⟧⟦</s>⟧"


@pytest.mark.parametrize("form", FORMS)
def test_no_text_becomes_a_special_token_and_a_trusted_one_does(
    loaded: dict[str, LibraryTokenizer], directories: dict[str, Path], form: str
) -> None:
    tok, library = loaded[form], tokenizers.Tokenizer.from_file(str(directories[form] / "tokenizer.json"))
    for name, number in tok.specials.items():
        for text in (name, f"the{name}the", name * 3, f" {name} "):
            ids, sizes = tok.encode_with_sizes(text)
            assert not {*ids.tolist()} & ({*tok.specials.values()} - {tok.unknown})
            assert tok.encode(text).tolist() == ids.tolist()
            assert sizes.sum() == len(text.encode())
            assert tok.encode_with_specials(text).tolist() == library.encode(text, add_special_tokens=False).ids
        assert number in tok.encode_with_specials(f"a{name}b")


@pytest.mark.parametrize("form", FORMS)
def test_the_saved_file_is_unchanged_and_the_tokenizer_the_same(
    loaded: dict[str, LibraryTokenizer], directories: dict[str, Path], tmp_path: Path, form: str
) -> None:
    tok = loaded[form]
    tok.save(tmp_path)
    assert (tmp_path / "tokenizer.json").read_bytes() == (directories[form] / "tokenizer.json").read_bytes()
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tok))):
        assert again.fingerprint == tok.fingerprint
        assert (again.specials, again.end_of_text_name) == (tok.specials, tok.end_of_text_name)
        assert again.encode(TEXTS[3]).tolist() == tok.encode(TEXTS[3]).tolist()


def test_fingerprint_is_that_of_older_spellings_of_the_file(
    loaded: dict[str, LibraryTokenizer], directories: dict[str, Path], tmp_path: Path
) -> None:
    content = json.loads((directories["qwen"] / "tokenizer.json").read_text())
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    del content["model"]["dropout"], content["model"]["byte_fallback"]
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    again = load_tokenizer(tmp_path)
    assert again.fingerprint == loaded["qwen"].fingerprint
    assert len(again.encode("the cat sat on the mat")) > 3
    content["normalizer"] = {"type": "NFD"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert load_tokenizer(tmp_path).fingerprint != loaded["qwen"].fingerprint


@pytest.mark.parametrize("form", FORMS)
def test_new_special_tokens_follow_the_vocabulary(
    loaded: dict[str, LibraryTokenizer], tmp_path: Path, form: str
) -> None:
    tok = loaded[form]
    more = tok.with_special_tokens(["<|a|>", "<|b|>", next(iter(tok.specials))])
    assert (more.specials["<|a|>"], more.specials["<|b|>"]) == (tok.vocab_size, tok.vocab_size + 1)
    assert more.extends(tok)
    assert not tok.extends(more)
    again = load_tokenizer(more.save(tmp_path))
    assert (again.fingerprint, again.end_of_text_name) == (more.fingerprint, tok.end_of_text_name)
    assert all(again.encode(text).tolist() == tok.encode(text).tolist() for text in TEXTS)
    assert tok.vocab_size not in again.encode("<|a|>")
    has_plain = form in ("qwen", "deepseek")
    problem = "is an added token of .* that is not special" if has_plain else "is blank, or an ordinary token too"
    with pytest.raises(UserError, match=problem):
        tok.with_special_tokens([tok.decode([tok.vocab_size - 1]) if has_plain else " "])


def test_an_end_of_text_that_is_no_special_token_becomes_one(tmp_path: Path) -> None:
    write_form(tmp_path / "given", "qwen", eos_token="<tool_call>")
    tok = load_tokenizer(tmp_path / "given")
    number = tok.specials["<tool_call>"]
    assert (tok.end_of_text, tok.text_tokens) == (number, {})
    assert number not in tok.encode("a<tool_call>b")
    assert number in tok.encode_with_specials("a<tool_call>b")
    again = load_tokenizer(tok.save(tmp_path / "saved"))
    assert (again.fingerprint, again.end_of_text) == (tok.fingerprint, number)
    chosen = load_tokenizer(write_form(tmp_path / "other", "qwen"), end_of_text="<tool_call>")
    assert chosen.fingerprint == tok.fingerprint


def test_bytes_of_an_evaluation_are_those_of_its_text(loaded: dict[str, LibraryTokenizer], tmp_path: Path) -> None:
    content = "e\u0301 the cat\u00a0 🤗 " * 30
    (tmp_path / "text.txt").write_text(content)
    for first_token in ("end-of-text", "context"):
        protocol = replace(find_protocol("gptjax"), window=8, stride=8, first_token=first_token)
        text = encode_text(tmp_path / "text.txt", loaded["qwen"], protocol)
        placed = place_windows(protocol, text.documents, begin_of_text=loaded["qwen"].begin_of_text)
        sums = sum_documents(text, placed, [np.zeros(p.window.scored) for p in placed], protocol=protocol)
        first = int(loaded["qwen"].encode_with_sizes(content)[1][0])
        assert sums.bytes.sum() == len(content.encode()) - (first if first_token == "context" else 0)


def test_prepared_shards_count_the_bytes_of_the_text_and_name_what_is_lost(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_text("e\u0301 the <tool_call> 日 </s> 🤗 " * 30)
    size = (tmp_path / "text.txt").stat().st_size
    notes = {
        "qwen": ["30 times <tool_call> stands in text and becomes this token, which is not special"],
        "t5": [
            "30 times </s> stands in text and is learnt as text",
            "times <unk> stands for text that the vocabulary cannot express",
        ],
    }
    for form, wanted in notes.items():
        output = tmp_path / form
        tokenizer = str(directories[form])
        manifest = prepare(Prepare(source=str(tmp_path / "text.txt"), output=output, tokenizer=tokenizer, split="none"))
        said = capsys.readouterr().out
        assert all(note in said for note in wanted)
        assert manifest.splits["train"].bytes == size
        assert verify_prepared(output).fingerprint == load_tokenizer(directories[form]).fingerprint


def test_a_document_of_which_no_token_is_left_is_skipped_as_empty(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in ("the cat", "\ufffd", "the mat")]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    source, tokenizer = str(tmp_path / "texts.jsonl"), str(directories["bert"])
    manifest = prepare(Prepare(source=source, output=tmp_path / "out", tokenizer=tokenizer, split="none"))
    assert manifest.splits["train"].documents == 2
    assert "1 empty" in capsys.readouterr().out


def test_marks_begin_where_the_answer_does(loaded: dict[str, LibraryTokenizer]) -> None:
    for form, answer in (("llama", "the"), ("qwen", " the")):  # Llama's decoder strips a blank from a beginning
        tok = loaded[form]
        tokens, marks = encode_together(tok, "e\u0301 on", " the")
        assert tok.decode(tokens[marks == 1]) == answer
        tokens, marks = encode_together(tok, "", "the")
        assert marks.all()


USER, ASSISTANT, SYSTEM = (RoleFormat(f"<|{name}|>", "\n", "<|end|>", "\n") for name in ("user", "assistant", "system"))
CHATS: dict[str, ChatTemplate] = {
    "qwen": replace(CHATML, begins=False),
    "phi": ChatTemplate(USER, ASSISTANT, SYSTEM, begins=False),
    "mistral": ChatTemplate(RoleFormat("[INST]", "", "[/INST]"), RoleFormat("", "", "</s>"), None, begins=False),
    "deepseek": ChatTemplate(
        RoleFormat("<｜User｜>", "", ""), RoleFormat("<｜Assistant｜>", "", "<｜end｜>"), RoleFormat("", "", "")
    ),
}


@pytest.mark.parametrize("form", CHATS)
def test_a_content_that_spells_a_role_is_text(loaded: dict[str, LibraryTokenizer], form: str) -> None:
    template = CHATS[form]
    tok, encoder = loaded[form].with_chat_template(template), ChatEncoder(loaded[form], template)
    document = encoder.encode_conversation(TURNS)
    specials = [i for i in document.tokens.tolist() if i in tok.specials.values()]
    roles = [
        name for _ in range(2) for style in (template.user, template.assistant) for name in (style.start, style.end)
    ]
    begin = [tok.begin_of_text] if template.begins else []
    assert specials == [*begin, *(tok.specials[name] for name in roles if name)]
    answer = tok.decode(document.tokens[document.loss_mask == 1])
    assert answer.count(template.assistant.end) == 2
    assert not template.assistant.start or template.assistant.start not in answer
    assert "12 🤗\n" in answer
    prompt = encoder.encode_prompt(TURNS[:3])
    start = len(prompt)
    assert document.tokens[:start].tolist() == prompt.tolist()
    assert document.loss_mask[start:-1].all()


def test_roles_that_the_file_does_not_call_special_are_written_by_no_text(
    loaded: dict[str, LibraryTokenizer], directories: dict[str, Path], tmp_path: Path
) -> None:
    tok, number = loaded["deepseek"], loaded["deepseek"].text_tokens["<｜User｜>"]
    chat = tok.with_chat_template(CHATS["deepseek"])
    assert (chat.specials["<｜User｜>"], chat.text_tokens) == (number, {})
    assert number in tok.encode("a<｜User｜>b")
    assert number not in chat.encode("a<｜User｜>b")
    assert number in chat.encode_with_specials("a<｜User｜>b")
    assert chat.extends(tok)
    assert not tok.extends(chat)
    assert chat.with_chat_template(None).fingerprint == tok.fingerprint != chat.fingerprint
    again = load_tokenizer(chat.save(tmp_path))
    assert (tmp_path / "tokenizer.json").read_bytes() == (directories["deepseek"] / "tokenizer.json").read_bytes()
    more = again.with_special_tokens(["<|a|>"])
    assert more.extends(tok)
    assert more.extends(chat)
    assert more.specials.items() > chat.specials.items()
    for same in (again, pickle.loads(pickle.dumps(chat)), chat.with_end_of_text("<｜end｜>")):
        assert (same.fingerprint, same.specials, same.chat_template) == (
            chat.fingerprint,
            chat.specials,
            chat.chat_template,
        )


def test_tokens_of_chatml_that_the_file_does_not_call_special_make_chatml(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    text = (directories["qwen"] / "tokenizer.json").read_text().replace('"special": true', '"special": false')
    (tmp_path / "tokenizer.json").write_text(text)
    tok = load_tokenizer(tmp_path)
    assert {*CHATML.special_tokens} <= tok.text_tokens.keys()
    chat = with_jinja(tok, CHATML.to_jinja(begin=None))
    assert chat.chat_template == replace(CHATML, begins=False)
    assert chat.specials.keys() == {*CHATML.special_tokens, "<|endoftext|>"}


@pytest.mark.parametrize("form", ["deepseek", "mistral"])
def test_conversations_are_prepared_with_a_template_of_another_model(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    messages = [message._asdict() for message in TURNS]
    (tmp_path / "chat.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    CHATS[form].save(tmp_path)
    prepare_chat(
        PrepareChat(
            source=str(tmp_path / "chat.jsonl"),
            output=tmp_path / "out",
            tokenizer=str(directories[form]),
            template=str(tmp_path / "chat_template.json"),
            split="none",
        )
    )
    note = "<｜User｜> and <｜Assistant｜> are roles here: a text that spells one stays text"
    assert (note in capsys.readouterr().out) == (form == "deepseek")
    wanted = ChatEncoder(load_tokenizer(directories[form]), CHATS[form]).encode_conversation(TURNS)
    assert verify_prepared(tmp_path / "out").fingerprint == load_tokenizer(tmp_path / "out").fingerprint
    stream = TokenShards(str(tmp_path / "out")).open_stream("train")
    assert stream.read(0, len(stream)).tolist() == wanted.tokens.tolist()


@pytest.mark.parity
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("form", CHATS)
def test_transformers_encodes_texts_and_conversations_alike(
    loaded: dict[str, LibraryTokenizer], tmp_path: Path, form: str
) -> None:
    tok = loaded[form].with_chat_template(CHATS[form])
    write_tokenizer(tmp_path, tok, context_length=64)
    other = import_module("transformers").AutoTokenizer.from_pretrained(tmp_path)
    assert (other.eos_token, other.eos_token_id) == (tok.end_of_text_name, tok.end_of_text)
    for text in TEXTS[:-2]:
        assert other(text, add_special_tokens=False)["input_ids"] == tok.encode(text).tolist()
    # transformers reads names of special tokens, and marks a role that takes the blanks of an answer.
    turns = [
        Message(role, text.replace("</s> <|im_end|> <｜User｜>", "").replace("  12", "12")) for role, text in TURNS
    ]
    found = ChatEncoder(tok).encode_conversation(turns)
    theirs = other.apply_chat_template(
        [turn._asdict() for turn in turns], return_dict=True, return_assistant_tokens_mask=True
    )
    assert theirs["input_ids"] == found.tokens.tolist()
    assert theirs["assistant_masks"] == found.loss_mask.tolist()


def test_a_models_directory_gives_its_tokenizer(
    directories: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    tok = read_tokenizer(directories["llama"], vocab_size=1000)
    assert isinstance(tok, LibraryTokenizer)
    assert "adds <s> to each text, and here a text is read without it" in capsys.readouterr().err
    with pytest.raises(UserError, match="but the model only 100"):
        read_tokenizer(directories["llama"], vocab_size=100)


@pytest.mark.parity
def test_a_gguf_of_it_is_refused(loaded: dict[str, LibraryTokenizer]) -> None:
    pytest.importorskip("gguf")
    config = GPTConfig(activation="gelu_tanh", vocab_size=loaded["qwen"].vocab_size)
    with pytest.raises(UserError, match=r"llama\.cpp cannot encode with the tokenizers-"):
        choose_gguf_architecture(config, loaded["qwen"])


def test_a_directory_with_a_sentencepiece_model_says_what_writes_a_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e")
    with pytest.raises(UserError, match=r"tokenizer\.model is of another kind.*save_pretrained\(OUT\) writes a token"):
        load_tokenizer(tmp_path)


@pytest.mark.parity
def test_what_the_error_says_writes_the_ids_of_sentencepiece(tmp_path: Path) -> None:
    library, made = pytest.importorskip("sentencepiece"), io.BytesIO()
    options = {"vocab_size": 275, "byte_fallback": True, "minloglevel": 5, "normalization_rule_name": "nfkc"}
    corpus = iter(["to be or not to be", "that is the question", "whether it is nobler"] * 20)
    library.SentencePieceTrainer.train(sentence_iterator=corpus, model_writer=made, **options)
    (tmp_path / "tokenizer.model").write_bytes(made.getvalue())
    names = {"tokenizer_class": "LlamaTokenizer", "eos_token": "</s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    import_module("transformers").PreTrainedTokenizerFast.from_pretrained(tmp_path).save_pretrained(tmp_path / "out")
    tok, other = load_tokenizer(tmp_path / "out"), library.SentencePieceProcessor(model_proto=made.getvalue())
    for text in ("to be or not", "quｅstion ①"):
        assert tok.encode(text).tolist() == other.encode(text)


def test_ids_with_gaps_are_refused(directories: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((directories["bert"] / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab |= {name: i + 7 for name, i in vocab.items() if i > 50}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(
        UserError,
        match=r"new added token the id 70, .* Wanted: ids without gaps, or an added token with the largest id",
    ):
        load_tokenizer(tmp_path)
