"""Where on Earth a labelled picture lies, for polygons and areas."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from dinov3seg_jax.formats.libraries import needed

MERCATOR = "merc"  # PROJ's word for it; its metres are longer than those on the ground, the more the farther north


class Ground(NamedTuple):
    """A coordinate reference system, and a picture's place in it."""

    crs: Any  # rasterio's
    transform: Any  # from columns and rows to coordinates

    def places(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Columns and rows to coordinates."""
        (a, b, c, d, e, f), (x, y) = self.transform[:6], points.T
        return np.stack([a * x + b * y + c, d * x + e * y + f], axis=-1)

    def square_metres(self) -> float | None:
        """Of one pixel; None where the system does not tell, as degrees do not."""
        if not self.crs.is_projected or self.crs.to_dict().get("proj") == MERCATOR:
            return None
        _, metres = self.crs.linear_units_factor
        return abs(self.transform.determinant) * metres**2


def ground_of(place: Mapping[str, Any], purpose: str = "a picture's place on Earth") -> Ground | None:
    """The ground that a picture shows; None where a transform or the name of its system is missing.

    Raises:
        UserError: rasterio is not installed, and there is a place.
    """
    if not place.get("crs") or "transform" not in place:
        return None
    rasterio = needed("rasterio", "geo", purpose)
    return Ground(rasterio.CRS.from_user_input(place["crs"]), rasterio.Affine(*tuple(place["transform"])[:6]))


def pixel_square_metres(place: Mapping[str, Any]) -> float | None:
    """The area of a pixel on the ground; None where it is not known."""
    ground = ground_of(place)
    area = ground.square_metres() if ground else None
    return area if area is not None and math.isfinite(area) else None
