"""Command lines as people mistype them: every command's message shows the right one."""

import importlib
import shlex
import sys
from pathlib import Path

import pytest

from data_pipelines.runtime.options import run_command
from gptjax import bench, chat, convert, evaluate, sample, verify
from gptjax.benchmark.options import BenchOptions
from gptjax.chat import Chat
from gptjax.cli.explanations import read_explanations
from gptjax.cli.flag_mistakes import explain_unknown
from gptjax.cli.flags import list_flags
from gptjax.config import TrainConfig, load_config
from gptjax.conversion.exports import ToGGUF, ToHf
from gptjax.conversion.imports import FromCheckpoint, FromHf
from gptjax.evaluation.options import Evaluate
from gptjax.serving.sampler import Sample

COMMANDS = {
    "bench": bench.main,
    "chat": chat.main,
    "convert": convert.main,
    "evaluate": evaluate.main,
    "sample": sample.main,
    "verify": verify.main,
}
PIPELINES = {
    "index_shards": "IndexShards",
    "prepare": "Prepare",
    "prepare_chat": "PrepareChat",
    "prepare_preferences": "PreparePreferences",
    "train_tokenizer": "TrainTokenizer",
}
TYPED = {
    "convert to-hf --chekpoint=runs/x --output=y": "Write --checkpoint=runs/x.",
    "convert to-hf --checkpoint runs/x --output": "Write --output=….",
    "convert to-hf --checkpoint=runs/x --output=y --verfy=false": "Write --no-verify.",
    "convert to-hf --checkpoint=runs/x --output=y --architecture=lama": "Did you mean --architecture=llama?",
    "convert to-hf --checkpoint=runs/x --output=y --push_to_hub=a/b": "Write --push-to=a/b.",
    "convert to-safetensors --checkpoint=a": "Write python -m gptjax.convert to-hf",
    "prepare --source=a --tokenizer=bytes --output=b --seed=1": "--split=random:K/N/SEED has one.",
    "convert to-hf": "--checkpoint and --output are not given. Write --checkpoint=… --output=….",
    "convert to-hf runs/x y": "Write --checkpoint=runs/x.\n  --output is not given. Write --output=….",
    "convert to-gguf --checkpoint=runs/x": "Write --output=….",
    "convert to-gguf --checkpoint=x --outfile=x.gguf": "Write --output=x.gguf.",
    "convert to-hf --checkpoint=x --output=y --max-shard-size=5GB": "files of 5 GB at most.",
    "convert to-gguf --checkpoint=x --output=y --outtype=f16": "Write --dtype=float16.",
    "convert to-gguf --checkpoint=x --output=y --outtype=q4_k_s": "llama-quantize of llama.cpp makes smaller types",
    "convert to-gguf --checkpoint=x --output=y --dtype=q5_0": "llama-quantize of llama.cpp makes smaller types",
    "convert to-gguf --checkpoint=x --output=y --iq2-xs": "llama-quantize of llama.cpp makes smaller types",
    "prepare --tokenizer=bytes --output=b --source a/x.txt a/y.txt": "or a quoted pattern: --source='a/*.txt'.",
    "prepare --tokenizer=bytes --output=b --source a/x.txt b/y.txt": "that holds them, or a quoted pattern.",
    "convert tohf --checkpoint=runs/x": "gptjax.convert to-hf …",
    "convert export --checkpoint=runs/x": "gptjax.convert to-hf …",
    "convert --checkpoint=runs/x --output=y": "gptjax.convert to-hf --checkpoint=runs/x …",
    "convert --model=gpt2 --output=y": "gptjax.convert from-hf --model=gpt2 …",
    "convert from-nanoGPT ckpt.pt": "gptjax.convert from-nanogpt …",
    "convert from-llm.c model.bin": "gptjax.convert from-llmc …",
    "convert to-onnx --checkpoint=x": "wanted: to-hf, to-peft, to-gguf, from-hf,",
    "convert from-nanogpt --ckpt=a.pt --output=y": "Write --model=a.pt.",
    "convert from-nanogpt a.pt y": "Write --output=y.",
    "convert --from-hf gpt2": "Write python -m gptjax.convert from-hf …",
    "prepare --source=a --tokenizer=gpt2 --output=b --validation=val.jsonl": "Write --validation-source=val.jsonl.",
    "prepare --source=a --tokenizer=gpt2 --output=b --valid=v.txt": "Write --validation-source=v.txt.",
    "prepare --source=a --tokenizer=gpt2 --output=b --val=0.1": "Write --split=hash:0.1.",
    "convert to-hf --checkpoint=x --output=y --fp16": "Write --dtype=float16.",
    "bench quickstart --config=smoke": "Two configs are given, quickstart and smoke",
    "bench quickstart -c smoke": "Two configs are given, smoke and quickstart",
    "bench -c smoke": "There is no flag -c. Write --config=smoke.",
    "bench --smoke": "No config is given. Write --config=smoke.",
    "evaluate --checkpoint=x --mesh=data=4,fsdp=2": "each part has its flag. Write --mesh.data=4 --mesh.fsdp=2.",
    "bench smoke --steps=1.5k": "--steps=1.5k: wanted a whole number. Write --steps=1500.",
    "bench smoke --steps=1_000k": "--steps=1_000k: wanted a whole number. Write --steps=1000000.",
    "bench smoke --steps=2B": "--steps=2B: wanted a whole number. Write --steps=2000000000.",
    "bench smoke --steps=.3g": "--steps=.3g: wanted a whole number. Write --steps=300000000.",
    "bench smoke --steps=1.0005k": "--steps=1.0005k: wanted a whole number, such as --steps=",
    "bench smoke --steps=0.0001k": "--steps=0.0001k: wanted a whole number, such as --steps=",
    "sample --checkpoint=x --temperature=3m": "--temperature=3m: wanted a number, such as --temperature=0.8.",
    "bench smoke -c": "There is no flag -c. The config is smoke.",
    "bench smoke --preset --steps=4": "There is no flag --preset. The config is smoke.",
    "bench -c --steps=4": "There is no flag -c. Write --config=NAME.",
    "prepare --source=a --tokenizer=bytes --output=b --val_ratio=0.1": "Write --split=hash:0.1.",
    "convert --to=hf --checkpoint=runs/x": "Write python -m gptjax.convert to-hf …",
    "convert --from=nanogpt --checkpoint=x": "Write python -m gptjax.convert from-nanogpt …",
    "bench config=quickstart steps=5": "Write --config=quickstart.",
    "convert from-hf gpt2": "Write --output=….",
    "convert from-peft adapters": "Write --output=….",
    "convert from-hf gpt2 runs/gpt2": "Write --output=runs/gpt2.",
    "chat runs/x": "Write --checkpoint=runs/x.",
    "chat --checkpoint": "Write --checkpoint=….",
    "chat --checkpoint=x --system Hi": "Write --system-prompt=Hi.",
    "chat --checkpoint=x --system 'You are'": "Write --system-prompt='You are'.",
    "sample --checkpoint=x --file=a.txt": "Write --prompt-file=a.txt.",
    "sample --checkpoint=x --system=a": "gptjax.chat --system-prompt=…",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --prompt-field=q": "--rename-fields=NAME:NEW",
    "index_shards d --dtype=uint32": "it is seen by their values",
    "train_tokenizer --source=a --vocab-size=300 --model=unigram --output=b": "A byte-level BPE is learned.",
    "prepare --source=a --tokenizer=gpt2 --output=b --streaming": "always read as a stream",
    "evaluate --checkpoint=x --tasks hellaswag piqa": "separated by commas: --tasks=hellaswag,piqa.",
    "chat --checkpoint=x --prompt=Hi": "gptjax.sample --prompt=…",
    "chat --checkpoint=x --stop_words=END": "Write --stop-text=END.",
    "chat --checkpoint=x --port=http": "a whole number, such as --port=8000.",
    "chat --checkpoint=x --web=maybe": "wanted --web or --no-web.",
    "chat --checkpoint=x --server": "Write --web.",
    "chat --checkpoint=x --top_k=all": "a whole number or none",
    "verify": "No directory is given.",
    "verify --checkpoint=runs/x": "the first word behind the command: runs/x.",
    "verify --directory runs/x": "the first word behind the command: runs/x.",
    "sample --checkpoint=x --stop=END": "A text is for --stop-text=END.",
    "sample --checkpoint=x --nostop": "Write --no-stop.",
    "sample --checkpoint=x --num_samples": "Write --num-samples=1.",
    "sample --checkpoint=x --temperature hot": "a number, such as --temperature=0.8.",
    "sample --model x --prompt hi": "Write --checkpoint=x.",
    "sample --checkpoint=x --n=3": "Write --num-samples=3.",
    "sample --checkpoint=x --prompt once upon (a": "needs quotes: --prompt='once upon (a'.",
    "sample --checkpoint=x --stop-words=END": "Write --stop-text=END.",
    "sample --checkpoint=x --stream=False": "A single text is printed while it is generated",
    'sample --checkpoint=x "--num-samples 4"': "Write --num-samples=4.",
    "evaluate --checkpoint=x --task=hellaswag": "Write --tasks=hellaswag.",
    "evaluate --checkpoint=x --log_samples": "Write --responses=….",
    "evaluate --checkpoint=x --no-emma": "Write --no-ema.",
    "evaluate --checkpoints=x,y": "Write --checkpoint=x --checkpoint=y.",
    "evaluate --checkpoint=x --tasks=a --fewshot=5": "Write --num-fewshot=5.",
    "sample --checkpoint=x --max_len=20": "Write --max-new-tokens=20.",
    "prepare_preferences --source=a --tokenizer=gpt2 --output=b --conversational": "--as-turns makes turns",
    "prepare --source=a --tokenizer=gpt2 --output=b --workers=x": "Write --processes=4.",
    "prepare --source=a.txt b.txt --tokenizer=gpt2 --output=b": "a quoted pattern: --source='*.txt'.",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --split=tail:0.1": "Write --split=hash:0.1.",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --rename-fields=Q=prompt": "such as Q:prompt.",
    "train_tokenizer --source=a --vocab-size=300 --output=b --special_tokens a b": "--special-tokens=a,b.",
    "convert to-gguf --checkpoint=x --output=y --dtype=q4_0": "llama",
    "evaluate --checkpoint x y": "needs its flag: --checkpoint=x --checkpoint=y.",
    "evaluate --checkpoint=x --protocol=hf_stride_512": "Did you mean --protocol=hf-stride-512?",
    "evaluate --checkpoint=x --split=test": "wanted val, train.",
    "evaluate --checkpoint=x --limit=half": "wanted a whole number or none.",
    "evaluate --model hf --model_args pretrained=gpt2": "is --checkpoint=NAME here.\n  There is no flag --model-args. ",
    "sample source=a --temp 2 -n 3 --fp64 --top_p=hot --stop=END start=x": """There is no flag --source. --help \
lists all flags.
  There is no flag --temp. Write --temperature=2.
  There is no flag --n. Write --num-samples=3.
  There is no flag --fp64. --help lists all flags.
  --top-p=hot: wanted a number or none.
  --stop=END: wanted --stop or --no-stop. A text is for --stop-text=END.
  More wrong words: 1.
  --checkpoint is not given. Write --checkpoint=….""",
    "sample runs/x --num-samples=1 z": "Write --checkpoint=runs/x.\n  z belongs to no flag. --num-samples takes one",
    "prepare --source=a --tokenizer=gpt2": "Write --output=….",
    "prepare --source=a --tokenizer=gpt2 --output-format=b": "all flags.\n  --output is not given. Write --output=….",
    "prepare --source=a --tokeniser=gpt2 --output=b": "Write --tokenizer=gpt2.",
    "prepare --source=a --tokenizer=gpt2 --output=b --strict=maybe": "wanted --strict or --no-strict.",
    "prepare --source=a --tokenizer=gpt2 --output=b --seperator=x": "Write --separator=x.",
    "prepare --source=a --tokenizer=bpe --output=b": "wanted a number of tokens, such as bpe:8192",
    "prepare --source=stdlib --tokenizer=bpe-8192 --output=b": "Write bpe:8192, which prepare and prepare_chat learn.",
    "prepare --source=stdlib --tokenizer=tiktoken --output=b": "learns chars or bpe:8192, prepare_chat bpe:1024.",
    "prepare_chat --source=a --tokenizer=bpe:1k --output=b": "wanted bpe:SIZE, such as bpe:1024",
    "prepare_preferences --source=a --tokenizer=bpe --output=b": "wanted bpe:SIZE, such as bpe:1024",
    "prepare_preferences --source=a --tokenizer=bpe:99 --output=b": "Write --tokenizer=RUN, a run or a saved model.",
    "prepare --source=a --output=b --tokenizer-type=GPT2BPETokenizer": "GPT-2's is --tokenizer=gpt2;",
    "bench smoke --node_rank=0": "Each host runs the same command: see docs/devices.md.",
    "prepare --source=a --tokenizer=gpt2 --output=b --force": "Write --overwrite.",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --max_length=512": "Write --max-document-tokens=512.",
    "prepare --source=a --tokenizer=gpt2 --output=b --block-size=1024": "Rows are cut when a run reads them",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --seed=3": "A hash puts each record into a split",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --template=llama3": "wanted chatml, nanochat, or a ",
    "prepare_chat --source=a --output=b": "Write --tokenizer=…. It is gpt2, a directory with tokenizer.json or",
    "prepare_preferences --data=a --tokenizer=gpt2 --output=b": "Write --source=a.",
    "prepare_preferences --source=a --tokenizer=gpt2 --output=b --split=0.1": "Write hash:0.1",
    "train_tokenizer --source=a --vocab_size=big --output=b": "wanted a whole number",
    "train_tokenizer --source=a --vocab=1000 --output=b": "Write --vocab-size=1000.",
    "index_shards d --format=raw-uint16": "The form of files is found by itself",
    "index_shards --directory=d": "is given without a flag. Write d.",
    "bench --config=quickstart --attn=flash": "Write --model.compute.attention-impl=auto|cudnn|splash|xla.",
    'bench --config=quickstart "--batch-size 4"': "Write --batch-size=4.",
    "bench --config=quickstart --decode=maybe": "wanted --decode or --no-decode.",
    "bench --config=quickstart --json": "Write --json=….",
    "bench --config=quickstart --batch_sizes=4,8": "Write --best-batch=4,8.",
    "bench --config=quickstart --batch-size=4,8": "wanted a whole number",
    "bench --config=quickstart --lora=8": "Write --lora.rank=8.",
    "bench --config=quickstart --packing=bestfit": "Write --data.packing=best_fit.",
    "prepare": "Write --source=… --output=…. A --tokenizer=… is needed, too",
    "evaluate --checkpoint=x --no-eval": "Everything is evaluated that is named: --tasks=NAMES,",
    "evaluate --checkpoint=x --eval_iters=200": "--tokens=N counts the tokens to predict",
    "evaluate --checkpoint=x --trust_remote_code": "Nothing that was downloaded or saved is executed.",
    "verify x --deep": "Every byte of every checkpoint and shard is read, always.",
    "verify x --fix": "Nothing is changed",
    "sample --checkpoint=x --dtype=bfloat16": "in the type they were trained in; --quantize=int8",
    "sample --checkpoint=x -p hello": "--prompt=TEXT begins a text",
    "sample --checkpoint=x --presence-penalty=1": "--repetition-penalty=1.1 makes repetition rarer",
    "sample --checkpoint=x --chat": "python -m gptjax.chat --checkpoint=RUN speaks by turns.",
    "chat --checkpoint=x --api": "There is no API for programs",
    "prepare --source=a --tokenizer=gpt2 --output=b --seq-length=1024": "--model.context-length and --data.packing",
    "prepare --source=a --tokenizer=gpt2 --output=b --encoding=latin-1": "iconv -f LATIN1",
    "prepare --source=a --tokenizer=gpt2 --output=b --delimiter=,": "are those of its first line",
    "prepare --dataset=a/b --tokenizer=gpt2 --output=b": "Write --source=hf:a/b.",
    "prepare --source=a --tokenizer=gpt2 --output=b --template=chatml": "for python -m data_pipelines.prepare_chat",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --type=alpaca": "The form of a record is found by itself",
    "prepare_chat --source=a --tokenizer=gpt2 --output=b --train-on-inputs": "Only what the assistant says is scored",
    "prepare_preferences --source=a --tokenizer=gpt2 --output=b --beta=0.1": "--objective.beta of a run",
    "index_shards d --vocab-size=50257": "--tokenizer names the tokenizer that made the ids",
    "train_tokenizer --source=a --vocab-size=300 --min-frequency=2 --output=b": "by the counts of pairs alone",
    "bench --config=quickstart --beta=0.1": "--objective.beta in a config such as chat_cpu_dpo.",
    "bench --config=quickstart --eval_strategy=steps": "--evaluators.N.every=STEPS",
    "bench --config=quickstart --trials=3": "--rounds=N times everything N times",
    "bench --config=quickstart --qlora": "there is no QLoRA; --lora.rank=8",
    "convert merge_lora --checkpoint=x": "gptjax.convert to-hf …",
    "convert from-hf gpt2 --output=y --revision=main": "hf download OWNER/REPO --revision=…",
}


