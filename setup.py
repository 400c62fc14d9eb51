"""Package flowmag_nb from settings.ini, the one place for its metadata."""
from configparser import ConfigParser
from pathlib import Path
from shutil import copy, copytree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
lib = cfg["lib_name"]


class BuildWithData(build_py):
    """What travels with the package lies in a clone's `data`; installed, it lies in the package (see `flowmag_nb.paths.bundled`)."""

    def run(self):
        super().run()
        package = Path(self.build_lib) / lib
        copytree("data/samples", package / "samples", dirs_exist_ok=True)
        for table in Path("data").glob("*.csv"):
            copy(table, package)


setup(
    name=lib, version=cfg["version"], description=cfg["description"], author=cfg["author"],
    license="MIT", keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=[lib, f"{lib}.*"]), package_data={lib: ["weights/*"]},
    install_requires=cfg["requirements"].split(), extras_require=extras,
    cmdclass={"build_py": BuildWithData}, entry_points={"console_scripts": [cfg["console_scripts"]]},
)
