"""Requests that a human must look at before the service signs that it holds nothing, or what it holds.

Such a request is taken out of its run, so that it does not stop the others, and waits in `needs_attention`. Approving
it there answers the doubt, and the next run does not ask again. The sentences are for operators. Clients are only told
that a human must look (`readings`), because "there is a subject with a similar id" would tell them who is in the data.

Tested in `tests/service/requests/test_looking.py`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final

import structlog
from sqlmodel import Session, col, select

from service.context import LINE, Context
from service.models import rosters
from service.requests import data_folder, states
from service.requests.data_folder import Held
from service.requests.runs import requests_of
from service.store.engine import reading, session
from service.store.tables import Deployment, ErasureRequest, RequestEvent

log = structlog.get_logger()

APPROVED: Final = "Approved by "
"""How the note of an approval begins."""

ALIKE: Final = (
    "No data are held under this user id, but data of somebody whose id differs from it in nothing but case, width, "
    "blanks, dashes, leading zeros or Unicode form. If that is the person, file the exact spelling and reject this "
    "request; if it is somebody else, approve to confirm that nothing is held."
)
UNNAMED: Final = (
    "No data are held under this user id, but image files lie in the data folder that its table does not name, and "
    "they may be anybody's. Name them in metadata.csv or take them away; approve to confirm that none is of the person."
)
FEWER: Final = (
    "The data folder has fewer training images of this person than the model in service learned from, and an audit "
    "would not look at the rest. Bring them back and approve; without them, approve to go on with those that are there."
)
ALL_SET_ASIDE: Final = "Each request of the run waits for a human; its page says why."


def set_aside(context: Context, run_id: str, held: Held) -> dict[str, str]:
    """Move doubtful requests out of the run; gives the user ids of those that stay, by request id."""
    with reading(context.engine) as s:  # this takes a while: no lock yet
        doubtful = _doubtful(s, context, requests_of(s, run_id), held)
    with session(context.engine) as s:
        requests = requests_of(s, run_id)
        for doubt in sorted(set(doubtful.values())):
            moving = [each for each in requests if doubtful.get(each.id) == doubt]
            states.stop(s, moving, doubt, now=context.now(), run_id=None)
            log.warning("requests.set_aside", reason=doubt, set_aside_ids=[request.id for request in moving])
        s.commit()
        return {each.id: each.user_id or "" for each in requests if each.id not in doubtful}


def is_confirmed(s: Session, request_id: str, doubt: str) -> bool:
    """Whether a human approved the request while it waited for this reason."""
    query = select(RequestEvent).where(RequestEvent.request_id == request_id).order_by(col(RequestEvent.id))
    waited_for = ""
    for event in s.exec(query):
        if event.from_state == "needs_attention" and event.to_state == "queued":
            if waited_for == doubt and event.note.startswith(APPROVED):
                return True
        elif event.to_state == "needs_attention" and event.from_state != "needs_attention":
            waited_for = event.note
    return False


def skeleton(user_id: str) -> str:
    """An id without case, width, blanks, kinds of dashes and leading zeros: the same for all spellings of one id."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", user_id).casefold())
    kinds = ((character, unicodedata.category(character)) for character in folded)
    bare = "".join("-" if kind == "Pd" else character for character, kind in kinds if kind not in ("Zs", "Cc", "Cf"))
    return re.sub(r"(?<!\d)0+(?=\d)", "", bare)


def _doubtful(s: Session, context: Context, requests: list[ErasureRequest], held: Held) -> dict[str, str]:
    """The first doubt of each doubtful request that nobody has answered yet, by request id."""
    pointer = s.get(Deployment, LINE)
    learned_from = rosters.read(s, pointer.committed_digest) if pointer is not None else {}
    is_unknown = any(request.user_id not in held.n_images for request in requests)
    skeletons = set(map(skeleton, held.n_images)) if is_unknown else set[str]()
    has_unnamed = is_unknown and data_folder.has_unnamed_images(context, held)
    found = {}
    for request in requests:
        user_id = request.user_id or ""
        if user_id in held.n_images:
            doubts = [FEWER] if held.n_trained[user_id] < learned_from.get(request.subject_hash, 0) else []
        else:
            doubts = [ALIKE] if skeleton(user_id) in skeletons else []
            doubts += [UNNAMED] if has_unnamed else []
        for doubt in doubts:
            if not is_confirmed(s, request.id, doubt):
                found[request.id] = doubt
                break
    return found
