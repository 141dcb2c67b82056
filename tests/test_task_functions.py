"""Functions of our task files, and controls, without the harness."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from gptjax.evaluation.comparison import Evaluation, compare, format_table
from gptjax.evaluation.figures import ItemScores, item_figure
from gptjax.evaluation.harness import collect_results
from gptjax.evaluation.tasks import functions


def test_number_is_read_after_its_mark_or_else_the_last() -> None:
    find = functions.find_number
    assert find("so #### 1,234 and 7") == "1234"
    assert find("The Answer is 12, not 13") == "12"
    assert find("2 and 3.5 cats") == "3.5"
    assert find("none") is None
    assert find("The answer is 18.") == find("So she has 18.") == find("#### 18.") == "18"
    assert functions.score_number({"answer": "x #### 1,000"}, ["it is 1000"]) == {"exact_match": 1.0}
    assert functions.score_number({"answer": "x #### 5"}, [""]) == {"exact_match": 0.0}


def test_only_a_whole_text_is_cut_to_its_test_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "WHOLE_BYTES", 10)
    monkeypatch.setattr(functions, "TEST_BYTES", 3)
    assert functions.cut_test_part("0123456789") == "789"
    assert functions.cut_test_part("012345678") == "012345678"


def test_lines_are_words_where_asked_for() -> None:
    doc = {"text": "a b\nc\n"}
    assert functions.score_text(doc, (-1.0,))["word_perplexity"] == (-1.0, 3)
    assert functions.score_lines(doc, (-1.0,))["word_perplexity"] == (-1.0, 5)
    assert functions.score_lines(doc, (-1.0,))["bits_per_byte"] == (-1.0, 6)


def make_samples() -> list[dict[str, Any]]:
    """Four questions with two answers; three times the first is right."""
    answers = [("q", " aa"), ("q", " b")]
    return [
        {"arguments": answers, "target": int(i == 3), "acc": float(i < 2), "filter": "none", "doc_id": i}
        for i in range(4)
    ]


def test_controls_stand_beside_a_multiple_choice() -> None:
    shorter = lambda requests: [(-float(len(answer)), True) for _, _, answer in requests]
    model: Any = SimpleNamespace(prefix_token_id=0, tok_encode=list, _loglikelihood_tokens=shorter)
    samples = {
        "t": make_samples(),
        "g": [{"arguments": [("q", {})], "exact_match": 1.0, "filter": "none", "doc_id": 0, "target": "1"}],
    }
    found = collect_results(
        model,
        {
            "results": {"t": {"acc,none": 0.5, "acc_stderr,none": 0.2, "alias": "t"}, "g": {"exact_match,none": 1.0}},
            "samples": samples,
            "configs": {"t": {"output_type": "multiple_choice"}, "g": {"output_type": "generate_until"}},
        },
    )
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values == {
        "t acc": 0.5,
        "t chance": 0.5,
        "t majority class": 0.75,
        "t answer without question": 0.25,
        "g exact_match": 1.0,
    }
    assert found.figures["t acc"].low < 0.5 < found.figures["t acc"].high


def test_metrics_of_sums_have_intervals_and_paired_differences() -> None:
    pairs = np.array([[-3.0, 1.0], [-8.0, 2.0], [-2.5, 1.0]])
    scores, better = ItemScores(pairs, "perplexity"), ItemScores(pairs + np.array([0.5, 0.0]), "perplexity")
    assert scores.value == pytest.approx(np.exp(13.5 / 4))
    assert ItemScores(pairs, "bits").value == pytest.approx(13.5 / 4 / np.log(2))
    figure = item_figure(scores)
    assert figure.low < figure.value < figure.high
    ours = Evaluation("a|b", {"t x": item_figure(better)}, items={"t x": better})
    base = Evaluation("base", {"t x": figure, "t y": figure}, items={"t x": scores})
    change = compare(ours, base).differences["t x"]
    assert change.value == pytest.approx(better.value - scores.value)
    assert change.high < 0
    table = format_table([ours, base], base)
    assert "| figure | a\\|b | base (baseline) |" in table
    assert "| t y | not run |" in table
    assert ", Δ -" in table
