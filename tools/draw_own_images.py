"""Make docs/own-images.png and .txt: `trustdd run` and `trustdd show` on a folder of images.

The folder holds square tiles of two photographs that come with scikit-learn, a flower and a temple
in China: two classes. Tiles of the left three quarters are for training, the others for testing.
"""
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

ROOT = Path(__file__).resolve().parent.parent
SIDE, STEP = 96, 32 # pixels


def cut(folder):
    "Tiles as folder/train/CLASS/N.png and folder/test/CLASS/N.png."
    for name in ("china", "flower"):
        photo = load_sample_image(f"{name}.jpg")
        height, width = photo.shape[:2]
        border = width * 3 // 4
        for x in range(0, width - SIDE + 1, STEP):
            if x < border < x + SIDE: continue # no pixel is in both
            for y in range(0, height - SIDE + 1, STEP):
                path = folder/("train" if x < border else "test")/name/f"{x}-{y}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(photo[y:y + SIDE, x:x + SIDE]).save(path)


def main():
    with tempfile.TemporaryDirectory() as folder:
        cut(Path(folder)/"photos")
        def trustdd(*words):
            done = subprocess.run([sys.executable, "-m", "trustdd", *words], cwd=folder, check=True,
                                  stdout=subprocess.PIPE, text=True)
            return done.stdout
        said = trustdd("run", "--dataset", "photos@32", "--outliers", "poe", "--ipc", "10",
                       "--preset", "quick", "--runs", "runs")
        said = said.replace(f"{Path(folder).resolve()}/", "")
        (ROOT/"docs"/"own-images.txt").write_text(said, encoding="utf-8")
        run = next(Path(folder).glob("runs/**/distilled.safetensors"))
        trustdd("show", str(run), "--out", str(ROOT/"docs"/"own-images.png"))


if __name__ == "__main__": main()
