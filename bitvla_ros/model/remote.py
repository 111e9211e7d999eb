"""A repository on the hub, looked at without its weights: its descriptions whole, and outlines of the files with weights, as long as the
files and with their headers, but with holes in the place of values. What reads a checkpoint's folder without its values reads that too."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import NamedTuple

from .hub import Listing, Repository, list_files, one_line
from .layout import CheckpointError, Layout, layout_of
from .safetensors_file import MAX_HEADER

_WHOLE = 1 << 20  # bytes: what is no longer is fetched whole
_FIRST = 1 << 18  # of a safetensors file: its header, unless it is a long one
_LAST = 1 << 16  # of an archive: its directory
_RECORD = 1 << 12  # of a record in an archive: its own header, with padding


class Contents(NamedTuple):
    """commit: of the revision that was asked for. sizes: bytes of each file. layout: of those that are read, or None, and the problem."""

    commit: str
    sizes: dict[str, int]
    layout: Layout | None
    problem: str


def contents(repository: Repository) -> Contents:
    """What a repository holds. Raises CheckpointError where the hub does not tell."""
    try:
        listed: Listing = list_files(repository)
    except Exception as error:  # of whichever library huggingface_hub uses for HTTP
        raise CheckpointError(f"{repository} cannot be listed: {one_line(error)}. Check the name, the network, and HF_ENDPOINT") from error
    try:
        return Contents(*listed, layout_of(listed.sizes, repository.name), "")
    except CheckpointError as error:
        return Contents(*listed, None, str(error))


class Outline:
    """Makes, in `folder`, the outline of a repository at a commit. fetched: bytes that it took. Raises CheckpointError."""

    def __init__(self, repository: Repository, found: Contents, folder: Path) -> None:
        assert found.layout is not None
        self._name, self._commit, self._sizes, self._folder = repository.name, found.commit, found.sizes, folder
        self.fetched = 0
        for name in found.layout.read(found.sizes):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            try:
                self._outline(name)
            except CheckpointError:
                raise
            except Exception as error:  # see `contents`
                raise CheckpointError(f"{name} of {repository} cannot be fetched: {one_line(error)}. Try again") from error

    def _outline(self, name: str) -> None:
        size = self._sizes[name]
        if name.endswith(".safetensors") and size > _FIRST:
            self._write(name, 0, self._header(name))
        elif name.endswith(".pt") and size > _WHOLE:
            self._write_archive(name)
        else:
            self._fetch_whole(name)

    def _fetch_whole(self, name: str) -> None:
        from huggingface_hub import hf_hub_download

        hf_hub_download(self._name, name, revision=self._commit, local_dir=self._folder)
        self.fetched += self._sizes[name]

    def _header(self, name: str) -> bytes:
        """What stands before a safetensors file's values, and a little more."""
        start = self._fetch(name, 0, _FIRST)
        length = 8 + int.from_bytes(start[:8], "little")
        if length > min(MAX_HEADER, self._sizes[name]):
            return start  # whoever reads it says what is wrong
        return start + (self._fetch(name, len(start), length) if length > len(start) else b"")

    def _write_archive(self, name: str) -> None:
        """Of torch's: its directory, all small records, of which one says what the tensors are, and the headers of the others."""
        size = self._sizes[name]
        end = self._fetch(name, size - _LAST, size)
        self._write(name, size - _LAST, end)
        try:
            with zipfile.ZipFile(self._folder / name) as archive:
                records = archive.infolist()
        except (zipfile.BadZipFile, ValueError) as error:
            raise CheckpointError(
                f"{name} of {self._name} is no archive of torch, or an old one, and cannot be looked at from afar ({error}): download it"
            ) from error
        for record in records:
            length = min(_RECORD + (record.compress_size if record.compress_size <= _LAST else 0), size - record.header_offset)
            self._write(name, record.header_offset, self._fetch(name, record.header_offset, record.header_offset + length))

    def _fetch(self, name: str, begin: int, end: int) -> bytes:
        """Bytes [begin, end) of a file."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = {**build_hf_headers(), "Range": f"bytes={begin}-{end - 1}", "Accept-Encoding": "identity"}
        url = hf_hub_url(self._name, name, revision=self._commit)
        response = get_session().get(url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
        hf_raise_for_status(response)
        content = bytes(response.content)
        self.fetched += len(content)
        if response.status_code != 206 or len(content) != end - begin:
            raise CheckpointError(f"the server gave {len(content)} bytes of {name} for a range of {end - begin}: it must know ranges")
        return content

    def _write(self, name: str, begin: int, content: bytes) -> None:
        file = self._folder / name
        with file.open("r+b" if file.exists() else "w+b") as outline:
            outline.truncate(self._sizes[name])
            outline.seek(begin, io.SEEK_SET)
            outline.write(content)
