"""Rasters for tests, written by GDAL or tifffile."""

import warnings

import rasterio

PLACE = {"crs": "EPSG:32633", "transform": rasterio.Affine(0.5, 0, 399960, 0, -0.5, 5800020)}


def save_raster(path, values, driver="GTiff", **options):
    """Write [C, H, W]."""
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width, "dtype": values.dtype}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(path, "w", driver=driver, **shape, **options) as file:
            file.write(values)
    return path
