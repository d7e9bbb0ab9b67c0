"""TorchScript archives: their tensors are read without torch, and what is no weight is refused, not run."""

import pickle
import sys
import zipfile
from importlib import util

import numpy as np
import pytest

from dinov3seg_jax.convert.sources import open_source
from dinov3seg_jax.errors import UserError


def text(value):
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


def integer(value):
    return b"J" + value.to_bytes(4, "little", signed=True)


def named(module, name):
    return f"c{module}\n{name}\n".encode()


def of(*items):
    return b"(" + b"".join(items) + b"t"


def tensor(entry, length, *, kind="FloatStorage", offset=0, shape, strides):
    storage = of(text("storage"), named("torch", kind), text(entry), text("cuda:0"), integer(length)) + b"Q"
    sizes = of(*map(integer, shape)), of(*map(integer, strides))
    hooks = named("collections", "OrderedDict") + b")R"
    return named("torch._utils", "_rebuild_tensor_v2") + of(storage, integer(offset), *sizes, b"\x88", hooks) + b"R"


def module(**attributes):
    items = b"".join(text(name) + value for name, value in attributes.items())
    return named("__torch__.net", "Net") + b")\x81}(" + items + b"ub"


NUMBERS = np.arange(6, dtype=np.float32)
PLAIN = {"shape": (2, 3), "strides": (3, 1)}


