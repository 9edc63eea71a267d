"""Which files of a class are found, whose they are, and which are refused before anything runs."""

import os
import stat
import unicodedata
import zipfile

import pytest

from minillm.labs.classroom.naming import lab_name, student_name
from minillm.labs.classroom.submissions import find_submissions, single_submission
from minillm.labs.classroom.unpack import MAX_FILE_BYTES, BadZip, unpack
from minillm.labs.grader.registry import all_labs, find_lab

TEXT = "x = 1\n"


@pytest.fixture
def found(tmp_path):
    """The submissions of tmp_path/class as {(student, lab's number): submission}."""

    def run(only=None, root=tmp_path / "class"):
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        rows = find_submissions(root, all_labs(), only and find_lab(only), scratch)
        by_key = {(row.student, row.lab and row.lab.number): row for row in rows}
        assert len(by_key) == len(rows)
        return by_key

    (tmp_path / "class").mkdir()
    return run


def put(path, text=TEXT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())


def zipped(path, entries):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in entries.items():
            archive.writestr(name, text)


@pytest.mark.parametrize(
    ("stem", "number", "student", "is_plain"),
    [
        ("lab3", 3, "", True),
        ("alice_lab3", 3, "alice", True),
        ("Alice Smith - Lab 3", 3, "Alice Smith", True),
        ("lab3_alice", 3, "alice", False),
        ("smithalice_12345_678910_lab3-1", 3, "smithalice", True),
        ("smithalice_LATE_12345_678910_lab03", 3, "smithalice", True),
        ("lab3 (2)", 3, "", True),
        ("lab3_helpers", 3, "helpers", False),
        ("ünal_lab12", 12, "ünal", True),
    ],
)
def test_a_name_says_student_and_lab(stem, number, student, is_plain):
    named = lab_name(stem)
    assert (named.number, named.student, named.is_plain) == (number, student, is_plain)


@pytest.mark.parametrize("stem", ["solution", "collab3", "lab", "laboratory", "lab3333"])
def test_a_name_without_a_lab(stem):
    assert lab_name(stem) is None


def test_what_an_lms_adds_to_a_name_is_dropped_and_one_name_has_one_form():
    assert student_name("Alice Smith_12345_assignsubmission_file_") == "Alice Smith"
    assert student_name(unicodedata.normalize("NFD", "Zoë")) == "Zoë"


def test_folders_flat_files_and_zips_are_found_in_the_order_of_names(found, tmp_path):
    root = tmp_path / "class"
    put(root / "bob" / "work" / "lab3.py")
    put(root / "carol_lab3.py")
    put(root / "carol_lab4.py")
    put(root / "Alice" / "lab3.py")
    put(root / "alice" / "lab3.py", "y = 2\n")
    zipped(root / "dan.zip", {"lab3_cache/lab3.py": TEXT, "notes.txt": "hello"})
    put(root / "eve" / "notes.txt")
    zipped(root / "eve" / "work.zip", {"lab7.cu": "// cuda"})
    put(root / ".DS_Store")
    rows = found()
    assert list(rows) == [
        *[("Alice", 3), ("alice", 3), ("bob", 3), ("carol", 3), ("carol", 4), ("dan", 3), ("eve", 7)]
    ]
    assert not any(row.problem for row in rows.values())
    assert rows["alice", 3].files == (("lab3.py", b"y = 2\n"),)
    assert rows["eve", 7].files == (("lab7.cu", b"// cuda"),)


def test_a_whole_zip_of_an_lms(found, tmp_path):
    zipped(
        tmp_path / "all.zip",
        {"Al_1_assignsubmission_file_/lab3.py": TEXT, "Bo_2_assignsubmission_file_/lab3.py": TEXT},
    )
    assert list(found(root=tmp_path / "all.zip")) == [("Al", 3), ("Bo", 3)]


def test_with_one_lab_every_student_gets_a_row_and_an_only_file_may_have_any_name(found, tmp_path):
    root = tmp_path / "class"
    put(root / "alice" / "solution.py")
    put(root / "bob" / "lab4.py")
    put(root / "carol" / "a.py")
    put(root / "carol" / "b.py")
    rows = found("3")
    assert rows["alice", 3].files == (("lab3.py", TEXT.encode()),)
    assert rows["bob", 3].problem == rows["carol", 3].problem == "no lab3.py"


def test_modules_beside_the_file_come_along_and_nobody_else_s(found, tmp_path):
    root = tmp_path / "class"
    put(root / "alice" / "lab3.py")
    put(root / "alice" / "lab3_helpers.py", "h = 1\n")
    put(root / "alice" / "tools.py", "t = 1\n")
    put(root / "alice" / "lab4.py")
    put(root / "bob_lab3.py")
    rows = found()
    assert [name for name, _ in rows["alice", 3].files] == ["lab3.py", "lab3_helpers.py", "tools.py"]
    assert [name for name, _ in rows["bob", 3].files] == ["lab3.py"]


