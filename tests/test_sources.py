"""Every source by its spec: order, counted problems, an identity in JSON."""

import json

import pytest
from texts import documents_in

from data_pipelines.readers.bundled import Shakespeare, Stdlib
from data_pipelines.readers.documents import INVALID, ReadContext
from data_pipelines.readers.files import Files
from data_pipelines.readers.hub import HubFiles
from data_pipelines.readers.sources import open_source
from data_pipelines.readers.tfds_sets import TfdsSet
from data_pipelines.readers.wikitext import Articles
from gptjax.core.errors import UserError


@pytest.mark.parametrize(
    ("spec", "kind", "name"),
    [
        ("stdlib", Stdlib, "stdlib"),
        ("python_stdlib", Stdlib, "stdlib"),
        ("shakespeare", Shakespeare, "shakespeare"),
        ("shakespeare_char", Shakespeare, "shakespeare"),
        ("hf:owner/name:*.parquet", HubFiles, "name"),
        ("openwebtext", HubFiles, "openwebtext"),
        ("wikitext103", Articles, "wikitext"),
        ("wikitext:hf:owner/name", Articles, "name"),
        ("tfds:wiki40b/en:1.3.0@train[:1%]", TfdsSet, "wiki40b-en"),
    ],
)
def test_spec_opens_its_source_without_reading(spec, kind, name):
    source = open_source(spec)
    assert type(source) is kind
    assert source.name == name


def test_options_reach_the_files(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"text": "a", "html": "A"}\n\n{"text": "cut\n{"text": "b", "html": "B"}\n')
    for spec in (f"{tmp_path}/x.jsonl", str(tmp_path), f"{tmp_path}/*.jsonl", f"wikitext:{tmp_path}/x.jsonl"):
        context = ReadContext()
        assert b"".join(documents_in(open_source(spec), context)).replace(b"\n", b"") == b"ab"
        assert context.notes == {INVALID: 1}
        assert b"".join(documents_in(open_source(spec), ReadContext("html"))).replace(b"\n", b"") == b"AB"
        with pytest.raises(UserError, match=r"x\.jsonl:3: not a line of JSON"):
            list(documents_in(open_source(spec), ReadContext(strict=True)))


def test_identities_are_json_and_differ(tmp_path):
    (tmp_path / "a.txt").write_text("a")
    specs = ["stdlib", "shakespeare", str(tmp_path), f"{tmp_path}/a.txt", f"wikitext:{tmp_path}"]
    identities = [json.dumps(open_source(spec).identity()) for spec in specs]
    assert len(set(identities)) == len(specs)


def test_name_takes_precedence_over_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wikipedia").write_text("a file")
    assert type(open_source("wikipedia")) is HubFiles
    source = open_source("./wikipedia")
    assert type(source) is Files
    assert list(documents_in(source, ReadContext())) == [b"a file"]


@pytest.mark.parametrize("spec", ["absent", "absent/*.txt", "hf:absent", "tfds:", "wikitext:absent"])
def test_unknown_spec_is_refused(spec):
    with pytest.raises(UserError, match=r"^source '"):
        open_source(spec)
