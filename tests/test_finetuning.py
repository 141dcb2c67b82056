from dataclasses import replace

from tiny import MODEL

from gptjax.finetuning.model_config import merge_model_config

ROTARY = replace(MODEL, positions="rotary")


def test_weights_decide_the_shape_and_the_run_decides_the_rest() -> None:
    own = {"dropout": 0.5, "compute": replace(MODEL.compute, dtype="bfloat16", remat="full")}
    wanted = replace(MODEL, num_layers=7, embed_dim=64, vocab_size=None, tie_embeddings=False, context_length=99, **own)
    assert merge_model_config(MODEL, wanted) == replace(MODEL, **own)


def test_learned_positions_allow_only_a_shorter_context() -> None:
    assert merge_model_config(MODEL, replace(MODEL, context_length=3)).context_length == 3
    longer = replace(MODEL, context_length=2 * MODEL.context_length)
    assert merge_model_config(MODEL, longer) == MODEL
    rotary = merge_model_config(ROTARY, replace(longer, positions="rotary"))
    assert rotary.context_length == longer.context_length


def test_rotary_base_is_the_source_unless_another_is_given() -> None:
    """The source's initialization is kept as well, because the wanted one may not suit its shape."""
    source = replace(ROTARY, rotary_base=500.0)
    init = replace(MODEL.init, x0_mix=(0.5, 0.5), head_std=0.1)
    wanted = replace(MODEL, tie_embeddings=False, x0_mix=True, init=init)
    assert merge_model_config(source, wanted) == source
    wanted = replace(wanted, positions="rotary", rotary_base=10_000.0)
    assert merge_model_config(source, wanted) == replace(source, rotary_base=10_000.0)


def test_windows_are_the_source_unless_others_are_given() -> None:
    source = replace(ROTARY, window_pattern="SL", short_window=4, long_window=12)
    longer = replace(ROTARY, context_length=64)
    assert merge_model_config(source, longer) == replace(source, context_length=64)
    wider = replace(longer, window_pattern="SL", short_window=8, long_window=64)
    assert merge_model_config(source, wider) == wider
    whole = replace(longer, window_pattern="LL")
    assert merge_model_config(source, whole) == whole
    learned = replace(source, positions="learned")
    assert merge_model_config(learned, wider) == replace(learned, short_window=8, long_window=64)
