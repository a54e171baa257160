import numpy as np
import pytest

from hftune.cli.main import main

torch = pytest.importorskip("torch")
pytest.importorskip("aurora", reason="microsoft-aurora is not installed")
xarray = pytest.importorskip("xarray")
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A tiny Aurora in a folder and fields that fit it."""
    from hftune.tasks.aurora import AuroraConfig, AuroraForForecasting

    folder = tmp_path_factory.mktemp("forecast")
    latitude, longitude = np.linspace(60, 40, 9), np.arange(8) * 2.5
    torch.manual_seed(0)
    config = AuroraConfig(
        variant="custom",
        channels=["2t", "z_500", "z_850"],
        static_channels=["lsm"],
        latitude=latitude.tolist(),
        longitude=longitude.tolist(),
        timestep_hours=24,
        history=2,
        mean=[280.0, 54000.0, 14000.0],
        std=[10.0, 2000.0, 1000.0],
        static_mean=[0.5],
        static_std=[0.5],
        embed_dim=16,
        num_heads=2,
        encoder_depths=(1, 1),
        encoder_num_heads=(2, 4),
        decoder_depths=(1, 1),
        decoder_num_heads=(4, 2),
        window_size=(2, 1, 2),
        latent_levels=4,
        patch_size=4,
    )
    AuroraForForecasting(config).save_pretrained(folder / "model")
    random = np.random.default_rng(0)
    grid = {"latitude": latitude, "longitude": longitude}
    data = xarray.Dataset(
        {
            "t2m": (
                ("time", *grid), random.normal(280, 5, (6, 9, 8)).astype("f4"), {"units": "K"}
            ),
            "z": (
                ("time", "level", *grid),
                (random.normal(0, 500, (6, 2, 9, 8)) + [[[[54000]], [[14000]]]]).astype("f4"),
                {"units": "m2 s-2"},
            ),
            "lsm": (tuple(grid), (random.random((9, 8)) > 0.5).astype("f4"), {"units": "1"}),
        },
        {
            "time": np.datetime64("2020-01-01", "ns") + np.arange(6) * np.timedelta64(1, "D"),
            "level": ("level", [500, 850], {"units": "hPa"}),
            **grid,
        },
    )  # fmt: skip
    data.to_netcdf(folder / "data.nc")
    return folder


def run(saved, *arguments):
    return main(["forecast", str(saved / "model"), str(saved / "data.nc"), *arguments])


def test_a_saved_model_forecasts_what_it_forecasts_in_python(saved, tmp_path, capsys):
    from hftune.tasks.aurora import AuroraForForecasting
    from hftune.tasks.weather.store import open_fields

    out = tmp_path / "out.nc"
    options = ["--lead_hours", "24,48", "72", "--dates", "2020-01-03:2020-01-05", "--device", "cpu"]
    assert run(saved, *options, "--batch-size", "2", "-o", str(out)) == 0
    assert "3 forecasts of 72 hours" in capsys.readouterr().out

    model = AuroraForForecasting.from_pretrained(saved / "model").eval()
    fields = open_fields(saved / "data.nc")
    model.set_static_fields(fields.static_fields)
    with torch.no_grad():
        expected = model(
            torch.from_numpy(fields.read([2, 3]))[None], torch.tensor([fields.times[3]]), steps=3
        ).prediction[0]
    with xarray.open_dataset(out, decode_timedelta=True) as data:
        assert dict(data.sizes) == {
            "time": 3, "prediction_timedelta": 3, "level": 2, "latitude": 8, "longitude": 8
        }  # fmt: skip
        one = data.sel(time="2020-01-04")
        np.testing.assert_allclose(one["2t"], expected[:, 0], rtol=1e-5)
        np.testing.assert_allclose(one["z"].sel(level=850), expected[:, 2], rtol=1e-5)


def test_wrong_requests_are_answered_without_a_traceback(saved, tmp_path, capsys):
    out = ["-o", str(tmp_path / "out.nc")]
    for options, answer in [
        (["--lead_hours", "24,12h"], "found 12h, expected whole hours"),
        (["--lead_hours", "36"], r"[36] h cannot be reached in steps of 24 h"),
        (["--lead_hours", "24", "--dates", "1999"], "no time lies within '1999'"),
    ]:
        assert run(saved, *options, *out) == 2
        assert answer in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(saved, *out)
    assert "--lead_hours" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
