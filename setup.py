"""Package flowmag_nb from settings.ini, the one place for its metadata."""
from configparser import ConfigParser
from pathlib import Path
from shutil import copytree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ini = ConfigParser(delimiters=["="], interpolation=None)
ini.read("settings.ini", encoding="utf-8")
cfg = ini["DEFAULT"]
extras = {key.removesuffix("_requirements"): cfg[key].split() for key in cfg if key.endswith("_requirements")}
lib = cfg["lib_name"]


class BuildWithSamples(build_py):
    """The bundled clip lives in data/samples; an installed package carries it as `flowmag_nb/samples`."""

    def run(self):
        super().run()
        copytree("data/samples", Path(self.build_lib) / lib / "samples", dirs_exist_ok=True)


setup(
    name=lib, version=cfg["version"], description=cfg["description"], author=cfg["author"],
    license="MIT", keywords=cfg["keywords"], python_requires=f">={cfg['min_python']}",
    long_description=Path("README.md").read_text(encoding="utf-8"), long_description_content_type="text/markdown",
    packages=find_packages(include=[lib, f"{lib}.*"]), package_data={lib: ["weights/*"]},
    install_requires=cfg["requirements"].split(), extras_require=extras,
    cmdclass={"build_py": BuildWithSamples}, entry_points={"console_scripts": [cfg["console_scripts"]]},
)
