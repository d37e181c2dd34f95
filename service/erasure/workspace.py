"""What a step of a run works with: the run's row, policy, plan and folder, each read once."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from audit.policy import Policy
from service.banks.build import plans_lock, training_code_version
from service.banks.file_format import OUT
from service.context import Context
from service.erasure.plan import RunPlan, make_plan
from service.errors import RunStoppedError
from service.requests.runs import load_run
from service.settings import Settings
from service.store.tables import Run
from service.training.data import images_with, recipe_of
from service.training.spec import PackedImages, open_images
from unlearning import files
from unlearning.faces import Faces
from unlearning.recipes import Recipe


class RunFolder:
    """Working files of one run. Neither names nor content hold a user id, and `destroy` leaves nothing."""

    def __init__(self, settings: Settings, run_id: str) -> None:
        self.path = settings.runs_folder / run_id
        self.path.mkdir(parents=True, exist_ok=True)

    def weights(self, step: int) -> Path:
        """Weights of the step's candidate."""
        return self.path / f"step-{step}.safetensors"

    def network(self, step: int) -> Path:
        """What the step's candidate is computed by where that is not PyTorch."""
        return self.path / f"step-{step}.network"

    def unlearned(self) -> Path:
        """Margins of the unlearned banks."""
        return self.path / "unlearned"

    def read(self, name: str) -> dict[str, Any] | None:
        """A JSON file of the folder, or none."""
        path = self.path / f"{name}.json"
        return json.loads(path.read_text()) if path.exists() else None

    def write(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        files.overwrite(self.path / f"{name}.json", json.dumps(content).encode())

    def destroy_steps(self) -> None:
        """Destroy every candidate and the banks of their other seeds."""
        for path in [*self.path.glob("step-*"), *self.unlearned().rglob("*")]:
            if path.is_file():
                files.destroy(path)

    def destroy(self) -> None:
        """Destroy every file, then the folder."""
        files.destroy_folder(self.path)


def stored_plan(settings: Settings, run_id: str) -> dict[str, Any] | None:
    """The plan of an open run as plain values, for whoever only shows it; none if there is none."""
    try:
        return json.loads((settings.runs_folder / run_id / "plan.json").read_bytes())
    except OSError:
        return None


class Workspace:
    """The context, policy, row, plan and folder of one run, for one step.

    Each part is read when the step first asks for it, and kept. A workspace must not outlive its step: the next step,
    or a second attempt of the same one, has to read what this one wrote.

    Args:
        policy: what the worker was started with; none for work that no policy decides.
    """

    def __init__(self, context: Context, run_id: str, policy: Policy | None = None) -> None:
        self.context = context
        self.run_id = run_id
        self._policy = policy
        self._plan: RunPlan | None = None

    @cached_property
    def run(self) -> Run:
        """The run's row, for the columns that never change: the seed, the base version, the policy.

        Its phase, its purge and its end are to be read with `get_run`, in the session that changes them.
        """
        return load_run(self.context, self.run_id)

    @cached_property
    def policy(self) -> Policy:
        """The policy that was logged when the run was claimed.

        Raises:
            RunStoppedError: the worker was started with another one since.
        """
        if self._policy is None or self._policy.digest != self.run.policy_digest:
            raise RunStoppedError(
                "Expected the policy that was logged before this run, but the worker was started with another one. "
                "Start it with that policy again, or approve: the request is then judged anew by the present one."
            )
        return self._policy

    @cached_property
    def folder(self) -> RunFolder:
        """The run's working files."""
        return RunFolder(self.context.settings, self.run_id)

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe in force."""
        return recipe_of(self.context)

    @property
    def plan(self) -> RunPlan:
        """The plan that was made before.

        Raises:
            RunStoppedError: the recipe or the training code changed since. A model made now would not be what the
                plan, its bank and a certificate say.
        """
        if self._plan is None:
            self._plan = self._read_plan()
        return self._plan

    def make_plan(self) -> RunPlan:
        """Make the run's plan, or give the one it has."""
        policy = self.policy
        if self.folder.read("plan") is None:
            self._plan_by(policy)
        return self.plan

    def plan_anew(self) -> None:
        """Make the plan again, after destroying what was made by the old one.

        The rungs keep the order of the old one: an attempt is known by its place in it, and says which method it tries.
        """
        policy, order = self.policy, self.plan.order
        self.folder.destroy_steps()
        self._plan_by(policy, order)

    def _plan_by(self, policy: Policy, order: list[dict[str, Any]] | None = None) -> None:
        with plans_lock(self.context.settings, exclusive=False):  # until the plan is written, no bank may be discarded
            made = make_plan(self.context, policy, self.run)
            if order is not None:
                made = replace(made, order=order)
            self.folder.write("plan", asdict(made))
        self._plan = None  # read it from the folder, as the next step will

    def _read_plan(self) -> RunPlan:
        stored = self.folder.read("plan")
        if stored is None:
            raise FileNotFoundError(f"Expected the plan of run {self.run_id} in its folder; the folder was removed.")
        plan = RunPlan(**stored)
        key = plan.bank.get("key", {})
        is_old = plan.bank and (key["code_version"], key["statistic"]) != (training_code_version(), OUT)
        if is_old or plan.recipe_digest != self.recipe.digest:
            raise RunStoppedError(
                f"Expected the {'training code' if is_old else 'recipe'} this run was planned with, but it changed "
                "meanwhile. Approve: the request is then planned anew."
            )
        return plan

    @property
    def images(self) -> PackedImages:
        """The packed images that the plan's row numbers refer to."""
        return images_with(self.context.settings, self.recipe, tuple(self.plan.classes), self.plan.manifest_digest)

    @property
    def faces(self) -> Faces:
        """The arrays of `images`."""
        return open_images(self.images)
