"""Reading one tar: every case that plain readers pass over in silence is refused with the shard's name and a remedy."""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_media import picture_sample, png, tar

from mmfusion.data.index import ShardIndex, _Header
from mmfusion.data.shards import verify
from mmfusion.data.writer import write_shard
from mmfusion.types import DataError


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "a.tar", [picture_sample(i) for i in range(4)], split="train")
    return tmp_path / "a.tar"


def test_reads_by_number_and_pickles_without_its_file(shard: Path) -> None:
    index = ShardIndex(shard)
    assert index.keys == ("p0000", "p0001", "p0002", "p0003")
    samples = [index.read(i) for i in range(len(index))]
    assert [dataclasses.replace(s, url="") for s in samples] == [picture_sample(i) for i in range(4)]
    assert [s.parts[0].data for s in samples] == [picture_sample(i).parts[0].data for i in range(4)]
    assert all(s.url == str(shard) for s in samples)
    again = pickle.loads(pickle.dumps(index))
    assert again._file is None
    assert again.read(2) == samples[2]
    with pytest.raises(IndexError):
        index.read(4)


def damage(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.write_bytes(change(path.read_bytes()))

    return spoil


def instead(*members: tuple[str, bytes] | tarfile.TarInfo) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tar(path, members)

    return spoil


BLOCK = 512
FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    # 1: cut where a member ends, inside a header, and before the end mark
    "cut at a member boundary": (damage(lambda b: b[: 4 * BLOCK]), "end mark is missing"),
    "cut in a header": (damage(lambda b: b[: 4 * BLOCK + 100]), "cut in a header"),
    # 2
    "cut inside data": (damage(lambda b: b[: 5 * BLOCK + 50]), "fetch it again"),
    # 3
    "zero block in the middle": (damage(lambda b: b[: 4 * BLOCK] + bytes(BLOCK) + b[5 * BLOCK :]), "garbage after"),
    "garbage in the middle": (damage(lambda b: b[: 4 * BLOCK] + b"\x07" * BLOCK + b[5 * BLOCK :]), "garbage after"),
    # 4, 5
    "all zero": (damage(lambda b: bytes(len(b))), "holds no sample"),
    "empty": (damage(lambda b: b""), "is empty"),
    "an HTML page": (damage(lambda b: b"<!DOCTYPE html><html><body>404</body></html>" * 40), "no whole tar"),
    # 16
    "gzip": (damage(gzip.compress), "compressed with gzip"),
    "bzip2": (damage(bz2.compress), "compressed with bzip2"),
    # 8
    "interleaved": (
        instead(("a.png", b"1"), ("b.png", b"2"), ("a.txt", b"3"), ("b.txt", b"4")),
        "members of 'a' do not stand together",
    ),
    # 10
    "duplicate member": (instead(("a.png", b"1"), ("a.png", b"2")), "there twice"),
    "case collision": (instead(("a.png", b"1"), ("A.png", b"2")), "there twice"),
    # 11
    "dots upwards": (instead(("../../etc/x.png", b"1")), "points outside"),
    "absolute": (instead(("/etc/x.png", b"1")), "points outside"),
    # 12, 13, 17
    **{
        f"a {name} member": (instead((f"a.{name}", b"1")), "could hold code")
        for name in ("pyd", "pkl", "PICKLE", "pth", "Pt", "npz", "pkl.gz")
    },
}
for kind in ("SYMTYPE", "LNKTYPE", "CHRTYPE", "BLKTYPE", "FIFOTYPE"):
    member = tarfile.TarInfo("a.png")
    member.type, member.linkname = getattr(tarfile, kind), "/etc/passwd"
    FAULTS[kind] = (instead(member), "is a link, device or sparse")


@pytest.mark.parametrize("name", FAULTS)
def test_a_tar_that_is_not_whole_and_plain_is_refused(name: str, shard: Path) -> None:
    spoil, message = FAULTS[name]
    spoil(shard)
    with pytest.raises(DataError, match=message) as caught:
        ShardIndex(shard)
    assert str(shard) in str(caught.value)
    with pytest.raises(DataError):
        verify_rewritten(shard)


def verify_rewritten(shard: Path) -> None:
    """As at the start of training, under a manifest whose checksum holds."""
    data = shard.read_bytes()
    entry = {"file": shard.name, "split": "train", "samples": 4, "bytes": len(data)}
    listed = {"shards": [{**entry, "sha256": hashlib.sha256(data).hexdigest()}]}
    (shard.parent / "manifest.json").write_text(json.dumps(listed))
    verify(shard.parent)


def test_every_cut_is_found(shard: Path) -> None:
    """Wherever a tar of four samples ends too early, it is refused."""
    data = shard.read_bytes()
    content = len(data.rstrip(b"\0"))
    for end in [*range(0, content + BLOCK, 97), *range(0, content + BLOCK, BLOCK)]:
        shard.write_bytes(data[:end])
        with pytest.raises(DataError):
            ShardIndex(shard)


def test_folders_and_members_without_a_dot_are_passed_over(tmp_path: Path) -> None:
    folder = tarfile.TarInfo("set")
    folder.type = tarfile.DIRTYPE
    path = tar(tmp_path / "a.tar", [folder, ("set/LICENSE", b"text"), ("set/a.PNG", png()), ("set/a.txt", b"goose")])
    index = ShardIndex(path)
    assert index.keys == ("set/a",)
    assert list(index.members(0)) == ["png", "txt"]


def test_long_names_of_other_writers_are_read(tmp_path: Path) -> None:
    key = "k" * 150
    path = tmp_path / "a.tar"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=form) as file:
            info = tarfile.TarInfo(f"{key}.txt")
            info.size = 5
            file.addfile(info, io.BytesIO(b"goose"))
        assert ShardIndex(path).read(0).parts[0].text == "goose"


_FIELDS = [(0, 100), (124, 136), (148, 156), (156, 157), (345, 500)]  # name, size, checksum, type, prefix: what is read


@settings(max_examples=300, deadline=None)
@given(
    name=st.text(min_size=1, max_size=180),
    size=st.integers(0, 2**40),
    kind=st.sampled_from([tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE]),
    form=st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    field=st.sampled_from(_FIELDS),
    changed=st.binary(max_size=8),
    mended=st.booleans(),
)
def test_a_header_is_read_as_tarfile_reads_it(
    name: str, size: int, kind: bytes, form: Literal[0, 1, 2], field: tuple[int, int], changed: bytes, mended: bool
) -> None:
    """Whole, and with any field overwritten, the checksum left as it was or made anew."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    try:
        header = bytearray(info.tobuf(form, "utf-8", "surrogateescape")[-BLOCK:])
    except ValueError:
        return  # a name that this form of tar cannot hold
    start, end = field
    header[start : min(end, start + len(changed))] = changed[: end - start]
    if mended:
        header[148:156] = b"%06o\0 " % (256 + sum(header[:148]) + sum(header[156:]))
    found = []
    for reader in (tarfile.TarInfo, _Header):
        try:
            one = reader.frombuf(bytes(header), "utf-8", "surrogateescape")
            found.append((one.name, one.size, one.isreg(), one.isdir(), one.sparse))
        except tarfile.HeaderError as error:
            found.append(type(error))
    assert found[0] == found[1]


def test_a_shard_that_shrinks_while_it_is_read(shard: Path) -> None:
    index = ShardIndex(shard)
    shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(DataError, match="has shrunk"):
        index.read(3)
