"""What every kernel of attention takes, and the keys that a query may see."""

from typing import NamedTuple

from jax import Array
from jaxtyping import Bool, Float, Int

from gptjax.model.config import GPTConfig
from gptjax.sharding.axes import BS, BT, BTHK, BTJK


class Sinks(NamedTuple):
    """Learned keys and values that every token sees besides the text, as attention biases (arXiv:2402.17762, §4.2).

    They give the softmax somewhere to go when nothing in the text matters, as the first tokens do otherwise
    (StreamingLLM, arXiv:2309.17453). They have no position, so queries meet them before their rotation: a sink is as
    near in a long text as in training.
    """

    queries: BTHK
    keys: Float[Array, "I J K"]
    values: Float[Array, "I J K"]


class AttentionInputs(NamedTuple):
    """Queries, keys and values of one layer. Query head h reads key head h // (H / J)."""

    q: BTHK
    k: BTJK
    v: BTJK
    sinks: Sinks | None = None


class AttentionOptions(NamedTuple):
    """Static options of attention."""

    scale: float
    """Factor on q kᵀ."""
    window: int | None = None
    """Tokens that each token sees, its own included; None: all."""
    dropout: float = 0.0
    """Share of probabilities that dropout keys drop."""
    query_block: int | None = None
    """Queries that the xla kernel computes at a time in longer rows: no array of size T × T exists. None: as many as
    are fastest on the device."""
    dtype: str = "float32"
    """Type of the products' operands."""
    max_unrolled: int = 16
    """Blocks of queries that are compiled one by one. More are mapped over, which compiles one."""
    max_kept: int = 512
    """Rows of so many tokens or fewer keep the probabilities of such blocks for the backward pass."""

    @classmethod
    def from_config(cls, config: GPTConfig, *, layer: int | Array) -> "AttentionOptions":
        """The options of a layer. The number of a scanned layer is traced; layer 0 stands for it, for all are alike."""
        window = config.window(layer if isinstance(layer, int) else 0)
        compute = config.compute
        return cls(config.resolved_attention_scale, window, config.dropout, compute.query_block, compute.dtype)


def causal_mask(queries: Int[Array, " T"], keys: Int[Array, " S"], *, window: int | None) -> Bool[Array, "1 T S"]:
    """Keys that each query may see, by their positions in the text."""
    distance = queries[None, :, None] - keys[None, None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def same_document_mask(queries: BT, keys: BS) -> Bool[Array, "B T S"]:
    """Keys of the query's own document."""
    return queries[:, :, None] == keys[:, None, :]
