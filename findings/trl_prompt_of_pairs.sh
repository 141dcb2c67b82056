#!/usr/bin/env bash
# Preference pairs without a prompt: trl cuts letters off the rejected text where the chosen one ends with a blank.
#
# The prompt is what both texts begin with. For two texts with nothing in common the search for it ends at the end of
# the chosen one, and a blank there becomes its whole answer: "Yes " and "No way" become the prompt "Yes", the answer
# " " and the rejected answer "y". Without the blank the texts stay whole. DPO would train on the first form without a
# word.
#
# Versions: Python 3.11 or newer, trl 1.16.0, transformers 5.24.0, datasets 5.2.0, torch 2.13.0. Seen:
#     'Yes' and  'No way': {'prompt': '', 'chosen': 'Yes', 'rejected': 'No way'}
#     'Yes ' and 'No way': {'prompt': 'Yes', 'chosen': ' ', 'rejected': 'y'}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check \
    "trl==1.16.0" "transformers==5.24.0" "datasets==5.2.0" "torch==2.13.0"
cat > "$work/try.py" <<'PY'
from trl import extract_prompt

found = {chosen: extract_prompt({"chosen": chosen, "rejected": "No way"}) for chosen in ("Yes", "Yes ")}
for chosen, pair in found.items():
    print(f"{f'{chosen!r} and':10} 'No way': {pair}")
assert found["Yes "] == {"prompt": "Yes", "chosen": " ", "rejected": "y"}, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
