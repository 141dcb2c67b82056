#!/usr/bin/env bash
# A task of lm-evaluation-harness with `dataset_path: text` and no data_files scores the text files where it is started.
#
# The task's config names no file, so none should be read. But `datasets` takes the working directory for the data set:
# the files in it and in its folders, here a .txt and a .md, become documents, without an error. A name in data_files
# that no file has is refused, so a task that wants its files from elsewhere can hold one.
#
# Versions: Python 3.11 or newer, lm_eval 0.4.13, datasets 5.2.0. Seen:
#     {'without data_files': ['first note', 'second note'], 'with a name that no file has': 'FileNotFoundError'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "lm_eval==0.4.13" "datasets==5.2.0"
mkdir -p "$work/home/notes"
echo "first note" > "$work/home/first.txt"
echo "second note" > "$work/home/notes/second.md"
cat > "$work/made.yaml" <<'YAML'
task: made
dataset_path: text
output_type: loglikelihood_rolling
test_split: train
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: word_perplexity
YAML
cat > "$work/try.py" <<'PY'
import sys

import yaml
from lm_eval.tasks import TaskManager

with open(sys.argv[1]) as file:
    config = yaml.safe_load(file)


def list_documents(config):
    manager = TaskManager(include_defaults=False)
    try:
        task = manager.load([config])["tasks"]["made"]
        return sorted(document["text"] for document in task.test_docs())
    except FileNotFoundError as error:
        return type(error).__name__


found = {
    "without data_files": list_documents(config),
    "with a name that no file has": list_documents(config | {"dataset_kwargs": {"data_files": {"train": "no_file"}}}),
}
print(found)
assert found == {
    "without data_files": ["first note", "second note"],
    "with a name that no file has": "FileNotFoundError",
}, "the behaviour has changed"
PY
cd "$work/home"
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work/made.yaml" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
