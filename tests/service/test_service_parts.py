"""Small parts: ranges, tars, rates, tokens, tickets, hosts, nesting."""

from __future__ import annotations

import hashlib
import io
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamsparse.errors import StreamsparseError, UsageError
from streamsparse.service import auth, bodies, guards, problems
from streamsparse.service.checkpoints import Digests, FileView, TarView, open_file
from streamsparse.service.downloads import parse_range
from streamsparse.service.limits import RateLimit
from streamsparse.service.problems import Refusal
from streamsparse.service.settings import Settings
from streamsparse.service.tickets import Signer


@given(st.integers(1, 50), st.integers(0, 60), st.one_of(st.none(), st.integers(0, 60)))
def test_a_range_is_what_slicing_says(size: int, first: int, last: int | None) -> None:
    content = bytes(range(size))
    expected = content[first : None if last is None else last + 1]
    header = f"bytes={first}-{'' if last is None else last}"
    if last is not None and last < first:
        assert parse_range(header, size) is None
    elif not expected:
        with pytest.raises(Refusal) as refused:
            parse_range(header, size)
        assert refused.value.headers["Content-Range"] == f"bytes */{size}"
    else:
        part = parse_range(header, size)
        assert part is not None
        assert content[part.start : part.start + part.length] == expected


@given(st.integers(1, 50), st.integers(1, 60))
def test_the_end_of_a_file(size: int, length: int) -> None:
    part = parse_range(f"bytes=-{length}", size)
    assert part is not None
    assert (part.start + part.length, part.length) == (size, min(length, size))


@pytest.mark.parametrize("header", ["bytes=", "bytes=-", "lines=1-2", "bytes=1-2,4-5", "bytes=a-b", "bytes=1_0-2"])
def test_other_ranges_are_passed_over(header: str) -> None:
    assert parse_range(header, 10) is None


@given(st.lists(st.binary(max_size=2000), min_size=1, max_size=4), st.data())
def test_a_tar_is_read_from_anywhere_and_opens(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], data: st.DataObject
) -> None:
    directory = tmp_path_factory.mktemp("tar")
    for number, content in enumerate(parts):
        (directory / f"file-{number}.bin").write_bytes(content)
    files = [open_file(directory, f"file-{number}.bin") for number in range(len(parts))]
    view = TarView(files)
    whole = read_all(view)
    assert len(whole) == view.size
    with tarfile.open(fileobj=io.BytesIO(whole)) as opened:
        assert [opened.extractfile(name).read() for name in opened.getnames()] == parts  # type: ignore[union-attr]
    start = data.draw(st.integers(0, view.size))
    view.seek(start)
    assert read_all(view) == whole[start:]
    digests = Digests()
    assert digests.of_tar(files) == hashlib.sha256(whole).hexdigest()
    assert digests.of_file(files[0]) == hashlib.sha256(parts[0]).hexdigest()
    for file in files:
        file.close()


def read_all(view: TarView | FileView) -> bytes:
    found = b""
    while piece := view.read(700):
        found += piece
    return found


def test_files_are_opened_without_following_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder", "nothing", "../secret", ".hidden"):
        with pytest.raises(Refusal) as refused:
            open_file(tmp_path, name)
        assert refused.value.status == 404


def test_rates_let_bursts_pass_and_then_so_many_per_second() -> None:
    now = 0.0
    rates = RateLimit(2.0, 3, lambda: now)
    assert [rates.wait_seconds("a") == 0 for _ in range(4)] == [True, True, True, False]
    assert rates.wait_seconds("b") == 0
    assert rates.wait_seconds("a") == pytest.approx(0.5)
    now = 0.5
    assert rates.wait_seconds("a") == 0
    assert rates.wait_seconds("a") > 0


def test_tokens_are_kept_as_hashes_and_read_again_when_the_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "tokens"
    token = auth.new_token(path, "anna", auth.parse_scopes("read"))
    assert path.stat().st_mode & 0o077 == 0
    assert token not in path.read_text()
    tokens = auth.Tokens(path)
    caller = tokens.caller(token)
    assert caller is not None
    assert caller.name == "anna"
    assert caller.may("read")
    assert not caller.may("submit")
    assert tokens.caller(token[:-1]) is None
    assert tokens.caller("") is None
    second = auth.new_token(path, "ben", auth.parse_scopes("admin"))
    found = tokens.caller(second)
    assert found is not None
    assert found.may("submit")  # admin includes it
    path.write_text("")
    assert tokens.caller(token) is None
    with pytest.raises(UsageError, match="scope"):
        auth.parse_scopes("root")
    path.write_text(f"{token}\n")
    with pytest.raises(UsageError) as refused:
        auth.read_tokens(path)
    assert token not in str(refused.value)


def test_signatures_are_good_for_one_thing_and_a_while() -> None:
    signer = Signer(b"x" * 32)
    signature, expires = signer.sign("ticket", "/a", 60)
    assert expires > datetime.now(UTC)
    assert signer.holds("ticket", "/a", signature)
    for purpose, subject, wrong in (
        ("deletion", "/a", signature), ("ticket", "/b", signature), ("ticket", "/a", f"9{signature}"),
        ("ticket", "/a", ""), ("ticket", "/a", "é.é"), ("ticket", "/a", "99999999999999999999.x"),
    ):  # fmt: skip
        assert not signer.holds(purpose, subject, wrong)
    assert not signer.holds("ticket", "/a", signer.sign("ticket", "/a", -1)[0])
    assert not Signer(b"y" * 32).holds("ticket", "/a", signature)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", "localhost"), ("LOCALHOST:80", "localhost"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"),
        ("127.0.0.1:1", "127.0.0.1"), ("", None), ("a:b", None), ("a@localhost:1", None), ("a/localhost", None),
    ],
)  # fmt: skip
def test_names_of_hosts(host: str, expected: str | None) -> None:
    assert guards.host_name(host) == expected


@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=12))
def test_nesting_is_counted_outside_texts(value: object) -> None:
    import json

    def depth(item: object) -> int:
        return 1 + max(map(depth, item), default=0) if isinstance(item, list) else 0

    assert bodies.depth_of(json.dumps(value).encode(), 0) == min(depth(value), 1)
    assert bodies.depth_of(json.dumps([[[[value]]]]).encode(), 3) == 4


def test_every_error_of_the_tree_has_a_status() -> None:
    def below(kind: type[StreamsparseError]) -> list[type[StreamsparseError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in below(child))]

    for kind in below(StreamsparseError):
        status = problems.status_of(kind("x"))
        assert 400 <= status < 600
        assert kind.exit_status == 1 or status < 500 or kind.__name__ == "CorruptDataError"


def test_a_service_beyond_the_loopback_needs_tokens(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="tokens"):
        Settings(str(tmp_path), host="0.0.0.0")
    with pytest.raises(UsageError, match="database"):
        Settings("s3://bucket/runs")
    assert Settings(str(tmp_path), host="0.0.0.0", insecure=True).accepted_hosts is None
    assert Settings(str(tmp_path), host="::1").accepted_hosts is not None
