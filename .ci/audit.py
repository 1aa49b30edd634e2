"""Look up the pinned packages in a database of published vulnerabilities, by pip-audit.

    python .ci/audit.py REQUIREMENTS...

Exits with 1 if there is a vulnerability that a later version fixes. Where the database can't be
reached, or doesn't know one that is long known, it says so and exits with 0.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

KNOWN = ("django", "3.2")  # has had published vulnerabilities for years; we don't use it


def audit(requirements: Path) -> tuple[list[str], bool]:
    """Return lines for people, and whether to fail."""
    # a build such as +cpu has the vulnerabilities of its release
    pins = re.sub(r"\+\S+", "", requirements.read_text())
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(f"{pins}\n{'=='.join(KNOWN)}\n")
        file.flush()
        options = ["--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        command = [sys.executable, "-m", "pip_audit", *options, "--requirement", file.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = (done.stderr.strip() or "pip-audit printed nothing").splitlines()[-1]
        return [f"NOT AUDITED: {said}"], False
    return verdict(packages)


def verdict(packages: list[dict]) -> tuple[list[str], bool]:
    """Return lines for people, and whether to fail, from the packages of pip-audit's report."""
    known = [package for package in packages if package["name"] == KNOWN[0]]
    packages = [package for package in packages if package not in known]
    audited = [package for package in packages if "vulns" in package]
    if audited and not any(package.get("vulns") for package in known):
        # a mirror may leave out vulnerabilities, which reads as if there were none
        return [f"NOT AUDITED: the database doesn't know those of {' '.join(KNOWN)}"], False
    if not audited:
        # a mirror of the index that has no database answers so
        return [f"NOT AUDITED: the database knows none of {len(packages)} packages"], False
    unknown = ", ".join(package["name"] for package in packages if package not in audited)
    lines = [f"{len(audited)} of {len(packages)} packages audited"]
    lines += [f"NOT AUDITED: {unknown}"] if unknown else []
    fails = False
    for package in audited:
        for found in package["vulns"]:
            fixed = ", ".join(found["fix_versions"])
            fails = fails or bool(fixed)
            named = f"{package['name']} {package['version']}: {found['id']}"
            lines.append(f"{named}, fixed in {fixed}" if fixed else f"{named}, not fixed yet")
    return lines, fails


if __name__ == "__main__":
    failed = False
    for name in sys.argv[1:]:
        said, fails = audit(Path(name))
        failed = failed or fails
        sys.stdout.write("".join(f"{name}: {line}\n" for line in said))
    sys.exit(failed)
