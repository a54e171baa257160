"""The store of model folders: what goes in comes out, and nothing else counts."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import tempfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hftune.tracking import content_files
from hftune.tracking import contents as contents_module
from hftune.tracking.contents import ContentStore
from hftune.tracking.store import StoreError
from hftune.utils.errors import CheckpointError, ConfigurationError
from tests.processes import finish, start


def save_model(folder: Path, value: float = 0.0) -> Path:
    """A model's folder with a file in a subfolder and a Korean name."""
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    save_file({"weight": np.full((100, 10), value, np.float32)}, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (folder / "설명.txt").write_text("모델", encoding="utf-8")
    return folder


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path):
    return ContentStore(tmp_path / "store")


@pytest.fixture
def source(tmp_path):
    return save_model(tmp_path / "model")


def damage(path: Path, position: int = -1) -> None:
    """Flips a bit in place, behind the store's back."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    with open(path, "r+b") as stream:
        stream.write(data)
    path.chmod(mode)


def test_a_folder_comes_back_as_it_was(store, source):
    content = store.put(source)
    assert files_of(store.folder(content.digest)) == files_of(source)
    assert store.verify(content.digest) == []
    assert content.bytes == sum(len(data) for data in files_of(source).values())
    assert content.left_out == ()


def test_the_digest_is_the_hash_of_the_canonical_manifest(store, source):
    content = store.put(source)
    expected = {}
    for name, data in files_of(source).items():
        expected[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    weights = (source / "model.safetensors").read_bytes()
    header = weights[8 : 8 + int.from_bytes(weights[:8], "little")]
    expected["model.safetensors"]["header_sha256"] = hashlib.sha256(header).hexdigest()
    assert json.loads(header)["weight"]["shape"] == [100, 10]
    assert content.files == expected == store.manifest(content.digest)
    text = json.dumps(expected, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert content.digest == hashlib.sha256(text.encode()).hexdigest()


def test_what_is_stored_shares_no_bytes_with_the_users_folder(store, source):
    content = store.put(source)
    before = files_of(store.folder(content.digest))
    for path in source.rglob("*.*"):
        if path.is_file():
            assert path.stat().st_nlink == 1
            path.write_bytes(b"something else")  # in place, as save_pretrained does
    assert files_of(store.folder(content.digest)) == before
    assert store.verify(content.digest) == []


def test_stored_files_are_read_only_and_shared(store, source, tmp_path):
    first = store.put(source)
    second = store.put(save_model(tmp_path / "other", value=1.0))
    assert first.digest != second.digest
    for path in store.root.rglob("contents/**/*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o555 if path.is_dir() else 0o444)
    config = store.folder(first.digest) / "config.json"
    assert config.samefile(store.folder(second.digest) / "config.json")
    assert config.stat().st_nlink == 3
    objects = list((store.root / "objects").rglob("*/*"))
    assert len(objects) == 5  # 3 files that are the same, and two models
    for path in objects:
        assert path.name == hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.parent.name == path.name[:2]


def test_the_same_content_again_is_the_same(store, source, tmp_path):
    first = store.put(source)
    before = {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()}
    again = store.put(Path(shutil.copytree(source, tmp_path / "copy")))
    assert again == first
    after = {path: path.stat().st_ino for path in store.root.rglob("*") if path.is_file()}
    assert after.keys() == before.keys()
    assert not list((store.root / "partial").iterdir())


def test_a_single_file(store, source):
    content = store.put(source / "model.safetensors")
    assert list(content.files) == ["model.safetensors"]
    assert list(files_of(store.folder(content.digest))) == ["model.safetensors"]


def test_the_state_of_a_run_is_left_out(store, source):
    plain = store.put(source)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth"):
        (source / name).write_bytes(b"pickle")
    for name in ("trainer_state.json", "run.json", "heartbeat", ".hftune.lock"):
        (source / name).write_text("{}")
    (source / "checkpoint-10").mkdir()
    (source / "checkpoint-10" / "model.safetensors").write_bytes(b"x" * 100)
    content = store.put(source)
    assert content.left_out == (
        ".hftune.lock", "checkpoint-10/", "heartbeat", "optimizer.pt", "rng_state_0.pth",
        "run.json", "scheduler.pt", "trainer_state.json", "training_args.bin",
    )  # fmt: skip
    assert content.digest == plain.digest


def broken(folder: Path, case: str) -> Path:
    weights = folder / "model.safetensors"
    if case == "missing":
        return folder / "nowhere"
    if case == "empty":
        shutil.rmtree(folder)
        folder.mkdir()
    elif case == "state only":
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "optimizer.pt").write_bytes(b"x")
    elif case == "link":
        (folder / "link.json").symlink_to("config.json")
    elif case == "linked folder":
        (folder / "link").symlink_to(folder / "1_Pooling")
    elif case == "pickle":
        (folder / "pytorch_model.bin").write_bytes(b"x")
    elif case == "cut off":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif case == "no header":
        weights.write_bytes(b"")
    elif case == "wrong header":
        weights.write_bytes((4).to_bytes(8, "little") + b"abcd")
    elif case == "shard":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-2.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    elif case == "pipe":
        os.mkfifo(folder / "pipe")
    elif case == "name":
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.txt")).write_text("x")
    return folder


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", "no such file or folder, expected a saved model"),
        ("empty", "found no files, expected a saved model"),
        ("state only", "found no files beside optimizer.pt, expected a saved model"),
        ("link", "link.json is a symbolic link"),
        ("linked folder", "link is a symbolic link"),
        ("pickle", "pytorch_model.bin may be a pickle, .* safetensors"),
        ("cut off", r"model.safetensors has \d+ bytes, its header says \d+: save it again"),
        ("no header", "model.safetensors is cut off, or no safetensors file"),
        ("wrong header", "its header cannot be read"),
        ("shard", "index.json names model-2.safetensors, which is not there"),
        ("pipe", "pipe is no plain file"),
        ("name", "has a name that is not UTF-8: rename it"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_written(store, source, case, message):
    with pytest.raises(ConfigurationError, match=message):
        store.put(broken(source, case))
    assert not store.root.exists()


def test_several_problems_are_reported_together(store, source):
    broken(source, "pickle")
    broken(source, "cut off")
    with pytest.raises(ConfigurationError) as caught:
        store.put(source)
    assert len(caught.value.problems) == 2


def test_a_folder_that_holds_the_store_is_refused(store):
    store.root.mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="holds the model store"):
        store.put(store.root.parent)


def test_a_disk_that_is_too_small_is_found_before_the_copy(store, source, monkeypatch):
    monkeypatch.setattr(contents_module, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match=r"needs 4\.\d KiB, the disk has 1000 B; make room"):
        store.put(source)
    assert not store.root.exists()


def test_a_disk_that_is_full_half_way_leaves_nothing(store, source, monkeypatch):
    real, calls = os.fsync, []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left on device .*make room"):
            store.put(source)
    assert not (store.root / "contents").exists() and not (store.root / "manifests").exists()
    assert not list((store.root / "partial").iterdir())
    assert store.verify(store.put(source).digest) == []


def test_a_file_that_changes_while_it_is_copied_is_refused(store, source, monkeypatch):
    real = content_files._clone

    def write_meanwhile(reader, writer):
        (source / "config.json").write_text('{"model_type": "other", "more": true}')
        return real(reader, writer)

    monkeypatch.setattr(content_files, "_clone", write_meanwhile)
    with pytest.raises(ValueError, match="config.json changed while it was copied"):
        store.put(source)
    assert not (store.root / "manifests").exists()


def test_without_hard_links_files_are_copied(store, source, monkeypatch):
    def no_links(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    content = store.put(source)
    folder = store.folder(content.digest)
    assert files_of(folder) == files_of(source)
    assert {path.stat().st_nlink for path in folder.rglob("*.*") if path.is_file()} == {1}
    assert store.put(source) == content and store.verify(content.digest) == []
    digest = content.files["config.json"]["sha256"]
    damage(store.root / "objects" / digest[:2] / digest)
    assert store.verify(content.digest) == [
        "the object of config.json has changed since it was registered (other sha256); registering "
        "the file again mends it"
    ]


def test_damage_is_found_and_mended_by_the_same_content(store, source):
    content = store.put(source)
    folder = store.folder(content.digest)
    damage(folder / "model.safetensors")
    assert store.verify(content.digest) == [
        "model.safetensors has changed since it was registered (other sha256)"
    ]
    assert store.put(source) == content
    assert store.verify(content.digest) == []
    assert files_of(store.folder(content.digest)) == files_of(source)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "new.json").write_text("{}"), "new.json was not registered with it"),
        (lambda f: shutil.rmtree(f), "config.json is missing"),
        (
            lambda f: ((f / "config.json").unlink(), (f / "config.json").symlink_to("설명.txt")),
            "config.json is no plain file any more",
        ),
        (
            lambda f: ((f / "config.json").unlink(), (f / "config.json").write_text("{}")),
            "config.json has 2 bytes, the manifest says 22",
        ),
    ],
)
def test_what_verify_finds(store, source, change, problem):
    digest = store.put(source).digest
    folder = store.folder(digest)
    folder.chmod(0o755)
    (folder / "1_Pooling").chmod(0o755)
    change(folder)
    assert problem in store.verify(digest)
    store.put(source)
    assert store.verify(digest) == []


def test_verify_says_how_far_it_is_within_a_file(store, tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"x" * 100)
    (folder / "b.txt").write_bytes(b"x" * (10 << 20))
    digest = store.put(folder).digest
    said = []
    assert store.verify(digest, said.append) == []
    assert said == sorted(said) and said[-1] == 100 + (10 << 20)
    assert len(said) > 3 and any(1 << 20 < done < 9 << 20 for done in said)


def test_a_manifest_that_changed_or_is_not_there(store, source):
    digest = store.put(source).digest
    path = store.root / "manifests" / f"{digest}.json"
    damage(path)
    [problem] = store.verify(digest)
    assert problem == f"manifest {path} has changed since it was written"
    [problem] = store.verify("0" * 64)
    assert problem.endswith("No such file or directory")


def test_a_manifest_cannot_lead_out_of_the_store(store):
    data = json.dumps({"../../secret": {"bytes": 1, "sha256": "0" * 64}}).encode()
    digest = hashlib.sha256(data).hexdigest()
    (store.root / "manifests").mkdir(parents=True)
    (store.root / "manifests" / f"{digest}.json").write_bytes(data)
    with pytest.raises(CheckpointError, match="names a file outside its folder"):
        store.manifest(digest)


def test_export_gives_files_of_ones_own(store, source, tmp_path):
    content = store.put(source)
    target = store.export(content.digest, tmp_path / "out" / "best")
    assert files_of(target) == files_of(source)
    assert (target / "config.json").stat().st_mode & 0o200
    (target / "config.json").write_text("changed")
    assert store.verify(content.digest) == []
    with pytest.raises(ConfigurationError, match="exists already: name a new or an empty folder"):
        store.export(content.digest, target)


def test_a_damaged_content_is_not_exported(store, source, tmp_path):
    content = store.put(source)
    damage(store.folder(content.digest) / "model.safetensors")
    with pytest.raises(CheckpointError, match="has changed .*: nothing was exported"):
        store.export(content.digest, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "store"]


def test_a_path_inside_the_store_names_its_content(store, source, tmp_path):
    digest = store.put(source).digest
    (tmp_path / "link").symlink_to(store.root)
    assert store.digest_at(store.folder(digest)) == digest
    assert store.digest_at(tmp_path / "link" / "contents" / digest / "config.json") == digest
    assert store.digest_at(source) is None and store.digest_at("org/name") is None
    assert store.digest_at("a\x00b") is None and store.digest_at("x" * 5000) is None


def test_gc_removes_what_is_not_used(store, source, tmp_path):
    kept = store.put(source)
    other = store.put(save_model(tmp_path / "other", value=1.0))
    (store.root / "partial" / "left").mkdir()
    (store.root / "partial" / "left" / "a").write_bytes(b"x" * 10)
    would = store.gc(lambda: [kept.digest], dry_run=True)
    assert (would.contents, would.objects, would.partials) == (1, 1, 1)
    manifest = store.root / "manifests" / f"{other.digest}.json"
    weights = (tmp_path / "other" / "model.safetensors").stat().st_size
    # The folder's other files are links to what the kept one needs.
    assert would.bytes == weights + manifest.stat().st_size + 10
    assert store.verify(other.digest) == []
    assert store.gc(lambda: [kept.digest]) == would
    assert store.verify(kept.digest) == [] and not manifest.exists()
    assert store.gc(lambda: [kept.digest]) == contents_module.Garbage(0, 0, 0, 0)
    assert len(list((store.root / "objects").rglob("*/*"))) == 4


GROUP, ALICE, BOB = 54320, 54321, 54322


@pytest.fixture
def team():
    """A folder that the users of a group share."""
    if os.geteuid() != 0:
        pytest.skip("only root can act as several users")
    folder = Path(tempfile.mkdtemp(prefix="hftune-team-", dir="/tmp"))
    os.chown(folder, 0, GROUP)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


def as_user(user, work):
    """Runs ``work`` as a user of the group; whether nothing went wrong."""

    def with_less_rights():
        os.umask(0o002)
        os.setgroups([])
        os.setgid(GROUP)
        os.setuid(user)
        work()

    return finish(start(with_less_rights)) == 0


def test_gc_leaves_what_another_user_registered_whole(team):
    store = ContentStore(team / "store")
    sources = [save_model(team / f"model {place}", value=place) for place in range(3)]
    for source in sources:  # safetensors' files are their owner's
        (source / "model.safetensors").chmod(0o644)
    assert as_user(ALICE, lambda: [store.put(source) for source in sources[:2]])
    of_alice = sorted(path.name for path in (store.root / "contents").iterdir())
    (store.root / "partial" / "left").mkdir(mode=0o755)
    os.chown(store.root / "partial" / "left", ALICE, GROUP)
    before = {path for path in store.root.rglob("*") if path.is_file()}
    expected = [f"contents/{digest}" for digest in of_alice] + ["partial/left"]

    def bob():
        content = store.put(sources[2])
        would = store.gc(lambda: [], dry_run=True)
        # Bob's config.json and the like are Alice's files.
        assert (would.contents, would.objects, would.partials) == (1, 1, 0)
        assert would.left == tuple(
            f"{name}: only user {ALICE} or root can remove it" for name in expected
        )
        assert store.gc(lambda: []) == would
        assert not store.folder(content.digest).exists()
        assert {path for path in store.root.rglob("*") if path.is_file()} == before
        assert [store.verify(digest) for digest in of_alice] == [[], []]

    def alice():
        garbage = store.gc(lambda: of_alice[:1])
        assert (garbage.contents, garbage.partials, garbage.left) == (1, 1, ())
        assert store.verify(of_alice[0]) == []

    assert as_user(BOB, bob) and as_user(ALICE, alice)
    assert store.gc(lambda: []).contents == 1  # root


def test_gc_stops_at_a_manifest_that_it_cannot_read(store, source):
    digest = store.put(source).digest
    damage(store.root / "manifests" / f"{digest}.json")
    with pytest.raises(CheckpointError, match="has changed"):
        store.gc(lambda: [digest])
    assert files_of(store.folder(digest)) == files_of(source)


def test_gc_leaves_a_registration_of_another_process_alone(store, source):
    reading, writing = os.pipe()
    done_reading, done_writing = os.pipe()

    def register():
        with store.holding():
            store.put(source)
            os.write(writing, b"x")
            os.read(done_reading, 1)

    child = start(register)
    os.read(reading, 1)
    with pytest.raises(StoreError, match="a registration is under way"):
        store.gc(lambda: [])
    assert len(list((store.root / "contents").iterdir())) == 1
    os.write(done_writing, b"x")
    assert finish(child) == 0
    assert store.gc(lambda: []).contents == 1


def test_used_digests_are_asked_for_once_no_registration_is_under_way(store, source):
    store.put(source)

    def used():
        descriptor = os.open(store.root / "lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(descriptor)
        return []

    assert store.gc(used).contents == 1


def kill_at(call: int, store: ContentStore, source: Path) -> int:
    """Registers in a process of its own that is killed before its n-th call that lasts."""

    def register():
        count = 0

        def counted(real):
            def work(*arguments, **keywords):
                nonlocal count
                count += 1
                if count == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **keywords)

            return work

        for name in ("fsync", "replace", "link", "chmod", "unlink"):
            setattr(os, name, counted(getattr(os, name)))
        store.put(source)

    return finish(start(register))


def test_killed_anywhere_nothing_counts_that_is_not_whole(tmp_path, source):
    expected = ContentStore(tmp_path / "reference").put(source).digest
    call, status = 0, -signal.SIGKILL
    while status != 0:
        call += 1
        store = ContentStore(tmp_path / f"store {call}")
        status = kill_at(call, store, source)
        assert status in (0, -signal.SIGKILL)
        if (store.root / "manifests" / f"{expected}.json").exists():
            assert store.verify(expected) == []
        assert store.put(source).digest == expected and store.verify(expected) == []
        store.gc(lambda: [expected])
        assert store.verify(expected) == [] and not list((store.root / "partial").iterdir())
        assert len(list((store.root / "contents").iterdir())) == 1
    assert call > 20


def test_killed_while_it_mends(tmp_path, source):
    call, status = 0, -signal.SIGKILL
    while status != 0:
        call += 1
        store = ContentStore(tmp_path / f"store {call}")
        digest = store.put(source).digest
        damage(store.folder(digest) / "model.safetensors")
        status = kill_at(call, store, source)
        store.put(source)
        assert store.verify(digest) == []


def test_many_processes_store_the_same(store, source):
    def register():
        for _ in range(5):
            content = store.put(source)
            assert store.verify(content.digest) == []

    children = [start(register) for _ in range(4)]
    assert [finish(child) for child in children] == [0] * 4
    assert len(list((store.root / "contents").iterdir())) == 1
    assert not list((store.root / "partial").iterdir())


def test_the_folder_is_configured(monkeypatch, tmp_path):
    assert ContentStore().root == Path(os.environ["HFTUNE_HOME"]) / "models"
    monkeypatch.setenv("HFTUNE_MODELS_DIR", str(tmp_path / "team"))
    assert ContentStore().root == tmp_path / "team"


def test_a_store_that_cannot_be_written(tmp_path, source):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="HFTUNE_MODELS_DIR names another place"):
        ContentStore(tmp_path / "file" / "store").put(source)


def test_transformers_loads_from_it(store, tmp_path):
    import torch
    import transformers

    config = transformers.BertConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        vocab_size=10, max_position_embeddings=8,
    )  # fmt: skip
    model = transformers.BertModel(config)
    model.save_pretrained(tmp_path / "bert")
    folder = store.folder(store.put(tmp_path / "bert").digest)
    loaded = transformers.AutoModel.from_pretrained(folder).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
