"""Build hooks of the site: the README as start page, and a page of API reference for every module."""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

sys.path.insert(0, str(Path(__file__).parent))
from gen_map import ROOT, modules

FRONT = {"README": "index", "CONTRIBUTING": "contributing", "CHANGELOG": "changelog"}  # files at the root -> pages


def pages() -> dict[str, str]:
    """Module -> its page: a package's is the index of its folder."""
    return {
        name: "api/" + name.replace(".", "/") + ("/index.md" if file.name == "__init__.py" else ".md")
        for name, file in modules().items()
    }


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add to the navigation the decisions, and the reference, nested as the packages are."""
    tree: dict[str, object] = {}
    for name, page in pages().items():
        node, parts = tree, name.split(".")
        for part in parts if page.endswith("/index.md") else parts[:-1]:
            node = node.setdefault(part, {})  # type: ignore[assignment]
        node["" if page.endswith("/index.md") else parts[-1]] = page
    assert config.nav is not None
    decisions = sorted(file.name for file in (ROOT / "docs" / "decisions").glob("*.md"))
    config.nav += [{"Decisions": [f"decisions/{name}" for name in decisions]}, {"API reference": _nav(tree)}]
    return config


def _nav(tree: dict[str, object]) -> list[object]:
    return [{k: _nav(v)} if isinstance(v, dict) else v if k == "" else {k: v} for k, v in tree.items()]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in docs/: front pages, notebooks that they link to, and the reference."""
    for source, page in FRONT.items():
        text = (ROOT / f"{source}.md").read_text("utf-8").replace("](docs/", "](")
        text = re.sub(rf"\]\(({'|'.join(FRONT)})\.md", lambda m: f"]({FRONT[m[1]]}.md", text)
        files.append(File.generated(config, f"{page}.md", content=text.replace('src="docs/', 'src="')))
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        files.append(File.generated(config, f"notebooks/{notebook.name}", abs_src_path=str(notebook)))
    for name, page in pages().items():
        files.append(File.generated(config, page, content=f"# `{name}`\n\n::: {name}\n"))
    return files
