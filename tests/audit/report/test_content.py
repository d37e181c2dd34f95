"""The report: safe, self-contained, accessible, and never at a loss for strange figures."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from hashlib import sha256
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

import audit.report
from audit.checks import TITLES
from audit.errors import BankError
from audit.evaluation import Evidence, evaluate
from audit.policy import PRESETS, Policy
from audit.report import drawings, wording
from audit.report.content import Report, Roc, epsilon_buckets, report_of, to_dict
from audit.report.page import render_html, write
from tests.audit.policies import WITH_RUNS

NOW = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
NASTY = "<script>alert('x')</script>&\"<img src=x onerror=y>"
FOLDER = Path(audit.report.__file__).parent / "templates"


def report(
    *,
    shift: float = 0.0,
    n: int = 3,
    n_models: int = 40,
    exact: bool = False,
    policy: Policy | None = None,
    **contents: Any,
) -> Report:
    rng = np.random.default_rng(0)
    policy = policy or replace(WITH_RUNS, n_models=40)
    retrained = rng.normal(2, 1, (n_models, n))
    unlearned = None if exact else rng.normal(2 + shift, 1, (n_models, n))
    accuracies = np.full(n_models, 0.95)
    evidence = Evidence(
        retrained=retrained,
        unlearned=unlearned,
        deployed=np.full(n, 2.0 + shift),
        original=np.full(n, 6.0),
        retain_accuracy_retrained=accuracies,
        retain_accuracy_unlearned=None if exact else accuracies,
        retain_accuracy_deployed=0.95,
        retain_accuracy_original=0.99,
        test_accuracy_retrained=accuracies,
        test_accuracy_unlearned=None if exact else accuracies,
        test_accuracy_deployed=0.95,
        test_accuracy_original=0.96,
        cost_share=None if exact else 0.1,
        exact=exact,
    )
    evaluation = evaluate(evidence, policy, rung=len(policy.ladder) - 1 if exact else 0, seed=1)
    options: dict[str, Any] = {"title": "Request 7", "subject": "run 1", "created_at": NOW, **contents}
    return report_of(evaluation, **options)


ROC = Roc("likelihood ratio", [0.0, 0.5, 1.0], [0.0, 0.6, 1.0], 0.55)
MAKE = {
    "passed": lambda: report(roc=ROC),
    "failed": lambda: report(shift=3.0),
    "undetermined": lambda: report(policy=PRESETS["strict"]),
    "exact": lambda: report(exact=True),
    "one image": lambda: report(n=1),
    "thumbnails": lambda: report(thumbnails=[b"\x89PNG", None, b"\x89PNG"], labels=["a", "b", "c"]),
}


@cache
def of_kind(kind: str) -> Report:
    return MAKE[kind]()


class Page(HTMLParser):
    """Tags, ids, headings and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


@pytest.mark.parametrize("kind", MAKE)
def test_page_is_self_contained_and_inert(kind: str) -> None:
    html = render_html(of_kind(kind))
    page = Page(html)
    names = {name for _, attrs in page.tags for name in attrs}
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe", "object", "embed", "form", "base", "img"}
    assert not [name for name in names if name.startswith("on") or name in ("style", "src")]
    assert all(value.startswith("data:image/png;base64,") for value in page.values("href"))
    assert "http" not in re.sub(r"http-equiv", "", html)
    assert "url(" not in html
    assert "@import" not in html
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(sha256(style.group(1).encode()).digest()).decode()
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy is not None
    assert "default-src 'none'" in policy
    assert f"style-src 'sha256-{digest}'" in policy


