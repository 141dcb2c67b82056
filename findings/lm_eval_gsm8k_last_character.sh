#!/usr/bin/env bash
# The strict score of gsm8k_cot in lm-evaluation-harness reads "The answer is 72" at the end of a reply as 7.
#
# The filter `strict-match` is the pattern `The answer is (\-?[0-9\.\,]+).`. Its last dot stands for any character but a
# line end, and must be there. Behind a full stop the number is whole. Before a line end and at the end of a reply it
# loses its last digit, and a number of one digit is no answer. So right answers without a full stop count as wrong.
#
# Versions: Python 3.11 or newer, lm_eval 0.4.13. Seen:
#     'The answer is 72.': 72, 'The answer is 72\n': 7, 'The answer is 72': 7, 'The answer is 7': [invalid]
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "lm_eval==0.4.13"
cat > "$work/try.py" <<'PY'
from pathlib import Path

import lm_eval
import yaml
from lm_eval.filters import build_filter_ensemble

task = yaml.safe_load((Path(lm_eval.__file__).parent / "tasks/gsm8k/gsm8k-cot.yaml").read_text())
(parts,) = (entry["filter"] for entry in task["filter_list"] if entry["name"] == "strict-match")
steps = [(part.pop("function"), part) for part in parts]
ensemble = build_filter_ensemble("strict-match", [(name, rest or None) for name, rest in steps])
replies = ["The answer is 72.", "The answer is 72\n", "The answer is 72", "The answer is 7"]
found = [[reply] for reply in replies]
for step in ensemble.filters:
    found = step().apply(found, [{}] * len(replies))
found = list(found)
print(", ".join(f"{reply!r}: {answer}" for reply, answer in zip(replies, found, strict=True)))
assert found == ["72", "7", "7", "[invalid]"], "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
