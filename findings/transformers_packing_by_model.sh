#!/usr/bin/env bash
# Packed documents that Llama and GPT-2 keep apart in transformers are read together by OPT, gpt-oss, Qwen3-Next and
# Granite's hybrids: their predictions depend on the document in front, with no warning.
#
# Documents are told apart by position_ids that begin again at 0; there is no attention mask and `use_cache` is False,
# as in training. OPT and gpt-oss build their mask without the positions. In the hybrids attention keeps documents
# apart, but the state of the linear layers goes on from one to the next. So `DataCollatorWithFlattening` trains these
# models on other texts than Llama. Attention is the one that each model has on a CPU.
#
# Versions: Python 3.11 or newer, transformers 5.24.0, torch 2.13.0. Seen:
#     largest difference of a probability in the second document, from that document alone:
#     llama             0.00
#     gpt2              0.00
#     opt               0.30
#     gpt_oss           0.41
#     qwen3_next        0.25
#     granitemoehybrid  0.60
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "transformers==5.24.0" "torch==2.13.0" numpy
cat > "$work/try.py" <<'PY'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DataCollatorWithFlattening

transformers.logging.set_verbosity_error()
VOCAB = 100
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
SIZES |= {"max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
GROUPED = SIZES | {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
LINEAR = {"linear_num_value_heads": 4, "linear_num_key_heads": 2}
LINEAR |= {"linear_key_head_dim": 16, "linear_value_head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2}
LINEAR |= {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 32}
MAMBA = {"layer_types": ["mamba", "attention"] * 2, "shared_intermediate_size": 64, "mamba_chunk_size": 16}
MAMBA |= {f"mamba_{name}": value for name, value in {"n_heads": 8, "d_head": 16, "d_state": 16, "n_groups": 1}.items()}
MODELS = {
    "llama": GROUPED,
    "gpt2": {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": SIZES | {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "gpt_oss": GROUPED | EXPERTS,
    "qwen3_next": GROUPED | LINEAR,
    "granitemoehybrid": GROUPED | EXPERTS | MAMBA,
}


def compute_probabilities(model, documents):
    """Of the last document, all documents packed into one row. Shape (length, vocabulary)."""
    batch = DataCollatorWithFlattening()([{"input_ids": document} for document in documents])
    assert (batch["position_ids"][0] == 0).sum() == len(documents) and "attention_mask" not in batch
    with torch.no_grad():
        logits = model(batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    return logits[0, -len(documents[-1]) :].softmax(-1)


differences = {}
for name, sizes in MODELS.items():
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    before, document = (torch.randint(3, VOCAB, (length,)).tolist() for length in (13, 21))
    alone, packed = compute_probabilities(model, [document]), compute_probabilities(model, [before, document])
    differences[name] = (alone - packed).abs().max().item()
print("largest difference of a probability in the second document, from that document alone:")
for name, difference in differences.items():
    print(f"{name:16} {difference:5.2f}")
kept = [difference < 1e-4 for difference in differences.values()]
assert kept == [True, True] + [False] * 4 and min(list(differences.values())[2:]) > 0.05, "the behaviour has changed"
PY
HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