def archive(path, pickled, *, entries=None, order=b"little", method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("net/data.pkl", b"\x80\x02" + pickled + b".")
        file.writestr("net/constants.pkl", b"\x80\x02).")
        file.writestr("net/code/__torch__/net.py", "raise SystemExit")
        file.writestr("net/byteorder", order)
        for name, content in (entries or {"0": NUMBERS.tobytes()}).items():
            file.writestr(f"net/data/{name}", content)
    return path


def read(path):
    return {key: value.read() for key, value in open_source([path]).tensors.items()}


def sentence(path):
    with pytest.raises(UserError) as caught:
        read(path)
    return str(caught.value)


def test_tensors_of_all_kinds(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    inner = module(
        training=b"\x88",
        half=tensor("1", 4, kind="HalfStorage", shape=(4,), strides=(1,)),
        turned=tensor("0", 6, shape=(3, 2), strides=(1, 3)),
        part=tensor("0", 6, offset=4, shape=(2,), strides=(1,)),
        sizes=named("torch.jit._pickle", "build_intlist") + of(b"](" + integer(1) + integer(2) + b"e") + b"R",
    )
    path = archive(
        tmp_path / "a.pt",
        module(weight=tensor("0", 6, **PLAIN), hook=b"N", inner=inner),
        entries={"0": NUMBERS.tobytes(), "1": np.float16([1, 0.1, -2, 65504]).tobytes()},
    )
    found = read(path)
    assert found.keys() == {"weight", "inner.half", "inner.turned", "inner.part"}
    assert all(value.dtype == np.float32 for value in found.values())
    np.testing.assert_array_equal(found["weight"], NUMBERS.reshape(2, 3))
    np.testing.assert_array_equal(found["inner.turned"], NUMBERS.reshape(2, 3).T)
    np.testing.assert_array_equal(found["inner.part"], [4, 5])
    np.testing.assert_array_equal(found["inner.half"], np.float32(np.float16([1, 0.1, -2, 65504])))


class Code:
    """What a pickle would run."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return open, (str(self.trace), "w")


def run(function, *arguments):
    return named(*function.rsplit(".", 1)) + of(*arguments) + b"R"


WEIGHT = tensor("0", 6, **PLAIN)
HOSTILE = {
    "a call": (lambda trace: module(weight=run("posix.mkdir", text(str(trace)))), "it asks for posix.mkdir"),
    "a class": (lambda trace: named("os", "PathLike") + b")\x81", "it asks for os.PathLike"),
    "a module of something": (lambda trace: named("__torch__", "Net") + of(text("a")) + b"\x81", "of something"),
    "an instruction": (lambda trace: b"(" + text(str(trace)) + b"iposix\nmkdir\n", "the instruction INST"),
    "an extension": (lambda trace: b"\x82\x01", "the instruction EXT1"),
    "a foreign reference": (lambda trace: of(text("a"), *[integer(0)] * 4) + b"Q", "refers to what is no tensor"),
    "a module in itself": (lambda trace: module(a=WEIGHT) + b"q\x00}(" + text("b") + b"h\x00ub", "in two places"),
    "a module in two places": (
        lambda trace: module(a=module(w=WEIGHT) + b"q\x00", b=b"h\x00"),
        "the module 'b' stands in two places",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_weight_is_refused(tmp_path, case):
    write, message = HOSTILE[case]
    found = sentence(archive(tmp_path / "a.pt", write(tmp_path / "trace")))
    assert "holds more than plain weights" in found
    assert message in found
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_pickled_code_is_not_run(tmp_path, protocol):
    trace = tmp_path / "trace"
    pickled = pickle.dumps({"weight": Code(trace)}, protocol)
    assert "holds more than plain weights" in sentence(archive(tmp_path / "a.pt", pickled[2 * (protocol > 1) : -1]))
    assert not trace.exists()
    pickle.loads(pickled)["weight"].close()
    assert trace.exists()  # it would have run


DAMAGED = {
    "beyond the end": tensor("0", 6, offset=1, **PLAIN),
    "repeated": tensor("0", 6, shape=(1000, 1000), strides=(0, 0)),
    "below the start": tensor("0", 6, offset=-1, shape=(2,), strides=(1,)),
    "backwards": tensor("0", 6, offset=5, shape=(2,), strides=(-1,)),
    "another length": tensor("0", 5, shape=(2,), strides=(1,)),
    "no such storage": tensor("7", 6, **PLAIN),
    "unequal sizes": tensor("0", 6, shape=(2, 3), strides=(1,)),
    "nothing to build": b"K\x00}b",
    "an empty stack": b"R",
    "an unknown memo": b"h\x09",
    "a list as a key": b"}]K\x00s",
    "no module": b"}",
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged(tmp_path, case):
    value = DAMAGED[case]
    pickled = module(weight=value) if value.endswith(b"R") and len(value) > 1 else value
    assert "is damaged or truncated" in sentence(archive(tmp_path / "a.pt", pickled))


def test_storages_as_they_are(tmp_path):
    pickled = module(weight=WEIGHT)
    assert "damaged" in sentence(archive(tmp_path / "a.pt", pickled, method=zipfile.ZIP_DEFLATED))
    assert "whose first byte is the highest" in sentence(archive(tmp_path / "b.pt", pickled, order=b"big"))
    whole = archive(tmp_path / "c.pt", pickled).read_bytes()
    (tmp_path / "c.pt").write_bytes(whole.replace(NUMBERS.tobytes(), NUMBERS[::-1].tobytes()))
    assert "is damaged at 'weight' (BadZipFile)" in sentence(tmp_path / "c.pt")


def test_integers_are_no_weights(tmp_path):
    pickled = module(count=tensor("0", 3, kind="LongStorage", shape=(), strides=()))
    assert "'count'" in (message := sentence(archive(tmp_path / "a.pt", pickled)))
    assert "holds torch LongStorage, not floats" in message


def test_a_pickle_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr("dinov3seg_jax.convert.torchscript.PICKLE_LIMIT", 10)
    assert "a pickle of more than" in sentence(archive(tmp_path / "a.pt", module(weight=WEIGHT)))


@pytest.mark.skipif(util.find_spec("torch") is None, reason="needs torch")
@pytest.mark.parametrize("write", ["script", "trace"])
@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_torch_itself(tmp_path, write):
    import torch

    class Inner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dense = torch.nn.Linear(3, 4).bfloat16()

        def forward(self, x):
            return self.dense(x)

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = Inner(), torch.nn.LayerNorm(4).half()
            self.turned = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
            self.shared = torch.nn.Parameter(torch.arange(12.0)[3:7])
            self.register_buffer("input_resolution", torch.tensor(224))

        def forward(self, x):
            return self.first(x)

    net = Net()
    example = torch.ones(1, 3).bfloat16()
    (torch.jit.script(net) if write == "script" else torch.jit.trace(net, example)).save(tmp_path / "a.pt")
    tensors = open_source([tmp_path / "a.pt"]).tensors
    state = net.state_dict()
    assert tensors.keys() == state.keys()
    for key, value in state.items():
        assert tensors[key].shape == tuple(value.shape)
        if value.is_floating_point():
            np.testing.assert_array_equal(tensors[key].read(), value.float().numpy())
