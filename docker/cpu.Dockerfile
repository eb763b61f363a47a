# The studio and all commands, on CPUs. From the repository's root:
#
#     docker build -f docker/cpu.Dockerfile -t bitttt-jax .
#     docker run -p 127.0.0.1:8701:8701 -v bitttt-runs:/runs bitttt-jax
#     docker run --rm -v bitttt-runs:/runs bitttt-jax train --config=quickstart --workdir=/runs/quickstart

FROM python:3.12-slim-bookworm AS build
# The wheel is built here for its native kernels; the compiler stays behind.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --yes --no-install-recommends g++ \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim-bookworm
COPY --from=build /wheels /wheels
# The wheel is this source; its dependencies are as new as may be.
# hadolint ignore=DL3013
RUN wheel="$(echo /wheels/*.whl)" \
 && python -m pip install --no-cache-dir "${wheel}[studio,serve]" \
 && rm -r /wheels \
 && useradd --create-home --uid 1000 bitttt \
 && install --directory --owner=bitttt /runs
USER 1000
WORKDIR /home/bitttt
VOLUME /runs
# The studio, and `bitttt serve`.
EXPOSE 8701 8000
# Without the token any answer is a refusal, which is a sign of life as well.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["python", "-c", "import http.client as c; a = c.HTTPConnection('127.0.0.1', 8701, timeout=4); a.request('GET', '/'); a.getresponse()"]
ENTRYPOINT ["bitttt"]
CMD ["studio", "--runs=/runs", "--host=0.0.0.0", "--port=8701", "--no_browser"]
