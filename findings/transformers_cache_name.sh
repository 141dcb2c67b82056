#!/usr/bin/env bash
# From transformers 5.24 on `generate` passes the keys and values of earlier tokens as `cache`. A model of one's own
# that takes them as `past_key_values`, as the models of earlier versions do, generates other tokens without a warning.
#
# `generate` gives such a model one token a step, and its cache in an argument that it does not read. So each step sees
# the last token alone. Versions up to 5.23 pass the name that the model has. Files of models that are loaded with
# `trust_remote_code` are such models.
#
# Versions: Python 3.11 or newer, transformers 5.23.0 and 5.24.0, torch 2.13.0. Seen:
#     5.23.0 the tokens with a cache are those without; the cache came as past_key_values
#     5.24.0 the tokens with a cache are others; the cache came as cache
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
cat > "$work/try.py" <<'PY'
import sys

import torch
import transformers
from torch import nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class Config(PretrainedConfig):
    model_type = "bag_of_tokens"
    vocab_size, hidden_size, num_hidden_layers, num_attention_heads = 50, 16, 1, 1


class BagOfTokens(PreTrainedModel, GenerationMixin):
    """Predicts from the sum of all embeddings so far, which the cache keeps."""

    config_class = Config

    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)
        self.names = set()
        self.post_init()

    def forward(self, input_ids, past_key_values=None, use_cache=None, **others):
        self.names |= {"past_key_values"} if past_key_values is not None else set()
        self.names |= {name for name, value in others.items() if isinstance(value, DynamicCache)}
        x = self.embed(input_ids)[:, None]
        if past_key_values is not None:
            x, _ = past_key_values.update(x, x, 0)
        sums = x.cumsum(2)[:, 0, -input_ids.shape[1] :]
        return CausalLMOutputWithPast(logits=self.head(sums), past_key_values=past_key_values)


transformers.logging.set_verbosity_error()
torch.manual_seed(0)
model = BagOfTokens(Config()).eval()
for weight in (model.embed.weight, model.head.weight):
    nn.init.normal_(weight)
prompt, settings = torch.tensor([[1, 2, 3, 4]]), {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
without, with_cache = (model.generate(prompt, use_cache=use, **settings).tolist() for use in (False, True))
found = "those without" if with_cache == without else "others"
print(f"{transformers.__version__} the tokens with a cache are {found}; the cache came as {' and '.join(model.names)}")
assert (found, model.names) == (sys.argv[1], {sys.argv[2]}), "the behaviour has changed"
PY
for expected in "5.23.0:those without:past_key_values" "5.24.0:others:cache"; do
    IFS=: read -r version tokens name <<< "$expected"
    "$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==$version" "torch==2.13.0" numpy
    "$work/venv/bin/python" "$work/try.py" "$tokens" "$name" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
done
