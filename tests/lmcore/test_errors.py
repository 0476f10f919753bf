"""Errors say what was expected, what was found, what to do; and survive a process boundary."""

import pickle
from pathlib import Path

import pytest

from lmcore import errors
from lmcore.config import load_recipe

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling(kind):
    error = kind("batch", expected="96", found="100", remedy="Use 96.")
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(copy) is kind
    assert str(copy) == str(error) == "batch: expected 96, found 100. Use 96."
    assert copy.remedy == "Use 96."


def test_the_nearest_folder_of_what_is_missing_is_named(tmp_path):
    (tmp_path / "models" / "first").mkdir(parents=True)
    (tmp_path / "notes.txt").write_text("x")
    said = "no such file or folder; the nearest folder that is there is "
    assert errors.nearest(tmp_path / "model" / "first" / "x") == f"{said}{tmp_path}, which holds models"
    nearby = errors.nearest(tmp_path / "models" / ".." / "models" / "fist")
    assert nearby == f"{said}{tmp_path / 'models'}, which holds first"
    assert errors.nearest(tmp_path / "models" / "first" / "x").endswith("first, which is empty")
    (tmp_path / "models" / "first" / ".hidden").write_text("x")
    assert errors.nearest(tmp_path / "models" / "first" / "x").endswith("first")
    below_a_file = errors.nearest(tmp_path / "notes.txt" / "x")
    assert below_a_file.startswith(f"{said}{tmp_path}, which holds notes.txt")


def test_parts_that_are_not_known_are_left_out():
    assert str(errors.DataError("no text")) == "no text"
    assert str(errors.DataError("no text", remedy="Add some.")) == "no text. Add some."


def test_a_recipe_whose_name_no_file_can_have_is_refused():
    with pytest.raises(errors.ConfigError, match="cannot be read: found File name too long"):
        load_recipe(Path("x" * 300 + ".yaml"))
