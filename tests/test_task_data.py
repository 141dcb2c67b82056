from pathlib import Path

import pytest

from gptjax.core.errors import UserError
from gptjax.evaluation.task_data import complete_rows, explain_unknown_task, find_task_files, read_rows

CBT = "\n".join(
    [f"{n} Sentence {n} ." for n in range(1, 21)]
    + ["21 So the XXXXX came .\tcat\t\t" + "|".join(["cat", *(f"w{i}" for i in range(9))]), "", ""]
)


def test_formats_of_the_sets_become_rows(tmp_path: Path) -> None:
    write = lambda name, text: (tmp_path / name).write_text(text) and tmp_path / name
    [item] = read_rows("cbt_cn", write("cbtest_CN_test_2500ex.txt", CBT))
    assert item["sentences"][19] == "Sentence 20 ."
    assert (item["question"], item["answer"], len(item["options"])) == ("So the XXXXX came .", "cat", 10)
    tsv = read_rows("sst2", write("dev.tsv", "sentence\tlabel\nit 's \"good\t1\nbad\t0\n"))
    assert tsv == [{"sentence": "it 's \"good", "label": 1}, {"sentence": "bad", "label": 0}]
    pages = read_rows("wikitext", write("wiki.test.raw", " \n = One = \n \n a = b \n = = Part = = \n \n = Two = \n x"))
    assert [page["page"] for page in pages] == [" = One = \n \n a = b \n = = Part = = \n \n", " = Two = \n x"]
    assert read_rows("ptb", write("ptb.test.txt", " no it \n was n't \n")) == [
        {"text": " no it \n was n't \n", "page": " no it \n was n't \n"}
    ]
    lines = read_rows("one_billion_words", write("news.en.heldout", "One .\n\nTwo .\n"))
    assert lines == [{"text": "One .\n"}, {"text": "Two .\n"}]
    assert read_rows("hellaswag", write("val.jsonl", '{"ctx": "a"}\n\n{"ctx": "b", "new": 1}\n')) == [
        {"ctx": "a"},
        {"ctx": "b", "new": 1},
    ]
    table = "messages,answers\n\"[{'role': 'user', 'content': 'a'}]\",['b' 'c']\n"
    asked = [{"role": "user", "content": "a"}]
    assert read_rows("questions", write("q.csv", table)) == [{"messages": asked, "answers": ["b", "c"]}]


def test_files_are_found_by_task_and_part(tmp_path: Path) -> None:
    for name in ("sst2.tsv", "sst2.train.tsv", "gsm8k.jsonl"):
        (tmp_path / name).write_text("x")
    own = tmp_path / "own.jsonl"
    own.write_text("x")
    found = find_task_files([str(tmp_path), f"gsm8k={own}", f"gsm8k.train={own}"])
    assert found["sst2"] == {"test": tmp_path / "sst2.tsv", "train": tmp_path / "sst2.train.tsv"}
    assert found["gsm8k"] == {"test": own, "train": own}
    with pytest.raises(UserError, match=r"is no directory\. Give one with TASK.jsonl files, or TASK=FILE"):
        find_task_files([str(own)])
    with pytest.raises(UserError, match="there is no file"):
        find_task_files(["sst2=/nowhere"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "[1]", "does not hold rows of cbt_cn: a row is '\\[1\\]'; wanted an object"),
        ("a.json", "{", "does not hold rows"),
        ("a.txt", "21 no options here", "does not hold rows"),
        ("b.txt", "1 one\n", "has no rows"),
        ("a.tsv", "a\tb\n1\t2\t3\n", "the row '1' has more or fewer cells than the header"),
        ("a.csv", "a,b\n1\n", "the row '1' has more or fewer cells"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        read_rows("cbt_cn", tmp_path / name)


def test_rows_get_all_columns_of_the_file() -> None:
    assert complete_rows([{"a": 1}, {"b": 2}]) == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_a_task_whose_file_cannot_be_read_is_told_from_one_that_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine\n  x: [")
    explain = lambda name: explain_unknown_task(name, ["hellaswag"], directories=[str(tmp_path)])
    assert explain("mine") == (
        f"the harness cannot read {tmp_path / 'mine.yaml'} as a task. Correct its YAML; it needs task: mine."
    )
    assert explain("helaswag").endswith("no file of that name exists. Did you mean hellaswag?")
