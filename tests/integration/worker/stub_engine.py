"""A trainer without a model: it speaks the engine's protocol, keeps real checkpoints, and misbehaves on request.

    python stub_engine.py CONTROL STAGE --config stage.json

CONTROL is a folder. `behaviour` in it, if there, is JSON {steps, seconds, at: {"<step>": <deed>}}, and `before` of what
is done before that step is saved; with the deed "hold" it waits there until it is told otherwise, or to stop. Every
start appends a line to `starts`, `pid` and `child` name the present processes, and `devices` says which it sees. Its
result is a function of its settings and inputs alone, so that a resumed run must equal an uninterrupted one.
"""

import ctypes
import errno
import faulthandler
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def preload() -> None:
    """There is nothing that takes long to load."""


def forked_well() -> bool:
    return not (Path(sys.argv[1]) / "spoilt").exists()


def told(control: Path) -> dict:
    behaviour = {"steps": 4, "seconds": 0.02, "at": {}, "before": {}}
    if (control / "behaviour").exists():
        behaviour |= json.loads((control / "behaviour").read_text())
    return behaviour


def main(arguments: list) -> int:
    control, stage = Path(arguments[0]), json.loads(Path(arguments[3]).read_text())
    stopping = []
    faulthandler.register(signal.SIGUSR1, file=2)
    signal.signal(signal.SIGTERM, lambda *_: stopping.append(True))
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (control / "child").write_text(str(child.pid))
    (control / "devices").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "whatever there is"))
    (control / "pid").write_text(str(os.getpid()))
    try:
        return train(stage, told(control), control, stopping)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        say(type="error", code="disk_full", message=str(error))
        return 1


def train(stage: dict, behaviour: dict, control: Path, stopping: list) -> int:
    checkpoint = Path(stage["work"]) / "checkpoint.json"
    state = json.loads(checkpoint.read_text()) if checkpoint.exists() else {"step": 0, "digest": seed_of(stage)}
    with (control / "starts").open("a") as starts:
        starts.write(f"{stage['stage']} {os.getpid()} {state['step']}\n")
    say(type="message", level="info", message=f"Starting at step {state['step']}.", data={})
    while state["step"] < behaviour["steps"]:
        time.sleep(behaviour["seconds"])
        state = {"step": state["step"] + 1, "digest": hashlib.sha256(state["digest"].encode()).hexdigest()}
        misbehave(behaviour["before"].get(str(state["step"]), ""), control)
        save(checkpoint, state)
        say(type="checkpoint", step=state["step"])
        say(type="progress", step=state["step"], total=behaviour["steps"], metrics={"loss": 1 / state["step"]})
        if stopping:
            return 75
        deed = behaviour["at"].get(str(state["step"]), "")
        while deed == "hold" and not stopping and told(control) == behaviour:
            time.sleep(0.02)
        misbehave(deed, control)
    for output in ("checkpoint", "report"):
        folder = Path(stage["outputs"]) / output
        folder.mkdir()
        (folder / "weights.json").write_text(state["digest"])
    say(type="result", metrics={"loss": 0.5})
    return 0


def misbehave(deed: str, control: Path) -> None:
    """`once:<deed>` happens in the first start that comes here."""
    if deed.startswith("once:"):
        mark = control / "done"
        if mark.exists():
            return
        mark.touch()
        deed = deed.removeprefix("once:")
    if deed == "crash":
        print("Traceback: the stub crashed", file=sys.stderr, flush=True)
        os._exit(1)
    if deed == "oom":
        os.kill(os.getpid(), signal.SIGKILL)
    if deed == "no_pairs":
        say(type="error", code="no_pairs", message="Sample more responses.")
        sys.exit(1)
    if deed.startswith("error:"):
        say(type="error", code=deed.removeprefix("error:"), message="Said by the engine.")
        sys.exit(1)
    if deed == "babble":
        print("progress: 50%|####", flush=True)
        sys.stdout.buffer.write(b"\xff\xfe\n[1]\n{}\n")
    if deed == "nonsense":
        say(type="progress", step=2, total=4, metrics=[1])
        say(type="message", level=["warn"], message="A message.", data=["no object"])
        say(type="news")
    if deed == "segfault":
        ctypes.string_at(0)
    if deed == "fork":
        daemon = os.fork()
        if daemon == 0:
            os.setsid()
            time.sleep(600)
        (control / "daemon").write_text(str(daemon))
    if deed in ("hang", "fork"):
        time.sleep(600)


def seed_of(stage: dict) -> str:
    total = hashlib.sha256(json.dumps(stage["config"], sort_keys=True).encode())
    for folder in sorted(stage["inputs"]):
        for path in sorted(Path(stage["inputs"][folder]).rglob("*")):
            if path.is_file():
                total.update(path.read_bytes())
    return total.hexdigest()


def save(path: Path, state: dict) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(json.dumps(state))
    aside.replace(path)


def say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
