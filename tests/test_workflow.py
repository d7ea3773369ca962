"The workflow makes runs side by side and then the figures; killed or out of time, it goes on; called again it has nothing to do."
import getpass, json, os, shutil, signal, socket, subprocess, sys, tempfile, threading, time
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT/"workflow"/"profiles"/"slurm"
DAEMONS = [shutil.which(d, path=os.environ["PATH"] + ":/usr/sbin:/sbin") for d in ("slurmctld", "slurmd")]
pytestmark = pytest.mark.skipif(not find_spec("snakemake"), reason="snakemake is not installed: pip install '.[workflow]', with Python 3.11 or newer")

# `trustdd` of this source tree, whatever is installed, without a GPU: figures compute where they can. The first time, the run with POE gets one second, which is not enough.
COMMAND = """#!/bin/sh
here=$(dirname "$0")
case "$*" in "run "*"--outliers poe "*) mkdir "$here/late" 2>/dev/null && set -- "$@" --time-budget 1;; esac
echo "$*" >> "$here/commands"
CUDA_VISIBLE_DEVICES= PYTHONPATH=%s OMP_NUM_THREADS=1 exec %s "$@"
"""
INTERPRETER = f"{sys.executable} -m trustdd"

# Asks this process for a copy of one that has imported torch, which ends if the one that asks does.
ASK = """
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as s:
    s.connect(sys.argv[1])
    s.sendall((json.dumps([sys.argv[2:], os.getcwd(), dict(os.environ)]) + chr(10)).encode())
    status, out, err = json.loads(s.makefile().readline())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""


@contextmanager
def copies(forked):
    "The command that ASK is."
    asking = threading.Lock()
    def answer(connection):
        with connection:
            words, cwd, env = json.loads(connection.makefile().readline())
            with asking: child = forked(*words, cwd=cwd, env=env, copies=True)
            connection.settimeout(0.05)
            while child.poll() is None:
                with suppress(TimeoutError):
                    if not connection.recv(1): os.killpg(child.pid, signal.SIGKILL); return
            with suppress(BrokenPipeError): connection.sendall((json.dumps([child.returncode, *child.communicate(0)]) + "\n").encode())
    def serve(listener):
        with suppress(OSError):
            while True: threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()
    with tempfile.TemporaryDirectory() as home, socket.socket(socket.AF_UNIX) as listener: # whose name is short
        (here := Path(home)/"ask.py").write_text(ASK)
        listener.bind(f"{home}/socket")
        listener.listen()
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield f"{sys.executable} -S -E {here} {home}/socket"


@pytest.fixture
def snakemake(tmp_path, forked):
    "`snakemake(items, words…, settings)`: start it in an empty folder; `finished` waits for it."
    command = tmp_path/"trustdd"
    started = []
    def start(only, *words, settings=()):
        env = {k: v for k, v in os.environ.items() if not k.startswith("TRUSTDD_") or k == "TRUSTDD_DATA"} | {"XDG_CACHE_HOME": str(tmp_path/"cache")}
        given = ["preset=smoke", f"only={only}", f"trustdd={command}", "device=cpu", *settings]
        started.append(subprocess.Popen([sys.executable, "-m", "snakemake", "--snakefile", str(ROOT/"workflow"/"Snakefile"), *map(str, words), "--config", *given],
                                        cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True))
        return started[-1]
    with copies(forked) as ask:
        command.write_text(COMMAND % (ROOT, ask))
        command.chmod(0o755)
        yield start
        for child in started:
            if child.poll() is None: os.killpg(child.pid, signal.SIGKILL); child.wait()


def finished(child):
    "What it said, after it has ended with 0."
    out, _ = child.communicate(timeout=600)
    assert child.returncode == 0, out
    return out


def commands(tmp_path, *having):
    "The commands given so far that have all of these words."
    return [c for c in (tmp_path/"commands").read_text().splitlines() if all(h in c for h in having)]


def same_as_on_one_machine(tmp_path, item):
    "`trustdd paper` makes the numbers of the workflow from nothing."
    alone = subprocess.run([tmp_path/"trustdd", "paper", "--preset", "smoke", "--only", item, "--runs", tmp_path/"other", "--out", tmp_path/"alone", "--no-page"], capture_output=True, text=True)
    assert not alone.returncode and (tmp_path/"alone"/f"{item}.csv").read_bytes() == (tmp_path/"figures"/"smoke"/f"{item}.csv").read_bytes(), alone.stderr


def test_killed_out_of_time_made_and_asked_again(snakemake, tmp_path):
    runs, figures = tmp_path/"runs", tmp_path/"figures"/"smoke"
    killed = snakemake("fig02", "--cores", "2", "--retries", "1")
    while not list(runs.rglob("config.json")) or len(commands(tmp_path, "run ", "--outliers poe")) < 2: # a run has begun; the one out of time is sent again
        assert killed.poll() is None, killed.communicate()[0]
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL) # and all of its jobs
    killed.wait()
    assert commands(tmp_path, "run ", "--time-budget 1") and not (figures/"fig02.json").exists()
    finished(snakemake("fig02", "--cores", "2"))
    assert len(list(runs.rglob("report.json"))) == 2 and (figures/"index.html").exists()
    files = {p: p.stat().st_mtime_ns for folder in (runs, figures) for p in folder.rglob("*") if p.is_file()}
    assert "Nothing to be done" in finished(snakemake("fig02", "--cores", "2"))
    assert files == {p: p.stat().st_mtime_ns for p in files}
    same_as_on_one_machine(tmp_path, "fig02")


def test_experts_come_first_and_the_cluster_profile_is_understood(snakemake, tmp_path):
    "A dry run of a table with trajectory matching and one with other networks; nothing is begun."
    words, cluster = ["--dry-run", "--printshellcmds"], find_spec("snakemake_executor_plugin_slurm")
    said = finished(snakemake("tab03,fig18", *words, *(["--workflow-profile", PROFILE] if cluster else ["--cores", "1"])))
    assert not cluster or "--time-budget 7020" in said and "runtime=120" in said
    first = lambda *parts: next(i for i, line in enumerate(said.splitlines()) if all(p in line for p in parts))
    assert first("/trustdd buffers ") < first("/trustdd run ", "--method mtt") < first("/trustdd paper ", "--only tab03") < first("/trustdd gallery ")
    assert first("/trustdd run ", "--method dsa") < first("/trustdd run ", "--networks model=") < first("/trustdd paper ", "--only fig18")
    assert not (tmp_path/"figures").exists() and not (tmp_path/"runs").exists()


def test_a_setting_that_there_is_not(snakemake):
    child = snakemake("fig02", "--dry-run", "--cores", "1", settings=["prest=quick"])
    assert "prest" in child.communicate()[0] and child.returncode


@pytest.mark.parametrize("setting", ["runs=2024_01", "out=1_000", "runs=1e3"])
def test_a_path_that_was_read_as_a_number(snakemake, setting):
    "The runs went into a folder 202401."
    child = snakemake("fig02", "--dry-run", "--cores", "1", settings=[setting])
    said = child.communicate()[0]
    assert child.returncode and f"write the path so that it is one, such as {setting.split('=')[0]}=./NAME" in said


# --- a cluster

NODE = """ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={here}/state
SlurmdSpoolDir={here}/spool
SlurmctldPidFile={here}/slurmctld.pid
SlurmdPidFile={here}/slurmd.pid
SlurmctldLogFile={here}/slurmctld.log
SlurmdLogFile={here}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
MpiDefault=none
GresTypes=gpu
NodeName={node} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000 Gres=gpu:2
PartitionName=gpu Nodes={node} Default=YES
PartitionName=cpu Nodes={node}
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    "SLURM with one node, this machine, which says that it has two GPUs, and with the partitions of the profile: `cluster()` is what it knows of its jobs."
    here, programs = tmp_path/"slurm", tmp_path/"bin"
    for folder in (here, programs, here/"state", here/"spool"): folder.mkdir()
    with socket.socket() as a, socket.socket() as b: [s.bind(("127.0.0.1", 0)) for s in (a, b)]; ports = [s.getsockname()[1] for s in (a, b)]
    (here/"slurm.conf").write_text(NODE.format(here=here, node=socket.gethostname().split(".")[0], user=getpass.getuser(), ports=ports))
    (here/"gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
    (here/"cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    monkeypatch.setenv("SLURM_CONF", str(here/"slurm.conf"))
    (programs/"srun").write_text(f"#!/bin/sh\nSLURM_CONF={here}/slurm.conf exec {shutil.which('srun')} \"$@\"\n") # Snakemake takes SLURM_CONF from its jobs
    (programs/"srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    def said(*words): return subprocess.run(words, capture_output=True, text=True).stdout
    daemons, ends = [], time.monotonic() + 60
    try:
        for d in DAEMONS: daemons.append(subprocess.Popen([d, "-D"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        while said("sinfo", "--noheader", "--format=%T").split() != ["idle"]:
            if time.monotonic() > ends or any(d.poll() is not None for d in daemons): pytest.fail("no cluster: " + "".join(f.read_text()[-2000:] for f in here.glob("*.log")))
            time.sleep(0.1)
        yield lambda: [dict(word.partition("=")[::2] for word in line.split()) for line in said("scontrol", "show", "jobs", "--oneliner").splitlines()]
    finally:
        said("scancel", "--full", "--signal=KILL", "--user", getpass.getuser())
        ends = time.monotonic() + 30
        while time.monotonic() < ends and said("squeue", "--noheader", "--states=R,CG").strip(): time.sleep(0.2)
        for d in daemons[::-1]: d.terminate()
        for d in daemons:
            try: d.wait(timeout=60)
            except subprocess.TimeoutExpired: d.kill(); d.wait()


@pytest.mark.skipif(not (all(DAEMONS) and find_spec("snakemake_executor_plugin_slurm")),
                    reason="needs slurmctld and slurmd (Debian, Ubuntu: apt install slurm-wlm), and pip install '.[workflow]'")
def test_on_a_cluster(cluster, snakemake, tmp_path):
    "The profile as it is: every job asks for what the profile says, the one out of time is sent again, and the figure is that of one machine."
    (tmp_path/"trustdd").write_text(COMMAND % (ROOT, INTERPRETER)) # a process of the job's own
    often = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1", "--slurm-status-command", "squeue"]
    finished(snakemake("fig02", "--workflow-profile", PROFILE, *often))
    first, again = commands(tmp_path, "run ", "--outliers poe")
    assert "--time-budget 7020 --time-budget 1" in first and "--time-budget 7020" in again and "--time-budget 1" not in again
    jobs = cluster()
    assert sorted((j["JobState"], j["Partition"], j.get("TresPerJob"), j["TimeLimit"], j["MinMemoryNode"], j["NumCPUs"]) for j in jobs) == sorted(
        [("COMPLETED", "gpu", "gres:gpu:1", "02:00:00", "16000M", "4")] * 2 + [("FAILED", "gpu", "gres:gpu:1", "02:00:00", "16000M", "4"), ("COMPLETED", "cpu", None, "02:00:00", "16000M", "4")]), jobs
    same_as_on_one_machine(tmp_path, "fig02")
