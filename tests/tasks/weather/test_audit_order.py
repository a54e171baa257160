"""The audit finds fields that were written column by column and labelled row by row."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from hftune.tasks.weather.audit import audit_fields
from hftune.tasks.weather.simulation import simulate_atmosphere
from hftune.tasks.weather.store import open_fields


@pytest.fixture(scope="module")
def fields():
    return simulate_atmosphere(years=0.3, latitudes=8, longitudes=12, levels=(500, 850))


def order_findings(fields) -> list:
    return [finding for finding in audit_fields(fields).findings if finding.check == "order"]


def test_fields_in_order_are_not_suspected(fields):
    assert order_findings(fields) == []


@pytest.mark.parametrize("turned", [False, True], ids=["north first", "south first"])
def test_fields_written_column_by_column_are(fields, turned):
    values = fields.read(slice(None))
    if turned:
        values = values[:, :, ::-1]
    mixed = values.reshape(*values.shape[:2], 12, 8).swapaxes(2, 3)  # what undoes it is .T.reshape
    if turned:
        mixed = mixed[:, :, ::-1]
    (finding,) = order_findings(dataclasses.replace(fields, values=np.ascontiguousarray(mixed)))
    assert finding.severity == "warning"
    assert "column by column" in finding.message


def test_real_data(test_data):
    weather = test_data / "weather"
    (finding,) = order_findings(open_fields(weather / "ncep_iberia_daily_1961_1999.nc"))
    assert "column by column" in finding.message
    assert order_findings(open_fields(weather / "ncep_global_daily_2022_01.nc")) == []
    assert order_findings(open_fields(weather / "era5_davos_hourly_2020_01")) == []
