"""Each protocol against a plain loop that is written as the original is: one window after another, whole logits."""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gptjax.core.errors import UserError
from gptjax.evaluation import texts
from gptjax.evaluation.batch_shapes import round_up_length
from gptjax.evaluation.figures import DocumentSums, compute_figures
from gptjax.evaluation.protocols import PRESETS, EvalProtocol, find_protocol, place_windows
from gptjax.evaluation.scoring import ScoringOptions, score_windows
from gptjax.evaluation.texts import Text, encode_text, read_documents, score_text
from gptjax.evaluation.windows import EvalWindow
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT, DocumentIds, with_static
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN, Chars

CONTEXT = 24
TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)
LINES = [
    " = the title = \n",
    " \n",
    "it was the other day, then \n",
    "\n",
    "a\n",
    "the theme: " + "thé that the " * 9 + "\n",
    "\n",
    "so the end\n",
    "no line end",
]


@pytest.fixture(scope="module")
def model() -> GPT:
    config = GPTConfig(
        num_layers=1,
        embed_dim=16,
        num_heads=2,
        context_length=CONTEXT,
        vocab_size=259,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.5),
    )
    return jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))


@pytest.fixture(scope="module")
def nats_of(model: GPT) -> Callable[[np.ndarray], np.ndarray]:
    """The nats of each token of a row but its first, by the plain formula."""
    forward = jax.jit(lambda tokens: jax.nn.log_softmax(model(tokens)))

    def compute(row: np.ndarray) -> np.ndarray:
        padded = np.zeros((1, CONTEXT), np.int32)
        padded[0, : len(row) - 1] = row[:-1]
        return -np.asarray(forward(jnp.asarray(padded))[0])[np.arange(len(row) - 1), row[1:]]

    return compute


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("".join(LINES).encode())
    return path


def score(model: GPT, file: Path, protocol: EvalProtocol) -> DocumentSums:
    resolved = protocol.resolve(CONTEXT)
    scoring = ScoringOptions(batch_size=3)
    return score_text(model, encode_text(file, TOKENIZER, resolved), resolved, options=scoring)


def per_token(sums: DocumentSums) -> float:
    return compute_figures(sums, draws=2)["nats_per_token"].value


def test_nanogpt_has_the_mean_of_its_random_windows(model: GPT, file: Path, nats_of: Callable) -> None:
    data = TOKENIZER.encode("".join(LINES))
    offsets = np.random.RandomState(0).randint(0, len(data) - CONTEXT, 7).tolist()
    losses = [nats_of(data[i : i + CONTEXT + 1]).mean() for i in offsets]
    found = score(model, file, replace(find_protocol("nanogpt"), offsets=tuple(offsets)))
    assert per_token(found) == pytest.approx(np.mean(losses), abs=1e-5)
    with pytest.raises(UserError, match=r"offsets: 999 is outside the text"):
        score(model, file, replace(find_protocol("nanogpt"), offsets=(999,)))


def test_nanogpt_takes_all_full_windows_by_default(model: GPT, file: Path, nats_of: Callable) -> None:
    data = TOKENIZER.encode("".join(LINES))
    losses = [nats_of(data[i : i + CONTEXT + 1]).mean() for i in range(0, len(data) - CONTEXT, CONTEXT)]
    found = score(model, file, find_protocol("nanogpt"))
    assert found.scored.sum() == len(losses) * CONTEXT
    assert per_token(found) == pytest.approx(np.mean(losses), abs=1e-5)


def test_modded_nanogpt_takes_the_first_tokens_of_stored_shards(model: GPT, nats_of: Callable) -> None:
    ids = [np.array([258, *TOKENIZER.encode(line)], np.int32) for line in LINES]
    stream = np.concatenate(ids)
    protocol = replace(find_protocol("modded-nanogpt"), tokens=3 * CONTEXT).resolve(CONTEXT)
    found = score_text(model, Text("shards", ids, None, TOKENIZER, is_stored=True), protocol)
    windows = [stream[i : i + CONTEXT + 1] for i in range(0, 3 * CONTEXT, CONTEXT)]
    assert per_token(found) == pytest.approx(np.mean([nats_of(w).mean() for w in windows]), abs=1e-5)
    assert find_protocol("modded-nanogpt").tokens == 10_485_760


