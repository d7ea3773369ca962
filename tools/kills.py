"""Kill commands at random moments, start them again, and compare the results with those of commands that nobody killed.

python tools/kills.py --kills 30     SIGKILL, SIGTERM and SIGHUP to the command or one of its workers; exit status 1 if a result
                                     is another, a command fails, or a process is left ten seconds later (Linux only)
"""
import argparse, json, os, random, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = "--dataset digits --preset smoke --outliers poe --ipc 1 --n-test 20 --ood gaussian --device cpu".split()
COMMANDS = {
    "dsa": ["run", *TINY, *"--outer 2 --inner 1 --iterations 40 --n-nets 2 --epochs 60 --runs runs".split()],
    "mtt": ["run", *TINY, *"--method mtt --experts 2 --train-epochs 15 --iterations 40 --n-nets 1 --epochs 60 --runs runs".split()],
    "evaluate": ["evaluate", "set.safetensors", *"--n-nets 2 --epochs 300 --device cpu --out out".split()],
}
SPAN, AT_MOST = 20, 4 # seconds within which a kill comes; kills of one command, which then may finish
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def start(name, folder):
    "The command in a folder and a session of its own."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRUSTDD_WORKERS": "2"}
    words = [sys.executable, "-m", "trustdd", *COMMANDS[name]]
    return subprocess.Popen(words, cwd=folder, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def members(session):
    "The processes of a session that have not ended."
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try: words = file.read_text().rpartition(")")[2].split()
        except OSError: continue
        if int(words[3]) == session and words[0] != "Z": found.append(int(file.parent.name))
    return found


def left_after(session, seconds=10):
    "The processes of a session that are still there so many seconds later."
    ends = time.monotonic() + seconds
    while members(session) and time.monotonic() < ends: time.sleep(0.1)
    return members(session)


def results(folder):
    "File → what is in it, without seconds and the checksums that cover them."
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("distilled.safetensors", "ood.csv") or path.match("expert*.safetensors"): found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == "report.json": found[str(path.relative_to(folder))] = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("runs", "checksum")}
        if path.suffix == ".part" or path.name == ".trustdd": found[str(path.relative_to(folder))] = "left over"
    return found


def finish(name, folder):
    "Run the command to its end."
    process = start(name, folder)
    err = process.communicate(timeout=600)[1]
    assert process.returncode == 0, f"{name} ended with {process.returncode}: {err[-500:]}"


def fresh(straight, name, folder):
    "A folder in which the command may begin."
    folder.mkdir()
    (folder/"settings.ini").write_text("[DEFAULT]\nlib_name = trustdd\n")
    if name == "evaluate": (folder/"set.safetensors").write_bytes(next((straight/"dsa").rglob("distilled.safetensors")).read_bytes())
    return folder


def kill(process, draw):
    "Wait a moment, then send a signal to the command or a worker; False if the command was faster."
    time.sleep(draw.uniform(1, SPAN))
    if process.poll() is not None: return False
    victims = [process.pid] * 2 + members(process.pid)
    victim, number = draw.choice(victims), draw.choice(SIGNALS)
    try: os.kill(victim, number)
    except ProcessLookupError: return False
    print(f"  {number.name} to the {'command' if victim == process.pid else 'worker'}", flush=True)
    return True


def attempt(name, folder, draw, spared):
    "One run of the command with a kill, unless it is spared; (was it killed?, is it done?)."
    process = start(name, folder)
    killed = not spared and kill(process, draw)
    err = process.communicate(timeout=600)[1]
    left = left_after(process.pid)
    assert not left, f"{name}: {left} are still there"
    assert killed or process.returncode == 0, f"{name} ended with {process.returncode}: {err[-500:]}"
    return killed, process.returncode == 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=30)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    draw, count, rounds = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as home:
        home, straight = Path(home), Path(home)/"straight"
        straight.mkdir()
        for name in COMMANDS: finish(name, fresh(straight, name, straight/name))
        expected = {name: results(straight/name) for name in COMMANDS}
        while count < args.kills:
            name = list(COMMANDS)[rounds % len(COMMANDS)]
            folder, before, done = fresh(straight, name, home/f"{rounds}"), count, False
            print(f"{name}, {count} kills so far", flush=True)
            while not done:
                killed, done = attempt(name, folder, draw, count - before >= AT_MOST)
                count += killed
            got = results(folder)
            wrong = [k for k in got | expected[name] if got.get(k) != expected[name].get(k)]
            if wrong: sys.exit(f"{name}: {', '.join(wrong)} are not those of a command that nobody killed")
            rounds += 1
    print(f"{count} kills in {rounds} commands: the same bytes, and no process left")


if __name__ == "__main__": main()
