"""A round of work on a cluster that is this process: what is told of a worker that cannot work."""

import sys
import types
from pathlib import Path

import pyarrow as pa
import pytest

from dinov3seg_jax.cluster import job
from dinov3seg_jax.cluster.connecting import Workers
from dinov3seg_jax.cluster.work import Asked, Listed
from dinov3seg_jax.data.scenes import AS_IT_IS
from dinov3seg_jax.errors import UserError
from dinov3seg_jax.formats.outputs import Outputs
from dinov3seg_jax.pictures.batches import Outcome
from dinov3seg_jax.pictures.finished import Picture
from dinov3seg_jax.text.class_lists import ClassList

PICTURE = Picture(Path("a.png"), Path("out/a"))
PIECES = [Listed((PICTURE,), (PICTURE,))]
ASKED = Asked(Path("run"), "newest", (), False, ClassList.of("grass"), 1, None, AS_IT_IS, Outputs())


class Here:
    """Of Ray Data: a table, what is done with it, and its rows."""

    def __init__(self, table):
        self.table = table

    def map_batches(self, worker, *, fn_constructor_args, **_):
        return Here(worker(*fn_constructor_args)(self.table))

    def iter_rows(self):
        return iter(self.table.to_pylist())


class Loaded:
    def __init__(self, asked, beside):
        pass

    def do(self, piece):
        return (Outcome(picture, {"file": picture.title}) for picture in piece.named())


@pytest.fixture(params=[False, True], ids=["driver", "client"])
def ray(request, monkeypatch):
    """As far as it is asked, in this process."""
    data = types.SimpleNamespace(
        DataContext=types.SimpleNamespace(get_current=types.SimpleNamespace),
        from_items=lambda rows, **_: Here(pa.Table.from_pylist(rows)),
        ActorPoolStrategy=lambda **_: None,
    )

    def actor(kind):
        def begin(*arguments):
            made = kind(*arguments)
            return types.SimpleNamespace(next=types.SimpleNamespace(remote=made.next))

        return types.SimpleNamespace(remote=begin)

    client = types.SimpleNamespace(ray=types.SimpleNamespace(is_connected=lambda: request.param))
    made = types.ModuleType("ray")
    made.data, made.util = data, types.SimpleNamespace(client=client)
    made.exceptions = types.SimpleNamespace(RayError=ZeroDivisionError)
    made.remote, made.get, made.kill = (lambda **_: actor), (lambda answer: answer), (lambda _: None)
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    monkeypatch.setattr(job, "workers_of", lambda *_: Workers(1, {"CPU": 1.0}, 1))
    return made


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (UserError("run holds no step; train it"), "run holds no step; train it"),
        (MemoryError("24 GB"), "MemoryError: 24 GB"),
    ],
)
def test_a_worker_that_cannot_load_the_model(ray, monkeypatch, wrong, said):
    def load(*_):
        raise wrong

    monkeypatch.setattr(job, "Work", load)
    with pytest.raises(UserError, match=f"^a worker of the cluster cannot load the model: {said}$"):
        list(job.run_pieces(ray, {}, PIECES, ASKED))


@pytest.mark.parametrize("deaths", [0, 1, 2, 3])
def test_a_piece_whose_worker_dies_is_tried_three_times(ray, monkeypatch, deaths):
    rounds = []

    def rows(here):
        rounds.append(len(here.table))
        return iter(here.table.to_pylist() if len(rounds) > deaths else [])

    monkeypatch.setattr(job, "Work", Loaded)
    monkeypatch.setattr(Here, "iter_rows", rows)
    (outcome,) = job.run_pieces(ray, {}, PIECES, ASKED)
    assert rounds == [1] * min(deaths + 1, 3)
    if deaths < 3:
        assert outcome == Outcome(PICTURE, {"file": "a.png"})
    else:
        assert outcome.error.startswith("a.png was not segmented: every worker that tried it died; see Ray's logs")
