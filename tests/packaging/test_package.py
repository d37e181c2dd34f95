"""What strangers install: wheel and source distribution, the image's recipe, the bill of materials, the versions."""

from __future__ import annotations

import importlib.util
import json
import re
import sysconfig
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tests.wheel import ROOT, build, install, run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the source distribution, and the wheel that was built from it."""
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def program(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`expunge` of a clean environment with the wheel."""
    return install(built, tmp_path_factory.mktemp("clean"))


def test_the_wheel_holds_the_packages_and_what_they_show(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package in ("service", "unlearning", "audit"):
        on_disk = {
            str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }  # fmt: skip
        assert on_disk <= names, sorted(on_disk - names)
    assert not any(name.startswith(("tests", "docs", "benchmarks")) for name in names)


def test_the_source_distribution_holds_licence_and_sources(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {
        "LICENSE",
        "README.md",
        "pyproject.toml",
        "service/erasure/pipeline.py",
        "audit/report/templates/report.html",
    } <= names


def test_the_installed_program_makes_and_checks_data(program: Path, tmp_path: Path) -> None:
    home = {"EXPUNGE_HOME": str(tmp_path / "home")}
    told = run(str(program), "--help", cwd=tmp_path, **home)
    assert (told.returncode, "references" in told.stdout) == (0, True), told.stderr
    made = run(str(program), "data", "synthetic", "--subjects", "10", "--images", "2", cwd=tmp_path, **home)
    assert made.returncode == 0, made.stderr
    checked = run(str(program), "data", "check", cwd=tmp_path, **home)
    assert "20 images of 10 people: every rule holds." in checked.stdout, checked.stderr
    where = run(str(program.parent / "python"), "-c", "import service; print(service.__file__)", cwd=tmp_path)
    assert str(program.parents[1]) in where.stdout


def test_the_image_s_recipe_passes_its_linter() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = run(str(hadolint), str(ROOT / "deploy" / "docker" / "Dockerfile"), cwd=ROOT)
    assert done.returncode == 0, done.stdout


def test_the_image_s_recipe_copies_what_is_there_and_runs_as_nobody_special() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    sources = [word for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE) for word in line.split()[:-1]]
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().splitlines()}
    assert sources
    assert all((ROOT / source).exists() and source in allowed for source in sources)
    assert re.search(r"^USER 10001:10001$", text, re.MULTILINE)


def test_every_package_is_pinned_once() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    names = [re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in lines]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines)
    assert len(set(names)) == len(names)
    assert names == sorted(names)


@pytest.fixture(scope="module")
def dependencies():
    """The script `.ci/dependencies.py`."""
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / ".ci" / "dependencies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_could_not_be_looked_up_is_said(dependencies, capsys) -> None:
    known = {"name": "a", "version": "1", "vulns": []}
    unknown = {"name": "b", "skip_reason": "Dependency not found on PyPI"}
    assert dependencies.tell([known, unknown]) == 0
    assert dependencies.tell([known, unknown], strict=True) == 1
    told = capsys.readouterr().out
    assert "NOT AUDITED: 1 of 2 packages could not be looked up (b)" in told
    assert "1 packages looked up, 0 of them" in told


def test_a_known_vulnerability_fails(dependencies, capsys) -> None:
    bad = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}
    assert dependencies.tell([bad]) == 1
    assert "a 1: PYSEC-1, mended in 2" in capsys.readouterr().out


@pytest.fixture
def advisories() -> Iterator[str]:
    """URL of a vulnerability database on this machine that speaks OSV's protocol and knows one bad package."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ranges = [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.0"}]}]
            package = {"name": "bad", "ecosystem": "PyPI"}
            bad = {"id": "PYSEC-2026-1", "details": "It leaks.", "affected": [{"package": package, "ranges": ranges}]}
            body = json.dumps({"vulns": [bad]} if asked["package"]["name"] == "bad" else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
        server.shutdown()


@pytest.mark.parametrize("package", ["good==1.0", "bad==1.0"])
def test_a_database_that_answers_decides(dependencies, capsys, tmp_path, advisories, package) -> None:
    status = int(package.startswith("bad"))
    requirements = tmp_path / "constraints.txt"
    requirements.write_text(f"{package}\n")
    assert dependencies.audit(requirements, osv=advisories) == status
    told = capsys.readouterr().out
    assert f"1 packages looked up, {status} of them" in told
    assert ("bad 1.0: PYSEC-2026-1, mended in 2.0" in told) == bool(status)
    assert "NOT AUDITED" not in told


@pytest.mark.parametrize("strict", [False, True])
def test_an_audit_without_an_answer_says_so(dependencies, capsys, tmp_path, strict) -> None:
    requirements = tmp_path / "constraints.txt"
    requirements.write_text("good==1.0\n")
    nobody = "http://127.0.0.1:9/v1/query"
    assert dependencies.audit(requirements, osv=nobody, strict=strict) == int(strict)
    assert "NOT AUDITED" in capsys.readouterr().out


def test_the_bill_of_materials_lists_what_the_program_needs(tmp_path: Path) -> None:
    """Of the pinned versions, which is quick; `make sbom` writes it of the environment."""
    tool = Path(sysconfig.get_path("scripts")) / "cyclonedx-py"
    out = tmp_path / "sbom.json"
    done = run(str(tool), "requirements", str(ROOT / "constraints.txt"), "-o", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    components = {item["name"] for item in json.loads(out.read_text())["components"]}
    assert {"torch", "bentoml", "dbos"} <= components
