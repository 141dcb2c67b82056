"""The weights that a run starts from, and those of its objective's second model."""

from dataclasses import replace

from gptjax.config import TrainConfig
from gptjax.core.errors import UserError
from gptjax.model.gpt import GPT, with_static
from gptjax.model.vocabulary import grow_vocabulary
from gptjax.run_dir import RunDir
from gptjax.sharding.mesh import MeshConfig


def load_start(config: TrainConfig, mesh: MeshConfig) -> GPT:
    """The weights of `init_from`, with a row for each token that the data's tokenizer has added."""
    if config.init_from is None:
        raise UserError("the run starts from new weights: give --init-from=RUN.")
    weights = RunDir.open(config.init_from).load_model(mesh=mesh, context_length=config.model.context_length)
    weights = grow_vocabulary(weights, config.model.resolved_vocab_size)
    return with_static(weights, config=config.model)


def load_weights(config: TrainConfig, mesh: MeshConfig, run: str | None) -> GPT:
    """The weights of a run directory; None stands for the weights that this run starts from."""
    return load_start(config if run is None else replace(config, init_from=run), mesh)
