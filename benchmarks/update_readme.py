"""Put the tables of benchmarks/results into the README, between the markers that name them.

Run `python benchmarks/update_readme.py` after any of the other benchmarks.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Replace what stands between each pair of markers."""
    readme = ROOT / "README.md"
    text = readme.read_text()
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.md")):
        pattern = re.compile(rf"(<!-- {path.stem}: begin -->\n).*?(<!-- {path.stem}: end -->)", re.DOTALL)
        content = path.read_text().strip()
        text = pattern.sub(lambda match, content=content: f"{match[1]}{content}\n{match[2]}", text)
    readme.write_text(text)


if __name__ == "__main__":
    main()
