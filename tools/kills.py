"""Kill commands at random moments, start them again, and compare the results with those of commands that nobody killed.

python tools/kills.py --kills 60     SIGKILL, SIGTERM and SIGHUP to the command or one of its workers; exit status 1 if a result
                                     is another, a command fails, or a process is left ten seconds later (Linux only)
python tools/kills.py --only paper   of dsa, mtt, evaluate and paper, this one alone
"""
import argparse, json, os, random, signal, subprocess, sys, tempfile, time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TINY = "--dataset digits --preset smoke --outliers poe --ipc 1 --n-test 20 --ood gaussian --device cpu".split()
COMMANDS = {
    "dsa": ["run", *TINY, *"--outer 2 --inner 1 --iterations 40 --n-nets 2 --epochs 60 --runs runs".split()],
    "mtt": ["run", *TINY, *"--method mtt --experts 2 --train-epochs 15 --iterations 40 --n-nets 1 --epochs 60 --runs runs".split()],
    "paper": ["paper", *"--preset smoke --only fig02,fig03 --epochs 5 --n-nets 1 --runs runs --out figures --no-page".split()],
    "evaluate": ["evaluate", "set.safetensors", *"--n-nets 2 --epochs 300 --device cpu --out out".split()],
}
AT_MOST = 4 # kills of one command, which then may finish
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP)


def start(name, folder):
    "The command in a folder and a session of its own."
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TRUSTDD_WORKERS": "2", "TRUSTDD_DATA": str(folder/"data")}
    words = [sys.executable, "-m", "trustdd", *COMMANDS[name]]
    return subprocess.Popen(words, cwd=folder, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def members(folder):
    "The other processes that work in a folder and have not ended: all of its command, also notebooks, which have sessions of their own."
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            state = (process/"stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (process/"cwd").readlink().is_relative_to(folder): found.append(int(process.name))
        except OSError: pass # it has ended, or is somebody else's
    return [number for number in found if number != os.getpid()]


def left_after(folder, seconds=10):
    "The processes of the command in a folder that are still there so many seconds later."
    ends = time.monotonic() + seconds
    while members(folder) and time.monotonic() < ends: time.sleep(0.1)
    return members(folder)


def results(folder):
    "File → what is in it, without seconds and the checksums that cover them."
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("distilled.safetensors", "ood.csv") or path.match("expert*.safetensors"): found[str(path.relative_to(folder))] = path.read_bytes()
        if path.name == "report.json": found[str(path.relative_to(folder))] = {k: v for k, v in json.loads(path.read_text()).items() if k not in ("runs", "checksum")}
        if path.parent.name in ("figures", "notebooks") and path.suffix in (".png", ".pdf", ".csv", ".md", ".tex", ".ipynb"): found[str(path.relative_to(folder))] = path.read_bytes()
        if path.suffix == ".part" or path.name == ".trustdd": found[str(path.relative_to(folder))] = "left over"
    return found


def finish(name, folder):
    "Run the command to its end; the seconds that it took."
    began, process = time.monotonic(), start(name, folder)
    err = process.communicate(timeout=1800)[1]
    assert process.returncode == 0, f"{name} ended with {process.returncode}: {err[-500:]}"
    return time.monotonic() - began


def fresh(straight, name, folder):
    "A folder in which the command may begin."
    folder.mkdir()
    if name == "evaluate": (folder/"set.safetensors").write_bytes(next((straight/"dsa").rglob("distilled.safetensors")).read_bytes())
    return folder


def kill(process, folder, draw, span):
    "Within `span` seconds, send a signal to the command or a worker; False if the command was faster."
    time.sleep(draw.uniform(0, span))
    if process.poll() is not None: return False
    victims = [process.pid] * 2 + members(folder)
    victim, number = draw.choice(victims), draw.choice(SIGNALS)
    try: os.kill(victim, number)
    except ProcessLookupError: return False
    print(f"  {number.name} to the {'command' if victim == process.pid else 'worker'}", flush=True)
    return True


def attempt(name, folder, draw, span):
    "One run of the command with a kill within `span` seconds, none if 0; (was it killed?, is it done?)."
    process = start(name, folder)
    killed = bool(span) and kill(process, folder, draw, span)
    err = process.communicate(timeout=1800)[1]
    left = left_after(folder)
    assert not left, f"{name}: {left} are still there"
    assert killed or process.returncode == 0, f"{name} ended with {process.returncode}: {err[-500:]}"
    return killed, process.returncode == 0


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--kills", type=int, default=60)
    p.add_argument("--only", choices=COMMANDS)
    p.add_argument("--seed", type=int, default=0)
    args = p.parse_args()
    draw, count, rounds = random.Random(args.seed), 0, 0
    with tempfile.TemporaryDirectory() as home:
        home, straight = Path(home), Path(home)/"straight"
        straight.mkdir()
        needed = {"evaluate": ["dsa", "evaluate"]}.get(args.only, [args.only]) if args.only else COMMANDS
        spans = {name: finish(name, fresh(straight, name, straight/name)) for name in needed}
        expected = {name: results(straight/name) for name in needed}
        while count < args.kills:
            name = args.only or list(COMMANDS)[rounds % len(COMMANDS)]
            folder, before, done = fresh(straight, name, home/f"{rounds}"), count, False
            print(f"{name}, {count} kills so far", flush=True)
            while not done:
                killed, done = attempt(name, folder, draw, 0 if count - before >= AT_MOST else spans[name])
                count += killed
            got = results(folder)
            wrong = [k for k in got | expected[name] if got.get(k) != expected[name].get(k)]
            if wrong: sys.exit(f"{name}: {', '.join(wrong)} are not those of a command that nobody killed")
            rounds += 1
    print(f"{count} kills in {rounds} commands: the same bytes, and no process left")


if __name__ == "__main__": main()
