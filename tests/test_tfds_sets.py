"""Sets that TFDS prepared, read without TensorFlow. The builder here needs none."""

import subprocess
import sys

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is in the extras `data` and `dev`")

from texts import documents_in  # noqa: E402

from data_pipelines.fetch import Fetch, fetch  # noqa: E402
from data_pipelines.readers import record_sources  # noqa: E402
from data_pipelines.readers.documents import INVALID, REPLACED_RECORDS, ReadContext  # noqa: E402
from data_pipelines.readers.record_sources import open_records  # noqa: E402
from data_pipelines.readers.sources import open_source  # noqa: E402
from data_pipelines.readers.tfds_sets import data_directory, open_tfds, prepare_tfds  # noqa: E402
from gptjax.core.errors import UserError  # noqa: E402


class Gptjaxtales(tfds.core.GeneratorBasedBuilder):
    """Stories; in the config `two` under another name, in `many` beside another text."""

    VERSION = tfds.core.Version("1.10.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in ("plain", "two", "many", "chat")]  # noqa: RUF012

    def _info(self):
        if self.builder_config.name == "chat":
            turns = tfds.features.Sequence({"role": tfds.features.Text(), "content": tfds.features.Text()})
            features = tfds.features.FeaturesDict({"messages": turns})
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)
        names = {"plain": ("id", "text"), "two": ("story",), "many": ("a", "b")}[self.builder_config.name]
        features = {name: tfds.features.Scalar(np.int64) if name == "id" else tfds.features.Text() for name in names}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True
        )

    def _split_generators(self, downloads):
        return {"train": self._generate_examples(100), "test": self._generate_examples(3)}

    def _generate_examples(self, count):
        for i in range(count):
            if self.builder_config.name == "chat":
                yield i, {"messages": {"role": ["user", "assistant"], "content": [f"{i}+é?", f"{2 * i}"]}}
                continue
            text = b"caf\xe9" if i == 7 else f"story {i} é\r\n".encode()
            yield i, {name: i if name == "id" else text for name in self.info.features}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TFDS_DATA_DIR", str(directory))
        for name in ("plain", "two", "many", "chat"):
            prepare_tfds(f"tfds:gptjaxtales/{name}")
    return directory


@pytest.fixture
def there(prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))


def story(i):
    return ("caf\ufffd" if i == 7 else f"story {i} é\r\n").encode()


def test_set_is_read_in_order(there):
    context = ReadContext()
    source = open_source("tfds:gptjaxtales/plain")
    assert list(documents_in(source, context)) == [story(i) for i in range(100)]
    assert context.notes == {REPLACED_RECORDS: 1}
    assert source.name == "gptjaxtales-plain"
    assert source.identity()["set"] == "gptjaxtales/plain/1.10.0"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("gptjaxtales/plain@test", range(3)),
        ("gptjaxtales/plain:1.10.0@train[:10%]", range(10)),
        ("gptjaxtales/plain@test+train[98:]", [0, 1, 2, 98, 99]),
        ("gptjaxtales/two@test", range(3)),
    ],
)
def test_spec_chooses_split_and_version(there, spec, expected):
    assert list(documents_in(open_tfds(f"tfds:{spec}"), ReadContext())) == [story(i) for i in expected]


def test_text_field_chooses_the_feature(there):
    for name, field in (("many", "a"), ("many", "b"), ("two", "story"), ("plain", "text")):
        assert next(documents_in(open_source(f"tfds:gptjaxtales/{name}"), ReadContext(field))) == story(0)
    assert next(documents_in(open_source("tfds:gptjaxtales/many"), ReadContext("b,a"))) == b"\n\n".join([story(0)] * 2)
    for field, given in (("story", "story"), ("id", "id"), ("story", "text,story")):
        with pytest.raises(
            UserError, match=rf"no text feature '{field}'; it has id \(Scalar\), text \(Text\) \(--text-field"
        ):
            next(documents_in(open_source("tfds:gptjaxtales/plain"), ReadContext(given)))


