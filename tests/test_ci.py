"""The scripts and pinned versions of CI."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
LOCKS = [ROOT / ".ci" / name for name in ("constraints.txt", "constraints-engines.txt")]


def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def requirements():
    """Every requirement of setup.cfg."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lists = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    lines = [line for one in lists for line in one.split("\n") if line.strip()]
    return [Requirement(line) for line in lines if not line.startswith("promptboosting")]


def pins(path):
    lines = path.read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_every_pinned_version_is_one_that_the_package_allows(lock):
    pinned = {name.lower().replace("_", "-"): version for name, version in pins(lock).items()}
    checked = 0
    for requirement in requirements():
        version = pinned.get(requirement.name.lower().replace("_", "-"))
        if version is not None:
            assert requirement.specifier.contains(version), f"{requirement}: {version}"
            checked += 1
    assert checked > 10


def test_versions_with_known_vulnerabilities_are_excluded():
    affected = {
        "torch": ["2.6.0", "2.9.1", "2.10.0"],  # CVE-2025-32434, CVE-2026-24747, PYSEC-2026-139
        "transformers": ["5.2.0", "5.8.1"],  # CVE-2026-4372, CVE-2026-9856
        "starlette": ["0.49.0", "1.0.0", "1.3.0"],  # CVE-2025-62727, -2026-48710, -54283
        "pyarrow": ["23.0.0"],  # CVE-2026-25087
        "click": ["8.3.2"],  # CVE-2026-7246
        "filelock": ["3.20.2"],  # CVE-2025-68146, CVE-2026-22701
        "jinja2": ["3.1.5"],  # CVE-2025-27516
        "tqdm": ["4.66.2"],  # CVE-2024-34062
        "pytest": ["9.0.2"],  # CVE-2025-71176
    }
    named = {requirement.name for requirement in requirements()}
    assert affected.keys() <= named
    for requirement in requirements():
        for version in affected.get(requirement.name, []):
            assert not requirement.specifier.contains(version), requirement


KNOWN = {"name": "django", "version": "3.2", "vulns": [{"id": "CVE-0", "fix_versions": ["9"]}]}


class TestAudit:
    def test_what_the_database_does_not_know_is_not_called_audited(self):
        packages = [{"name": "a", "skip_reason": "not found"}]
        assert audit().verdict(packages) == (
            ["NOT AUDITED: the database knows none of 1 packages"],
            False,
        )

    def test_a_vulnerability_with_a_fix_fails_and_one_without_is_only_named(self):
        open_hole = {"id": "CVE-1", "fix_versions": []}
        fixed_hole = {"id": "CVE-2", "fix_versions": ["1.1"]}
        packages = [
            {"name": "a", "version": "1.0", "vulns": []},
            {"name": "b", "version": "1.0", "vulns": [open_hole]},
            KNOWN,
        ]
        lines, fails = audit().verdict(packages)
        assert not fails
        assert lines == ["2 of 2 packages audited", "b 1.0: CVE-1, not fixed yet"]
        packages[0]["vulns"].append(fixed_hole)
        lines, fails = audit().verdict(packages)
        assert fails
        assert lines[1] == "a 1.0: CVE-2, fixed in 1.1"

    def test_a_database_without_what_is_long_known_is_not_called_an_audit(self):
        packages = [{"name": "a", "version": "1.0", "vulns": []}, KNOWN | {"vulns": []}]
        lines, fails = audit().verdict(packages)
        assert (len(lines), fails) == (1, False)
        assert "NOT AUDITED" in lines[0]

    def test_packages_that_the_database_lacks_are_named(self):
        packages = [
            {"name": "a", "version": "1.0", "vulns": []},
            {"name": "b", "skip_reason": "not found"},
            KNOWN,
        ]
        lines = ["1 of 2 packages audited", "NOT AUDITED: b"]
        assert audit().verdict(packages) == (lines, False)

    def test_a_database_that_cannot_be_reached_fails_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "pins.txt").write_text("a==1+cpu\n")
        (tmp_path / "pip_audit.py").write_text("raise SystemExit('could not connect')")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        assert audit().audit(tmp_path / "pins.txt") == (["NOT AUDITED: could not connect"], False)


def script(name):
    """A script of .ci, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_release_has_the_version_and_the_changelog_of_its_tag(tmp_path):
    (tmp_path / "setup.cfg").write_text("[metadata]\nversion = 1.2.0\n")
    changelog = tmp_path / "CHANGELOG.md"
    problems = script("check_release").problems
    changelog.write_text("# Changelog\n\n## 1.2.0 (2026-12-01)\n")
    assert problems("v1.2.0", tmp_path) == []
    assert problems("v1.2.1", tmp_path) == [
        "the tag is v1.2.1, and setup.cfg has the version 1.2.0"
    ]
    changelog.write_text("# Changelog\n\n## 1.2.0 (unreleased)\n")
    (told,) = problems("v1.2.0", tmp_path)
    assert "begins with '1.2.0 (unreleased)'" in told


def test_distributions_hold_what_is_committed_and_nothing_else():
    differences = script("check_distributions").differences
    committed = {"setup.cfg", "blackbox/a.py", "tests/b.py", ".gitignore", "deploy/Dockerfile"}
    sdist = {"setup.cfg", "blackbox/a.py", "tests/b.py", "PKG-INFO"}
    wheel = {"blackbox/a.py", "x.dist-info/METADATA", "x.dist-info/licenses/LICENSE"}
    assert differences(committed, sdist, wheel) == []
    assert differences(committed, sdist - {"tests/b.py"} | {"notes"}, wheel | {"tests/b.py"}) == [
        "not in the source distribution: tests/b.py",
        "only in the source distribution: notes",
        "only in the wheel: tests/b.py",
    ]
    assert differences(committed, sdist, set()) == [
        "not in the wheel: blackbox/a.py",
        "not in the wheel: LICENSE",
    ]


def test_the_links_of_the_readme_lead_somewhere_from_the_package_index_too():
    readme = (ROOT / "README.md").read_text("utf-8")
    relative_links = script("check_distributions").relative_links
    assert len(relative_links(readme)) > 10
    text = script("absolute_links").absolute(readme, "https://example.org/o/n", "v1.2.0")
    assert relative_links(text) == []
    assert "](https://example.org/o/n/raw/v1.2.0/docs/images/terminal.svg)" in text
    assert "](https://example.org/o/n/blob/v1.2.0/docs/start.md#your-own-texts)" in text
    assert "git clone https://example.org/o/n promptboosting" in text


def test_the_version_comes_from_one_place():
    import blackbox

    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert blackbox.__version__ == setup["metadata"]["version"]
