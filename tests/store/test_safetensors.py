"""Files that are no .safetensors are told before anything is read by them; see also test_converted.py."""

import pytest

from dinov3seg_jax.errors import UserError
from dinov3seg_jax.store.safetensors import read_header


@pytest.mark.parametrize("begin", [b"PK\x03\x04", b"\x80\x02}q\x00."])
def test_a_pytorch_file_under_another_name(tmp_path, begin):
    (tmp_path / "a.safetensors").write_bytes(begin.ljust(100, b"\0"))
    with pytest.raises(UserError, match=r"a.safetensors' is a PyTorch file under another name; rename it to .*\.pth"):
        read_header(tmp_path / "a.safetensors")
