"""LibriSpeech and mini LibriSpeech from OpenSLR or a mirror, part by part, through lhotse's resumable download."""

from __future__ import annotations

import logging
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH
from lhotse.utils import resumable_download, safe_extract

from toolkit.config import LibriSpeechCorpus


def download_librispeech(corpus: LibriSpeechCorpus, parts: list[str]) -> dict[str, Any]:
    """Have all `parts` unpacked under `corpus.dir`/LibriSpeech; returns {part: number of recordings}.

    A part that is there without our archive is somebody's own copy and used as it is. Raises RuntimeError for a server
    that does not answer, a download that ends early (run again: it goes on) and a file that is no archive (removed).
    """
    root = Path(corpus.dir)
    known = MINI_LIBRISPEECH if corpus.mini else LIBRISPEECH
    unknown = [part for part in parts if part not in known]
    if unknown:
        raise ValueError(f"corpus parts {', '.join(unknown)}: expected some of {', '.join(known)}")
    root.mkdir(parents=True, exist_ok=True)
    counts = {}
    for part in parts:
        folder, archive = root / "LibriSpeech" / part, root / f"{part}.tar.gz"
        if (folder / ".completed").is_file() or (folder.is_dir() and not archive.exists()):
            logging.info("%s is there", folder)
        else:
            _fetch(f"{corpus.base_url.rstrip('/')}/{31 if corpus.mini else 12}/{part}.tar.gz", archive)
            _unpack(archive, root, folder)
        counts[part] = sum(1 for _ in folder.rglob("*.flac"))
    return counts


def _fetch(url: str, archive: Path) -> None:
    """Download `url` to `archive`, going on after what is there already."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=60) as reply:
            expected = int(reply.headers.get("Content-Length") or 0)
        have = archive.stat().st_size if archive.exists() else 0
        if not expected or have != expected:
            resumable_download(url, archive)
            if archive.stat().st_size > expected > 0:
                # The server ignored the request for the rest only, and the whole came after the beginning.
                archive.unlink()
                resumable_download(url, archive)
    except (urllib.error.URLError, OSError) as e:
        if archive.exists() and archive.stat().st_size == 0:
            archive.unlink()
        raise RuntimeError(
            f"cannot download {url}: {e}. Set corpus.base_url to a mirror, or put {archive.name} into {archive.parent}"
        ) from e
    size = archive.stat().st_size
    if size < expected:
        raise RuntimeError(f"{url}: the download ended after {size} of {expected} bytes; run again to go on")


def _unpack(archive: Path, root: Path, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    logging.info("unpacking %s", archive)
    try:
        with tarfile.open(archive) as tar:
            safe_extract(tar, path=root)
        if not folder.is_dir():
            raise tarfile.ReadError(f"no LibriSpeech/{folder.name} in it")
    except (tarfile.TarError, EOFError, OSError) as e:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(e, OSError) and not isinstance(e, (tarfile.TarError, EOFError)) and e.errno is not None:
            raise  # disk full or no permission: the archive is good
        archive.unlink()
        raise RuntimeError(
            f"{archive.name} is not the archive it should be ({e}); removed, run again to fetch it"
        ) from e
    (folder / ".completed").touch()
