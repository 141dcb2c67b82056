"""A download is whole or not there, continues where it stopped, and is what was promised."""

import errno
import hashlib
import subprocess
import sys
import time

import pytest
from hub_server import Hub, serving

from data_pipelines.readers import downloads
from data_pipelines.readers.downloads import Wanted, ask, cache_directory, download
from data_pipelines.runtime import progress
from gptjax.errors import UserError

CONTENT = bytes(range(256)) * 20_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(downloads, "PAUSE_SECONDS", 0)
    with serving(Hub("o/n", {"x.bin": CONTENT})) as hub:
        yield hub


def wanted(hub, **known):
    known = {"size": len(CONTENT), "sha256": SHA256, **known}
    return Wanted(f"{hub.endpoint}/storage/x.bin", **known)


def test_a_long_download_says_how_far_it_is(tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    download(wanted(hub), tmp_path / "x.bin")
    assert "fetching x.bin: 5.1 of 5.1 MB, " in capsys.readouterr().err.splitlines()[-1]
    assert len(CONTENT) == 5_120_000


def test_what_breaks_off_is_continued(tmp_path, hub):
    hub.cut_after = [1_000_000, 0, 2_000_000]
    path = download(wanted(hub), tmp_path / "deep" / "x.bin")
    assert path.read_bytes() == CONTENT
    assert [asked for _, asked in hub.requests] == [None, "bytes=1000000-", "bytes=1000000-", "bytes=3000000-"]
    assert sorted(p.name for p in path.parent.iterdir()) == [".x.bin.lock", "x.bin"]
    download(wanted(hub), path)
    assert len(hub.requests) == 4, "what is there is not fetched again"


def test_a_killed_process_leaves_what_the_next_one_continues(tmp_path, hub):
    hub.stop_after = 3_500_000
    partial, path = tmp_path / "x.bin.partial", tmp_path / "x.bin"
    program = (
        "from pathlib import Path; from data_pipelines.readers.downloads import Wanted, download\n"
        f"download(Wanted({wanted(hub).url!r}, {len(CONTENT)}, {SHA256!r}), Path({str(path)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        deadline = time.monotonic() + 60
        while not (partial.exists() and partial.stat().st_size >= 3_000_000):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
        hub.go_on.set()
    left = partial.stat().st_size
    assert 3_000_000 <= left <= 3_500_000
    assert not path.exists()
    assert download(wanted(hub), path).read_bytes() == CONTENT
    assert hub.requests == [("x.bin", None), ("x.bin", f"bytes={left}-")]


def test_a_server_without_ranges_begins_anew(tmp_path, hub):
    hub.ranges = False
    (tmp_path / "x.bin.partial").write_bytes(CONTENT[:1000])
    assert download(wanted(hub), tmp_path / "x.bin").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"another version" * 1000, CONTENT + b"longer"])
def test_a_leftover_of_another_version_is_noticed(tmp_path, hub, left):
    (tmp_path / "x.bin.partial").write_bytes(left)
    assert download(wanted(hub), tmp_path / "x.bin").read_bytes() == CONTENT


def test_without_knowing_the_size(tmp_path, hub):
    hub.cut_after = [77]
    assert download(wanted(hub, size=None), tmp_path / "x.bin").read_bytes() == CONTENT
    (tmp_path / "y.bin.partial").write_bytes(CONTENT)
    assert download(wanted(hub, size=None), tmp_path / "y.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"sha256": "0" * 64}, "its SHA-256 is"),
        ({"sha256": None, "git_sha1": "0" * 40}, "git blob"),
        ({"size": 7}, "5,120,000 bytes, wanted 7"),
    ],
)
def test_another_content_is_refused(tmp_path, hub, known, message):
    with pytest.raises(UserError, match=f"not the file that was promised.*{message}"):
        download(wanted(hub, **known), tmp_path / "x.bin")
    assert [path.name for path in tmp_path.iterdir()] == [".x.bin.lock"]


def test_git_blobs_are_checked_too(tmp_path, hub):
    sha1 = hashlib.sha1(b"blob %d\0" % len(CONTENT) + CONTENT).hexdigest()
    assert download(wanted(hub, sha256=None, git_sha1=sha1), tmp_path / "x.bin").read_bytes() == CONTENT


def test_passing_trouble_is_waited_out_and_refusal_is_not(tmp_path, hub, capsys):
    hub.refuse = [503, 429]
    assert download(wanted(hub), tmp_path / "x.bin").read_bytes() == CONTENT
    assert capsys.readouterr().err.count("trying again") == 2
    hub.refuse = [403]
    with pytest.raises(UserError, match=r"answers 403 .*private or gated"):
        download(wanted(hub), tmp_path / "y.bin")
    hub.refuse = [500] * downloads.TRIES
    with pytest.raises(UserError, match=r"did not answer .*500"):
        ask(f"{hub.endpoint}/api")
    assert not hub.refuse


def test_silence_is_told(tmp_path, hub, monkeypatch):
    monkeypatch.setattr(downloads, "TRIES", 2)
    hub.cut_after = [100, 0, 0]
    with pytest.raises(UserError, match="What has arrived is kept"):
        download(wanted(hub), tmp_path / "x.bin")
    assert (tmp_path / "x.bin.partial").read_bytes() == CONTENT[:100]
    with pytest.raises(UserError, match="did not answer"):
        ask("http://127.0.0.1:1/")


def test_a_full_disk_is_no_silence(tmp_path, hub, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(downloads, "Rate", full)
    with pytest.raises(UserError, match=r"could not be kept: .*no room\. What has arrived is kept; make room"):
        download(wanted(hub), tmp_path / "x.bin")
    assert len(hub.requests) == 1, "asking again does not help"


def test_a_place_that_cannot_be_written_is_no_silence(tmp_path, hub, capsys):
    (tmp_path / "x.bin.partial").mkdir()
    with pytest.raises(UserError, match=r"could not be kept: .*x\.bin\.partial.*Choose a place"):
        download(wanted(hub), tmp_path / "x.bin")
    assert "trying again" not in capsys.readouterr().err


def test_a_token_stays_with_its_host(tmp_path, hub):
    url = f"{hub.endpoint}/datasets/o/n/resolve/{hub.commit}/x.bin"
    download(Wanted(url, len(CONTENT), SHA256), tmp_path / "x.bin", token="secret")
    assert hub.authorized == [(url.removeprefix(hub.endpoint), "Bearer secret"), ("/storage/x.bin", None)]


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("GPTJAX_CACHE", str(tmp_path))
    assert cache_directory() == tmp_path
    monkeypatch.delenv("GPTJAX_CACHE")
    assert cache_directory().parts[-2:] == (".cache", "gptjax")
