"""Words that people bring from other programs, and the flags here that mean the same; the flags that are given most."""

_SAME = {
    "optimizer.learning-rate": "lr learning-rate learningrate max-lr peak-lr",
    "optimizer.weight-decay": "wd weight-decay",
    "optimizer.beta1": "beta1 adam-beta1 adam-b1 b1",
    "optimizer.beta2": "beta2 adam-beta2 adam-b2 b2",
    "optimizer.clip-norm": "grad-clip clip gradient-clip gradient-clipping-threshold "
    "gradient-clipping max-grad-norm clip-grad clip-grad-norm max-norm grad-norm",
    "optimizer.schedule.warmup-steps": "warmup warmup-iters warmup-steps lr-warmup-steps num-warmup-steps",
    "steps": "step max-iters iters iterations num-steps max-steps train-steps num-train-steps total-steps "
    "num-iterations "
    "training-steps n-steps train-iters",
    "batch-size": "bs batch batchsize train-batch-size global-batch-size",
    "grad-accum": "gradient-accumulation-steps grad-accum-steps gradient-accumulation accumulate-grad-batches",
    "model.num-layers": "n-layer n-layers layers num-layers num-hidden-layers depth nlayer base-num-decoder-layers",
    "model.num-heads": "n-head n-heads heads num-heads num-attention-heads nhead base-num-query-heads",
    "model.num-kv-heads": "gqa num-query-groups kv-heads n-kv-head n-kv-heads num-key-value-heads base-num-kv-heads",
    "model.embed-dim": "n-embd d-model hidden-size hidden-dim dim width model-dim n-embed embed-dim emb-dim "
    "base-emb-dim embedding-dim embedding-size emb-size emb",
    "model.mlp-dim": "n-inner d-ff ffn-dim intermediate-size mlp-dim base-mlp-dim "
    "ffn-hidden-size ffn-hidden-dim mlp-hidden-dim mlp-hidden-size",
    "model.context-length": "block-size seq-len seq-length sequence-length max-seq-len max-seq-length max-length "
    "sequence-len "
    "context context-length context-size n-positions n-ctx ctx ctx-len max-target-length max-position-embeddings",
    "model.vocab-size": "n-vocab vocab vocab-size",
    "model.dropout": "dropout resid-pdrop dropout-rate attn-dropout attn-pdrop hidden-dropout embd-pdrop",
    "model.bias": "bias use-bias",
    "model.compute.dtype": "dtype precision mixed-precision bf16 fp16 fp32 torch-dtype mp compute-dtype amp autocast",
    "model.rotary-base": "rope-theta rope-base rotary-base",
    "model.compute.remat": "gradient-checkpointing checkpointing remat activation-checkpointing",
    "data.source": "text text-file input input-file corpus",
    "optimizer.adam-learning-rate": "adam-lr adam-learning-rate embedding-lr",
    "data.path": "dataset data data-dir data-path train-data train-file dataset-path dataset-dir input-bin "
    "dataset-name",
    "output-dir": "out-dir outdir save-dir output out results-dir base-output-directory "
    "output-directory checkpoint-dir ckpt-dir log-dir logdir run-dir exp-dir",
    "ema.decay": "ema ema-decay",
    "name": "run-name exp-name experiment wandb-run-name run-id",
    "init-from": "initialize-from load from-checkpoint pretrained checkpoint finetune start-from load-from model "
    "from-pretrained ckpt ckpt-path",
    "seed": "random-seed rng-seed",
    "mesh": "mesh-shape mesh-type strategy parallelism sharding fsdp ddp dp tp",
    "log.wandb": "wandb wandb-log use-wandb report-to",
    "log.wandb-project": "wandb-project project",
    "log.every": "log-interval logging-steps log-every log-freq",
    "checkpoint.every": "save-interval save-every save-steps checkpoint-interval ckpt-interval checkpoint-every",
    "evaluators.0.every": "eval-interval eval-every eval-steps val-every val-loss-every",
    "evaluators.1.every": "eval-interval eval-every eval-steps val-every val-loss-every sample-every",
    "json": "out output-path output-file outfile out-file output results",
    "data": "dataset shards",
    "overwrite": "force overwrite-output-dir",
    "system-prompt": "system system-message",
    "checkpoint": "model run ckpt ckpt-path checkpoint-path model-path path out-dir dir run-dir init-from load "
    "resume-from name weights checkpoints",
    "tasks": "task",
    "num-fewshot": "fewshot n-shot nshot shots num-shots shot",
    "prompt": "start text input inputs",
    "max-new-tokens": "max-len max-tokens num-tokens tokens length max-length n-tokens new-tokens max-new-token",
    "temperature": "temp t",
    "top-k": "topk k",
    "top-p": "topp p nucleus",
    "stop-text": "stop-word stop-words stop-string stop-strings stop-sequence stop-sequences until",
    "num-samples": "n samples n-samples num-return-sequences",
    "prompt-file": "file prompts prompts-file input-file",
    "text": "file text-file input input-file eval-file",
    "tokens": "eval-tokens max-tokens num-tokens",
    "source": "hf hub src input data dataset dataset-name file files path in input-file train-file text corpus "
    "data-path",
    "output": "out dst output-dir out-dir outdir save-dir destination dest o output-prefix outfile out-file "
    "output-file",
    "tokenizer": "tok vocab vocab-size encoding tokenizer-name tokenizer-path tokenizer-type model",
    "text-field": "text-column column key field text-key content-key jsonl-field content-field json-keys json-key",
    "separator": "delimiter doc-separator document-separator sep",
    "end-of-text": "eos eos-token eot end-token eod",
    "validation-source": "val valid validation val-source val-data valid-data eval-data test",
    "split": "val valid validation val-fraction val-split test-size val-size validation-split valid-fraction "
    "val-ratio valid-ratio test-ratio eval-ratio eval-fraction",
    "processes": "workers num-workers num-proc n-jobs jobs threads nproc",
    "shard-tokens": "shard-size tokens-per-shard",
    "vocab-size": "vocab size n-vocab num-tokens",
    "model": "name hub repo repo-id pretrained checkpoint ckpt ckpt-path checkpoint-path weights "
    "file source input path from",
    "repetition-penalty": "repetition repeat-penalty rep-penalty",
    "template": "chat-template",
    "peer": "compare against baseline vs",
    "dtype": "fp16 bf16 fp32 f16 f32 outtype out-type type precision torch-dtype",
    "web": "server serve ui gui browser webui",
    "responses": "log-samples predictions save-responses samples-file",
    "max-document-tokens": "max-length max-seq-length max-seq-len max-tokens truncation block-size context-length",
    "lora.rank": "lora lora-r rank r",
    "best-batch": "batch-sizes batches",
    "optimizer.epsilon": "eps adam-eps adam-epsilon",
    "optimizer.schedule.decay-steps": "lr-decay-iters lr-decay-steps",
    "schedule-steps": "lr-decay-iters lr-decay-steps",
    "optimizer.schedule.min-ratio": "min-lr-ratio",
    "model.norm": "norm-type normalization",
    "model.norm-epsilon": "norm-eps layer-norm-eps layer-norm-epsilon layernorm-epsilon rms-norm-eps",
    "model.activation": "act act-fn hidden-act activation-function mlp mlp-activation",
    "model.tie-embeddings": "tied tie-weights tie-word-embeddings tied-embeddings weight-tying",
    "model.positions": "pos-emb position-embedding position-embedding-type",
    "model.long-window": "window-size sliding-window attention-window",
    "model.logit-softcap": "softcap final-logit-softcapping",
    "model.init.std": "init-std initializer-range",
    "model.compute.attention-impl": "attn attention attn-impl flash flash-attention "
    "use-flash-attention flash-attn use-flash-attn attention-kernel attn-implementation sdpa",
    "model.compute.scan-layers": "scan unroll",
    "mesh.data": "data-parallel data-parallel-size dp-size dp ddp",
    "mesh.fsdp": "fsdp-size ici-fsdp-parallelism fsdp",
    "mesh.tensor": "tensor-parallel tensor-parallel-size tp-size tp",
    "checkpoint.keep": "max-to-keep save-total-limit keep-last-n",
    "evaluators.0.tokens": "val-tokens eval-tokens",
    "evaluators.1.tokens": "val-tokens eval-tokens",
    "evaluators.0.batch-size": "eval-batch-size val-batch-size",
    "lora.targets": "target-modules lora-target-modules",
    "push-to": "push-to-hub hub-model-id",
    "context-length": "ctx context block-size seq-len max-seq-len max-length",
    "patience": "early-stopping early-stopping-patience",
}
FLAGS_BY_WORD: dict[str, list[str]] = {}
"""Flags that a word may mean, the likeliest first; a command has some of them."""
for _flag, _words in _SAME.items():
    for _word in _words.split():
        FLAGS_BY_WORD.setdefault(_word, []).append(_flag)

