#!/usr/bin/env bash
# Where a teacher's vocabulary is padded further than the student's, Liger's distillation counts logits of 0 as tokens.
#
# Vocabularies are padded to round sizes, others for each size of a model, so a teacher may have rows that its student
# lacks. Liger's distillation loss allows that and fills the student's logits up with zeros. A logit of 0 is no absent
# token: it is e^0 in the sum of the softmax. The student pays for tokens that it does not have, and the gradient makes
# the logits of all true tokens larger. Below student and teacher have the same weights for all 24 true tokens, and the
# teacher has learned to avoid its 40 rows of padding: the divergence is 0. With minus infinity for zeros it would be.
#
# Versions: Python 3.11 or newer, liger-kernel 0.8.5, torch 2.13.0 on a CPU. Seen:
#     beta 0.0: same rows 0.0000, teacher with padding 0.0355 (norm of the gradient 0.019), absent rows masked 0.0000
#     beta 0.5: same rows 0.0000, teacher with padding 0.0118 (norm of the gradient 0.006), absent rows masked 0.0000
#     beta 1.0: same rows 0.0000, teacher with padding 2.4903 (norm of the gradient 1.072), absent rows masked 0.0000
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --disable-pip-version-check "liger-kernel==0.8.5" "torch==2.13.0"
cat > "$work/try.py" <<'PY'
import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
from torch.nn.functional import kl_div

TOKENS, WIDTH, VOCABULARY, PADDING = 64, 16, 24, 40
torch.manual_seed(0)
hidden, head = torch.randn(TOKENS, WIDTH), torch.randn(VOCABULARY, WIDTH)
targets = torch.randint(0, VOCABULARY, (TOKENS,))
padded_head = torch.cat([head, torch.zeros(PADDING, WIDTH)])
padded_bias = torch.cat([torch.zeros(VOCABULARY), torch.full((PADDING,), -80.0)])


def distil(beta, teacher_head, teacher_bias):
    student_head = head.clone().requires_grad_()
    function = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False)
    student_hidden = hidden.clone().requires_grad_()
    loss = function(student_hidden, student_head, hidden, teacher_head, targets, None, teacher_bias)
    loss.backward()
    return loss.item(), student_head.grad.norm().item()


def measure_masked(beta):
    teacher = (hidden @ padded_head.T + padded_bias).log_softmax(-1)
    student = (hidden @ head.T).log_softmax(-1)
    student = torch.cat([student, torch.full((TOKENS, PADDING), -1e9)], dim=-1)
    if beta in (0.0, 1.0):
        first, second = (student, teacher) if beta == 0 else (teacher, student)
        return kl_div(first, second, reduction="batchmean", log_target=True).item()
    mean = ((1 - beta) * student.exp() + beta * teacher.exp()).clamp_min(1e-38).log()
    sides = [kl_div(mean, side, reduction="batchmean", log_target=True).item() for side in (student, teacher)]
    return (1 - beta) * sides[0] + beta * sides[1]


for beta in (0.0, 0.5, 1.0):
    same, _ = distil(beta, head, None)
    padded, norm = distil(beta, padded_head, padded_bias)
    masked = measure_masked(beta)
    print(f"beta {beta}: same rows {abs(same):.4f}, teacher with padding {padded:.4f} ", end="")
    print(f"(norm of the gradient {norm:.3f}), absent rows masked {abs(masked):.4f}")
    assert abs(same) < 1e-5 and abs(masked) < 1e-5 and padded > 1e-3 and norm > 5e-4, "the behaviour has changed"
PY
"$work/venv/bin/python" "$work/try.py" 2> "$work/errors" || { cat "$work/errors" && exit 1; }
