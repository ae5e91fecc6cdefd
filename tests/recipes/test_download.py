"""LibriSpeech downloads against a loopback server: whole, missing, garbage, truncated, resumed."""

from __future__ import annotations

import http.server
import io
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import soundfile as sf

from toolkit import config as schema
from toolkit.data.download import download_librispeech
from toolkit.data.prepare import part_manifest, prepare, training_manifest

PARTS = ["train-clean-5", "dev-clean-2"]


def make_archive(part: str, speaker: int) -> bytes:
    """A tiny archive of the shape of OpenSLR's: three utterances of one speaker."""
    out = io.BytesIO()
    rng = np.random.default_rng(speaker)
    with tarfile.open(fileobj=out, mode="w:gz") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(f"LibriSpeech/{part}/{speaker}/9/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

        lines = []
        for i in range(3):
            audio = io.BytesIO()
            sf.write(audio, 0.1 * rng.standard_normal(12000), 16000, format="FLAC")
            add(f"{speaker}-9-{i:04d}.flac", audio.getvalue())
            lines.append(f"{speaker}-9-{i:04d} CHAPTER {('ONE', 'TWO', 'THREE')[i]}\n")
        add(f"{speaker}-9.trans.txt", "".join(lines).encode())
    return out.getvalue()


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `files`; `cut` bytes of an answer's body are sent at most, then the connection closes."""

    files: ClassVar[dict[str, bytes]] = {}
    cut: int | None = None
    ranges = True
    requests: ClassVar[list[tuple[str, str | None]]] = []

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def do_GET(self, body: bool = True) -> None:
        wanted = self.headers.get("Range")
        type(self).requests.append((self.command, wanted))
        data = self.files.get(self.path)
        if data is None:
            self.send_error(404)
            return
        first = int(wanted.split("=")[1].rstrip("-")) if wanted and self.ranges else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        if body:
            self.wfile.write(data[first:][: self.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[type[Mirror]]:
    handler = type("TestMirror", (Mirror,), {"requests": []})
    handler.files = {f"/31/{part}.tar.gz": make_archive(part, i + 1) for i, part in enumerate(PARTS)}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
    yield handler
    server.shutdown()


def corpus(mirror: type[Mirror], root: Path) -> schema.LibriSpeechCorpus:
    url = mirror.url  # type: ignore[attr-defined]
    return schema.LibriSpeechCorpus(
        "mini", train=PARTS[:1], valid=PARTS[1:], test=PARTS[1:], dir=str(root), base_url=url, mini=True
    )


def test_download_and_prepare(mirror: type[Mirror], tmp_path: Path) -> None:
    config = schema.Config(
        name="test",
        corpus=corpus(mirror, tmp_path / "download"),
        features=schema.FeatureConfig(num_jobs=1),
        tokens=schema.TokenConfig(kind="char"),
        data=schema.DataConfig(root=str(tmp_path / "data")),
        optim=schema.AdamWConfig(),
    )
    prepare(config)
    assert len(training_manifest(config).read_text().splitlines()) == 3
    assert "CHAPTER ONE" in part_manifest(config, "dev-clean-2").read_text()
    requests = len(mirror.requests)
    prepare(config)
    assert len(mirror.requests) == requests  # done is done


def test_missing_on_the_server(mirror: type[Mirror], tmp_path: Path) -> None:
    del mirror.files["/31/train-clean-5.tar.gz"]
    with pytest.raises(RuntimeError, match=r"cannot download http://127\.0\.0\.1.*404.*corpus\.base_url"):
        download_librispeech(corpus(mirror, tmp_path), PARTS)
    assert list(tmp_path.rglob("*")) == []


def test_no_server(mirror: type[Mirror], tmp_path: Path) -> None:
    mirror.url = "http://127.0.0.1:9"  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match=r"cannot download.*refused"):
        download_librispeech(corpus(mirror, tmp_path), PARTS)


def test_garbage_is_removed_and_fetched_again(mirror: type[Mirror], tmp_path: Path) -> None:
    good = mirror.files["/31/train-clean-5.tar.gz"]
    mirror.files["/31/train-clean-5.tar.gz"] = b"<html>quota exceeded</html>" * 50
    with pytest.raises(RuntimeError, match=r"train-clean-5\.tar\.gz is not the archive it should be"):
        download_librispeech(corpus(mirror, tmp_path), PARTS)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    mirror.files["/31/train-clean-5.tar.gz"] = good
    assert download_librispeech(corpus(mirror, tmp_path), PARTS) == dict.fromkeys(PARTS, 3)


def test_an_archive_of_something_else(mirror: type[Mirror], tmp_path: Path) -> None:
    mirror.files["/31/train-clean-5.tar.gz"] = mirror.files["/31/dev-clean-2.tar.gz"]
    with pytest.raises(RuntimeError, match=r"no LibriSpeech/train-clean-5 in it"):
        download_librispeech(corpus(mirror, tmp_path), PARTS)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_truncated_download_goes_on(mirror: type[Mirror], tmp_path: Path, ranges: bool) -> None:
    mirror.cut, mirror.ranges = 9000, ranges
    size = len(mirror.files["/31/train-clean-5.tar.gz"])
    with pytest.raises(RuntimeError, match=rf"ended after 9000 of {size} bytes; run again to go on"):
        download_librispeech(corpus(mirror, tmp_path), PARTS)
    assert [p.name for p in tmp_path.rglob("*")] == ["train-clean-5.tar.gz"]  # nothing is unpacked of it
    mirror.cut = None
    assert download_librispeech(corpus(mirror, tmp_path), PARTS) == dict.fromkeys(PARTS, 3)
    assert ("GET", "bytes=9000-") in mirror.requests
    assert len(list(tmp_path.rglob("*.flac"))) == 6


def test_an_interrupted_unpacking_is_done_again(mirror: type[Mirror], tmp_path: Path) -> None:
    download_librispeech(corpus(mirror, tmp_path), PARTS)
    part = tmp_path / "LibriSpeech" / "train-clean-5"
    (part / ".completed").unlink()
    next(part.rglob("*.flac")).unlink()
    assert download_librispeech(corpus(mirror, tmp_path), PARTS)["train-clean-5"] == 3
    assert [r for r in mirror.requests if r[0] == "GET"] == [("GET", "bytes=0-")] * 2  # from the archive we have


def test_somebodys_own_copy_is_used_and_left_alone(mirror: type[Mirror], tmp_path: Path) -> None:
    for i, part in enumerate(PARTS):
        folder = tmp_path / "LibriSpeech" / part / str(i)
        folder.mkdir(parents=True)
        (folder / "mine.flac").write_bytes(b"")
    assert download_librispeech(corpus(mirror, tmp_path), PARTS) == dict.fromkeys(PARTS, 1)
    assert mirror.requests == []


def test_unknown_part(mirror: type[Mirror], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train-clean-100.*expected some of.*train-clean-5"):
        download_librispeech(corpus(mirror, tmp_path), ["train-clean-100"])
