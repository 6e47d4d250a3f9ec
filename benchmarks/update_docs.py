"""Put the tables of benchmarks/results and benchmarks/growth/results where the documentation's markers name them.

Run `python benchmarks/update_docs.py` after any of the other benchmarks.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Replace what stands between each pair of markers, in the README and in docs/."""
    tables = [path for folder in ("", "growth/") for path in (ROOT / f"benchmarks/{folder}results").glob("*.md")]
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text()
        for path in tables:
            pattern = re.compile(rf"(<!-- {path.stem}: begin -->\n).*?(<!-- {path.stem}: end -->)", re.DOTALL)
            content = path.read_text().strip()
            text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
        page.write_text(text)


if __name__ == "__main__":
    main()
