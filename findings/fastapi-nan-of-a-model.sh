#!/usr/bin/env bash
# A route that returns NaN answers 500, unless it declares what it returns: then it answers 200 with null, which its
# own OpenAPI description does not allow and the model itself does not take.
# What one expects: NaN is refused either way, as by Starlette's JSONResponse.
set -u
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT && cd "$folder" || exit 2
"${PYTHON:-python3}" -m venv venv && venv/bin/python -m pip install --quiet --disable-pip-version-check \
  fastapi==0.165.0 pydantic==2.14.3 httpx==0.28.1 || exit 2
venv/bin/python - <<'EOF'
import importlib.metadata
import sys

from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, ValidationError

app = FastAPI()


class Figures(BaseModel):
    loss: float


@app.get("/plain")
def plain():
    return {"loss": float("nan")}


@app.get("/declared")
def declared() -> Figures:
    return Figures(loss=float("nan"))


client = TestClient(app, raise_server_exceptions=False)
one, other = client.get("/plain"), client.get("/declared")
try:
    Figures.model_validate_json(other.text)
    taken = True
except ValidationError:
    taken = False
print("fastapi", importlib.metadata.version("fastapi"), "pydantic", importlib.metadata.version("pydantic"))
print("expected: 500 both times")
print(f"found:    {one.status_code} and {other.status_code} {other.text}; the model takes it: {taken}")
sys.exit(0 if one.status_code == 500 and other.text == '{"loss":null}' and not taken else 1)
EOF