def call(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if command in COMMANDS:
        return COMMANDS[command](words)
    module = importlib.import_module(f"data_pipelines.{command}")
    monkeypatch.setattr(sys, "argv", [f"{command}.py", *words])
    return run_command(getattr(module, command), getattr(module, PIPELINES[command]))


@pytest.mark.parametrize(("typed", "right"), TYPED.items(), ids=TYPED)
def test_a_mistyped_command_shows_the_right_one(
    typed: str, right: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *words = shlex.split(typed)
    with pytest.raises(SystemExit) as stopped:
        call(command, words, monkeypatch)
    printed = capsys.readouterr()
    assert (stopped.value.code, printed.out) == (2, "")
    assert right in printed.err, printed.err
    assert printed.err.count("\n") == 1 + right.count("\n")


@pytest.mark.parametrize("rest", [[], ["--output=b", "--tokenizer=bytes"]])
def test_a_pattern_that_the_shell_replaced_is_shown(
    rest: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a b.txt", "c.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call("prepare", ["--source", "a b.txt", "c.txt", *rest], monkeypatch)
    assert "quote it: --source='*.txt'.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--checkpoint", "a", "b"], "Each value needs its flag: --checkpoint=a --checkpoint=b."),
        (["--checkpoint=a", "--text", "a", "b"], "b belongs to no flag. --text takes one value, a.\n"),
    ],
)
def test_paths_behind_a_flag_without_patterns_are_no_pattern(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        call("evaluate", words, monkeypatch)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "typed",
    [
        *("sample --checkpoint=x --streaming", "bench --config=quickstart --model-type=gpt2"),
        *(
            "chat --checkpoint=x --optimizer=adam",
            "prepare --source=a --tokenizer=bytes --output=b --max-shard-size=1GB",
        ),
    ],
)
def test_what_is_true_of_another_command_is_not_said(
    typed: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *words = shlex.split(typed)
    with pytest.raises(SystemExit):
        call(command, words, monkeypatch)
    assert capsys.readouterr().err.endswith("--help lists all flags.\n")


def test_every_explanation_is_told_to_some_command() -> None:
    pipelines = {**PIPELINES, "preview": "Preview", "compare_tokenizers": "CompareTokenizers"}
    pipelines["extend_tokenizer"] = "ExtendTokenizer"
    own = [getattr(importlib.import_module(f"data_pipelines.{name}"), kind) for name, kind in pipelines.items()]
    kinds = [*own, BenchOptions, Chat, ToGGUF, ToHf, FromCheckpoint, FromHf, Evaluate, Sample, verify.Verify]
    commands = [list_flags(kind) for kind in kinds] + [list_flags(TrainConfig, load_config("quickstart"))]
    values = lambda value: [value] if value else [None, "1", "x"]
    untold = []
    for word, rows in read_explanations().items():
        name, _, value = word.partition("=")
        told = [explain_unknown(name, given, flags) for flags in commands for given in values(value)]
        untold += [(word, row.say) for row in rows if not any(row.say in message for message in told)]
    assert untold == []
