"""Test the notebooks of the book and, beside them, the files of tests/: python tools/all_tests.py

Many tests wait: for a process to end, for a lock, for a clock. The notebooks use the cores meanwhile.
What they say is shown when both have ended, so that no line is in the middle of another.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = [sys.executable, "tools/chapters.py", "slow"]
TESTS = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "worksteal", "tests"]


def side_by_side(behind, before):
    "Run two commands at once, the output of the first after that of the second: did both end with 0?"
    with tempfile.TemporaryFile() as said:
        first = subprocess.Popen(behind, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try: second = subprocess.run(before, cwd=ROOT).returncode
        except BaseException:
            first.kill()
            raise
        if first.poll() is None: print("the notebooks go on", flush=True)
        first.wait()
        said.seek(0)
        sys.stdout.buffer.write(said.read())
        sys.stdout.flush()
    return first.returncode == second == 0


if __name__ == "__main__": sys.exit(not side_by_side(CHAPTERS, TESTS))
