"""The site's own additions: README and the like as pages, and no links to files that a site does not have."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"README.md": "start.md", "CONTRIBUTING.md": "contribute.md", "CHANGELOG.md": "changes.md"}
_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)(?: \"(?P<title>[^\"]*)\")?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie beside docs/."""
    for name, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ to pages of the site, or to their text; on a code host they lead to the files."""
    beside = page.file.src_uri in PAGES.values()
    fences = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(one if one.startswith("```") else _LINK.sub(lambda m: _link(m, beside), one) for one in fences)


def _link(found: re.Match[str], beside: bool) -> str:
    text, target, title = found["text"], found["target"], found["title"]
    if "://" in target or target.startswith(("#", "mailto:")):
        return found[0]
    path, _, anchor = target.partition("#")
    inside = f"docs/{path}" if not beside else path
    inside = str((ROOT / inside).resolve().relative_to(ROOT))
    if inside.startswith("docs/") and (ROOT / inside).is_file():
        page = inside.removeprefix("docs/")
    elif inside in PAGES:
        page = PAGES[inside]
    else:
        return f'<span title="{title}">{text}</span>' if title else text
    return f"[{text}]({page}{'#' + anchor if anchor else ''})"
