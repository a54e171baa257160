"""Who is alive: judged by a lock here, by a heartbeat elsewhere."""

import os
import signal
import time

import pytest
from processes import finish, start

from hftune.tracking.environment import boot_id, process_identity
from hftune.tracking.liveness import Heartbeat, is_alive
from hftune.utils.errors import ConfigurationError


def wait_for(path):
    for _ in range(500):
        if path.exists():
            return
        time.sleep(0.01)
    raise AssertionError(f"{path} did not come")


@pytest.fixture
def living(tmp_path):
    """A process that has the folder, and has a child of its own as data workers are."""
    folder = tmp_path / "run"
    folder.mkdir()

    def work():
        heartbeat = Heartbeat(folder)
        (tmp_path / "orphan").write_text(str(start(lambda: time.sleep(60))))
        (folder / "ready").touch()
        time.sleep(60)
        heartbeat.release()

    child = start(work)
    wait_for(folder / "ready")
    yield folder, child
    for number in (child, int((tmp_path / "orphan").read_text())):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_the_lock_ends_with_the_process_and_not_with_its_children(living):
    folder, child = living
    me = process_identity()
    assert is_alive(folder, me)
    assert is_alive(folder, {**me, "pid": 1, "started": 0.0}, heartbeat=0.0)
    with pytest.raises(ConfigurationError, match=f"in use by process {child} on .*wait for it"):
        Heartbeat(folder)
    assert is_alive(folder, me)  # looking and failing took nothing away
    os.kill(child, signal.SIGKILL)
    assert finish(child) == -signal.SIGKILL
    assert not is_alive(folder, me)


def test_a_folder_that_is_gone_leaves_the_process_itself(tmp_path):
    me = process_identity()
    assert is_alive(tmp_path / "gone", me)
    assert not is_alive(tmp_path / "gone", {**me, "started": me["started"] - 100})  # a used number
    assert not is_alive(tmp_path / "gone", {**me, "pid": 2**22 + 1})


def test_this_process_keeps_its_lock_when_it_asks(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    assert is_alive(tmp_path, process_identity())

    def other():
        os._exit(10 + is_alive(tmp_path, process_identity()))

    assert finish(start(other)) == 11
    heartbeat.release()
    assert finish(start(other)) == 10
    assert not is_alive(tmp_path, process_identity())


def test_elsewhere_the_heartbeat_decides(tmp_path):
    far = {"host": "far", "boot_id": "another", "pid": 1, "started": 0.0}
    now = time.time()
    assert far["boot_id"] != boot_id()
    assert not is_alive(tmp_path, far)
    assert is_alive(tmp_path, far, heartbeat=now - 50)
    assert not is_alive(tmp_path, far, heartbeat=now - 70)
    # one that was silent for five minutes before may be so again
    assert is_alive(tmp_path, far, heartbeat=now - 600, longest=300.0)
    assert not is_alive(tmp_path, far, heartbeat=now - 1000, longest=300.0)
    (tmp_path / "heartbeat").touch()  # seen on a shared disk, later than the store knows
    assert is_alive(tmp_path, far, heartbeat=now - 1000)


def test_the_longest_silence(tmp_path):
    heartbeat = Heartbeat(tmp_path)
    heartbeat.last -= 30
    heartbeat.beat()
    heartbeat.beat()
    assert 30 <= heartbeat.longest < 31
    heartbeat.release()
