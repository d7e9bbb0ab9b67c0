"""The method in plain PyTorch, to be timed against: `transformers`' DINOv3 encoder, and the head on our parameters.

Backbone patches without dinov3.txt's head and without early refinement; correlation, late refinement guided by the
backbone (spe "vision"), decoder; local-global inference by features, all windows as one batch. Everything at once,
as one writes it in PyTorch: no chunks of classes, no sharing between windows and whole.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinov3seg_jax.config import Config
from dinov3seg_jax.inference.views.windows import coverage, plan_windows
from dinov3seg_jax.models.late_refinement import shifted_window_mask
from dinov3seg_jax.models.pixels import IMAGENET


class TorchModel(nn.Module):
    """Images and text embeddings in, scores out."""

    def __init__(self, config: Config, encoder: nn.Module, parameters: dict[str, np.ndarray]):
        """`encoder` is a `DINOv3ViTModel`; `parameters` are ours, of the head, which are laid out as torch likes."""
        super().__init__()
        self.config, self.encoder = config, encoder
        for name, value in parameters.items():
            array = np.asarray(value, np.float32)
            if name.endswith("/kernel"):  # [inputs, outputs] and [h, w, inputs, outputs]
                array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
            self.register_buffer(_buffer(name), torch.from_numpy(np.array(array, order="C")))
        options, patch = config.inference, config.model.vision.patch_size
        grid, cells = options.image_size // patch, options.window // patch
        corners = plan_windows(grid, grid, cells, options.stride // patch)
        self.grid, self.cells, self.corners = grid, cells, corners.tolist()
        self.register_buffer("counts", torch.from_numpy(coverage(corners, (cells, cells), (grid, grid)))[..., None])
        late, window = config.model.late, min(config.model.late.window, grid)
        self.window, self.shift = window, 0 if grid <= late.window else late.window // 2
        for name, shift in (("windowed", 0), ("shifted", self.shift)):
            mask = shifted_window_mask(grid, grid, window, shift)
            self.register_buffer(f"mask_{name}", None if mask is None else torch.from_numpy(mask))
        self.register_buffer("mean", torch.from_numpy(IMAGENET.mean))
        self.register_buffer("deviation", torch.from_numpy(IMAGENET.deviation))

    def forward(self, images: Tensor, text: Tensor) -> Tensor:
        """`images` uint8 [b, h, w, 3], `text` [t, 2d]; scores [b, t, h4, w4]."""
        patches, guidance = self._features(images)
        correlation = _correlate(patches, text)
        b, t, _, h, w = correlation.shape
        x = self._conv("embed_correlation/conv", correlation.flatten(0, 1)).unflatten(0, (b, t))
        x = x.permute(0, 1, 3, 4, 2)  # [b, t, h, w, d]
        appearance = F.relu(self._conv("guidance/project_appearance/conv", guidance[0])).permute(0, 2, 3, 1)
        projected = F.relu(self._linear("project_text", text))
        for layer in range(self.config.model.late.layers):
            normed = self._norm(f"late/spatial/{layer}/guidance_norm", appearance)
            for part in ("windowed", "shifted"):
                x = self._swin(f"late/spatial/{layer}/{part}", x, normed, part)
            x = self._class_block(f"late/classes/{layer}", x, projected)
        x = x.permute(0, 1, 4, 2, 3).flatten(0, 1)
        for stage, name, factor, lift in ((1, "middle", 2, guidance[1]), (2, "fine", 4, guidance[2])):
            lifted = self._upsample(f"guidance/lift_{name}", lift, factor)
            guide = F.relu(self._conv(f"guidance/project_{name}/conv", lifted))
            x = self._upsample(f"decoder/stage{stage}/upsample", x, 2)
            x = torch.cat([x, guide.repeat_interleave(t, dim=0)], dim=1)
            for conv in ("conv1", "conv2"):
                x = self._conv_norm(f"decoder/stage{stage}/{conv}", x)
        return torch.sigmoid(self._conv("decoder/head", x).reshape(b, t, 4 * h, 4 * w))

    def _features(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Fused patches [b, h, w, d]; and the whole view's final, early and middle maps [b, d, h, w]."""
        patch, grid, cells = self.config.model.vision.patch_size, self.grid, self.cells
        pixels = ((images.float() / 255 - self.mean) / self.deviation).permute(0, 3, 1, 2)
        side = cells * patch
        views = [pixels[:, :, r * patch : r * patch + side, c * patch : c * patch + side] for r, c in self.corners]
        local = self._patches(self.encoder(torch.cat(views)).last_hidden_state, cells)
        local = local.unflatten(0, (len(views), len(images)))
        total = torch.zeros(len(images), grid, grid, local.shape[-1])
        for part, (row, column) in zip(local, self.corners, strict=True):
            total[:, row : row + cells, column : column + cells] += part
        output = self.encoder(pixels, output_hidden_states=True)
        depth = self.config.model.vision.depth
        raw = [output.hidden_states[max(share * depth // 3, 1)] for share in (1, 2)]
        whole, early, middle = (self._patches(tokens, grid) for tokens in (output.last_hidden_state, *raw))
        guidance = (whole.permute(0, 3, 1, 2), early.permute(0, 3, 1, 2), middle.permute(0, 3, 1, 2))
        return (total / self.counts + whole) / 2, guidance

    def _patches(self, tokens: Tensor, side: int) -> Tensor:
        return tokens[:, 1 + self.config.model.vision.storage_tokens :].unflatten(1, (side, side))

    def _swin(self, name: str, x: Tensor, guidance: Tensor, part: str) -> Tensor:
        x = x + self._window_attention(f"{name}/attention", self._norm(f"{name}/norm1", x), guidance, part)
        hidden = F.gelu(self._linear(f"{name}/ffn/up", self._norm(f"{name}/norm2", x)))
        return x + self._linear(f"{name}/ffn/down", hidden)

    def _window_attention(self, name: str, x: Tensor, guidance: Tensor, part: str) -> Tensor:
        b, t, h, w, d = x.shape
        side, shift = self.window, self.shift if part == "shifted" else 0
        rows, columns = math.ceil(h / side), math.ceil(w / side)
        heads, mask = self.config.model.late.heads, getattr(self, f"mask_{part}")

        def cut(y: Tensor) -> Tensor:
            y = F.pad(y.flatten(0, 1), (0, 0, 0, columns * side - w, 0, rows * side - h))
            y = torch.roll(y, (-shift, -shift), (1, 2)) if shift else y
            y = y.reshape(b * t, rows, side, columns, side, heads, d // heads).permute(0, 1, 3, 5, 2, 4, 6)
            return y.reshape(b * t, rows * columns, heads, side * side, d // heads)

        query = self._linear(f"{name}/query", x) + self._linear(f"{name}/query_guidance", guidance)[:, None]
        key = self._linear(f"{name}/key", x) + self._linear(f"{name}/key_guidance", guidance)[:, None]
        value = self._linear(f"{name}/value", x)
        allowed = None if mask is None else mask[None, :, None]
        y = F.scaled_dot_product_attention(cut(query), cut(key), cut(value), attn_mask=allowed)
        y = y.reshape(b * t, rows, columns, heads, side, side, d // heads).permute(0, 1, 4, 2, 5, 3, 6)
        y = y.reshape(b * t, rows * side, columns * side, d)
        y = torch.roll(y, (shift, shift), (1, 2)) if shift else y
        return self._linear(f"{name}/out", y[:, :h, :w].unflatten(0, (b, t)))

    def _class_block(self, name: str, x: Tensor, text: Tensor) -> Tensor:
        heads, normed = self.config.model.late.heads, self._norm(f"{name}/norm1", x)
        attention = f"{name}/attention"
        query = self._linear(f"{attention}/query", normed)
        query = query + self._linear(f"{attention}/query_guidance", text)[None, :, None, None]
        key = self._linear(f"{attention}/key", normed)
        key = key + self._linear(f"{attention}/key_guidance", text)[None, :, None, None]
        value = self._linear(f"{attention}/value", normed)
        query, key, value = (y.unflatten(-1, (heads, -1)) for y in (F.elu(query) + 1, F.elu(key) + 1, value))
        products = torch.einsum("bthwnd,bthwne->bhwnde", key, value)
        numerator = torch.einsum("bthwnd,bhwnde->bthwne", query, products)
        denominator = torch.einsum("bthwnd,bhwnd->bthwn", query, key.sum(dim=1))
        x = x + (numerator / (denominator[..., None] + 1e-6)).flatten(-2)
        hidden = F.relu(self._linear(f"{name}/ffn/up", self._norm(f"{name}/norm2", x)))
        return x + self._linear(f"{name}/ffn/down", hidden)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self._get(f"{name}/kernel"), self._get(f"{name}/bias"))

    def _conv(self, name: str, x: Tensor) -> Tensor:
        kernel = self._get(f"{name}/kernel")
        return F.conv2d(x, kernel, self._get(f"{name}/bias"), padding=kernel.shape[-1] // 2)

    def _conv_norm(self, name: str, x: Tensor) -> Tensor:
        x = self._conv(f"{name}/conv", x)
        groups = max(x.shape[1] // 16, 1)
        return F.relu(F.group_norm(x, groups, self._get(f"{name}/norm/scale"), self._get(f"{name}/norm/bias"), 1e-5))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self._get(f"{name}/scale"), self._get(f"{name}/bias"), 1e-5)

    def _upsample(self, name: str, x: Tensor, factor: int) -> Tensor:
        kernel, bias = self._get(f"{name}/kernel"), self._get(f"{name}/bias")  # [factor * factor * outputs, inputs]
        kernel = kernel.reshape(factor, factor, len(bias), -1).permute(3, 2, 0, 1)
        return F.conv_transpose2d(x, kernel, bias, stride=factor)

    def _get(self, name: str) -> Any:
        return getattr(self, _buffer(name), None)


def _correlate(patches: Tensor, text: Tensor) -> Tensor:
    """[b, t, 2, h, w]: the local half, then the global one."""
    halves = torch.stack([F.normalize(half, dim=-1) for half in text.chunk(2, dim=-1)[::-1]])
    return torch.einsum("bhwd,ctd->btchw", F.normalize(patches, dim=-1), halves)


def _buffer(name: str) -> str:
    return "ours_" + name.replace("/", "_")
