"""Training recipes: every module has one TrainConfig, `config`, and its docstring is the documentation.

`Published` is what others report and how their recipe differs; `Measured` is what we measured. We have not run recipes
without `Measured` to the end.
"""
