#!/usr/bin/env bash
# mlx-lm's evaluation leaves the first token of a text out of its likelihood, and cuts no text at the context's length.
#
# lm-evaluation-harness asks for the likelihood of a whole text behind an end of text, in windows of the context, and
# divides by the words or bytes of the whole text. `MLXLM.loglikelihood_rolling` says in its docstring that it does the
# same. It scores the tokens behind the first one only. A text longer than the context is computed at once, so most
# tokens are at positions that the model was not trained on. Nothing is reported. Perplexities of wikitext and its like
# cannot be set beside those of the harness's other models: short texts look better, and long ones look different.
#
# Versions: Python 3.11 or newer, mlx-lm 0.32.2, mlx 0.32.4 on a CPU, lm-eval 0.4.13, transformers 5.24.0. Seen, for a
# context of 16:
#     2 tokens:  -31.57; in the harness's windows -46.14, at once without the first token -31.57
#     10 tokens: -189.05; in the harness's windows -202.66, at once without the first token -189.05
#     40 tokens: -672.31; in the harness's windows -674.33, at once without the first token -672.31
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "mlx[cpu]==0.32.4" "mlx-lm==0.32.2" "lm-eval==0.4.13" "transformers==5.24.0" "tokenizers==0.23.3"
cat > "$work/try.py" <<'PY'
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
from lm_eval.utils import get_rolling_token_windows
from mlx.nn import log_softmax
from mlx.utils import tree_flatten
from mlx_lm.evaluate import MLXLM
from mlx_lm.models.llama import Model, ModelArgs
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CONTEXT, VOCAB = 16, 50
directory = Path(sys.argv[1]) / "model"
words = Tokenizer(models.WordLevel({"<end>": 0, **{f"w{word}": word for word in range(1, VOCAB)}}, unk_token="<end>"))
words.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>").save_pretrained(directory)
config = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCAB,
    "max_position_embeddings": CONTEXT,
}
(directory / "config.json").write_text(json.dumps(config))
mx.random.seed(0)
model = Model(ModelArgs(**config))
weights = {name: 3 * array for name, array in tree_flatten(model.parameters())}
mx.save_safetensors(str(directory / "model.safetensors"), weights)
evaluated = MLXLM(str(directory))


def score(tokens, predicted):
    """The log-likelihood of `predicted`, the tokens behind the last ones of `tokens`."""
    logs = log_softmax(evaluated._model(mx.array([tokens]))[0])[-len(predicted) :]
    return sum(logs[place, token].item() for place, token in enumerate(predicted))


found = []
for length in (2, 10, 40):
    tokens = [1 + 7 * place % (VOCAB - 1) for place in range(length)]
    text = " ".join(f"w{token}" for token in tokens)
    (seen,) = evaluated.loglikelihood_rolling([SimpleNamespace(args=(text,))])
    windows = get_rolling_token_windows(tokens, prefix_token=0, max_seq_len=CONTEXT, context_len=1)
    wanted = sum(score(*window) for window in windows)
    at_once = score(tokens[:-1], tokens[1:])
    found.append((abs(seen - at_once) < 1e-3, abs(seen - wanted) > 0.1))
    name = f"{length} tokens:"
    print(f"{name:10} {seen:.2f}; in the harness's windows {wanted:.2f}, at once without the first token {at_once:.2f}")
assert found == [(True, True)] * 3, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
