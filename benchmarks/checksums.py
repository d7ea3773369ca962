"""What share of a run goes into checksums: hashes of images, of files that are written, and of files that are read.

python benchmarks/checksums.py                                          a run on digits in preset quick
python benchmarks/checksums.py --dataset cifar10 --preset cifar --ipc 1

SHA-256 and CRC-32 are replaced by ones that watch the clock; everything else is what `trustdd run` does. Prints a row for a new run
and one for reading it back, and adds them to benchmarks/checksums.json.
"""
import argparse, hashlib, json, platform, tempfile, time, zlib
from pathlib import Path

spent = 0.0


def timed(function):
    "The function, with its seconds added to `spent`."
    def call(*args, **kw):
        global spent
        began = time.perf_counter()
        try: return function(*args, **kw)
        finally: spent += time.perf_counter() - began
    return call


class Sha256:
    "hashlib.sha256 that watches the clock."
    def __init__(self, *data):
        self._hash = timed(_sha256)(*data)
        self.update, self.digest, self.hexdigest = (timed(getattr(self._hash, k)) for k in ("update", "digest", "hexdigest"))


_sha256, hashlib.sha256, zlib.crc32 = hashlib.sha256, Sha256, timed(zlib.crc32)


def measure(what, exp, store):
    "A row: seconds of `load_or_run`, and of the checksums in it."
    global spent
    from trustdd import load_or_run
    began, spent = time.perf_counter(), 0.0
    run = load_or_run(exp, store, progress=False)
    run.report, run.distilled, run.scores()
    seconds = time.perf_counter() - began
    return dict(what=what, seconds=round(seconds, 2), checksums=round(spent, 3), share=round(spent / seconds, 4))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, usual in dict(dataset="digits", preset="quick", outliers="poe").items(): parser.add_argument(f"--{name}", default=usual)
    parser.add_argument("--ipc", type=int, default=10)
    fields = vars(parser.parse_args())
    import trustdd
    exp = trustdd.Experiment(**fields)
    with tempfile.TemporaryDirectory() as store:
        rows = [measure(what, exp, Path(store)) for what in ("a new run", "the same, read back")]
    name = f"{exp.dataset} {exp.method} {exp.outliers} ipc {exp.ipc}, preset {exp.preset}"
    for row in rows: print(f"{name}, {row['what']}: {row['seconds']} s, of which checksums {row['checksums']} s ({row['share']:.2%})")
    file = Path(__file__).with_suffix(".json")
    stored = json.loads(file.read_text()) if file.exists() else {}
    stored[name] = dict(rows=rows, machine=platform.processor() or platform.machine())
    file.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__": main()
