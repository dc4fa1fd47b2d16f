"""A hook of MkDocs: the site has the pages where the repository has them, so that links work in both."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PATTERNS = ("*.md", "docs/**/*.md", "lab/README.md", "lab/reports/**/*.md", "lab/reports/images/*.png", "examples/*.py")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Take the pages, with what they show and link, by their paths in the repository."""
    paths = sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern))
    own = [
        File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
        for path in dict.fromkeys(paths)
    ]
    return Files([*(file for file in files if not file.is_documentation_page()), *own])
