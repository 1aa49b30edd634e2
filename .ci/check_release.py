"""Check that a tag is the version of setup.cfg, and that the changelog has it.

python .ci/check_release.py v1.2.3
"""

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """Return what is wrong with releasing a commit under a tag."""
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg", encoding="utf-8")
    version = setup["metadata"]["version"]
    found = []
    if tag != f"v{version}":
        found.append(f"the tag is {tag}, and setup.cfg has the version {version}")
    heading = re.search(r"^## (.+)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if heading is None or not re.fullmatch(
        rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading[1]
    ):
        told = heading[1] if heading else "nothing"
        found.append(f"CHANGELOG.md begins with {told!r} and not with '{version} (YEAR-MONTH-DAY)'")
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems(sys.argv[1])) or 0)
