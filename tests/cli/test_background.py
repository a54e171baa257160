"""Trainings in the background: real processes, stopped in every way that people stop them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from hftune.cli import main as command
from hftune.cli.background import main
from hftune.cli.background_log import Lines, follow, last_lines
from hftune.cli.background_state import Launch, find_recipe, runs_recipe
from hftune.utils.errors import ConfigurationError

TRAINING = '''
"""Trains until SIGTERM, then saves; one that gets it twice ends without saving."""
import os, signal, sys, time
from pathlib import Path
from hftune.tracking.run_record import RunRecord
from hftune.utils.errors import TrainingInterrupted

out = Path(sys.argv[sys.argv.index("--output_dir") + 1])
got = []

def on_signal(number, frame):
    got.append(number)
    with open(out / f"signals_{os.getpid()}", "a") as stream:
        stream.write("SIGTERM\\n")
    if len(got) == 2:
        os._exit(9)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "--deaf" in sys.argv else on_signal)
with RunRecord.start(out, task="stand-in", configuration={}) as record:
    record.begin_stage("stage_1_10pct")
    record.log_metrics({"loss": 0.5}, step=7)
    print("stdin:", repr(sys.stdin.read()), "학습")
    if os.fork() == 0:  # a data worker
        while not (out / "end").exists():
            time.sleep(0.05)
        os._exit(0)
    (out / f"trains_{os.getpid()}").touch()
    while not got and not (out / "end").exists():
        time.sleep(0.02)
    if got:
        time.sleep(0.3)
        (out / f"saved_{os.getpid()}").touch()
        (out / "end").touch()
        raise TrainingInterrupted("SIGTERM", 7, "checkpoint-7")
'''

LAUNCHERS = {
    # As "accelerate launch" for one process: dies of SIGTERM and leaves the training behind.
    "accelerate": """
import subprocess, sys
command = [sys.executable, *sys.argv[2:]]
sys.exit(1 if subprocess.run(command).returncode else 0)
""",
    # As torchrun: passes SIGTERM on to its two processes, which have sessions of their own.
    "torchrun": """
import os, signal, subprocess, sys
workers = [
    subprocess.Popen([sys.executable, "-u", *sys.argv[2:]], env={**os.environ, "RANK": str(rank)},
                     start_new_session=True)
    for rank in range(2)
]
def pass_on(number, frame):
    for worker in workers:
        worker.send_signal(number)
signal.signal(signal.SIGTERM, pass_on)
sys.exit(1 if any([worker.wait() for worker in workers]) else 0)
""",
}

HFTUNE = [sys.executable, "-c", "import sys, hftune.cli.main as m; sys.exit(m.main())"]


def hftune_start(*words: str | Path, code: int = 0) -> str:
    """Runs ``hftune background start`` in a process that ends, as it does for people."""
    words = [*HFTUNE, "background", "start", *map(str, words)]
    done = subprocess.run(words, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == code, done.stdout
    return done.stdout


def hftune(*words: str | Path, code: int = 0) -> str:
    """Runs ``hftune background``; returns what it printed."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert command.main(["background", *map(str, words)]) == code, said.getvalue()
    return said.getvalue()


def wait_for(what: Callable[[], object]) -> None:
    """Waits until something is true; generous, since the machine may be busy."""
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """OUTPUT_DIR of one start; what still runs at the end is killed."""
    (tmp_path / "train.py").write_text(TRAINING, encoding="utf-8")
    for name, text in LAUNCHERS.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    made = tmp_path / "runs" / "나"
    yield made
    with contextlib.suppress(ConfigurationError):
        launch = Launch.load(made)
        (made / "end").touch()
        for process in launch.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


def start(folder: Path, *more: str, launcher: str | None = None, count: int = 1) -> Launch:
    """Starts the stand-in and waits until it trains."""
    root = folder.parents[1]
    launch = [root / launcher, "launch"] if launcher else []
    said = hftune_start(
        "--", sys.executable, *launch, root / "train.py", "--output_dir", folder, *more
    )
    assert f"hftune background logs -f {folder}" in said.replace("'", "")
    wait_for(lambda: len(trains(folder)) == count)
    return Launch.load(folder)


