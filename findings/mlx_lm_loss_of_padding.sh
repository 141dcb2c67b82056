#!/usr/bin/env bash
# mlx-lm's loss counts a prediction more than a text has: behind its last token each row is trained to predict padding.
#
# Rows are padded with 0 to a multiple of 32 and one more. The mask of the loss should end at the prediction of the last
# token, which is the end of the text. It ends one later: behind that the model learns to predict token 0, in GPT-2 an
# exclamation mark. The count of tokens is too large by one for each text that is not cut. So the reported losses of
# training, validation and test are no means over a text's tokens, and short texts are off by most.
#
# Versions: Python 3.11 or newer, mlx-lm 0.32.2, mlx 0.32.4 on a CPU. Seen:
#     text of 5 tokens:  5 counted, 4 predicted; loss 3.7776, mean of the text 3.9331, with a 0 behind it 3.7776
#     text of 8 tokens:  8 counted, 7 predicted; loss 4.2787, mean of the text 4.2262, with a 0 behind it 4.2787
#     text of 40 tokens: 40 counted, 39 predicted; loss 4.5005, mean of the text 4.4972, with a 0 behind it 4.5005
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "mlx[cpu]==0.32.4" "mlx-lm==0.32.2"
cat > "$work/try.py" <<'PY'
import mlx.core as mx
from mlx.nn.losses import cross_entropy
from mlx_lm.models.gpt2 import Model, ModelArgs
from mlx_lm.tuner.trainer import default_loss, iterate_batches

mx.random.seed(0)
sizes = {"n_ctx": 128, "n_embd": 16, "n_head": 2, "n_layer": 1, "n_positions": 128, "vocab_size": 50}
model = Model(ModelArgs(model_type="gpt2", layer_norm_epsilon=1e-5, **sizes))


def mean_loss(tokens):
    tokens = mx.array([tokens])
    return cross_entropy(model(tokens[:, :-1]), tokens[:, 1:]).mean().item()


for length in (5, 8, 40):
    text = [5 + index % 40 for index in range(length)]
    rows, borders = next(iterate_batches([(text, 0)], batch_size=1, max_seq_length=128))
    loss, count = (value.item() for value in default_loss(model, rows, borders))
    plain, longer = mean_loss(text), mean_loss([*text, 0])
    name = f"text of {length} tokens:"
    print(f"{name:18} {count} counted, {length - 1} predicted; loss {loss:.4f}, ", end="")
    print(f"mean of the text {plain:.4f}, with a 0 behind it {longer:.4f}")
    assert count == length and abs(loss - longer) < 1e-4 < abs(loss - plain), "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
