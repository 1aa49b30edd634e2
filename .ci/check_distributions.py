"""Check the contents of the distributions in a folder: all that is committed, and nothing else.

Their description must lead somewhere from the package index, too.

python .ci/check_distributions.py FOLDER
"""

import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

PACKAGES = ("blackbox/", "backends/")
NOT_IN_SDIST = (".github/", "deploy/", ".gitignore", ".pre-commit-config.yaml", ".yamllint.yml")
MADE = ("PKG-INFO", "promptboosting.egg-info/")


def differences(committed: set[str], sdist: set[str], wheel: set[str]) -> list[str]:
    """Return what is missing from the distributions, or not meant for them."""
    source = {name for name in committed if not name.startswith(NOT_IN_SDIST)}
    library = {name for name in committed if name.startswith(PACKAGES)}
    held = {name for name in sdist if not name.startswith(MADE)}
    installed = {name for name in wheel if ".dist-info/" not in name}
    return [
        *(f"not in the source distribution: {name}" for name in sorted(source - held)),
        *(f"only in the source distribution: {name}" for name in sorted(held - source)),
        *(f"not in the wheel: {name}" for name in sorted(library - installed)),
        *(f"only in the wheel: {name}" for name in sorted(installed - library)),
        *(["not in the wheel: LICENSE"] if not any("LICENSE" in name for name in wheel) else []),
    ]


def relative_links(metadata: str) -> list[str]:
    """Return what in a description leads nowhere outside of the repository."""
    found = re.findall(r"\]\((?!https?:|#)([^)]+)\)|(git clone REPOSITORY)", metadata)
    return [f"a link of the description: {link or command}" for link, command in found]


def main(folder: Path) -> list[str]:
    """Return the differences of the distributions in a folder from what git has, and bad links."""
    (archive,), (built,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    with tarfile.open(archive) as tar:
        files = [member.name for member in tar if not member.isdir()]
    sdist = {name.partition("/")[2] for name in files}
    with zipfile.ZipFile(built) as package:
        wheel = set(package.namelist())
        (name,) = [one for one in wheel if one.endswith(".dist-info/METADATA")]
        metadata = package.read(name).decode()
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True)
    return [*differences(set(listed.stdout.splitlines()), sdist, wheel), *relative_links(metadata)]


if __name__ == "__main__":
    found = main(Path(sys.argv[1]))
    sys.stderr.write("".join(f"{line}\n" for line in found))
    sys.exit(bool(found))