@pytest.mark.parametrize("kind", MAKE)
def test_page_is_accessible(kind: str) -> None:
    html = render_html(of_kind(kind))
    page = Page(html)
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    for names in page.values("aria-labelledby"):
        assert set(names.split()) <= set(ids)
    drawn = re.findall(r'<svg class="drawing.*?</svg>', html, re.DOTALL)
    assert len(drawn) >= 3
    assert html.count("<details>") == len(drawn)  # what is drawn stands in a table too
    for svg in drawn:
        tree = ElementTree.fromstring(svg)  # noqa: S314 (our own drawing)
        assert tree.find("title").text  # type: ignore[union-attr]
        assert len(tree.find("desc").text or "") > 40  # type: ignore[union-attr]
    assert all(a.get("scope") in ("col", "row") for tag, a in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags
    assert not re.search(r"\bnan\b|\bNone\b|\binf\b|\bUndefined\b", page.text)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio of WCAG 2.2."""
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1])
def test_colours_have_contrast(scheme: int) -> None:
    css = (FOLDER / "report.css").read_text(encoding="utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", blocks[scheme]))
    for ground in ("paper", "panel"):
        for text in ("ink", "soft", "passed", "failed", "undetermined"):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for line in ("retrained", "unlearned", "original"):
            assert contrast(colours[line], colours[ground]) >= 3, (line, ground)


def test_everything_is_escaped() -> None:
    plain = report(
        title=NASTY,
        subject=NASTY,
        labels=[NASTY] * 3,
        provenance={NASTY: NASTY},
        cost={NASTY: NASTY},
        roc=replace(ROC, attack=NASTY),
    )
    evaluation = json.loads(json.dumps(plain.evaluation))
    evaluation["method"] = evaluation["policy"]["name"] = NASTY
    for check in evaluation["checks"]:
        check["name"] = check["sentence"] = NASTY
    for verdict in wording.VERDICT_WORDS:
        html = render_html(replace(plain, evaluation={**evaluation, "verdict": verdict}))
        assert "<script" not in html
        assert "<img" not in html
        assert {tag for tag, _ in Page(html).tags} == {tag for tag, _ in Page(render_html(plain)).tags}
        assert NASTY in Page(html).text


def test_verdicts_read_as_four_sentences() -> None:
    found = {}
    for kind in MAKE:
        one = of_kind(kind)
        sentences = wording.verdict_sentences(one.evaluation)
        found[kind] = sentences
        assert len(sentences) == 4
        assert all(sentence.endswith(".") for sentence in sentences)
        html = Page(render_html(one)).text
        assert all(sentence in html for sentence in sentences)
        assert "proves" not in html.lower()
    assert found["passed"][0].startswith("The audit passed")
    assert "compared with those of 40 models trained without them" in found["passed"][1]
    assert "“Forgetting compared with perfect forgetting”" in found["failed"][0]
    assert "never put into service" in found["failed"][1]
    assert "“Number of models to compare with”" in found["undetermined"][0]
    assert "Undetermined is not passed" in found["undetermined"][3]
    assert "trained from the start" in found["exact"][1]


def test_bars_are_shown_with_their_direction() -> None:
    html = render_html(of_kind("passed"))
    assert "≥ 0.970" in html
    assert "≤ 20 %" in html
    assert "≥ 40" in html
    assert "Not asked" in render_html(of_kind("exact"))
    every = {check["name"] for kind in MAKE for check in of_kind(kind).evaluation["checks"]}
    assert every <= TITLES.keys(), "a check of the audit has no title in audit.checks.TITLES"


def test_no_thumbnail_unless_given() -> None:
    assert "data:image" not in render_html(of_kind("passed"))
    html = render_html(of_kind("thumbnails"))
    assert html.count("data:image/png;base64,iVBORw==") == 2 or html.count("data:image/png;base64,iVBORw") == 2


@pytest.mark.parametrize("kind", MAKE)
def test_json_holds_the_same_figures(kind: str, tmp_path: Path) -> None:
    one = of_kind(kind)
    page, data = write(one, tmp_path / "new")
    assert page.read_text(encoding="utf-8") == render_html(one)
    content = json.loads(data.read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert content["verdict"] == one.evaluation["verdict"]
    assert content["evaluation"]["checks"] == one.evaluation["checks"]
    assert content["created_at"] == "2026-03-01T12:30:00Z"
    assert [example["original"] for example in content["examples"]] == list(one.original)
    assert len(content["examples"][0]["retrained"]) == len(content["quantiles"])
    assert (content["examples"][0]["unlearned"] is None) == (one.unlearned is None)
    assert content == json.loads(json.dumps(to_dict(one)))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 0.0, 1e6, -1e6])
def test_strange_margins_are_drawn(value: float) -> None:
    plain = of_kind("failed")
    retrained = plain.retrained.copy()
    retrained[3, 1] = value
    original = plain.original.copy()
    original[0] = value
    for one in (
        replace(plain, retrained=retrained, original=original),
        replace(plain, retrained=np.full_like(retrained, value), original=original, deployed=original),
    ):
        html = render_html(one)
        assert not re.search(r"\bnan\b", html)
        assert not re.search(r'(x|y|x1|x2|y1|y2|cx|cy|width|height)="-?inf', html)
        json.dumps(to_dict(one), allow_nan=False)


def test_many_images_are_drawn_in_part_and_tabled_in_full() -> None:
    html = render_html(report(n=50))
    assert "The first 40 of 50 images are drawn" in html
    assert html.count("Image 50") == 1
    assert "Image 41</text>" not in html


def test_epsilon_buckets_without_difference_look_like_the_null() -> None:
    """Fixed seeds; the shares of 40 images over several halvings differ by less than .12 a bucket."""
    same = epsilon_buckets(report(n=40))
    other = epsilon_buckets(of_kind("failed"))
    assert same is not None
    assert other is not None
    assert same.unlearned.sum() == pytest.approx(1)
    assert same.null.sum() == pytest.approx(1)
    assert np.abs(same.unlearned - same.null).max() < 0.12
    assert np.abs(other.unlearned - other.null).max() > 0.3
    assert same.n_models_a_side == 20
    assert epsilon_buckets(of_kind("exact")) is None


def test_density_is_a_density() -> None:
    values = np.random.default_rng(0).normal(size=200)
    grid = np.linspace(-8, 8, 2001)
    curve = drawings.density(values, grid)
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    quartiles = np.quantile(values, [0.25, 0.75])
    width = 0.9 * min(values.std(), (quartiles[1] - quartiles[0]) / 1.34) * 200**-0.2
    naive = [
        sum(math.exp(-0.5 * ((g - v) / width) ** 2) for v in values) / (200 * width * math.sqrt(2 * math.pi))
        for g in grid[::200]
    ]
    np.testing.assert_allclose(curve[::200], naive, rtol=1e-9)
    assert drawings.density([], grid).max() == 0
    assert np.isfinite(drawings.density([1.0, 1.0], grid, floor=0.1)).all()


def test_ticks_are_round_and_inside() -> None:
    assert drawings.Scale(-1.2, 8.4, 0, 100).ticks() == [0, 2, 4, 6, 8]
    assert drawings.Scale(0, 1, 0, 100).ticks(5) == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])


def test_what_does_not_fit_is_refused() -> None:
    plain = of_kind("failed")
    for change in (
        {"deployed": np.zeros(2)},
        {"unlearned": np.zeros((4, 2))},
        {"labels": ["one"]},
        {"thumbnails": [None]},
        {"created_at": NOW.replace(tzinfo=None)},
    ):
        with pytest.raises(BankError):
            replace(plain, **change)


def test_figures_for_people() -> None:
    assert wording.number(-0.5) == "−0.500"
    assert wording.number(0.147, percent=True) == "14.7 %"
    assert [wording.number(v) for v in (None, math.nan, math.inf, "-inf")] == ["–", "–", "∞", "−∞"]
    assert wording.check_title("new_check") == "New check"
