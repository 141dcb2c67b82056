"""Pipelines from texts, conversations and token files to shards."""

import gptjax  # noqa: F401, where a module runs by `python -m`, its handler ends the imports after it on Ctrl-C
