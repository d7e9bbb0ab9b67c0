# The command `dinov3seg` for CPUs, and by default its app on port 7860; docs/docker.md says how to start it.

FROM python:3.12-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements requirements
RUN python -m venv /opt/dinov3seg \
    && /opt/dinov3seg/bin/pip install --require-hashes -r requirements/app.txt \
    && pip install --require-hashes -r requirements/build.txt
COPY . .
RUN hatchling build -t wheel \
    && /opt/dinov3seg/bin/pip install --no-deps dist/*.whl \
    && /opt/dinov3seg/bin/pip uninstall --yes pip

FROM python:3.12-slim
# libexpat1: of rasterio's GDAL, which reads TIFFs.
RUN apt-get update \
    && apt-get install --no-install-recommends --yes libexpat1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --home-dir /tmp --no-create-home app \
    && mkdir -p /cache /app/runs \
    && chown app: /cache
COPY --from=build /opt/dinov3seg /opt/dinov3seg
ENV PATH=/opt/dinov3seg/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    HOME=/tmp XDG_CACHE_HOME=/cache JAX_PLATFORMS=cpu
USER app
WORKDIR /app
EXPOSE 7860
# Ctrl-C is what the app ends by.
STOPSIGNAL SIGINT
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/', timeout=9)"]
ENTRYPOINT ["dinov3seg"]
CMD ["app", "--host", "0.0.0.0"]
