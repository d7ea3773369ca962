"""Do notebooks, package and README agree? And all tests, of the notebooks and of tests/: python tools/all_tests.py

Many tests of tests/ wait: for a process to end, for a lock, for a clock. The other two use the cores meanwhile.
A disagreement ends everything at once. What the notebooks say is shown at the end, so that no line is in the middle of another.
"""
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHECK = [sys.executable, "tools/check.py"]
CHAPTERS = [sys.executable, "tools/chapters.py", "slow"]
TESTS = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "tests"]


def together(check, chapters, tests):
    "Run the tests; beside them the check and, if that ends with 0, the chapters: did all three end with 0?"
    with tempfile.TemporaryFile() as said, subprocess.Popen(tests, cwd=ROOT) as first:
        try:
            if subprocess.run(check, cwd=ROOT).returncode:
                first.send_signal(signal.SIGINT) # so that pytest ends what it has started
                return False
            second = subprocess.Popen(chapters, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
            try:
                passed = not first.wait()
                if second.poll() is None: print("the notebooks go on", flush=True)
                passed = not second.wait() and passed
            finally: second.kill()
        except BaseException:
            first.kill()
            raise
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return passed


if __name__ == "__main__": sys.exit(not together(CHECK, CHAPTERS, TESTS))
