"""Tracklets in a CSV file: paths, folders and globs, what spreadsheets write, and bad rows."""

import pytest

from fastreid_star.data.datasets.own.labels import Labeled
from fastreid_star.data.datasets.own.table import read_table
from fastreid_star.errors import UserError


@pytest.fixture
def images(tmp_path):
    """x/1.jpg, x/2.jpg, x/10.jpg and the same in y z."""
    for folder in ("x", "y z"):
        (tmp_path / folder).mkdir()
        for name in ("1.jpg", "2.jpg", "10.jpg", "notes.txt"):
            (tmp_path / folder / name).write_bytes(b"")
    return tmp_path


@pytest.fixture
def read(images):
    def read(text, encoding="utf-8"):
        (images / "list.csv").write_bytes(text.encode(encoding))
        return read_table(str(images / "list.csv"))

    return read


IN_X = ("x/1.jpg", "x/2.jpg", "x/10.jpg")
IN_Y = ("y z/1.jpg", "y z/2.jpg", "y z/10.jpg")


def frames(found):
    return [one.frames for one in found]


def test_folders_files_and_globs(read, images):
    found, warnings = read(
        "path,identity,modality,camera\n"
        "x,anna,rgb,1\n"
        "y z/,ben,ir,2\n"
        "x/../x/2.jpg,anna,rgb,1\n"
        "y z/[2-9]*.jpg,ben,ir,2\n"
        f'"{images}/x/10.jpg",anna,rgb,1\n'
    )
    assert warnings == []
    where = images / "list.csv"
    assert found[0] == Labeled(f"{where} line 2", IN_X, "anna", "rgb", "1")
    assert found[1] == Labeled(f"{where} line 3", IN_Y, "ben", "ir", "2")
    assert frames(found[2:]) == [("x/2.jpg",), ("y z/2.jpg",), ("x/10.jpg",)]


def test_images_that_another_row_has_as_a_tracklet_are_read_once(read):
    found, warnings = read(
        "path,identity,modality,tracklet\nx,a,rgb,\nx/*,a,rgb,t\ny z/1.jpg,a,rgb,\nx,a,rgb,u\n"
    )
    assert frames(found) == [IN_X, ("y z/1.jpg",)]
    (line,) = warnings
    assert line.endswith("2 rows repeat another row, such as line 3, x/*")


def test_a_glob_of_folders_gives_a_tracklet_for_each(read):
    found, _ = read("path,identity,modality\n*,a,rgb\n")
    assert frames(found) == [IN_X, IN_Y]


def test_a_file_whose_name_looks_like_a_glob(read, images):
    (images / "x" / "a[1].jpg").write_bytes(b"")
    (images / "b[2]").mkdir()
    (images / "b[2]" / "1.jpg").write_bytes(b"")
    found, _ = read("path,identity,modality\nx/a[1].jpg,a,rgb\nb[2],a,rgb\n")
    assert frames(found) == [("x/a[1].jpg",), ("b[2]/1.jpg",)]


def test_rows_with_the_same_tracklet_are_joined_in_their_order(read):
    found, _ = read(
        "tracklet,path,modality,identity\n"
        "t,x/2.jpg,rgb,a\n"
        "t,y z/1.jpg,ir,a\n"  # the same name in the other modality is another tracklet
        "t,x/1.jpg,rgb,a\n"
        "t,x/2.jpg,rgb,a\n"
        ",x/10.jpg,rgb,a\n"
        "u,x,rgb,a\n"
    )
    assert frames(found) == [("x/2.jpg", "x/1.jpg"), ("y z/1.jpg",), ("x/10.jpg",), IN_X]


def test_a_frame_outside_of_the_folder_has_its_absolute_path(read, images, tmp_path_factory):
    other = tmp_path_factory.mktemp("other") / "1.jpg"
    other.write_bytes(b"")
    found, _ = read(f"path,identity,modality\n{other},a,rgb\n../{images.name}/x/1.jpg,a,rgb\n")
    assert frames(found) == [(str(other),), ("x/1.jpg",)]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_spreadsheets_write(read, separator):
    """BOM, CRLF, capitals, spaces, empty rows and cells, other columns, backslashes, duplicates."""
    lines = [
        "Path, Identity ,MODALITY,age,Split",
        "x\\1.jpg , Zoë , Color ,31,train",
        ",,,,",
        "",
        "x\\1.jpg,Zoë,Color,32,train",
        "x/2.jpg,Zoë,Color",
        "x/3.jpg,Zoë,Color,31,train",
    ]
    text = "\r\n".join(lines).replace(",", separator) + "\r\n"
    found, warnings = read(text, "utf-8-sig")
    assert [(one.frames, one.identity, one.modality, one.split) for one in found] == [
        (("x/1.jpg",), "Zoë", "Color", "train"),
        (("x/2.jpg",), "Zoë", "Color", ""),
    ]
    assert [line.partition(": ")[2] for line in warnings] == [
        "1 rows name no image that exists, such as line 7, x/3.jpg",
        "1 rows repeat another row, such as line 5, x/1.jpg",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line must name the columns path, identity, modality"),
        ("path,identity\nx,a\n", "the first line must .* it is path, identity"),
        ("x,anna,rgb\n", "the first line must"),
        ("path,path,identity,modality\n", "two columns are named path"),
        ("path,identity,modality,cameras\nx,a,rgb,1\n", "named cameras; did you mean camera"),
        ("path,identity,modality\n", "names no image that exists: it has no row"),
        ("path,identity,modality\nw/1.jpg,a,rgb\n", "w does not exist, .* holds list.csv, x, y z"),
        ("path,identity,modality\nx,,rgb\n", "line 2: the identity is empty"),
        ("path,identity,modality\n\nx,a\n", "line 3: the modality is empty"),
        ("path,identity,modality\ny, z,a,rgb\n", "line 2: 4 cells for 3 columns: .*quotes"),
        (
            "path,identity,modality\nx,a,rgb\nx/2.jpg,b,rgb\n",
            "lines 2 and 3 give x/2.jpg different",
        ),
        ("path,identity,modality\nx,a,rgb\nx/2.jpg,a,ir\n", "lines 2 and 3 give x/2.jpg different"),
    ],
)
def test_bad_lists(read, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_another_encoding_is_one_line(read):
    with pytest.raises(UserError, match=r"list\.csv is not UTF-8 text: save it as UTF-8"):
        read("path,identity,modality\nx,Zoë,rgb\n", "latin-1")