OTHER_ALONE = ("tokens",)
"""Words that mean something else alone than at the end of a flag."""
SWITCHED_ON = {
    "log.wandb": "online",
    "ema.decay": "0.999",
    "lora.rank": "8",
    "model.compute.remat": "full",
    "model.compute.attention-impl": "auto",
}
"""What a flag is where it is typed like a switch."""
FORMS = {"split": "hash:{}", "tokenizer": "bpe:{}"}
"""How a number is written that other programs give to such a flag."""
EXAMPLES = {"processes": "4"}
"""Values that fit a flag better than the example of its type."""
VALUES = {
    "bf16": "bfloat16",
    "fp32": "float32",
    "f32": "float32",
    "float": "float32",
    "fp16": "float16",
    "f16": "float16",
    "half": "float16",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "ddp": "data",
    "dp": "data",
    "tp": "tensor",
    "disabled": "off",
    "true": "on",
    "false": "off",
    "none": "off",
    "wandb": "online",
}
"""Other spellings of choices."""

COMMON_FLAGS = {
    "steps": "optimizer steps in all (iterations)",
    "batch-size": "batch size: sequences of a step, over all devices",
    "grad-accum": "gradient accumulation: micro-batches of a step, if memory is short",
    "optimizer.learning-rate": "largest learning rate; under Muon of the matrices",
    "optimizer.adam-learning-rate": "under Muon, that of embeddings, head and vectors",
    "optimizer.schedule.warmup-steps": "warmup: steps until that rate",
    "optimizer.weight-decay": "weight decay",
    "model.num-layers": "layers",
    "model.embed-dim": "embedding dim, the width",
    "model.num-heads": "attention heads; --model.num-kv-heads: fewer kv heads",
    "model.context-length": "context length: tokens of a sequence",
    "data.path": "directory of prepared data",
    "name": "the run's directory is OUTPUT_DIR/NAME",
    "init-from": "init from the weights of this run or model",
    "mesh": "mesh: data, fsdp, tensor or single, how devices share the work",
    "ema.decay": "ema: average of the weights, such as 0.999",
}
"""The flags with which help begins."""
CONFIG_WORDS = (
    "c",
    "cfg",
    "conf",
    "config-file",
    "config_file",
    "config-name",
    "config_name",
    "config-path",
    "config_path",
    "preset",
)
"""Words by which other programs name a config."""
