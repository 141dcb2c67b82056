#!/usr/bin/env bash
# lm-evaluation-harness counts a word more for each end of a document that is a blank or the end of a line.
#
# Word perplexity is the exponential of the nats per word. The harness counts the parts between blanks, and in front of
# a leading blank and behind a trailing one there is an empty part. Documents read line by line with their line ends
# have one word too many each. The model below gives each word a probability of 1/10, so its word perplexity is 10. For
# documents of two words and a line end the harness says 4.64. Bits per byte and byte perplexity are as expected.
#
# Versions: Python 3.11 or newer, lm_eval 0.4.13, datasets 5.2.0. Seen:
#     'one two':    word perplexity 10.00
#     'one two\n':  word perplexity 4.64
#     ' one two\n': word perplexity 3.16
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "lm_eval==0.4.13" "datasets==5.2.0"
cat > "$work/try.py" <<'PY'
import json
import math
import sys
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager


class Tenth(LM):
    """Gives every word a probability of 1/10."""

    def loglikelihood_rolling(self, requests, **_):
        return [-math.log(10) * len(request.args[0].split()) for request in requests]

    def loglikelihood(self, requests):
        raise NotImplementedError

    def generate_until(self, requests):
        raise NotImplementedError


def measure(document):
    path = Path(sys.argv[1]) / "documents.jsonl"
    path.write_text(json.dumps({"text": document}))
    task = {
        "task": "made",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "word_perplexity"}],
    }
    manager = TaskManager(include_defaults=False)
    results = simple_evaluate(Tenth(), tasks=[task], task_manager=manager, bootstrap_iters=0)["results"]
    return results["made"]["word_perplexity,none"]


for document, expected in (("one two", 10.0), ("one two\n", 10 ** (2 / 3)), (" one two\n", 10 ** (2 / 4))):
    found = measure(document)
    print(f"{repr(document) + ':':13} word perplexity {found:.2f}")
    assert abs(found - expected) < 1e-3, "the behaviour has changed"
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" "$work/try.py" "$work" 2> "$work/errors" ||
    { cat "$work/errors" && exit 1; }