def test_empty_documents_are_an_end_of_text_and_a_word_of_the_harness(
    model: GPT, tmp_path: Path, nats_of: Callable
) -> None:
    documents = ["", LINES[0], "", LINES[1], ""]
    (tmp_path / "pages.jsonl").write_text("".join(json.dumps({"text": d}) + "\n" for d in documents))
    stream = np.concatenate([[258, *TOKENIZER.encode(d)] for d in documents])
    together = score(model, tmp_path / "pages.jsonl", EvalProtocol())
    windows = [stream[i : i + CONTEXT + 1] for i in range(0, len(stream) - 1, CONTEXT)]
    assert together.nats.sum() == pytest.approx(sum(nats_of(window).sum() for window in windows), abs=1e-4)
    alone = score(model, tmp_path / "pages.jsonl", find_protocol("harness"))
    assert alone.words.sum() == sum(len(re.split(r"\s+", d)) for d in documents)
    assert alone.scored.sum() == len(stream) - len(documents)


@pytest.mark.parametrize("stride", [5, 12, 24])
def test_hf_stride_has_the_sum_of_transformers_page(model: GPT, file: Path, nats_of: Callable, stride: int) -> None:
    """Labels before the window's own tokens are ignored; a window's mean weighs a token less than its labels."""
    ids = TOKENIZER.encode("".join(LINES))
    nll, count, previous = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + CONTEXT, len(ids))
        labels = end - previous
        shifted = nats_of(ids[begin:end])[-labels:] if end - begin > 1 else np.zeros(0)
        if labels > 1:
            nll, count = nll + shifted.mean() * (labels - 1), count + labels - 1
        previous = end
        if end == len(ids):
            break
    found = score(model, file, replace(find_protocol("hf-stride-512"), stride=stride))
    assert found.tokens.sum() == pytest.approx(count)
    assert per_token(found) == pytest.approx(nll / count, abs=1e-5)


@pytest.mark.parametrize("name", ["gptjax", "nanogpt"])
def test_windows_that_overlap_read_as_many_tokens_as_windows_side_by_side(
    model: GPT, file: Path, nats_of: Callable, name: str
) -> None:
    ids = TOKENIZER.encode("".join(LINES))
    ids = ids if name == "nanogpt" else np.concatenate([[258], ids])
    nats = list(nats_of(ids[: CONTEXT + 1]))
    for end in range(CONTEXT + 1, len(ids), 7):
        new = ids[end - CONTEXT + 6 : end + 7]  # the next seven tokens, which are fewer at the end
        if name == "gptjax" or len(new) == CONTEXT + 1:
            nats += list(nats_of(new)[-len(ids[end : end + 7]) :])
    found = score(model, file, replace(find_protocol(name), stride=7))
    assert found.scored.sum() == len(nats)
    assert per_token(found) == pytest.approx(np.mean(nats), abs=1e-5)


def reference_rolling(ids: list[int], nats_of: Callable, first: tuple[int, ...] = (258,)) -> Iterator[np.ndarray]:
    """The harness: all predicted once; windows of the context with one token of context, the last moved back."""
    ids = ids if first else ids[1:]
    first = first or (int(TOKENIZER.encode("".join(LINES))[0]),)
    yield nats_of(np.array([*first, *ids[:CONTEXT]]))
    done = min(CONTEXT, len(ids))
    while done < len(ids):
        new = min(len(ids) - done, CONTEXT)
        end = done + new
        yield nats_of(np.array(ids[end - CONTEXT - 1 : end]))[-new:]
        done = end