def trains(folder: Path) -> set[str]:
    return {path.name.partition("_")[2] for path in folder.glob("trains_*")}


def signals(folder: Path) -> dict[str, str]:
    return {
        path.name.partition("_")[2]: path.read_text(encoding="utf-8")
        for path in folder.glob("signals_*")
    }


def is_over(launch: Launch) -> bool:
    return Launch.load(launch.folder).values["ended"] is not None and launch.supervisor() is None


@pytest.mark.parametrize(
    ("launcher", "count", "code"), [(None, 1, 75), ("accelerate", 1, 1), ("torchrun", 2, 1)]
)
@pytest.mark.parametrize("way", ["stop", "kill"])
def test_one_signal_to_each_training_process_and_time_to_save(folder, launcher, count, code, way):
    launch = start(folder, launcher=launcher, count=count)
    number = launch.pid_file.read_text(encoding="utf-8")
    assert launch.pid_file == folder / "train_training.pid"
    assert number == f"{launch.values['supervisor']['pid']}\n"

    said = hftune("status", folder)
    assert f"{folder}: running, process {number.strip()}, since 2" in said
    assert "run       running, stage stage_1_10pct, step 7\n" in said
    assert "last line stdin: '' 학습\n" in said

    if way == "stop":
        said = hftune("stop", folder)
        end = (
            "preempted: stopped by SIGTERM after step 7; the same command goes on from checkpoint-7"
        )
        assert said.splitlines() == [
            f"{folder}: process {number.strip()} finishes its step and saves; waiting up to 600 s",
            f"{folder}: {end}",
        ]
    else:
        os.kill(int(number), signal.SIGTERM)
    wait_for(lambda: is_over(launch))

    assert signals(folder) == dict.fromkeys(trains(folder), "SIGTERM\n")
    assert len(list(folder.glob("saved_*"))) == count
    values = Launch.load(folder).values
    assert (values["status"], values["returncode"]) == ("preempted", code)
    assert not launch.pid_file.exists() and not launch.training()
    said = hftune("status", folder, code=3)
    assert said.startswith(f"{folder}: preempted: stopped by SIGTERM after step 7; the same")
    assert hftune("stop", folder, code=3).startswith(f"not running. {folder}: preempted")


def test_a_launcher_that_dies_is_waited_for_with_its_training(folder):
    """As after ``pkill -f train.py``: launcher and training get the signal, not the supervisor."""
    launch = start(folder, launcher="accelerate")
    psutil.Process(launch.values["process"]["pid"]).terminate()
    wait_for(lambda: not psutil.pid_exists(launch.values["process"]["pid"]))
    assert f"{folder}: running" in hftune("status", folder)
    (training,) = launch.training()
    training.terminate()
    wait_for(lambda: is_over(launch))
    assert signals(folder) == {str(training.pid): "SIGTERM\n"}
    assert Launch.load(folder).values["status"] == "preempted"


@pytest.mark.parametrize(("launcher", "code"), [(None, -9), ("accelerate", 1)])
def test_data_workers_that_outlive_their_training_are_not_taken_for_it(folder, launcher, code):
    launch = start(folder, launcher=launcher)
    (training,) = launch.training()
    (worker,) = training.children()
    training.kill()
    wait_for(lambda: is_over(launch))
    assert worker.is_running()
    values = Launch.load(folder).values
    assert (values["status"], values["returncode"]) == ("failed", code)
    end = "failed by signal 9" if launcher is None else "failed with exit code 1"
    assert hftune("status", folder, code=3).startswith(f"{folder}: {end}\n")
    assert not signals(folder)


def test_a_record_that_cannot_be_written_does_not_keep_a_training_from_its_stop(folder):
    launch = start(folder)
    (folder / "logs" / "background.json").rename(folder / "away.json")
    (folder / "logs" / "background.json").mkdir()
    os.kill(int(launch.pid_file.read_text(encoding="utf-8")), signal.SIGTERM)
    wait_for(lambda: launch.supervisor() is None)
    assert signals(folder) == dict.fromkeys(trains(folder), "SIGTERM\n")
    assert len(list(folder.glob("saved_*"))) == 1
    assert "ended could not be written: " in launch.log.read_text(encoding="utf-8")


