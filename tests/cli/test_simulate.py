"""``hftune simulate``."""

from __future__ import annotations

import pytest

from hftune.cli.simulate import main


def test_it_writes_what_was_asked_for(tmp_path, capsys):
    xarray = pytest.importorskip("xarray")
    path = tmp_path / "a.nc"
    arguments = ["--years", "0.02", "--step-hours", "12", "--levels", "500", "--latitudes", "4"]
    assert main([str(path), *arguments]) == 0
    assert capsys.readouterr().out.startswith(f"{path}: 15 times, ")
    with xarray.open_dataset(path) as data:
        assert data.z.shape == (15, 1, 4, 32)
