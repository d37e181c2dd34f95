from __future__ import annotations

import pytest
from pydantic import ValidationError

from service.serving.port import create_beside
from service.settings import Settings
from tests.service.conftest import TestClient

TOKEN = "a-token-of-the-scraper"


def client(token: str) -> TestClient:
    return TestClient(create_beside("/v1", has_metrics=True, metrics_token=token, new_id=lambda: "id"))


def test_a_scrape_brings_the_token_if_there_is_one(assert_problem):
    scraper = client(TOKEN)
    for given in ({}, {"Authorization": "Bearer another-token-of-it"}, {"Authorization": TOKEN}):
        answer = scraper.get("/metrics", headers=given)
        assert "EXPUNGE_METRICS_TOKEN" in assert_problem(answer, 401)["detail"]
        assert TOKEN not in answer.text
    answer = scraper.get("/metrics", headers=[("Authorization", f"Bearer {TOKEN}"), ("Authorization", "Bearer x")])
    assert answer.status_code == 401
    assert scraper.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200
    assert scraper.get("/").status_code == 200


def test_without_a_token_everybody_reads():
    assert client("").get("/metrics").status_code == 200


@pytest.mark.parametrize("token", ["short", "with blanks in it, so none", "x" * 256])
def test_a_token_that_could_be_guessed_or_not_sent_is_refused(token):
    with pytest.raises(ValidationError):
        Settings(metrics_token=token)
    assert TOKEN not in repr(Settings(metrics_token=TOKEN))