def test_harness_scores_each_document_after_an_end_of_text(model: GPT, tmp_path: Path, nats_of: Callable) -> None:
    pages = ["the first\nline ", " that other theme\n" * 9, "x"]
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages))
    assert read_documents(path) == pages
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, page in zip("abc", pages, strict=True):
        (folder / f"{name}.txt").write_text(page)
    assert read_documents(folder) == pages, "as prepare reads it"
    found = score(model, path, find_protocol("harness"))
    wanted = [np.concatenate([*reference_rolling(TOKENIZER.encode(p).tolist(), nats_of)]).sum() for p in pages]
    np.testing.assert_allclose(found.nats, wanted, atol=1e-4)
    figures = compute_figures(found)
    words, size = sum(len(re.split(r"\s+", p)) for p in pages), sum(len(p.encode()) for p in pages)
    assert found.words.sum() == words
    assert figures["word_perplexity"].value == pytest.approx(math.exp(sum(wanted) / words), rel=1e-5)
    assert figures["bits_per_byte"].value == pytest.approx(sum(wanted) / size / math.log(2), rel=1e-6)


def test_last_window_ends_with_the_text_whatever_opens_it(model: GPT, file: Path, nats_of: Callable) -> None:
    ids = TOKENIZER.encode("".join(LINES)).tolist()
    protocol = replace(find_protocol("harness"), first_token="context", documents="together")
    wanted = np.concatenate([*reference_rolling(ids, nats_of, ())])
    found = score(model, file, protocol)
    assert found.scored.sum() == len(wanted) == len(ids) - 1
    assert found.nats.sum() == pytest.approx(wanted.sum(), abs=1e-4)
    assert "documents run together, the first token is context, the last window ends with the text" in (
        protocol.resolve(CONTEXT).describe()
    )
    with pytest.raises(
        UserError,
        match=r"--protocol=harness begins with an end of text, .* --first-token=context.*EvalProtocol\(first_",
    ):
        encode_text(file, Chars.from_text("".join(LINES)), find_protocol("harness"))


def test_number_of_tokens_is_kept_exactly_and_told(model: GPT, file: Path) -> None:
    pages = [TOKENIZER.encode(line).astype(np.int32) for line in LINES]
    for name, changes in (("harness", {}), ("gptjax", {}), ("hf-stride-512", {"stride": 12})):
        protocol = replace(find_protocol(name), tokens=30, **changes).resolve(CONTEXT)
        placed = place_windows(protocol, pages, begin_of_text=258)
        assert sum(p.window.scored for p in placed) == 30
    describe = lambda protocol, **found: protocol.resolve(CONTEXT).describe(**found).rpartition("only, ")[2]
    whole = describe(find_protocol("modded-nanogpt"), scored=2176)
    assert whole == "the first 10,485,760 tokens (2,176 are scored)"
    assert describe(replace(find_protocol("nanogpt"), tokens=48), scored=48) == "the first 48 tokens"
    rows = replace(find_protocol("wikitext2-rows"), window=12).resolve(CONTEXT).describe(documents=9)
    assert rows.endswith("the first 100 documents (there are 9)")


