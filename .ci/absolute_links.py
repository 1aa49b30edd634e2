"""Rewrite the links of a README for the package index, which knows nothing of the repository.

python .ci/absolute_links.py README.md ADDRESS TAG
"""

import re
import sys
from pathlib import Path

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?!https?:|#)(?P<target>[^)]+)\)")


def absolute(text: str, address: str, tag: str) -> str:
    """Return a README whose links lead to a repository as it is at a tag."""

    def rewritten(link: re.Match[str]) -> str:
        view = "raw" if link["picture"] else "blob"
        return f"{link['picture']}[{link['text']}]({address}/{view}/{tag}/{link['target']})"

    return LINK.sub(rewritten, text).replace("git clone REPOSITORY", f"git clone {address}")


if __name__ == "__main__":
    readme = Path(sys.argv[1])
    readme.write_text(absolute(readme.read_text("utf-8"), *sys.argv[2:]), "utf-8")