def test_reading_imports_neither_tensorflow_nor_jax(there):
    program = (
        "import sys\n"
        "from data_pipelines.readers.documents import ReadContext, iter_documents\n"
        "from data_pipelines.readers.sources import open_source\n"
        "context = ReadContext()\n"
        "document = next(iter_documents(open_source('tfds:gptjaxtales/two').chunks(context), context))\n"
        "assert document.startswith(b'story 0')\n"
        "assert not {'tensorflow', 'jax'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_newest_version_is_taken(there, prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    for version in ("1.9.0", "1.10.0", "old"):
        (tmp_path / "x" / version).mkdir(parents=True)
        (tmp_path / "x" / version / "dataset_info.json").touch()
    assert open_tfds("tfds:x").directory == tmp_path / "x" / "1.10.0"
    assert open_tfds("tfds:x:1.9.0").directory == tmp_path / "x" / "1.9.0"


def test_unusable_specs_are_explained(there):
    for spec in ("tfds:lm1b", "tfds:gptjaxtales/plain:2.0.0"):
        with pytest.raises(UserError, match=r"not prepared.*TFDS_DATA_DIR.*fetch tfds:.*extra `tfds`"):
            next(documents_in(open_source(spec), ReadContext()))
    for spec in ("tfds:", "tfds:a b", "tfds:x:1", "tfds:../x"):
        with pytest.raises(UserError, match="wanted tfds:NAME"):
            open_source(spec)
    with pytest.raises(UserError, match=r"split 'absent' in .*\['train', 'test'\]"):
        next(documents_in(open_source("tfds:gptjaxtales/plain@absent"), ReadContext()))
    with pytest.raises(UserError, match=r"no text feature 'text'; it has a \(Text\), b \(Text\)"):
        next(documents_in(open_source("tfds:gptjaxtales/many"), ReadContext()))


def test_tfrecord_files_are_refused(there, prepared, tmp_path, monkeypatch):
    """TFRecord is the default format of TFDS; dataset_info.json names it."""
    old = prepared / "gptjaxtales" / "plain" / "1.10.0"
    new = tmp_path / "gptjaxtales" / "plain" / "1.10.0"
    new.mkdir(parents=True)
    for path in old.iterdir():
        (new / path.name.replace("array_record", "tfrecord")).write_bytes(
            path.read_bytes().replace(b"array_record", b"tfrecord")
        )
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    with pytest.raises(UserError, match=r"TFRECORD is not supported"):
        next(documents_in(open_source("tfds:gptjaxtales/plain"), ReadContext()))


def test_its_files_are_invalid_records(there, prepared):
    for spec in (prepared, f"{prepared}/gptjaxtales/plain/1.10.0/*train*"):
        context = ReadContext()
        assert list(documents_in(open_source(str(spec)), context)) == []
        assert "binary data (of TFDS? tfds:NAME)" in context.notes.first[INVALID]


def test_fetch_prepares_a_set(there, prepared, capsys):
    directory = fetch(Fetch("tfds:gptjaxtales/two"))
    assert directory == prepared / "gptjaxtales" / "two" / "1.10.0"
    assert "now python -m data_pipelines.prepare --source=tfds:gptjaxtales/two" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"could not be prepared: .*nosuchset"):
        prepare_tfds("tfds:nosuchset")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModuleNotFoundError("No module", name="tensorflow"), r"needs tensorflow.*pip install 'gptjax\[tfds\]'"),
        (ConnectionError("no route"), "could not be prepared: no route"),
    ],
)
def test_failed_preparation_is_explained(there, monkeypatch, error, message):
    def download_and_prepare(self):
        raise error

    monkeypatch.setattr(Gptjaxtales, "download_and_prepare", download_and_prepare)
    with pytest.raises(UserError, match=f"tfds:gptjaxtales.*{message}"):
        prepare_tfds("tfds:gptjaxtales")


def test_data_directory_has_a_default(monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    assert data_directory().name == "tensorflow_datasets"


def test_records_of_a_set_are_conversations(there):
    source = open_records("tfds:gptjaxtales/chat")
    records = [record for block in source.iter_blocks((), 1000) for record in block.read()]
    assert len(records) == 100
    turns = [{"role": "user", "content": "3+é?"}, {"role": "assistant", "content": "6"}]
    assert records[3] == ("tfds:gptjaxtales/chat: record 3", {"messages": turns})
    assert source.identity()["set"] == "gptjaxtales/chat/1.10.0"
    assert open_records("tfds:gptjaxtales/chat@test").size < source.size


@pytest.mark.parametrize(
    "fields",
    [
        {"type": ["long"], "text": ["a", "b"]},
        {"type": ["long"], "text": ["a"]},
        {"role": ["user"], "content": ["a", "b"]},
        {"role": [], "content": []},
    ],
)
def test_lists_that_are_no_messages_stay_lists(fields):
    assert record_sources._to_json({"a": fields}) == {"a": fields}


def test_lists_of_roles_and_contents_become_messages():
    fields = {"type": [b"human", b"ai"], "text": [b"a", b"b"]}
    assert record_sources._to_json(fields) == [{"type": "human", "text": "a"}, {"type": "ai", "text": "b"}]
