import numpy as np
import pytest
import torch

from hftune.tasks.weather.dates import select_rows
from hftune.tasks.weather.fields import FieldLayout, WeatherFields
from hftune.tasks.weather.samples import collate, make_samples
from hftune.tasks.weather.store import open_fields
from hftune.utils.errors import DataError

DAY = 86400
torch.set_num_threads(1)


def make_fields(times):
    times = np.asarray(times) * DAY
    # Every value is its time in days, so that what a sample holds can be read off it.
    values = np.broadcast_to(
        (times / DAY).astype("float32")[:, None, None, None], (len(times), 2, 3, 4)
    )
    layout = FieldLayout(("2t", "z_500"), ("K", "m2 s-2"), (), np.arange(3.0)[::-1], np.arange(4.0))
    return WeatherFields(layout, times, values, np.empty((0, 3, 4), "float32"))


def days(tensor):
    return tensor[..., 0, 0, 0].int().tolist()


def test_a_sample():
    samples = make_samples(make_fields(range(10)), history=3, lead_hours=[24, 72])
    assert len(samples) == 5
    sample = samples[0]
    assert list(sample) == ["fields", "times", "target_fields"]
    assert sample["fields"].shape == (3, 2, 3, 4) and sample["fields"].dtype == torch.float32
    assert sample["target_fields"].shape == (2, 2, 3, 4)
    assert sample["times"].dtype == torch.int64 and int(sample["times"]) == 2 * DAY
    assert days(sample["fields"]) == [0, 1, 2]
    assert days(sample["target_fields"]) == [3, 5]
    assert days(samples[4]["target_fields"]) == [7, 9]


def test_batches_come_in_two_reads(monkeypatch):
    samples = make_samples(make_fields(range(10)))
    reads = []
    read = WeatherFields.read
    monkeypatch.setattr(
        WeatherFields, "read", lambda self, rows: reads.append(rows) or read(self, rows)
    )
    loader = torch.utils.data.DataLoader(samples, batch_size=4, collate_fn=collate)
    batch = next(iter(loader))
    assert len(reads) == 2
    assert batch["fields"].shape == (4, 2, 2, 3, 4)
    assert batch["target_fields"].shape == (4, 1, 2, 3, 4)
    assert batch["times"].tolist() == [DAY, 2 * DAY, 3 * DAY, 4 * DAY]
    assert days(batch["fields"]) == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_batches_are_not_copied():
    samples = make_samples(make_fields(range(10)))
    read = samples.__getitems__([3, 0, 5])
    batch = collate(read)
    for name, values in batch.items():
        assert values.is_contiguous()
        assert values.data_ptr() == read[0][name].data_ptr()
    # Samples that do not lie one after the other are.
    other = collate([read[1], read[0]])
    assert other["times"].tolist() == [DAY, 4 * DAY]
    assert days(other["fields"]) == [[0, 1], [3, 4]]
    assert collate(read[:2])["times"].tolist() == [4 * DAY, DAY]


def test_transformers_collator_works_too():
    from transformers import default_data_collator

    samples = make_samples(make_fields(range(10)))
    batch = default_data_collator([samples[0], samples[1]])
    assert batch["fields"].shape == (2, 2, 2, 3, 4) and batch["times"].tolist() == [DAY, 2 * DAY]


def test_subsets_and_shuffles_keep_the_transform():
    samples = make_samples(make_fields(range(10))).shuffle(seed=0).select([0, 1])
    for sample in samples:
        assert days(sample["fields"])[-1] * DAY == int(sample["times"])


def test_no_sample_spans_a_gap():
    fields = make_fields([0, 1, 2, 3, 6, 7, 8, 9])
    samples = make_samples(fields, history=2, lead_hours=[24])
    assert [days(sample["fields"]) + days(sample["target_fields"]) for sample in samples] == [
        [0, 1, 2], [1, 2, 3], [6, 7, 8], [7, 8, 9],
    ]  # fmt: skip


def test_a_lead_time_may_step_over_a_gap_if_both_ends_exist():
    samples = make_samples(make_fields([0, 1, 4]), history=2, lead_hours=[72])
    assert [days(sample["target_fields"]) for sample in samples] == [[4]]


def test_step_of_the_history():
    samples = make_samples(make_fields(range(10)), history=3, step_hours=48, lead_hours=[24])
    assert days(samples[0]["fields"]) == [0, 2, 4] and days(samples[0]["target_fields"]) == [5]


def test_splits_by_date_share_no_time():
    fields = make_fields(range(20))
    train = make_samples(fields, rows="1970-01-01:1970-01-10")
    test = make_samples(fields, rows="1970-01-11:1970-01-20")
    seen = [
        {day for s in split for day in days(s["fields"]) + days(s["target_fields"])}
        for split in (train, test)
    ]
    assert seen == [set(range(10)), set(range(10, 20))]
    assert make_samples(fields, rows="0%:50%")[:]["times"].tolist() == train[:]["times"].tolist()


def test_row_numbers_are_the_samples_times():
    samples = make_samples(make_fields(range(20)), rows=[7, 3, 19])
    assert samples[:]["times"].tolist() == [7 * DAY, 3 * DAY]  # nothing follows the 19th
    stride = make_samples(make_fields(range(20)), stride=6)
    assert stride[:]["times"].tolist() == [DAY, 7 * DAY, 13 * DAY]


def test_empty_selections():
    fields = make_fields(range(10))
    with pytest.raises(DataError) as error:
        make_samples(fields, lead_hours=[6], rows="1970-01-02:1970-01-04")
    assert str(error.value) == (
        "no sample of 2 input(s) 24 h apart and lead times of 6 h within '1970-01-02:1970-01-04': "
        "there are 3 times from 1970-01-02 to 1970-01-04, every 24 h. Change the dates, "
        "step_hours or lead_hours."
    )
    with pytest.raises(DataError, match="no time lies within '1999': the data have 10 times"):
        make_samples(fields, rows="1999")
    with pytest.raises(DataError, match="found history=0, stride=1, lead_hours=.24."):
        make_samples(fields, history=0)


def test_loader_workers(tmp_path, make_dataset):
    dataset = make_dataset(days=30, dtype="float64")
    dataset.to_netcdf(tmp_path / "a.nc")
    fields = open_fields(tmp_path / "a.nc")
    loader = torch.utils.data.DataLoader(
        make_samples(fields), batch_size=5, collate_fn=collate, num_workers=1,
        multiprocessing_context="spawn",
    )  # fmt: skip
    batches = list(loader)
    assert [len(batch["times"]) for batch in batches] == [5, 5, 5, 5, 5, 3]
    inputs = torch.cat([batch["fields"] for batch in batches]).numpy()
    np.testing.assert_array_equal(inputs[:, 0], fields.read(slice(0, 28)))


def test_real_fields(test_data):
    fields = open_fields(test_data / "weather/ncep_iberia_daily_1961_1999.nc")
    samples = make_samples(fields, rows="1997:1999")
    assert len(samples) == 3 * 365 - 2
    row = int(select_rows(fields.times, "1997-03-05")[0])
    sample = samples[samples.with_format(None)["row"][:].index(row)]
    np.testing.assert_array_equal(sample["fields"].numpy(), fields.read([row - 1, row]))
    np.testing.assert_array_equal(sample["target_fields"].numpy(), fields.read([row + 1]))
