"""A model as lm-evaluation-harness sees it: `simple_evaluate(model=HarnessModel(model, tokenizer))`.

Contexts and answers become tokens as `lm_eval --model hf` makes them from an export. Requests that share a context read
it once. Only this module and `harness.py` import `lm_eval`.
"""

import contextlib
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import jax
import numpy as np

from gptjax.core.errors import UserError, quote
from gptjax.evaluation.prefixes import score_with_shared_prefixes
from gptjax.evaluation.scoring import ScoringOptions, score_windows
from gptjax.evaluation.windows import EvalWindow, rolling_windows
from gptjax.generation.decoding import prepare_for_decoding
from gptjax.generation.generate import generate
from gptjax.model.gpt import GPT
from gptjax.tokenization.chat import write_jinja
from gptjax.tokenization.tokenizer import Tokenizer

# Of an extra, which type checkers may not find.
TemplateLM: Any = import_module("lm_eval.api.model").TemplateLM
lm_eval_utils: Any = import_module("lm_eval.models.utils")

MARKERS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Marks of what is scored in training; they write nothing."""
FIRST_NEW_TOKENS = 32
"""Tokens that are written before the first look for a stop; then twice as many each time."""


class HarnessModel(TemplateLM):
    """A GPT and its tokenizer. It answers log-likelihoods, whole and rolling, and continues texts."""

    backend = "causal"

    def __init__(
        self, model: GPT, tokenizer: Tokenizer, *, batch_size: int = 16, chat_template: str | None = None
    ) -> None:
        """`chat_template` is Jinja, as transformers stores it. By default it is the tokenizer's own, if it has one."""
        super().__init__()
        self.model, self.batch_size = model, batch_size
        self.text_tokenizer = tokenizer
        self.template = write_jinja(tokenizer) if chat_template is None else chat_template
        ends = [tokenizer.end_of_text]
        if tokenizer.chat_template is not None:
            ends.append(tokenizer.specials[tokenizer.chat_template.assistant.end])
        self._ends = [end for end in ends if end is not None]
        self.max_length, self.max_gen_toks = model.config.context_length, 256
        self.scoring = ScoringOptions(batch_size=batch_size)

    @property
    def eot_token_id(self) -> int:
        """The end of text; where a tokenizer has none, a line end."""
        if (end := self.text_tokenizer.end_of_text) is not None:
            return end
        return int(self.text_tokenizer.encode("\n")[-1])

    @property
    def prefix_token_id(self) -> int:
        """What a text without a context follows."""
        begin = self.text_tokenizer.begin_of_text
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return self.text_tokenizer.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text. Names of special tokens in it are those tokens, as transformers reads them."""
        return self.text_tokenizer.encode_with_specials(string).tolist()

    @contextlib.contextmanager
    def remember_answers(self) -> Iterator[None]:
        """Within this context, a request that was answered before is not computed again."""
        known: dict[tuple[bytes, int], Any] = {}

        def remember(name: str) -> Any:
            compute = getattr(self, name)

            def answer(requests: Sequence[Any], **kwargs: Any) -> list[Any]:
                times: Counter[bytes] = Counter()
                keys = []
                for request in requests:
                    digest = hashlib.blake2b(repr((name, request.args)).encode(errors="surrogatepass")).digest()
                    times[digest] += 1  # repeats are sampled anew
                    keys.append((digest, times[digest]))
                new = {key: request for key, request in zip(keys, requests, strict=True) if key not in known}
                if new:
                    known.update(zip(new, compute(list(new.values()), **kwargs), strict=True))
                return [known[key] for key in keys]

            return answer

        names = ("loglikelihood", "loglikelihood_rolling", "generate_until")
        for name in names:
            setattr(self, name, remember(name))
        try:
            yield
        finally:
            for name in names:
                delattr(self, name)

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        before, after = super()._encode_pair(context, continuation)
        return before or [self.prefix_token_id], after

    def _loglikelihood_tokens(self, requests: Sequence[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        windows = [self._make_window(context, answer) for _, context, answer in requests]
        with self.model.mesh.activate():
            scores = score_with_shared_prefixes(self.model, windows, options=self.scoring)
        answers = [(float(s.log_probabilities.sum(dtype=np.float64)), bool(s.greedy.all())) for s in scores]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _make_window(self, context: list[int], answer: list[int]) -> EvalWindow:
        """A context cut on the left where both do not fit."""
        if not 1 <= len(answer) <= self.max_length:
            raise UserError(f"an answer has {len(answer)} tokens; 1 to {self.max_length} fit the model's context.")
        return EvalWindow(np.array([*context, *answer][-(self.max_length + 1) :], np.int32), len(answer))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows with one token of context (`windows.rolling_windows`)."""
        texts = [request.args[0] for request in requests]
        rows = [np.array([self.prefix_token_id, *self.tok_encode(text)], np.int32) for text in texts]
        windows = [list(rolling_windows(row, self.max_length)) for row in rows]
        with self.model.mesh.activate():
            scores = score_windows(self.model, [w for text in windows for w in text], options=self.scoring)
        sums = [float(score.log_probabilities.sum(dtype=np.float64)) for score in scores]
        ends = np.cumsum([0, *map(len, windows)]).tolist()
        return [sum(sums[start:end]) for start, end in itertools.pairwise(ends)]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continuations up to a stop, which is cut off. Requests with equal settings are written together."""
        found: dict[int, str] = {}
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        model = prepare_for_decoding(self.model)
        for members in groups.values():
            settings: dict[str, Any] = dict(
                lm_eval_utils.normalize_gen_kwargs(requests[members[0]].args[1], self.max_gen_toks)
            )
            room = self.max_length - settings["max_gen_toks"]
            if room < 1:
                raise UserError(
                    f"{settings['max_gen_toks']} new tokens leave no room for a prompt in the model's context of "
                    f"{self.max_length}. Use a model with a longer one, or set max_gen_toks in the task."
                )
            rows = {i: self.tok_encode(requests[i].args[0])[-room:] or [self.prefix_token_id] for i in members}
            order = sorted(members, key=lambda i: -len(rows[i]))
            for start in range(0, len(order), self.batch_size):
                chosen = order[start : start + self.batch_size]
                texts = self._continue(model, [rows[i] for i in chosen], settings)
                found |= dict(zip(chosen, texts, strict=True))
        return [found[i] for i in range(len(requests))]

    def _continue(self, model: GPT, prompts: list[list[int]], settings: dict[str, Any]) -> list[str]:
        """Greedy texts are written in pieces, so that those that have stopped are not continued."""
        stops = lm_eval_utils.handle_stop_sequences(settings.get("until"), eos=None)
        sampled = bool(settings.get("do_sample")) and settings.get("temperature", 1.0) > 0
        length = settings["max_gen_toks"]
        size = length if sampled or self.model.mesh.is_sharded else min(length, FIRST_NEW_TOKENS)
        written: list[list[int]] = [[] for _ in prompts]
        pending = list(range(len(prompts)))
        while pending and size > 0:
            rows = [prompts[i] + written[i] for i in pending]
            new = self._write(model, rows, size, settings if sampled else None)
            for i, tokens in zip(pending, new, strict=True):
                written[i] += tokens
            pending = [i for i in pending if not self._has_stopped(written[i], stops)]
            done = max(map(len, written))
            size = min(size * 2, length - done)
        return [lm_eval_utils.postprocess_generated_text(self._decode(tokens), stops, None) for tokens in written]

    def _write(self, model: GPT, rows: list[list[int]], size: int, sampling: dict[str, Any] | None) -> list[list[int]]:
        """`size` new tokens of each row. Rows fill the devices with copies of the last."""
        shards = self.model.mesh.num_batch_shards
        filled = rows + [rows[-1]] * (-len(rows) % shards)
        options: dict[str, Any] = {"temperature": 0.0}
        if sampling is not None:
            options = {name: sampling[name] for name in ("temperature", "top_k", "top_p") if name in sampling}
            options["key"] = jax.random.key(0)
        ids = generate(model, filled, max_new_tokens=size, end_of_text=self._ends or None, **options)
        return [ids[i, len(row) : len(row) + size].tolist() for i, row in enumerate(rows)]

    def _has_stopped(self, tokens: list[int], stops: list[str]) -> bool:
        text = self._decode(tokens)
        return any(end in tokens for end in self._ends) or any(stop in text for stop in stops if stop)

    def _decode(self, tokens: list[int]) -> str:
        """The text before the first end of a text or of a turn, without special tokens."""
        tokens = list(itertools.takewhile(lambda token: token not in self._ends, tokens))
        special = set(self.text_tokenizer.specials.values())
        return self.text_tokenizer.decode([token for token in tokens if token not in special])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the model was trained on it, up to where it answers."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment  # pyright: ignore[reportMissingImports]

        source = MARKERS.sub("", self._require_template())
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = _refuse
        try:
            return environment.from_string(source).render(
                messages=chat_history,
                add_generation_prompt=add_generation_prompt,
                bos_token=self.text_tokenizer.begin_of_text_name or self._end_name or "",
                eos_token=self._end_name or "",
            )
        except UserError:
            raise
        except Exception as error:  # a template is a program, which may fail in any way
            reason = quote(f"{type(error).__name__}: {error}".rstrip("."))
            raise UserError(f"--apply-chat-template: the checkpoint's chat template fails: {reason}.") from None

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return self._require_template() if chat_template else None

    @property
    def _end_name(self) -> str | None:
        end = self.text_tokenizer.end_of_text
        return None if end is None else self.text_tokenizer.decode([end])

    def _require_template(self) -> str:
        if self.template is None:
            raise UserError(
                "--apply-chat-template: the checkpoint has no chat template. Use a model that was trained on chats."
            )
        return self.template


def _refuse(message: str) -> None:
    """What a template calls for a conversation that it cannot write."""
    raise UserError(f"the chat template refuses the conversation: {message}")
