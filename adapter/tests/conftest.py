"""Gives each test that asks for one a copy of `project/` and a store of its own."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from chdb_project import Project

PROJECT = Path(__file__).parent / "project"


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """Yield a fresh project, and go back to where the test began: dbt changes folder."""
    folder = os.getcwd()
    root = tmp_path / "project"
    shutil.copytree(PROJECT, root)
    made = Project(root, tmp_path / "store")
    made.configure()
    yield made
    os.chdir(folder)
