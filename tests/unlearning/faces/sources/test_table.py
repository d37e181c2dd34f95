"""A folder of images with a CSV of other column names."""

from __future__ import annotations

import unicodedata

import pytest

from tests.unlearning.faces.folders import image_file
from unlearning.errors import FacesError
from unlearning.faces import check_folder
from unlearning.faces.sources.table import Columns, write_folder

COLUMNS = Columns("image", "customer", "outcome")


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "source"
    (source / "2024").mkdir(parents=True)
    lines = ["image,e-mail,customer,outcome"]
    for number in range(12):
        (source / "2024" / f"{number}.jpg").write_bytes(image_file(number, channels=3, kind="JPEG"))
        lines.append(f"2024/{number}.jpg,a@example.org,c-{number // 3},{'yes' if number % 2 else 'no'}")
    (source / "people.csv").write_text("\n".join(lines) + "\n")
    return source


def edit(source, line, text):
    path = source / "people.csv"
    lines = path.read_text().splitlines()
    lines[line - 1] = text
    path.write_text("\n".join(lines) + "\n")


def test_named_columns_are_taken_and_others_stay_behind(source, tmp_path):
    rows = write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)
    assert check_folder(tmp_path / "data") == rows
    assert [(row.user_id, row.label) for row in rows[:2]] == [("c-0", "no"), ("c-0", "yes")]
    assert "example.org" not in (tmp_path / "data" / "metadata.csv").read_text()


def test_what_macos_left_is_skipped(source, tmp_path):
    before = write_folder(source, tmp_path / "before", table=source / "people.csv", columns=COLUMNS)
    (source / "__MACOSX/2024").mkdir(parents=True)
    with (source / "people.csv").open("a") as lines:
        for name in ("2024/._0.jpg", "__MACOSX/2024/._0.jpg"):
            (source / name).write_bytes(b"\0\5\x16\7")
            lines.write(f"{name},a@example.org,c-0,no\n")
    after = write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)
    assert [(row.user_id, row.label) for row in after] == [(row.user_id, row.label) for row in before]


def test_a_data_folder_s_own_table_needs_no_names(source, tmp_path):
    first = write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)
    again = write_folder(tmp_path / "data", tmp_path / "again", columns=Columns(split="split"))
    assert [(row.user_id, row.label, row.split) for row in again] == [
        (row.user_id, row.label, row.split) for row in first
    ]


@pytest.mark.parametrize(
    ("line", "text", "sentence"),
    [
        (1, "file,e-mail,customer,outcome", r"people.csv, line 1: .*not so: image.* The table has file, e-mail"),
        (3, "2024/1.jpg,c-0,no", r"people.csv, line 3: Expected 4 fields .*double quotes"),
        (3, "2024/0.jpg,x,c-0,no", r"people.csv, line 3: This image is already in people.csv, line 2"),
        (3, "../outside.jpg,x,c-0,no", r"people.csv, line 3: Expected a path inside source"),
        (3, ",x,c-0,no", r"people.csv, line 3: Expected a path inside"),
        (3, "2024/99.jpg,x,c-0,no", r"people.csv, line 3: The file named here is missing"),
        (3, "2024/1.jpg,x,,no", r"people.csv, line 3: Expected a person, got nothing"),
        (3, '2024/1.jpg,x,c-0,"no', r"people.csv, line 1[0-9]: Expected comma-separated fields"),
    ],
)
def test_a_wrong_row_is_named_with_the_remedy(source, tmp_path, line, text, sentence):
    edit(source, line, text)
    with pytest.raises(FacesError, match=sentence):
        write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)
    assert not (tmp_path / "data").exists()


def test_no_table_and_an_empty_one(source, tmp_path):
    with pytest.raises(FacesError, match="Expected a table of images"):
        write_folder(source, tmp_path / "data")
    (source / "people.csv").write_text("image,customer,outcome\n")
    with pytest.raises(FacesError, match="no row below the header"):
        write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)


def test_a_link_out_of_the_source_is_not_followed(source, tmp_path):
    (tmp_path / "outside.jpg").write_bytes(image_file(99))
    (source / "2024" / "1.jpg").unlink()
    (source / "2024" / "1.jpg").symlink_to(tmp_path / "outside.jpg")
    with pytest.raises(FacesError, match="line 3: Expected a path inside"):
        write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)


def office(source, change, encoding="utf-8"):
    path = source / "people.csv"
    path.write_bytes(change(path.read_text()).encode(encoding))


@pytest.mark.parametrize(
    ("change", "encoding"),
    [
        (lambda text: text.replace(",", ";"), "utf-8"),
        (lambda text: text.replace(",", "\t"), "utf-8"),
        (lambda text: "sep=;\r\n" + text.replace(",", ";").replace("\n", "\r\n"), "utf-8"),
        (lambda text: text + ",,,\n", "utf-8"),
        (lambda text: text + "\n\n", "utf-8"),
        (lambda text: text.replace("\n", ",\n"), "utf-8"),
        (lambda text: text.replace("\n", ",\n").replace("outcome,", "outcome"), "utf-8"),
        (lambda text: text, "utf-8-sig"),
        (lambda text: text, "utf-16"),
        (lambda text: text.replace("\n", "\r"), "utf-8"),
        (lambda text: text.replace("a@example.org", '"a\x0b\x0c\u2028b"'), "utf-8"),
        (lambda text: text.replace("a@example.org", '"two\nlines"'), "utf-8"),
    ],
    ids=[
        "semicolons",
        "tabs",
        "sep",
        "empty-row",
        "blank-lines",
        "commas",
        "commas-below",
        "bom",
        "utf16",
        "cr",
        "odd-breaks",
        "breaks",
    ],
)
def test_tables_are_read_as_office_programs_write_them(source, tmp_path, change, encoding):
    plain = write_folder(source, tmp_path / "plain", table=source / "people.csv", columns=COLUMNS)
    office(source, change, encoding)
    assert write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS) == plain


def test_another_encoding_is_named_with_the_remedy(source, tmp_path):
    office(source, lambda text: text.replace("c-2", "Jörg", 1), "latin-1")
    with pytest.raises(FacesError, match=r"people.csv, line 8: Expected UTF-8 text.*save the table as “CSV UTF-8”"):
        write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)


def test_lines_are_counted_behind_a_first_line_of_the_separator(source, tmp_path):
    office(source, lambda text: "sep=;\n" + text.replace(",", ";").replace("2024/1.jpg", "2024/x.jpg"))
    with pytest.raises(FacesError, match=r"people.csv, line 4: The file named here is missing"):
        write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_file_names_match_in_any_unicode_form(source, tmp_path, form):
    name, other = (unicodedata.normalize(f, "2024/Zoé.jpg") for f in (form, {"NFC": "NFD", "NFD": "NFC"}[form]))
    (source / "2024" / "0.jpg").rename(source / name)
    edit(source, 2, f"{other},x,c-0,no")
    assert len(write_folder(source, tmp_path / "data", table=source / "people.csv", columns=COLUMNS)) == 12
    edit(source, 3, f"{name},x,c-0,no")
    with pytest.raises(FacesError, match=r"line 3: This image is already in people.csv, line 2"):
        write_folder(source, tmp_path / "again", table=source / "people.csv", columns=COLUMNS)
