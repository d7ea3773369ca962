"Packaging, read from settings.ini: one place for names, versions and requirements."
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

here = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(here/"settings.ini", encoding="utf-8")
s = config["DEFAULT"]
readme = here/"README.md"
long_description = readme.read_text(encoding="utf-8") if readme.exists() else s["description"]

class WithNotebooks(build_py):
    "The package, and in it the notebooks of figures and tables, which a clone has in nbs/paper."
    def run(self):
        super().run()
        to = Path(self.build_lib)/s["lib_path"]/"paper"
        for file in () if self.editable_mode else sorted((here/"nbs"/"paper").glob("[!.]*.*")):
            self.mkpath(str(to))
            self.copy_file(str(file), str(to/file.name))


setup(
    cmdclass=dict(build_py=WithNotebooks),
    name=s["lib_name"],
    version=s["version"],
    description=s["description"],
    long_description=long_description,
    long_description_content_type="text/markdown",
    keywords=s["keywords"].split(),
    author=s["author"],
    author_email=s["author_email"],
    license=s["license"].upper(),
    packages=find_packages(include=[s["lib_path"], s["lib_path"] + ".*"]),
    package_data={s["lib_path"]: ["templates/*", "*/templates/*"]},
    python_requires=f">={s['min_python']}",
    install_requires=s["requirements"].split(),
    extras_require={k: s[f"{k}_requirements"].split() for k in ("book", "dev", "workflow")},
    entry_points={"console_scripts": s["console_scripts"].split()},
    classifiers=["Intended Audience :: Science/Research", "Programming Language :: Python :: 3",
                 "Topic :: Scientific/Engineering :: Artificial Intelligence"],
)