def test_of_two_starts_at_once_one_is_refused(folder):
    root = folder.parents[1]
    words = [*HFTUNE, "background", "start", "--", sys.executable, root / "train.py"]
    words += ["--output_dir", folder]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [process.communicate()[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2]
    assert sorted("runs there, as process" in error for error in errors) == [False, True]


def test_the_terminal_may_close(folder):
    root = folder.parents[1]
    child, terminal = pty.fork()
    if child == 0:
        words = ["start", "--wait", "60", "--", sys.executable, root / "train.py"]
        os.execv(
            sys.executable,
            [*HFTUNE, "background", *map(str, words)] + ["--output_dir", str(folder)],
        )
    wait_for(lambda: trains(folder))
    os.kill(-child, signal.SIGHUP)  # as the closing of a terminal does
    os.close(terminal)
    os.waitpid(child, 0)
    launch = Launch.load(folder)
    (training,) = launch.training()
    supervisor = launch.supervisor()
    for process in (training, supervisor):
        assert os.getsid(process.pid) != child
        process.send_signal(signal.SIGHUP)
    assert "running, process" in hftune("status", folder)
    assert "stdin: '' 학습" in hftune("logs", "-n", "1", folder)
    (folder / "end").touch()
    wait_for(lambda: is_over(launch))
    assert hftune("status", folder, code=3).startswith(f"{folder}: completed\n")


def test_a_second_start_is_refused_and_a_stale_pid_file_replaced(folder):
    root = folder.parents[1]
    folder.mkdir(parents=True)
    (folder / "train_training.pid").write_text("1\n", encoding="utf-8")
    launch = start(folder)
    number = launch.values["supervisor"]["pid"]
    assert launch.pid_file.read_text(encoding="utf-8") == f"{number}\n"
    words = ["--", sys.executable, root / "train.py", "--output_dir", folder]
    said = hftune_start(*words, code=2)
    assert f"train.py runs there, as process {number} on {os.uname().nodename} since" in said
    assert "stop it (hftune background stop" in said
    assert len(list((folder / "logs").glob("*.log"))) == 1
    (folder / "end").touch()
    wait_for(lambda: is_over(launch))
    hftune_start(*words)
    wait_for(lambda: is_over(Launch.load(folder)))
    assert len(list((folder / "logs").glob("background_*.log"))) == 2


def test_a_supervisor_that_is_killed_leaves_the_training_running(folder):
    root = folder.parents[1]
    launch = start(folder, launcher="accelerate")
    os.kill(launch.values["supervisor"]["pid"], signal.SIGKILL)
    wait_for(lambda: launch.supervisor() is None)
    (number,) = trains(folder)
    said = hftune("status", folder)
    assert f"{folder}: running, process {number}, since" in said
    assert "its supervisor was killed; hftune background stop still stops it" in said
    words = ["--", sys.executable, root / "train.py", "--output_dir", folder]
    assert f"runs there, as process {number} on" in hftune_start(*words, code=2)

    said = hftune("stop", folder)
    assert said.endswith(
        f"{folder}: preempted: stopped by SIGTERM after step 7; the same command goes on from "
        "checkpoint-7\n"
    )
    assert signals(folder) == {number: "SIGTERM\n"}
    assert not launch.pid_file.exists()
    assert hftune("status", folder, code=3).startswith(f"{folder}: preempted")


def test_what_ended_without_a_trace_is_said_to_be_gone(folder):
    launch = start(folder)
    for process in reversed(launch.processes()):
        process.kill()
    wait_for(lambda: not launch.processes())
    said = hftune("status", folder, code=3)
    assert said.startswith(f"{folder}: gone: its processes have ended, and nobody saw how (killed")
    assert "run       crashed, stage stage_1_10pct, step 7\n" in said
    assert "not running" in hftune("stop", folder, code=3)


@pytest.mark.parametrize("way", ["second signal", "--force"])
def test_what_does_not_listen_is_killed_on_request(folder, way):
    launch = start(folder, "--deaf", launcher="accelerate")
    said = hftune("stop", "--timeout", "0.1", folder, code=1)
    assert "not ended after 0.1 s. It is still asked to stop, and goes on saving; --force" in said
    assert f"{folder}: stopping, process" in hftune("status", folder)
    hftune("stop", "--timeout", "0.1", folder, code=1)  # asks no second time
    assert launch.training()
    if way == "--force":
        assert hftune("stop", folder, "--force") == f"{folder}: killed\n"
    else:
        supervisor = launch.supervisor()

        def is_killed() -> bool:
            with contextlib.suppress(psutil.Error):
                supervisor.terminate()
            return is_over(launch)

        wait_for(is_killed)
    assert Launch.load(folder).values["status"] == "killed"
    wait_for(lambda: not launch.processes())


def test_a_number_that_another_process_got_is_not_signalled(folder):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        launch = start(folder)
        (folder / "end").touch()
        wait_for(lambda: is_over(launch))
        identity = {**launch.values["supervisor"], "pid": other.pid, "started": 1e9}
        launch.save(supervisor=identity, process={**identity}, ended=None, status=None)
        launch.pid_file.write_text(f"{other.pid}\n", encoding="utf-8")
        # The record of the run itself says how this start ended.
        assert hftune("status", folder, code=3).startswith(f"{folder}: completed\n")
        for more in ([], ["--force"]):
            said = hftune("stop", folder, *more, code=3)
            assert said == f"not running. {folder}: completed\n"
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_fails_at_once_is_reported_where_it_was_started(folder):
    root = folder.parents[1]
    (root / "bad.py").write_text("import sys\nprint('no --rate')\nsys.exit(3)\n", encoding="utf-8")
    words = [sys.executable, root / "bad.py", "--hub_token", "s3cret", "--output-dir", folder]
    said = hftune_start("--", *words, code=1)
    (log,) = (folder / "logs").glob("background_*.log")
    assert f"{folder}: failed with exit code 3. The last lines of {log}:" in said
    assert said.endswith("no --rate\n")
    said = hftune("status", "--output_dir", folder, code=3)
    assert said.startswith(f"{folder}: failed with exit code 3\n") and "no --rate\n" in said
    assert not (folder / "bad_training.pid").exists()
    for path in (folder / "logs").iterdir():
        assert "s3cret" not in path.read_text(encoding="utf-8")


def test_what_is_wrong_with_a_command_is_said_before_it_starts(folder, monkeypatch):
    root = folder.parents[1]
    monkeypatch.chdir(root)
    monkeypatch.setenv("HFTUNE_OUTPUT_DIR", "")

    def error(*words: str) -> str:
        with pytest.raises(ConfigurationError) as raised:
            main(["start", *words])
        return str(raised.value)

    assert error().startswith("no command: give it after --, as in\n  hftune background start --")
    assert error("--", "ls", "-l").startswith("no Python script in 'ls -l': what is started is a")
    assert error("--", "python", "train.py").startswith("where does train.py write? Give it --out")
    assert error("--output_dir", "a", "--", "python", "train.py", "--output_dir=b") == (
        "two folders: --output_dir a before the --, and b (command line of train.py); give one"
    )
    assert error("--", "pyhton", "trian.py", "--output_dir", "b") == (
        "2 problems in the configuration:\n"
        "  1. no program 'pyhton' on the PATH: is its environment activated?\n"
        f"  2. no file trian.py in {root}. Did you mean 'train.py'?"
    )
    assert not (root / "b").exists()
    with pytest.raises(ConfigurationError, match="^which run. There is no checkpoints_transfer h"):
        main(["status"])
    with pytest.raises(ConfigurationError, match="^x: nothing was started there with hftune backg"):
        main(["status", "x"])


@pytest.mark.parametrize("source", ["flag", "environment", "config", "default", "option"])
def test_the_folder_is_the_one_that_the_recipe_writes_to(tmp_path, monkeypatch, source):
    for name in ("progressive.py", "other.py"):
        (tmp_path / name).write_text("print('done')\n", encoding="utf-8")
    (tmp_path / "base.yaml").write_text("training:\n  output_dir: runs/x\n", encoding="utf-8")
    (tmp_path / "run.yaml").write_text("base: base.yaml\nseed: 3\n", encoding="utf-8")
    recipe = "progressive.py" if source == "default" else "other.py"
    if source == "environment":
        monkeypatch.setenv("HFTUNE_OUTPUT_DIR", "runs/x")
    more = {"flag": ["--output_dir", "a", "--output-dir=runs/x"], "config": ["--config=run.yaml"]}
    option = ["--output_dir", "runs/x"] if source == "option" else []
    command = [sys.executable, recipe, *more.get(source, [])]
    monkeypatch.chdir(tmp_path)
    said = hftune_start(*option, "--", *command)
    folder = "checkpoints_transfer" if source == "default" else "runs/x"
    assert said.endswith(f"{recipe} has ended: completed\n")
    assert [path.parents[1] for path in tmp_path.rglob("background_*.log")] == [tmp_path / folder]
    where = [] if source == "default" else [folder]
    assert hftune("logs", "-n", "1", *where) == "done\n"


def test_logs_are_followed_to_the_end(folder):
    launch = start(folder)
    with subprocess.Popen(
        [*HFTUNE, "background", "logs", "-f", str(folder)],
        stdout=subprocess.PIPE,
        text=True,
    ) as reader:
        assert reader.stdout.readline().startswith("hftune background: 2")
        with open(launch.log, "a", encoding="utf-8") as stream:
            stream.write(" 10%|#\r 50%|###\r100%|######\nlast words")
        (folder / "end").touch()
        rest = reader.stdout.read()
    assert reader.returncode == 0
    assert rest == f"stdin: '' 학습\n100%|######\nlast words\n\n{folder}: completed\n"


def test_ctrl_c_leaves_the_training_running(folder):
    launch = start(folder)
    with subprocess.Popen(
        [*HFTUNE, "background", "logs", "-f", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as reader:
        reader.stdout.readline()
        reader.stdout.readline()
        reader.send_signal(signal.SIGINT)
        assert reader.stdout.read() == "\n"
    assert reader.returncode == 0
    assert launch.is_going_on() and not signals(folder)


def test_a_follower_goes_over_to_the_next_start(tmp_path, capsys):
    logs = tmp_path / "logs"
    logs.mkdir()
    for name in "ab":
        (logs / f"{name}.log").write_text(f"{name} 1\n{name} 2", encoding="utf-8")
    first = Launch(tmp_path, {"id": "1", "log": "logs/a.log"})
    second = Launch(tmp_path, {"id": "2", "log": "logs/b.log", "ended": "2026-11-21"})
    second.save()
    assert follow(first, 1) == second
    assert capsys.readouterr().out == f"a 1\na 2\n\n{logs / 'b.log'}:\nb 1\nb 2\n"


def test_lines_are_those_that_a_terminal_would_show(tmp_path):
    text = "\x1b[31mred\r\n  0%|\r 50%|\r\r\n학습\tok\n 1%\r 2%\r"
    whole = ["\ufffd[31mred", " 50%|", "학습      ok"]
    lines = Lines()
    one_by_one = [line for byte in text.encode() for line in lines.feed(bytes([byte]))]
    assert one_by_one == whole and lines.rest == " 2%"
    path = tmp_path / "x.log"
    path.write_bytes(text.encode())
    assert last_lines(path, 2) == [whole[-1], " 2%"]
    assert last_lines(path, 0) == [] and last_lines(tmp_path / "none.log", 5) == []
    path.write_text("".join(f"line {i} of a long log\n" for i in range(100_000)), encoding="utf-8")
    assert last_lines(path, 2) == ["line 99998 of a long log", "line 99999 of a long log"]
    assert len(last_lines(path, 10**6)) == 100_000


@pytest.mark.parametrize(
    ("command", "name", "stem"),
    [
        ("accelerate launch --config_file a.yaml recipes/x.py --data d.py", "recipes/x.py", "x"),
        ("python -u -m hftune.recipes.aurora --output_dir y", "hftune.recipes.aurora", "aurora"),
        ("python -m accelerate.commands.launch recipes/x.py", "recipes/x.py", "x"),
        ("accelerate launch --module hftune.recipes.aurora", "hftune.recipes.aurora", "aurora"),
    ],
)
def test_the_recipe_of_a_command(command, name, stem):
    recipe = find_recipe(command.split())
    assert (recipe.name, recipe.stem) == (name, stem)
    assert command.split()[recipe.position] == name


@pytest.mark.parametrize(
    ("words", "name", "answer"),
    [
        ("/v/bin/python3 -u -X dev recipes/x.py --a", "recipes/x.py", True),
        ("/v/bin/python3 /v/bin/accelerate launch recipes/x.py", "recipes/x.py", False),
        ("python -m torch.distributed.run recipes/x.py", "recipes/x.py", False),
        ("python -m hftune.recipes.x --a", "hftune.recipes.x", True),
        ("python -c spawn_main recipes/x.py", "recipes/x.py", False),
        ("vim recipes/x.py", "recipes/x.py", False),
        ("timeout 9 python recipes/x.py", "recipes/x.py", False),
        ("", "recipes/x.py", False),
    ],
)
def test_which_command_lines_are_of_a_training(words, name, answer):
    assert runs_recipe(words.split(), name) is answer


# run_progressive_training.sh


@pytest.fixture
def shell_script(tmp_path, repository, monkeypatch) -> Callable[..., tuple[list[str], str]]:
    """Runs the script with an ``hftune`` that only writes down what it is called with."""
    fake = tmp_path / "bin" / "hftune"
    fake.parent.mkdir()
    fake.write_text(
        f"#!{sys.executable}\nimport json, sys\njson.dump(sys.argv[1:], open('argv.json', 'w'))\n",
        encoding="utf-8",
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)  # it must not matter where it is called

    def run(*words: str) -> tuple[list[str], str]:
        script = repository / "run_progressive_training.sh"
        done = subprocess.run([script, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(Path("argv.json").read_text(encoding="utf-8")), done.stdout

    return run


def test_the_six_arguments_of_the_manual(shell_script, repository, monkeypatch):
    recipe = str(repository / "recipes" / "progressive.py")
    begin = ["background", "start", "--", "accelerate", "launch"]
    argv, said = shell_script()
    assert argv == [*begin, recipe]
    assert said.splitlines()[2:] == [
        "  ps -p $(cat checkpoints_transfer/progressive_training.pid)",
        "  tail -f checkpoints_transfer/logs/progressive_training_*.log",
        "  tail -f checkpoints_transfer/stage_*_*pct/logs/*.log",
        "  kill $(cat checkpoints_transfer/progressive_training.pid)",
    ]
    argv, _ = shell_script("bert-base-uncased", "0.1", "0.2", "1.0", "2", "4000", "--resume", "a b")
    assert argv[6:] == [
        "--pretrained", "bert-base-uncased", "--start-ratio", "0.1", "--step-size", "0.2",
        "--max-ratio", "1.0", "--epochs-per-stage", "2", "--max-memory-mb", "4000",
        "--resume", "a b",
    ]  # fmt: skip
    argv, said = shell_script("my model", "", "0.2", "--output_dir", "my $runs/x")
    assert argv[6:] == [
        "--pretrained", "my model", "--step-size", "0.2", "--output_dir", "my $runs/x"
    ]  # fmt: skip
    assert r"ps -p $(cat my\ \$runs/x/progressive_training.pid)" in said
    monkeypatch.setenv("ACCELERATE_CONFIG", "my config.yaml")
    argv, _ = shell_script("--max-ratio", "0.1")
    assert argv == [*begin, "--config_file", "my config.yaml", recipe, "--max-ratio", "0.1"]


def test_the_help_of_the_script_starts_nothing(repository, tmp_path):
    script = repository / "run_progressive_training.sh"
    done = subprocess.run([script, "-h"], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("usage: run_progressive_training.sh [PRETRAINED")
    assert not list(tmp_path.iterdir())
