"""The four files of normalisation factors."""

from __future__ import annotations

import numpy as np
import pytest

from hftune.tasks.aardvark.norm_factors import read_norm_factors
from hftune.utils.errors import ConfigurationError, DataError

FILES = ("mean_4u_1", "std_4u_1", "mean_diff_4u_1", "std_diff_4u_1")


def write(folder, channels=24, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(FILES):
        values = changed.get(name, np.arange(1, channels + 1, dtype=np.float32) + 100 * i)
        np.save(folder / f"{name}.npy", values)
    return folder


def refusal(folder, **arguments):
    with pytest.raises(DataError) as raised:
        read_norm_factors(folder, **arguments)
    return str(raised.value).replace(str(folder), "FOLDER")


def test_the_published_ones(test_data):
    factors = read_norm_factors(test_data / "aardvark")
    assert list(factors) == ["mean", "std", "difference_mean", "difference_std"]
    assert all(len(values) == 24 for values in factors.values())
    first = [values[0] for values in factors.values()]
    np.testing.assert_allclose(first, [-0.0510388, 5.49747, 0.001784, 4.14479], rtol=1e-3)
    stored = np.load(test_data / "aardvark" / "std_diff_4u_1.npy", allow_pickle=False)
    assert np.array_equal(np.float32(factors["difference_std"]), stored)
    assert isinstance(first[0], float)


def test_where_they_lie_and_what_they_are_called(tmp_path):
    folder = write(tmp_path / "norm_factors")
    assert read_norm_factors(tmp_path) == read_norm_factors(folder)
    for name in ("mean", "std", "mean_diff", "std_diff"):
        half_day = "_12h" if "diff" in name else ""
        np.save(folder / f"{name}_3u_2{half_day}.npy", np.full(5, 7.0))
    found = read_norm_factors(folder, era5_mode="3u", res=2, difference_hours=12, channels=5)
    assert found == dict.fromkeys(["mean", "std", "difference_mean", "difference_std"], [7.0] * 5)
    with pytest.raises(ConfigurationError, match="cannot be a file name"):
        read_norm_factors(folder, era5_mode="../4u")


def test_files_that_are_missing(tmp_path):
    folder = write(tmp_path / "factors")
    (folder / "std_4u_1.npy").unlink()
    (folder / "mean_diff_4u_1.npy").unlink()
    assert refusal(folder) == (
        "normalisation factors in FOLDER: there is no std_4u_1.npy, no mean_diff_4u_1.npy; there "
        "is mean_4u_1.npy, std_diff_4u_1.npy."
    )
    assert "; there is no .npy file at all." in refusal(tmp_path / "nowhere")


def test_wrong_contents_are_listed_together(tmp_path):
    mean, std = np.zeros(24), np.ones(24)
    mean[[2, 5]] = np.nan, np.inf
    std[3] = 0
    folder = write(
        tmp_path / "factors", mean_4u_1=mean, std_4u_1=std, mean_diff_4u_1=np.ones((24, 1))
    )
    (folder / "std_diff_4u_1.npy").write_bytes(b"\x93NUMPY")
    message = refusal(folder)
    for part in (
        "mean_4u_1.npy has nan for channel 2, inf for channel 5, expected finite numbers; ",
        "std_4u_1.npy has 0.0 for channel 3, expected positive and finite numbers; ",
        "mean_diff_4u_1.npy has the shape [24, 1] and type float64, expected 24 numbers: one a ",
        "std_diff_4u_1.npy is refused: it is damaged or holds pickled objects, expected 24 ",
    ):
        assert part in message


def test_one_number_a_channel(tmp_path):
    folder = write(tmp_path / "factors", channels=11)
    assert read_norm_factors(folder, channels=11)["mean"] == [float(i) for i in range(1, 12)]
    assert "mean_4u_1.npy has the shape [11] and type float32, expected 24" in refusal(folder)
    write(folder, std_4u_1=np.array(["a"] * 24))
    assert "std_4u_1.npy has the shape [24] and type <U1, expected 24 numbers" in refusal(folder)


def test_pickled_arrays_are_refused_by_name(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "trace").touch, ()

    folder = write(tmp_path / "factors")
    np.save(folder / "std_4u_1.npy", np.array([Bomb()] * 24, dtype=object), allow_pickle=True)
    assert refusal(folder) == (
        "normalisation factors in FOLDER: std_4u_1.npy is refused: it is damaged or holds pickled "
        "objects, expected 24 numbers (Object arrays cannot be loaded when allow_pickle=False)."
    )
    assert not (tmp_path / "trace").exists()
