"""Tasks of lm-evaluation-harness: the native model beside `lm_eval --model hf` on an export, and local files."""

import json
import random
import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jax
import pytest

from gptjax.convert import main as convert
from gptjax.core.errors import UserError
from gptjax.evaluate import main
from gptjax.evaluation.harness import TaskRequest, open_tasks, prepare_tasks
from gptjax.evaluation.task_controls import measure_controls
from gptjax.evaluation.task_results import TaskResults
from gptjax.model.config import ComputeConfig, GPTConfig, InitConfig
from gptjax.model.gpt import GPT
from gptjax.runs.checkpoint_source import open_checkpoint
from gptjax.runs.run_dir import write_imported_run
from gptjax.tokenization.chat import with_chatml
from gptjax.tokenization.chat_template import CHATML
from gptjax.tokenization.tokenizer import BPE, END_OF_TEXT, GPT2_PATTERN

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore"),  # of the harness and of what it imports
]
TOKENIZER = BPE(
    {bytes([b]): b for b in range(256)} | {b"th": 256, b"the": 257},
    {END_OF_TEXT: 258, "<|im_start|>": 259, "<|im_end|>": 260},
    merges=[(b"t", b"h"), (b"th", b"e")],
    pattern=GPT2_PATTERN,
)
WORDS = tuple("the other theme then was in that house by the lake, with a boat and two cats".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = GPTConfig(
        num_layers=2,
        embed_dim=32,
        num_heads=4,
        context_length=96,
        vocab_size=261,
        compute=ComputeConfig(dtype="float32"),
        init=InitConfig(std=0.3),
    )
    directory = tmp_path_factory.mktemp("harness") / "run"
    model = jax.jit(lambda key: GPT(config, key=key))(jax.random.key(0))
    write_imported_run(directory, model=model, tokenizer=TOKENIZER)
    return directory


@pytest.fixture(scope="module")
def models(run: Path) -> tuple[Any, Any]:
    """The harness' own model class on an export, and the native one."""
    pytest.importorskip("lm_eval")
    from gptjax.evaluation.harness_model import HarnessModel

    export = run.parent / "export"
    convert(["to-hf", f"--checkpoint={run}", f"--output={export}", "--no-verify"])
    theirs = import_module("lm_eval.models.huggingface").HFLM(
        pretrained=str(export), dtype="float32", batch_size=4, device="cpu"
    )
    return theirs, HarnessModel(open_checkpoint(run).load_model(), TOKENIZER, batch_size=4)


def write_text(random_: random.Random, words: int) -> str:
    return " ".join(random_.choices(WORDS, k=words))


def make_requests(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    instance = import_module("lm_eval.api.instance").Instance
    return [instance(kind, {}, args, 0) for args in arguments]


def test_log_likelihoods_equal_those_of_the_export(models: tuple[Any, Any]) -> None:
    """Contexts that end in blanks and line ends, are empty, too long, or spell a special token."""
    draw = random.Random(0)
    ends = ["", "\n", " ", "\n\n", " \n"]
    questions = [write_text(draw, 3 + i) + ends[i % 5] for i in range(9)]
    pairs = [(question, f"{draw.choice(['', ' '])}{write_text(draw, 2)}") for question in questions for _ in range(3)]
    pairs += [("", "the end"), (write_text(draw, 90), " end"), ("A:\n", "<|im_end|>"), ("<|endoftext|>the", " cat")]
    theirs, ours = (model.loglikelihood(make_requests("loglikelihood", pairs), disable_tqdm=True) for model in models)
    for left, right in zip(theirs, ours, strict=True):
        assert right[0] == pytest.approx(left[0], abs=1e-3)
        assert right[1] == left[1]


def test_rolling_log_likelihoods_equal_those_of_the_export(models: tuple[Any, Any]) -> None:
    draw = random.Random(1)
    texts = [(write_text(draw, words),) for words in (1, 30, 200)] + [("\n",), ("x" * 96,), ("x" * 97,)]
    requests = make_requests("loglikelihood_rolling", texts)
    theirs, ours = (model.loglikelihood_rolling(requests, disable_tqdm=True) for model in models)
    assert ours == pytest.approx(theirs, abs=1e-3)


def test_generated_texts_equal_those_of_the_export(models: tuple[Any, Any]) -> None:
    draw, settings = random.Random(2), {"until": ["\n", "zz"], "max_gen_toks": 40, "do_sample": False}
    prompts = [(write_text(draw, words), settings) for words in (1, 2, 5, 8, 40)]
    requests = make_requests("generate_until", prompts)
    theirs, ours = (model.generate_until(requests, disable_tqdm=True) for model in models)
    assert ours == theirs


def test_chats_are_written_as_in_training(models: tuple[Any, Any]) -> None:
    _, ours = models
    history = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "a boat"}]
    with pytest.raises(UserError, match="has no chat template"):
        ours.apply_chat_template(history)
    ours.template = CHATML.to_jinja(begin=END_OF_TEXT)
    text = ours.apply_chat_template([*history, {"role": "user", "content": "then"}])
    assert text == (
        "<|endoftext|><|im_start|>user\nthe cat?<|im_end|>\n<|im_start|>assistant\na boat<|im_end|>\n"
        "<|im_start|>user\nthen<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ours.tok_encode(text)[:2] == [258, 259]
    ours.template = None


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Made files of the model card's tasks, in the formats of the sets."""
    draw = random.Random(3)
    dump = lambda rows: "".join(json.dumps(row) + "\n" for row in rows)
    files = {
        "lambada_openai.jsonl": dump({"text": write_text(draw, 12)} for _ in range(3)),
        "wikitext.txt": "".join(f" = Page {i} = \n \n {write_text(draw, 40)} @-@ x \n" for i in range(3)),
        "enwik8.txt": f"<page>{write_text(draw, 60)}</page>\n",
        "text8.txt": write_text(draw, 50).replace(",", ""),
        "ptb.txt": "".join(f" {write_text(draw, 9)} \n" for _ in range(4)),
        "one_billion_words.txt": "".join(f"{write_text(draw, 9)} .\n" for _ in range(4)),
        "sst2_few_shot.tsv": "sentence\tlabel\nbad \t0\ngood \t1\n",
        "sst2_5_shot.tsv": "sentence\tlabel\nbad \t0\ngood \t1\n",
        "sst2_5_shot.train.tsv": "sentence\tlabel\n" + "".join(f"so {w}\t{i % 2}\n" for i, w in enumerate(WORDS[:9])),
        "gsm8k_step_by_step.jsonl": dump({"question": "how many?", "answer": f"so #### {i}"} for i in range(2)),
    }
    options = "|".join(WORDS[:10])
    for name in ("cbt_cn", "cbt_ne"):
        items = ["".join(f"{n} {write_text(draw, 2)} .\n" for n in range(1, 21)) for _ in range(3)]
        files[f"{name}.txt"] = "\n".join(f"{item}21 the XXXXX was\t{WORDS[2]}\t\t{options}\n" for item in items)
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    return tmp_path


def test_one_command_gives_the_table_of_the_model_card(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    file, responses = tmp_path / "result.json", tmp_path / "responses.jsonl"
    words = [
        f"--checkpoint={run}",
        "--tasks=gpt2_model_card,sst2_few_shot,sst2_5_shot",
        f"--task-data={data}",
        "--mesh=single",
    ]
    (data / "ptb.txt").rename(tmp_path / "elsewhere")
    main([*words, f"--task-data=ptb={tmp_path / 'elsewhere'}", f"--json={file}", f"--responses={responses}"])
    figures = json.loads(file.read_text())["figures"]
    card = ["lambada_openai acc", "lambada_openai perplexity", "wikitext word_perplexity", "wikitext bits_per_byte"]
    card += ["cbt_cn acc", "cbt_ne acc", "enwik8 bits_per_byte", "text8 bits_per_byte", "ptb word_perplexity"]
    for name in [*card, "one_billion_words word_perplexity", "sst2_few_shot acc"]:
        assert figures[name]["value"] is not None
    assert figures["cbt_cn chance"]["value"] == pytest.approx(0.1)
    assert figures["cbt_cn majority class"]["value"] == 1.0
    assert 1 / 3 <= figures["lambada_openai majority class"]["value"] <= 1
    assert figures["lambada_openai perplexity without question"]["value"] > 1
    assert not any(name.startswith("enwik8 ") and ("class" in name or "question" in name) for name in figures)
    assert {"low", "high"} <= figures["wikitext word_perplexity"].keys()
    lines = [json.loads(line) for line in responses.read_text().splitlines()]
    assert {line["task"] for line in lines} >= {"cbt_cn", "enwik8", "lambada_openai"}
    [asked] = [line["arguments"][0][0] for line in lines if line["task"] == "sst2_5_shot" and line["doc_id"] == 0]
    examples = r'(Review: "so \w+,?"\nAnswer: (posi|nega)tive\n\n){5}'
    question = r"Is this review positive or negative\?\n\n"
    assert re.fullmatch(f'{question}{examples}Review: "bad"\nAnswer:', asked)
    assert all(line["resps"] for line in lines)


CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{answers}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{metric: acc}, {metric: acc_norm}]
"""


@pytest.mark.parametrize("mesh", [["--mesh=single"], ["--mesh=fsdp", "--mesh.tensor=2"]])
def test_tasks_equal_those_of_lm_eval_on_the_export(
    run: Path, models: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mesh: list[str]
) -> None:
    """Pages as WikiText's, longer than the context, with its counts of words; choices behind line ends and blanks."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    draw = random.Random(7)
    dump = lambda name, rows: (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    title = lambda i: f" = {'= ' * (i % 2)}Page {i} {'= ' * (i % 2)}= \n \n"
    page = lambda i: f"{title(i)} {write_text(draw, 11 * i)} @-@ x , 3 @.@ 5 's \n \n"
    dump("wikitext.jsonl", ({"page": page(i) + "\n" * (i % 3)} for i in range(1, 6)))
    ends, words = ("\n", "\n\n", " ", "?\n", ""), lambda count: write_text(draw, count)
    items = [
        {"question": words(4 + 3 * i) + ends[i % 5], "answers": [words(1), f" {words(3)}", words(2)], "gold": i % 3}
        for i in range(8)
    ]
    dump("choices.jsonl", items)
    task = tmp_path / "choices.yaml"
    task.write_text(CHOICES.replace("FILE", str(tmp_path / "choices.jsonl")))
    wikitext = tmp_path / "wikitext.yaml"
    harness = Path(import_module("lm_eval").__file__ or "").parent / "tasks" / "wikitext" / "wikitext.yaml"
    files = {"test": str(tmp_path / "wikitext.jsonl")}
    changes = {"dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
    splits = {"training_split": None, "validation_split": None}
    wikitext.write_text(json.dumps({"include": str(harness), "task": "wikitext", **changes, **splits}))
    theirs = import_module("lm_eval").simple_evaluate(
        model="hf",
        model_args={"pretrained": str(run.parent / "export"), "dtype": "float32"},
        device="cpu",
        batch_size=4,
        tasks=[str(wikitext), str(task)],
        bootstrap_iters=0,
    )
    file, responses = tmp_path / "result.json", tmp_path / "responses.jsonl"
    command = [f"--checkpoint={run}", f"--tasks=wikitext,{task}", f"--task-data=wikitext={tmp_path / 'wikitext.jsonl'}"]
    main([*command, *mesh, "--batch-size=4", f"--json={file}", f"--responses={responses}"])

    figures = json.loads(file.read_text())["figures"]
    for name, key in (("wikitext", "word_perplexity"), ("wikitext", "bits_per_byte"), ("choices", "acc")):
        assert figures[f"{name} {key}"]["value"] == pytest.approx(theirs["results"][name][f"{key},none"], rel=1e-5)
    ours = [json.loads(line) for line in responses.read_text().splitlines()]
    for name in ("wikitext", "choices"):
        left = {sample["doc_id"]: sample for sample in theirs["samples"][name]}
        right = {sample["doc_id"]: sample for sample in ours if sample["task"] == name}
        assert left.keys() == right.keys() == set(range({"wikitext": 5, "choices": 8}[name]))
        for number, sample in left.items():
            found = [response[0] for response in right[number]["resps"]]
            for wanted, own in zip([response[0] for response in sample["resps"]], found, strict=True):
                compare_likelihoods(wanted, own, text=str(sample["doc"].get("page", "x" * 40)))


def compare_likelihoods(wanted: Any, found: Any, *, text: str) -> None:
    """To 1e-3 nats for an item, and to 1e-4 for each token."""
    if isinstance(wanted, list | tuple):
        (wanted, is_greedy), (found, own) = wanted, found
        assert is_greedy == own
    assert found == pytest.approx(wanted, abs=min(1e-3, 1e-4 * len(TOKENIZER.encode(text))))


def test_tasks_without_data_are_marked_as_not_run(run: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"--checkpoint={run}", "--mesh=single", "--tasks=enwik8,text8"]
    main([*words, f"--task-data=enwik8={data / 'enwik8.txt'}"])
    printed = capsys.readouterr().out
    assert "| enwik8 bits_per_byte |" in printed
    assert "\nnot run: text8: " in printed
    assert "no task can be run: enwik8: " in read_error(capsys, *words)


GROUP = """\
group: sums
task: [first, second]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""


def test_groups_keep_their_sums_unless_a_task_in_them_has_local_data(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """From directories that are named from here; a column of two types is refused."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (folder := tmp_path / "own").mkdir()
    rows = [{"question": "the cat", "answers": ["boat", "two cats"], "gold": 1}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("first", "second"):
        task = CHOICES.replace("FILE", str(tmp_path / "rows.jsonl")).replace(
            "task: choices", f"task: {name}\ntag: both"
        )
        (folder / f"{name}.yaml").write_text(task)
    (folder / "sums.yaml").write_text(GROUP)
    monkeypatch.chdir(tmp_path)
    words = [f"--checkpoint={run}", "--mesh=single", "--include-path=own"]
    main([*words, "--tasks=sums,enwik8", f"--task-data=enwik8={data / 'enwik8.txt'}"])
    printed = capsys.readouterr()
    assert "| sums acc | " in printed.out
    assert "| enwik8 bits_per_byte | " in printed.out
    assert "has no sum" not in printed.err
    local = f"--task-data=first={tmp_path / 'rows.jsonl'}"
    main([*words, "--tasks=sums", local])
    printed = capsys.readouterr()
    assert "| second acc | " in printed.out
    assert "| sums acc | " not in printed.out
    assert "note: sums has no sum of its tasks, as one is ours or has local data" in printed.err
    main([*words, "--tasks=both", local])
    printed = capsys.readouterr()
    assert "it/s" not in printed.err
    assert "first: 1 item, 0 examples, second: 1 item" in printed.out
    assert "has no sum" not in printed.err
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(rows[0] | {"gold": "one"}) + "\n")
    message = read_error(capsys, *words, "--tasks=sums", local)
    assert f"{tmp_path / 'rows.jsonl'}: a column of its rows holds values of different types: " in message


BROKEN = """\
def fail(*_):
    raise LookupError("no package of that name")

def fail_on_boats(document, _):
    return {"acc": 1 / (document["gold"] - 1)}
"""


def test_failing_task_costs_no_other_its_scores(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whatever fails: requests, the score of an item, or the sum. A group of which one fails is run task by task."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": "the cat", "answers": ["boat", "two cats"], "gold": gold} for gold in (0, 1, 1)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "broken.py").write_text(BROKEN)
    plain = CHOICES.replace("FILE", str(tmp_path / "rows.jsonl"))
    kinds = {
        "good": plain,
        "first": plain,
        "second": f"{plain}process_results: !function broken.fail_on_boats\n",
        "summed": plain.replace("{metric: acc_norm}", "{metric: acc_norm, aggregation: !function broken.fail}"),
        "asked": plain.replace("multiple_choice", "generate_until").replace("{metric: acc}, {metric: acc_norm}", ""),
    }
    for name, task in kinds.items():
        (tmp_path / f"{name}.yaml").write_text(task.replace("task: choices", f"task: {name}"))
    (tmp_path / "sums.yaml").write_text(GROUP)
    file, responses = tmp_path / "result.json", tmp_path / "responses.jsonl"
    scored: list[int] = []
    model_class = import_module("gptjax.evaluation.harness_model").HarnessModel
    score = model_class._loglikelihood_tokens
    monkeypatch.setattr(
        model_class,
        "_loglikelihood_tokens",
        lambda self, rows, **options: [scored.append(len(rows)), score(self, rows, **options)][1],
    )
    words = [f"--checkpoint={run}", "--mesh=single", f"--include-path={tmp_path}", f"--json={file}"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--tasks=summed,sums,asked,good", f"--responses={responses}"])
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert "failed: asked: 256 new tokens leave no room for a prompt" in printed.out
    for name in ("first acc", "good acc_norm"):
        assert f"| {name} | " in printed.out
    result = json.loads(file.read_text())
    assert not any(name.startswith(("summed", "second", "asked", "sums ")) for name in result["figures"])
    assert list(result["harness"]["failed"]) == ["summed", "sums", "second", "asked"]
    assert result["failed"] == "the tasks summed, sums, second, asked failed"
    assert "\nfailed: second: ZeroDivisionError: division by zero (broken.py, line 5)\n" in printed.out
    assert printed.err.startswith("error: 4 tasks failed, and have no figures: summed (")
    assert {json.loads(line)["task"] for line in responses.read_text().splitlines()} == {"first", "good"}
    # Those of `summed`, as often again for the second task of the group, and the controls of the two that are finished.
    assert scored == [6, 6, 6, 6]


def test_task_that_breaks_on_loading_has_failed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Only one whose data are not there was not run. Of a group that cannot be opened, the others are scored."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    row = json.dumps({"question": "the cat", "answers": ["boat", "two cats"], "gold": 1})
    files = {"rows": f"{row}\n", "damaged": f"{row}\n{{\n", "absent": None}
    for name, content in files.items():
        if content is not None:
            (tmp_path / f"{name}.jsonl").write_text(content)
    (tmp_path / "broken.py").write_text("")
    tasks = {name: CHOICES.replace("FILE", str(tmp_path / f"{name}.jsonl")) for name in files}
    plain = tasks.pop("rows")
    tasks |= {"first": plain, "second": f"{plain}process_docs: !function broken.missing\n"}
    for name, task in tasks.items():
        (tmp_path / f"{name}.yaml").write_text(task.replace("task: choices", f"task: {name}"))
    (tmp_path / "sums.yaml").write_text(GROUP)
    file = tmp_path / "result.json"
    words = [f"--checkpoint={run}", "--mesh=single", f"--include-path={tmp_path}", f"--json={file}"]
    message = read_error(capsys, *words, "--tasks=absent,damaged,sums")
    assert "error: 3 tasks failed, and have no figures: damaged (" in message  # behind what `datasets` logs
    result = json.loads(file.read_text())
    assert "first acc" in result["figures"]
    assert list(result["harness"]["failed"]) == ["damaged", "sums", "second"]
    assert list(result["harness"]["not_run"]) == ["absent"]
    assert "no task can be run: second: AttributeError: " in read_error(capsys, *words, "--tasks=second")


OWN_DATA = """\
import socket
import requests

def full(**_):
    raise OSError(28, "No space left on device")

def denied(**_):
    raise PermissionError(13, "Permission denied")

def own_file(**_):
    return open("/absent/rows.jsonl")

def refused(**_):
    raise ConnectionRefusedError(111, "Connection refused")

def unreachable(**_):
    raise socket.gaierror(-3, "Temporary failure in name resolution")

def slow(**_):
    raise requests.exceptions.ReadTimeout("no answer")
"""


def test_groups_of_ours_know_the_harness_tasks_in_them() -> None:
    with prepare_tasks(TaskRequest(("gpt2_model_card",))) as prepared:
        assert {"lambada_openai", "wikitext", "cbt_cn"} <= {*prepared.names} & prepared.manager.task_index.keys()


def write_tasks(directory: Path, tasks: dict[str, str]) -> None:
    """Write multiple-choice tasks by name; `rows.jsonl` is beside them, and the texts say where their data are."""
    row = json.dumps({"question": "the cat", "answers": ["boat", "two cats"], "gold": 1})
    (directory / "rows.jsonl").write_text(f"{row}\n")
    (directory / "own_data.py").write_text(OWN_DATA)
    for name, own in tasks.items():
        plain = CHOICES.replace("FILE", str(directory / "rows.jsonl")).replace("task: choices", f"task: {name}")
        (directory / f"{name}.yaml").write_text(plain + own)


def open_named(directory: Path, *names: str) -> tuple[list[str], TaskResults]:
    """The names of the tasks that could be opened, and why the others could not."""
    results = TaskResults()
    with prepare_tasks(TaskRequest(names, include_path=(str(directory),))) as prepared:
        opened = open_tasks(prepared.manager, prepared.names, results, local=())
    return [task.name for task in opened], results


def test_only_absent_and_unreachable_data_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk, a file that may not be read, and one that the task's own code does not find, are failures.

    Without a network, a data set is absent of which another part is cached.
    """
    datasets: Any = import_module("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "cache" / "owner___set" / "other" / "0.0.0" / "abc"
    cached.mkdir(parents=True)
    (cached / "dataset_info.json").write_text(json.dumps({"config_name": "other"}))
    failing, absent = ["full", "denied", "own_file"], ["refused", "unreachable", "slow"]
    tasks = {name: f"custom_dataset: !function own_data.{name}\n" for name in failing + absent}
    tasks |= {"good": "", "cached": "", "nowhere": ""}
    write_tasks(tmp_path, tasks)
    for name, source in {"cached": "owner/set", "nowhere": "owner/nowhere"}.items():
        text = (tmp_path / f"{name}.yaml").read_text().splitlines()
        own = [f"dataset_path: {source}", "dataset_name: wanted", *(line for line in text if "dataset_" not in line)]
        (tmp_path / f"{name}.yaml").write_text("\n".join(own) + "\n")
    opened, results = open_named(tmp_path, *tasks)
    assert opened == ["good"]
    assert list(results.failed) == failing
    assert list(results.not_run) == [*absent, "cached", "nowhere"]
    assert "Couldn't find cache for owner/set for config 'wanted'" in results.not_run["cached"]


@pytest.mark.parametrize(("lack", "kind"), [("unreachable", "not_run"), ("full", "failed")])
def test_group_of_which_one_cannot_be_opened_gives_its_others_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lack: str, kind: str
) -> None:
    """In the order given, also where one of them is named beside the group."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    write_tasks(tmp_path, {"first": "", "second": f"custom_dataset: !function own_data.{lack}\n"})
    (tmp_path / "sums.yaml").write_text(GROUP)
    for names in (["sums"], ["sums", "first", "second"], ["first", "sums"]):
        opened, results = open_named(tmp_path, *names)
        assert opened == ["first"]
        assert {*getattr(results, kind)} == {"sums", "second"}
        assert {*results.failed, *results.not_run} == {"sums", "second"}


def test_controls_of_generated_answers_are_the_most_frequent_one() -> None:
    samples = [{"doc_id": i, "target": target} for i, target in enumerate([["a", "b"], "b", "c"])]
    found = measure_controls(cast(Any, None), samples + samples, kind="generate_until")
    assert found == {"majority class": pytest.approx(2 / 3)}
    assert measure_controls(cast(Any, None), samples, kind="loglikelihood_rolling") == {}


def test_controls_of_a_choice_leave_out_the_answers_that_mutual_information_asks_again() -> None:
    answers = [("the?", " a"), ("the?", " b")]
    sample = {
        "doc_id": 0,
        "target": 1,
        "acc": 1.0,
        "acc_mutual_info": 1.0,
        "arguments": [*answers, ("", " a"), ("", " b")],
    }
    model = SimpleNamespace(
        prefix_token_id=0,
        tok_encode=len,
        _loglikelihood_tokens=lambda rows: [(float(i), False) for i in range(len(rows))],
    )
    found = measure_controls(cast(Any, model), [sample], kind="multiple_choice")
    assert found == {"chance": 0.5, "majority class": 1.0, "answer without question": 1.0}


def test_examples_do_not_come_from_the_scored_file(data: Path) -> None:
    """Unless there are none. A file of a task that is not asked for does no harm."""
    files = tuple(f"{name}={data / name}{end}" for name, end in (("sst2_5_shot", ".tsv"), ("enwik8", ".txt")))
    with (
        pytest.raises(UserError, match=r"takes 5 examples from the split train, .*--task-data=sst2_5_shot.train=FILE"),
        prepare_tasks(TaskRequest(("sst2_5_shot",), task_data=files)),
    ):
        pass
    for task in ("enwik8", "sst2_5_shot"):
        with prepare_tasks(TaskRequest((task,), task_data=files, num_fewshot=None if task == "enwik8" else 0)) as found:
            assert len(found.names) == 1


def test_generative_task_runs_from_a_local_file(run: Path, data: Path, capsys: pytest.CaptureFixture) -> None:
    message = read_error(
        capsys, f"--checkpoint={run}", "--tasks=gsm8k_step_by_step", f"--task-data={data}", "--mesh=single"
    )
    assert "256 new tokens leave no room" in message


def test_questions_are_right_if_answered_as_one_of_the_answers(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base model with the tokens of ChatML and no template is asked in ChatML, with all turns so far."""
    file, responses, result = (tmp_path / name for name in ("asked.jsonl", "responses.jsonl", "result.json"))
    words = [f"--checkpoint={run}", "--tasks=questions", f"--task-data=questions={file}", "--mesh=single"]
    words += ["--apply-chat-template", f"--json={result}", f"--responses={responses}"]

    def ask(*answers: str) -> float:
        turns = (("user", "a dog"), ("assistant", "sat"), ("user", "the cat?"))
        messages = [{"role": role, "content": content} for role, content in turns]
        file.write_text(json.dumps({"messages": messages, "answers": answers}) + "\n")
        main(words)
        return json.loads(result.read_text())["figures"]["questions exact_match"]["value"]

    file.write_text('{"question": "a?", "answer": "b"}\n')
    assert 'asked.jsonl:1: wanted "answers", a list of texts' in read_error(capsys, *words)
    assert ask("no such answer") == 0.0
    [answered] = [json.loads(line) for line in responses.read_text().splitlines()]
    asked = answered["arguments"][0][0]
    assert [turn.partition("\n")[2] for turn in asked.split("<|im_start|>")[1:]] == [
        "a dog<|im_end|>\n",
        "sat<|im_end|>\n",
        "the cat?<|im_end|>\n",
        "",
    ]
    assert ask("no such answer", answered["filtered_resps"][0]) == 1.0


def test_answer_ends_with_its_turn(models: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = models
    in_chats = type(ours)(ours.model, with_chatml(TOKENIZER), batch_size=4)
    end = TOKENIZER.specials["<|im_end|>"]
    monkeypatch.setattr(in_chats, "_write", lambda model, rows, size, sampling: [[97, end, 98, 98][:size]] * len(rows))
    requests = make_requests("generate_until", [("the", {"until": [], "max_gen_toks": 4})])
    assert in_chats.generate_until(requests) == ["a"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tasks=~/t.yaml,no_such_task"], "'no_such_task' is unknown to the harness"),
        (["--tasks=hellaswagg"], "no file of that name exists. Did you mean hellaswag or "),
        (["--tasks=cbt_cn", "--task-data=cbt_cn=/nowhere"], "there is no file /nowhere"),
        (["--tasks=cbt_cn", "--include-path=/nowhere"], "--include-path=/nowhere is no directory"),
        (["--tasks=cbt_cn", "--limit=0"], "--limit is 0"),
    ],
)
def test_wrong_names_of_tasks_and_files_are_named(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    words: list[str],
    message: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "t.yaml").write_text("task: t\n")
    assert message in read_error(capsys, f"--checkpoint={run}", "--mesh=single", *words)


def read_error(capsys: pytest.CaptureFixture, *words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words])
    assert stop.value.code == 2
    return capsys.readouterr().err
