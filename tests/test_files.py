import os

import pytest

from lrd_deploy.errors import InputError, MissingPackage, Problems, StorageError, UsageError, raise_all
from lrd_deploy.files import (
    move_into_place,
    read_bytes,
    remove_partial,
    sha256_of,
    write_folder_whole,
    write_text,
    write_whole,
)
from lrd_deploy.records import SVD, RankPlan


def test_a_file_is_whole_or_absent(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    write_text(target, "one")

    def fail(path):
        path.write_text("half")
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        write_whole(target, fail)
    assert target.read_text() == "one"
    assert [path.name for path in target.parent.iterdir()] == ["a.txt"]


def test_a_folder_is_whole_or_absent(tmp_path):
    def fail(folder):
        (folder / "a").write_text("half")
        raise ValueError("cut")

    with pytest.raises(ValueError, match="cut"):
        write_folder_whole(tmp_path / "f", fail)
    assert list(tmp_path.iterdir()) == []
    write_folder_whole(tmp_path / "f", lambda folder: (folder / "a").write_text("whole"))
    assert (tmp_path / "f" / "a").read_text() == "whole"


def test_what_is_finished_replaces_a_file_and_no_folder_with_content(tmp_path):
    for name in ("made/a", "there/a"):
        write_text(tmp_path / name, name)
    with pytest.raises(StorageError, match=r"writing '.*there'"):
        move_into_place(tmp_path / "made", tmp_path / "there")
    move_into_place(tmp_path / "made" / "a", tmp_path / "there" / "a")
    assert (tmp_path / "there" / "a").read_text() == "made/a"
    move_into_place(tmp_path / "there", tmp_path / "new" / "place")
    assert (tmp_path / "new" / "place" / "a").read_text() == "made/a"


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / "sub" / ".partial-1-x").mkdir(parents=True)
    (tmp_path / ".partial-2-y").touch()
    (tmp_path / "kept").touch()
    remove_partial(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kept", "sub"]
    assert os.listdir(tmp_path / "sub") == []


def test_the_digest_of_a_folder_depends_on_names_and_contents(tmp_path):
    (tmp_path / "a").write_text("1")
    before = sha256_of(tmp_path)
    assert sha256_of(tmp_path) == before
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256_of(tmp_path) != before


def test_a_file_that_cannot_be_read_or_written_is_told_in_four_parts(tmp_path):
    with pytest.raises(
        StorageError, match=r"reading '.*none': No such file or directory; a file that exists; check the path"
    ):
        read_bytes(tmp_path / "none")
    with pytest.raises(StorageError, match="writing"):
        write_text(tmp_path, "a folder is in the way")


def test_a_record_of_something_else_is_refused(tmp_path):
    SVD(rank=3).write(tmp_path / "r.json")
    with pytest.raises(InputError, match=r"reading '.*' as RankPlan: .*; a RankPlan written by this version"):
        RankPlan.read(tmp_path / "r.json")


def test_one_problem_is_raised_as_it_is_and_several_together():
    one = UsageError("a", found="b", accepted="c", remedy="d")
    with pytest.raises(UsageError, match="a: b; c; d"):
        raise_all("reading", [one])
    with pytest.raises(Problems, match=r"(?s)reading: 2 problems; .*1\. a: b; c; d.*2\. .*'x' is not installed"):
        raise_all("reading", [one, MissingPackage("x", extra="y", purpose="z")])
