"""Where text comes from: every source by its spec.

    stdlib, shakespeare             what Python brings along; tiny Shakespeare
    openwebtext, wikitext103, …     the source of a recipe (`recipes.py`)
    books/, books.jsonl.gz, 'x/*.parquet'    files (`readers/files.py`)
    hf:OWNER/NAME[@REVISION][:PATTERN]       the files of a Hugging Face repository (`readers/hub.py`)
    tfds:NAME[/CONFIG][:VERSION][@SPLIT]     a set that TFDS has prepared (`readers/tfds_sets.py`)
    wikitext:SPEC                   lines of another source joined into articles (`readers/wikitext.py`)

The one idea: a source yields documents, always in the same order, one at a time; it knows nothing of tokens. It
also says what it is (`identity`), so that prepared data is found again, and prepared anew when the files have changed.
A name wins over a file of the same name; `./wikipedia` is the file.
"""

from data_pipelines.readers import hub, tfds_sets, wikitext
from data_pipelines.readers.bundled import Shakespeare, Stdlib
from data_pipelines.readers.documents import Source
from data_pipelines.readers.downloads import cache_directory
from data_pipelines.readers.files import open_files
from data_pipelines.recipes import open_recipe

__all__ = ["Source", "cache_directory", "open_source"]


def open_source(spec: str) -> Source:
    """The source that `spec` names. Local files must be there; a server is asked only when documents are."""
    if spec in ("stdlib", "shakespeare"):
        return Stdlib() if spec == "stdlib" else Shakespeare()
    if recipe := open_recipe(spec):
        return open_source(recipe.source)
    if spec.startswith(hub.PREFIX):
        return hub.open_hub(spec)
    if spec.startswith(tfds_sets.PREFIX):
        return tfds_sets.open_tfds(spec)
    if spec.startswith(wikitext.PREFIX):
        return wikitext.Articles(open_source(spec.removeprefix(wikitext.PREFIX)))
    return open_files(spec)
