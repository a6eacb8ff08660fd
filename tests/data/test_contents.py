import os
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreid_star.data import contents
from fastreid_star.data.contents import read_bytes, read_json, read_lines, shown, whole_number
from fastreid_star.errors import UserError


@pytest.fixture
def file(tmp_path):
    return tmp_path / "list.txt"


def refused(match, read, *args, **options):
    with pytest.raises(UserError, match=match) as error:
        read(*args, **options)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a b\nc\n", ["a b", "c"]),
        (b"a b\r\nc\r\n", ["a b", "c"]),
        (b"a b\rc\r", ["a b", "c"]),
        (b"\xef\xbb\xbfa\r\nb\rc\nd", ["a", "b", "c", "d"]),
        (b" a\tb \t\n\n \nc\n\t\n\n", ["a\tb", "", "", "c"]),
        ("ü\u2028b\n".encode(), ["ü\u2028b"]),  # only LF, CR and both together end a line
        (b"", []),
        (b"\n \r\n", []),
        (b"\xef\xbb\xbf", []),
    ],
)
def test_lines(file, data, lines):
    file.write_bytes(data)
    assert read_lines(file) == lines


@given(
    st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20)), st.data()
)
def test_lines_whatever_ends_them(tmp_path_factory, texts, data):
    while texts and not texts[-1]:
        texts.pop()
    file = tmp_path_factory.mktemp("lines") / "a.txt"
    ends = data.draw(st.sampled_from(["\n", "\r\n", "\r"]))
    file.write_bytes("".join(text + ends for text in texts).encode())
    assert read_lines(file) == texts


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            b"a\nb\0c\n",
            r"list\.txt line 2 holds the byte 0x00, which no text has: the file is damaged",
        ),
        (b"a\r\nb\r\nc\x1b\n", "line 3 holds the byte 0x1b"),
        (b"a\rb\x7f", "line 2 holds the byte 0x7f"),
        (b"a\0\n\0", "line 1 holds the byte 0x00"),  # UTF-16 without a BOM
        ("\ufeffü".encode("utf-16-le"), "it is UTF-16 or UTF-32 text, save it as UTF-8"),
        ("\ufeffü".encode("utf-16-be"), "it is UTF-16 or UTF-32 text, save it as UTF-8"),
        (b"a\nb\xff\n", r"list\.txt cannot be read: line 2 holds the byte 0xff, which is no UTF-8"),
        (b"\xef\xbb\xbfa\n\n\xe9\n", "line 3 holds the byte 0xe9"),
        (b"a\n" + b"x" * 1001 + b"\n", "line 2 has 1,001 characters, more than 1,000"),
    ],
)
def test_lines_that_are_no_text(file, data, message):
    file.write_bytes(data)
    refused(message, read_lines, file)


def test_a_hundred_megabytes_on_one_line_are_refused_at_once(file):
    begun = time.process_time()
    with open(file, "wb") as stream:
        stream.truncate(100 << 20)
    refused("it has 104,857,600 bytes, more than 67,108,864 are not read", read_lines, file)
    file.write_bytes(b"1 " * (contents.MOST_TEXT // 2))
    refused("line 1 has 67,108,863 characters, more than 1,000", read_lines, file)
    assert time.process_time() - begun < 2


def test_what_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, reason in (
        ("pipe", "it is a pipe or a device, not a file"),
        ("folder", "Is a directory"),
        ("none", "No such file or directory"),
        ("loop", "Too many levels of symbolic links"),
        ("a\0b", "embedded null byte"),
    ):
        refused(reason, read_lines, f"{tmp_path}/{name}")
        refused(reason, read_json, f"{tmp_path}/{name}")
    with pytest.raises(OSError, match="not a file"):
        read_bytes("/dev/zero", 100)


def test_a_link_to_a_file_is_that_file(tmp_path, file):
    """People keep their data on other disks than their lists."""
    file.write_bytes(b"a\n")
    (tmp_path / "link").symlink_to(file)
    assert read_lines(tmp_path / "link") == ["a"]


def test_so_many_bytes_and_no_more(file):
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(OSError, match="it has 5 bytes, more than 4 are not read"):
        read_bytes(file, 4)


@pytest.mark.parametrize("data", [b'{"a": [1, null]}', b'\xef\xbb\xbf{"a": [1, null]}'])
def test_json(file, data):
    file.write_bytes(data)
    assert read_json(file) == {"a": [1, None]}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be read: Expecting value"),
        (b'{"a": 1', "cannot be read: Expecting"),
        (b'{"a": {"b": 1, "b": 2}}', r"cannot be read: 'b' is there twice"),
        (b"[" * 100_000, "cannot be read: it is nested too deep"),
        (b'{"a":' * 100_000, "cannot be read: it is nested too deep"),
        (b"9" * 5000, "cannot be read: Exceeds the limit"),
        (b'\n\n{"a": "\xff"}', "cannot be read: line 3 holds the byte 0xff"),
        ('\ufeff{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        (b'{"' + b"x" * 100_000 + b'": 1, "' + b"x" * 100_000 + b'": 2}', "is there twice"),
    ],
    ids=range(9),
)
def test_what_is_no_json(file, data, message):
    file.write_bytes(data)
    refused(message, read_json, file)


def test_json_of_any_size_is_not_read(file):
    file.write_bytes(b"[1]")
    refused("it has 3 bytes, more than 2 are not read", read_json, file, most=2)


def test_whole_numbers():
    assert [whole_number(text) for text in ("0", "007", "999999999")] == [0, 7, 999999999]
    wrong = [
        "",
        "-1",
        "+1",
        "1_0",
        "1.0",
        "1e3",
        "0x1",
        " 1",
        "1\n",
        "٣",
        "²",
        "１",
        "9999999999",
        "9" * 5000,
    ]
    assert [whole_number(text) for text in wrong] == [None] * len(wrong)


@settings(max_examples=30)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_what_is_shown_fits_a_line(value):
    assert len(shown(value).splitlines()) <= 1
    assert len(shown([value] * 1000)) <= 80


def test_shown_by_hand():
    assert shown("0001M2D3T1F1.jpg") == "'0001M2D3T1F1.jpg'"
    assert len(shown("x" * 10**7)) == 80
    assert shown("\udcff\n") == r"'\udcff\n'"