def test_two_different_files_are_not_guessed_and_two_equal_ones_are_one(found, tmp_path):
    root = tmp_path / "class"
    put(root / "alice" / "lab3.py")
    put(root / "alice" / "old" / "lab3.py", "y = 2\n")
    put(root / "bob_lab3.py")
    put(root / "bob_lab3-1.py", "y = 2\n")
    put(root / "carol" / "lab3.py")
    put(root / "carol" / "copy" / "lab3.py")
    rows = found()
    assert "several different files: lab3.py, lab3.py" in rows["alice", 3].problem
    assert "bob_lab3-1.py, bob_lab3.py" in rows["bob", 3].problem
    assert rows["carol", 3].files and not rows["carol", 3].problem


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty", b" \n", "is empty"),
        ("utf16", TEXT.encode("utf-16"), "zero bytes"),
        ("binary", b"\x7fELF\0\0", "zero bytes"),
        ("large", b"#" * (MAX_FILE_BYTES + 1), "larger than 1 MiB"),
    ],
)
def test_a_file_that_cannot_be_checked_gets_its_row(found, tmp_path, name, content, says):
    put(tmp_path / "class" / name / "lab3.py", content)
    put(tmp_path / "class" / "zoe" / "lab3.py")
    rows = found()
    assert says in rows[name, 3].problem and rows[name, 3].files == () and rows["zoe", 3].files


def test_links_pipes_and_folders_are_no_files(found, tmp_path):
    root = tmp_path / "class"
    put(tmp_path / "secret.py")
    for student in ("link", "pipe", "folder", "zip"):
        (root / student).mkdir()
    os.symlink(tmp_path / "secret.py", root / "link" / "lab3.py")
    os.symlink(tmp_path / "secret.py", root / "flat_lab3.py")
    os.symlink(tmp_path, root / "folderlink")
    os.mkfifo(root / "pipe" / "lab3.py")
    (root / "folder" / "lab3.py").mkdir()
    zipped(tmp_path / "away.zip", {"lab3.py": TEXT})
    os.symlink(tmp_path / "away.zip", root / "zip" / "a.zip")
    rows = found()
    assert "is a link" in rows["link", 3].problem and "is a link" in rows["flat", 3].problem
    assert "pipe, not a file" in rows["pipe", 3].problem and "folder, not a file" in rows["folder", 3].problem
    assert "is a link" in rows["zip", None].problem
    assert not any(row.files for row in rows.values())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_gets_its_row(found, tmp_path):
    put(tmp_path / "class" / "alice" / "lab3.py")
    (tmp_path / "class" / "alice" / "lab3.py").chmod(0)
    assert "cannot be read" in found()["alice", 3].problem


def test_wrong_names_get_a_row_with_the_reason(found, tmp_path):
    root = tmp_path / "class"
    put(root / "alice" / "solution.py")
    put(root / "bob" / "lab99.py")
    put(root / "carol" / "lab7.py")
    put(root / "dan.pdf")
    (root / "eve").mkdir()
    rows = found()
    assert "no lab number in the name of solution.py" in rows["alice", None].problem
    assert rows["bob", None].problem == "there is no lab 99"
    assert "lab7.py is not a .cu file" in rows["carol", 7].problem
    assert "dan.pdf is not a lab's file" in rows["dan", None].problem
    assert rows["eve", None].problem == "no lab's file"


@pytest.mark.parametrize(
    "name", ["../evil.py", "/tmp/evil.py", "a/../../evil.py", "..\\evil.py", "C:\\evil.py"]
)
def test_a_zip_that_leads_out_of_its_folder_is_refused(tmp_path, name):
    zipped(tmp_path / "a.zip", {name: TEXT})
    (tmp_path / "in" / "deep").mkdir(parents=True)
    with pytest.raises(BadZip, match="outside its folder"):
        unpack(tmp_path / "a.zip", tmp_path / "in" / "deep")
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "a.zip"]


def test_links_in_a_zip_are_not_made_and_large_entries_are_cut(tmp_path):
    link = zipfile.ZipInfo("lab3.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("lab4.py", b"#" * (200 << 20))
    unpack(tmp_path / "a.zip", tmp_path / "in")
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["lab4.py"]
    assert (tmp_path / "in" / "lab4.py").stat().st_size == MAX_FILE_BYTES + 1


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 not a zip", b"PK\x05\x06" + b"\xff" * 18])
def test_a_damaged_zip_gets_its_row(found, tmp_path, data):
    put(tmp_path / "class" / "alice.zip", data)
    assert "cannot be unpacked" in found()["alice", None].problem


def test_the_folder_of_one_student(tmp_path):
    put(tmp_path / "in" / "my lab.py")
    (tmp_path / "scratch").mkdir()
    one = single_submission(tmp_path / "in", find_lab("3"), tmp_path / "scratch")
    assert one.files == (("lab3.py", TEXT.encode()),)
