"""What we depend on: exact versions written anew, and whether any is known to be vulnerable.

    python .ci/dependencies.py constraints   # resolve pyproject.toml with every extra, write constraints.txt
    python .ci/dependencies.py audit         # ask the Python Packaging Advisory Database about constraints.txt
    python .ci/dependencies.py audit --strict            # fail, too, if anything could not be looked up
    python .ci/dependencies.py audit --osv https://…/v1/query   # ask another database, such as a mirror of OSV

`constraints` takes the newest versions that go together, whatever is installed here; pip's own resolver finds them and
installs nothing. `audit` fails on a known vulnerability. What could not be looked up, because the database was out of
reach or does not know the package, is counted and said: not looked up is not the same as nothing found.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"


def resolve() -> list[str]:
    """`name==version` of everything the project and all its extras need, in the order of names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = ",".join(project.get("optional-dependencies", {}))
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        subprocess.run([*command, "--report", str(report), f"{ROOT}[{extras}]"], check=True)
        found = json.loads(report.read_text())["install"]
    packages = [(item["metadata"]["name"], item["metadata"]["version"]) for item in found]
    lines = [f"{name}=={version}" for name, version in packages if name != project["name"]]
    return sorted(lines, key=lambda line: normal(line.partition("==")[0]))


def normal(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def audit(requirements: Path = CONSTRAINTS, *, strict: bool = False, osv: str | None = None) -> int:
    """Ask about every line; gives the status to end with.

    Args:
        strict: fail if the database gave no answer, or none about some package.
        osv: URL to ask in OSV's protocol; none: PyPI, which has the advisory database.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(requirements), "--no-deps", "--disable-pip"]
    command += ["--vulnerability-service", "osv", "--osv-url", osv] if osv else []
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=False)
    try:
        rows = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"NOT AUDITED: the vulnerability database gave no answer.\n{done.stderr.strip()[-500:]}")
        return int(strict)
    return tell(rows, strict=strict)


def tell(rows: list[dict], *, strict: bool = False) -> int:
    """Print what was found of each package; status 1 if any is vulnerable, or in doubt if `strict`."""
    vulnerable = [row for row in rows if row.get("vulns")]
    skipped = [row for row in rows if "skip_reason" in row]
    for row in vulnerable:
        for one in row["vulns"]:
            mended = ", ".join(one["fix_versions"]) or "none yet"
            print(f"{row['name']} {row['version']}: {one['id']}, mended in {mended}")
    if skipped:
        names = ", ".join(row["name"] for row in skipped[:5]) + (", …" if len(skipped) > 5 else "")
        print(f"NOT AUDITED: {len(skipped)} of {len(rows)} packages could not be looked up ({names}).")
    print(f"{len(rows) - len(skipped)} packages looked up, {len(vulnerable)} of them with known vulnerabilities.")
    return 1 if vulnerable or (strict and skipped) else 0


def main() -> int:
    match sys.argv[1:]:
        case ["constraints"]:
            lines = resolve()
            CONSTRAINTS.write_text("\n".join(lines) + "\n")
            print(f"{len(lines)} packages in {CONSTRAINTS.name}; now `make check test`.")
            return 0
        case ["audit", *options]:
            parser = argparse.ArgumentParser(prog="dependencies.py audit")
            parser.add_argument("--strict", action="store_true")
            parser.add_argument("--osv", metavar="URL")
            return audit(**vars(parser.parse_args(options)))
        case _:
            print(__doc__, file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main())
