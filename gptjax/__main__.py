"""Entry point: `python -m gptjax COMMAND` and the installed `gptjax COMMAND` call the entry point of that name."""

import difflib
import runpy
import sys

from gptjax.cli.command_line import print_versions_if_asked
from gptjax.cli.config_files import list_configs
from gptjax.core.errors import UserError, exit_on_user_error, quote
from gptjax.process.memory import keep_freed_memory

COMMANDS = {
    "train": ("gptjax.train", "train a GPT, or resume its training"),
    "sample": ("gptjax.sample", "continue a text"),
    "chat": ("gptjax.chat", "talk with a model that was trained on chats"),
    "evaluate": ("gptjax.evaluate", "measure the loss on a text or on shards"),
    "convert": ("gptjax.convert", "to and from Hugging Face's format"),
    "bench": ("gptjax.bench", "time a config"),
    "prepare": ("data_pipelines.prepare", "tokenise text into shards"),
    "prepare_chat": ("data_pipelines.prepare_chat", "tokenise conversations"),
    "prepare_preferences": ("data_pipelines.prepare_preferences", "tokenise pairs of completions"),
    "preview": ("data_pipelines.preview", "show what a model reads of prepared data"),
    "train_tokenizer": ("data_pipelines.train_tokenizer", "learn a byte-level BPE"),
    "extend_tokenizer": ("data_pipelines.extend_tokenizer", "add special tokens to a tokenizer"),
    "compare_tokenizers": ("data_pipelines.compare_tokenizers", "measure tokenizers on your text"),
    "fetch": ("data_pipelines.fetch", "fetch published shards"),
    "index_shards": ("data_pipelines.index_shards", "record shards of another project"),
    "verify": ("gptjax.verify", "compare runs and prepared data with what was written"),
    "recipes": ("data_pipelines.recipes", "list data sets that are known by name"),
    "small_world": ("data_pipelines.small_world", "make the texts and chats of chat_cpu"),
}
"""Module and one line of help by command."""
WORDS = {
    **dict.fromkeys(("eval", "test", "validate", "score", "perplexity", "lm_eval"), "evaluate"),
    **dict.fromkeys(("generate", "complete", "infer", "inference", "predict"), "sample"),
    **dict.fromkeys(("serve", "server", "web", "talk"), "chat"),
    **dict.fromkeys(("export", "import"), "convert"),
    **dict.fromkeys(("pretrain", "finetune", "fit", "resume", "sft", "dpo"), "train"),
    **dict.fromkeys(("tokenize", "tokenise", "preprocess", "data"), "prepare"),
    "benchmark": "bench",
    "download": "fetch",
}
"""Commands that other programs have, and those here."""
INSTEAD = {
    "finetune": " CONFIG --init-from=RUN",
    "sft": " own_chats_cpu --init-from=RUN",
    "dpo": " own_pairs_cpu --init-from=RUN",
    "resume": " CONFIG --name=NAME, which goes on where a run of that name was",
}
"""What belongs behind the command."""


def main() -> None:
    """Run the command that the first word names, with the other words."""
    with exit_on_user_error():
        words = sys.argv[1:]
        print_versions_if_asked(words[:1])
        if not words or words[0] in ("-h", "--help", "help"):
            print(format_usage())
            return
        name = words[0].replace("-", "_")
        if name not in COMMANDS:
            raise UserError(explain_command(words[0]))
        keep_freed_memory()  # as `python -m` does
        sys.argv = [name, *words[1:]]
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)


def format_usage() -> str:
    lines = [f"  {name:<20} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: gptjax COMMAND [--flag=value ...]",
            "",
            *lines,
            "",
            "examples:",
            "  gptjax train quickstart",
            "  gptjax sample --checkpoint=runs/quickstart --prompt='    def'",
            "  gptjax prepare --source=books.jsonl --tokenizer=bpe:8192 --output=data/books",
            "  gptjax --version",
            "",
            "Each command has --help. `gptjax COMMAND` is the same as `python -m MODULE` in the documents.",
        ]
    )


def explain_command(word: str) -> str:
    """The message for a command that does not exist: the one that is meant."""
    name = word.replace("-", "_")
    close = [WORDS[name]] if name in WORDS else difflib.get_close_matches(name, COMMANDS, n=1)
    if word in list_configs() or word.endswith(".py"):
        return f"{quote(word)} is a config. Write gptjax train {quote(word)}."
    hint = f"Write gptjax {close[0]}{INSTEAD.get(name, '')}." if close else f"Commands are {', '.join(COMMANDS)}."
    return f"There is no command {quote(word)}. {hint}"


if __name__ == "__main__":
    main()
