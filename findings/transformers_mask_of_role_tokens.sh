#!/usr/bin/env bash
# transformers marks the assistant's role token as the assistant's text if the answer begins with a blank.
#
# It makes a tokenizer of bytes whose role tokens have `rstrip`, as Phi-3's have: such a token takes the blanks behind
# it. Its chat template marks answers by {% generation %}. `apply_chat_template` finds the token at the first character
# of an answer. If that character is a blank, the role token has taken it. So the mask begins with the role token, which
# no assistant writes, and a model trained with this mask learns to write it.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, tokenizers 0.23.3. Seen, as what the mask holds:
#     rstrip=False 'yes': ['y', 'e', 's', '<|end|>']; ' yes': ['Ġ', 'y', 'e', 's', '<|end|>']
#     rstrip=True 'yes': ['y', 'e', 's', '<|end|>']; ' yes': ['<|assistant|>', 'y', 'e', 's', '<|end|>']
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "tokenizers==0.23.3" "jinja2==3.1.6"
cat > "$work/try.py" <<'PY'
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
)


def list_marked(answer, rstrip):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    roles = [AddedToken(f"<|{role}|>", normalized=False, rstrip=rstrip) for role in ("user", "assistant")]
    made.add_special_tokens([AddedToken("<|end|>", normalized=False), *roles])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|end|>", chat_template=TEMPLATE)
    chat = [{"role": "user", "content": "ok?"}, {"role": "assistant", "content": answer}]
    read = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    tokens = tokenizer.convert_ids_to_tokens(read["input_ids"])
    return [token for token, marked in zip(tokens, read["assistant_masks"], strict=True) if marked]


word = ["y", "e", "s", "<|end|>"]
expected = {False: [word, ["Ġ", *word]], True: [word, ["<|assistant|>", *word]]}
for rstrip, wanted in expected.items():
    found = [list_marked(answer, rstrip) for answer in ("yes", " yes")]
    print(f"rstrip={rstrip} 'yes': {found[0]}; ' yes': {found[1]}")
    assert found == wanted, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