def test_sums_do_not_depend_on_how_many_windows_are_scored_at_once(
    model: GPT, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one document, whose parts are placed window by window."""
    file = file.with_name("long.txt")
    file.write_text("the other theme is then\n" * 30)
    whole = score(model, file, find_protocol("harness"))
    monkeypatch.setattr(texts, "BATCHES_AT_ONCE", 1)
    parts = score(model, file, find_protocol("harness"))
    assert len(whole.nats) == texts.PARTS
    for name in ("nats", "bytes", "tokens", "words"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-6)


def test_wikitext2_rows_scores_rows_alone_and_cut(model: GPT, file: Path, nats_of: Callable) -> None:
    rows = [TOKENIZER.encode(line)[:12] for line in LINES if line.strip()]
    nats = [nats_of(row) for row in rows]
    found = score(model, file, replace(find_protocol("wikitext2-rows"), window=12))
    assert found.scored.tolist() == [len(row) - 1 for row in rows]
    assert per_token(found) == pytest.approx(np.concatenate(nats).mean(), abs=1e-5)
    assert len(score(model, file, replace(find_protocol("wikitext2-rows"), window=12, max_documents=2)).nats) == 2


def test_gptjax_puts_an_end_of_text_before_each_document(model: GPT, tmp_path: Path, nats_of: Callable) -> None:
    path = tmp_path / "two.jsonl"
    path.write_text('{"text": "the first"}\n{"text": "the second one, that ends"}\n')
    stream = np.concatenate(
        [[258], TOKENIZER.encode("the first"), [258], TOKENIZER.encode("the second one, that ends")]
    )
    windows = [stream[i : i + CONTEXT + 1] for i in range(0, len(stream) - 1, CONTEXT)]
    found = score(model, path, find_protocol("gptjax"))
    assert found.scored.sum() == len(stream) - 1
    assert found.nats.sum() == pytest.approx(sum(nats_of(w).sum() for w in windows), abs=1e-4)


def test_words_are_counted_as_asked_for(model: GPT, file: Path) -> None:
    text = "".join(LINES)
    counts: dict[Any, int] = {
        "words": len(text.split()),
        "line-ends": len(text.split()) + 8,
        "split": len(re.split(r"\s+", text)),
    }
    for words, count in counts.items():
        assert round(score(model, file, EvalProtocol(words=words)).words.sum()) == count


def test_masked_tokens_do_not_count(model: GPT) -> None:
    ids = [TOKENIZER.encode(line).astype(np.int32) for line in LINES[-2:]]
    masks = [np.arange(len(part)) % 2 == 0 for part in ids]
    protocol = EvalProtocol().resolve(CONTEXT)
    found = score_text(model, Text("chat", ids, None, None, is_stored=True, masks=masks), protocol)
    assert found.scored.sum() == sum(mask[1:].sum() for mask in masks)
    assert set(compute_figures(found)) == {"nats_per_token", "token_perplexity"}


def test_conversations_are_scored_each_by_itself(model: GPT, nats_of: Callable) -> None:
    """Whatever they begin with, by models with and without masks between documents. They may not run together."""
    ids = [TOKENIZER.encode(line).astype(np.int32) for line in (LINES[2], LINES[7], LINES[8])]
    text = Text("chat", ids, None, None, is_stored=True, masks=[np.ones(len(part), bool) for part in ids])
    for reader in (model, with_static(model, config=replace(model.config, intra_document_mask=True))):
        found = score_text(reader, text, EvalProtocol().resolve(CONTEXT))
        np.testing.assert_allclose(found.nats, [nats_of(part).sum() for part in ids], atol=1e-4)
    nanogpt, modded = find_protocol("nanogpt"), find_protocol("modded-nanogpt")
    for protocol, told in (
        (nanogpt, r"and --protocol=nanogpt runs them together\. Take --protocol=gptjax or harness\.$"),
        (modded, r"and --protocol=modded-nanogpt runs them together\. Take --protocol=gptjax or harness\.$"),
        (EvalProtocol(documents="together"), r"and --documents=together runs them together\. Leave --documents out\.$"),
        (EvalProtocol(offsets=(0,)), r"Leave --offsets out, with --protocol=gptjax or harness\.$"),
        (replace(nanogpt, offsets=(0,)), r"Leave --offsets out, with --protocol=gptjax or harness\.$"),
    ):
        with pytest.raises(UserError, match=rf"^chat: holds conversations, which are scored each by itself, .*{told}"):
            score_text(model, text, protocol.resolve(CONTEXT))
    with pytest.raises(UserError, match="Take --protocol=nanogpt for a text, or leave --offsets out"):
        replace(find_protocol("harness"), offsets=(0,)).resolve(CONTEXT)


@pytest.mark.parametrize("changes", [{}, {"stride": 7}, {"stride": 5, "label_shift": True}, {"offsets": (3, 35)}])
def test_documents_begin_where_they_are_known_to_begin(model: GPT, changes: dict[str, Any]) -> None:
    """For models whose attention stays inside documents, whatever token begins or ends them."""
    ids = [np.append(TOKENIZER.encode(line), 258).astype(np.int32) for line in (LINES[0], LINES[7], LINES[8], LINES[2])]
    text = Text("shards", ids, None, TOKENIZER, is_stored=True)
    masked = with_static(model, config=replace(model.config, intra_document_mask=True))
    protocol = EvalProtocol(**changes).resolve(CONTEXT)
    found = score_text(masked, text, protocol)
    stream, owner = np.concatenate(ids), np.repeat(np.arange(len(ids)), list(map(len, ids)))
    nats = np.zeros(len(ids))
    read = jax.jit(lambda row, docs: jax.nn.log_softmax(masked.unembed(masked.hidden_states(row, documents=docs))[0]))
    for number, p in enumerate(place_windows(protocol, ids)):
        tokens, size = p.window.tokens, len(p.window.inputs)
        start = changes["offsets"][number] if "offsets" in changes else number * (protocol.stride or 0)
        assert tokens.tolist() == stream[start : start + size + 1].tolist()
        places = np.arange(start, start + size)
        first = np.maximum(start, np.searchsorted(owner, owner[places]))
        documents = DocumentIds(*(jnp.asarray(x[None], jnp.int32) for x in (owner[places], places - first)))
        own = -read(jnp.asarray(tokens[None, :-1]), documents)[np.arange(size), tokens[1:]][size - p.window.scored :]
        np.add.at(nats, owner[start + 1 + size - p.window.scored : start + 1 + size], np.asarray(own))
    np.testing.assert_allclose(found.nats, nats, atol=1e-4)
    assert not np.allclose(found.nats, score_text(model, text, protocol).nats, atol=1e-2)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_describes_itself(name: str) -> None:
    assert find_protocol(name).resolve(1024).describe().startswith(f"{name}: windows of ")


def test_protocols_that_do_not_fit_are_refused(model: GPT, file: Path) -> None:
    with pytest.raises(UserError, match=r"the window of .* is 25 tokens; it .* 1 and the model's context of 24"):
        EvalProtocol(window=25).resolve(CONTEXT)
    with pytest.raises(UserError, match=r"the stride of .* is 9 tokens; it lies between 1 and the window of 8"):
        EvalProtocol(window=8, stride=9).resolve(CONTEXT)
    for wrong in (EvalProtocol(stride=0), EvalProtocol(window=0)):
        with pytest.raises(UserError, match=r"is 0 tokens; it lies between 1"):
            wrong.resolve(CONTEXT)
    for name in ("harness", "wikitext2-rows"):
        with pytest.raises(UserError, match=rf"--protocol={name} .*, so it has no stride\. Leave --stride out"):
            replace(find_protocol(name), window=8, stride=4).resolve(CONTEXT)
        with pytest.raises(UserError, match=rf"--offsets are places in one text, and --protocol={name} takes each"):
            replace(find_protocol(name), window=8, offsets=(1,)).resolve(CONTEXT)
    for changes in ({"stride": 4}, {"tokens": 9}):
        with pytest.raises(UserError, match="--offsets says where windows begin"):
            replace(find_protocol("nanogpt"), offsets=(1,), **changes).resolve(CONTEXT)
    with pytest.raises(UserError, match=r"--protocol=gpt2 is unknown; wanted one of gptjax"):
        find_protocol("gpt2")
    with pytest.raises(UserError, match=r"the text: has too few tokens to predict one; at least 2 are needed"):
        place_windows(EvalProtocol(first_token="context").resolve(4), [np.array([3])])


def test_window_longer_than_the_context_is_refused(model: GPT) -> None:
    with pytest.raises(UserError, match=r"a window of 30 tokens does not fit model.context_length 24"):
        score_windows(model, [EvalWindow(np.zeros(31, np.int32), 30)])


def test_lengths_of_rows_are_few_and_hold_the_row() -> None:
    lengths = [round_up_length(n, 1024) for n in range(1, 1025)]
    assert all(n <= length <= max(16, 1.34 * n) for n, length in zip(range(1, 1025), lengths, strict=True))
    assert len(set(lengths)) < 26
