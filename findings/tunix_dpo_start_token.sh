#!/usr/bin/env bash
# tunix's DPO puts a start-of-text token in front of every answer, trains it, and cuts the end of a long prompt off.
#
# The trainer is given strings: prompts, chosen and rejected answers. It encodes each of the three as a text of its own,
# with the start-of-text token, and sets answers behind prompts. In the middle of each row there is a second start of
# text, which the mask counts as the first token of the answer: the log-probability of an answer has a term more, and
# what generation continues, a prompt without that token, is not what was trained. A token with id 0, as in GPT-NeoX's
# tokenizers, is taken for none. No end of text is put behind an answer. Of a prompt that is too long the first tokens
# are kept, so that the answer follows on other words than its question's last.
#
# Versions: Python 3.11 or newer, google-tunix 0.1.7, jax 0.10.2, flax 0.12.8, transformers 5.12.1. Seen, for the
# prompt "a b c d e" of at most 4 tokens and the answer "c d":
#     start of text is 1: row <s> a b c | <s> c d <pad> <pad>, scored <s> c d, log-probability -6.41,
#       behind the whole prompt -3.38
#     start of text is 0: row a b c d | c d <pad> <pad> <pad>, scored c d, log-probability -4.78,
#       behind the whole prompt -3.38
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "google-tunix==0.1.7" "jax==0.10.2" "jaxlib==0.10.2" \
    "flax==0.12.8" "numpy==2.4.6" "transformers==5.12.1" "tokenizers==0.22.2" "safetensors==0.7.0"
cat > "$work/try.py" <<'PY'
import jax
import optax
from flax import nnx
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from tunix.sft.dpo.dpo_trainer import DPOTrainer, DPOTrainingConfig

SIZE = 10


class Bigram(nnx.Module):
    """The logits of the next token follow from the last one alone."""

    def __init__(self):
        self.table = nnx.Param(jax.random.normal(jax.random.key(0), (SIZE, SIZE)))

    def __call__(self, tokens, positions=None, cache=None, attention_mask=None):
        return self.table[...][tokens], None


def prepare(names):
    """The row of the chosen answer, its scored tokens, and its log-probability in the trainer and by hand."""
    library = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    kinds = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=library, **kinds)
    model = Bigram()
    lengths = {"max_prompt_length": 4, "max_response_length": 5}
    config = DPOTrainingConfig(eval_every_n_steps=1, max_steps=1, **lengths)
    trainer = DPOTrainer(model, model, optax.sgd(0.1), config, tokenizer=tokenizer)
    pair = {"prompts": ["a b c d e"], "chosen_responses": ["c d"], "rejected_responses": ["f"]}
    example = trainer._prepare_inputs(pair)
    row = [names[token] for token in example.input_ids[0].tolist()]
    scored = [name for name, kept in zip(row[4:], example.completion_mask[0].tolist(), strict=True) if kept]
    chances = jax.nn.log_softmax(model.table[...], axis=-1)
    by_hand = sum(chances[names.index(last), names.index(name)] for last, name in (("e", "c"), ("c", "d")))
    return row, scored, float(example.ref_chosen_logps[0]), float(by_hand)


for start in (1, 0):
    names = ["<s>", "</s>"] if start == 0 else ["</s>", "<s>"]
    row, scored, found, by_hand = prepare([*names, "<pad>", "<unk>", *"abcdef"])
    print(f"start of text is {start}: row {' '.join(row[:4])} | {' '.join(row[4:])}, ", end="")
    print(f"scored {' '.join(scored)}, log-probability {found:.2f}, behind the whole prompt {by_hand:.2f}")
    assert (scored == ["<s>", "c", "d"]) == (start == 1) and "e" not in row, "the behaviour has changed"
    assert "</s>" not in row and abs(found - by_hand) > 0.1, "the behaviour has changed"
PY
JAX_PLATFORMS=cpu HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
