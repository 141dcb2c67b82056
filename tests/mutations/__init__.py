"""Changes that would be bugs, each with the tests that must fail because of it. `run.py` applies them."""

from .core import CORE, METRICS, RUN_DIR
from .data import DATA
from .data_pipelines import DATA_PIPELINES
from .model import MODEL
from .mutation import Mutation
from .optim import OPTIM
from .tokenization import TOKENIZATION
from .training import TRAINING

__all__ = ["MUTATIONS", "Mutation"]

MUTATIONS = (
    *MODEL,
    *OPTIM,
    *DATA,
    *TRAINING,
    *TOKENIZATION,
    *CORE,
    *METRICS,
    *RUN_DIR,
    *DATA_PIPELINES,
)
