"""Fail when a test was skipped that the committed list doesn't allow."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

allowed = {
    line.strip()
    for line in Path(sys.argv[1]).read_text().splitlines()
    if line.strip() and not line.startswith("#")
}
skipped = {
    f"{case.get('classname')}::{case.get('name')}"
    for report in sys.argv[2:]
    for case in ElementTree.parse(report).iter("testcase")
    if case.find("skipped") is not None and case.find("skipped").get("type") != "pytest.xfail"
}
for name in sorted(skipped - allowed):
    sys.stderr.write(f"skipped and not allowed to be: {name}\n")
sys.exit(bool(skipped - allowed))
