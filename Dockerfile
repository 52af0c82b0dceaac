# `spa3r serve` in a container; docs/serve.md says how to run it. On CPUs:
#
#     docker build -t spa3r .
#
# On NVIDIA GPUs:
#
#     docker build -t spa3r:cuda \
#         --build-arg BASE=nvidia/cuda:13.0.1-base-ubuntu24.04 \
#         --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
ARG BASE=ubuntu:24.04

FROM ${BASE} AS base
# Security updates of Ubuntu's own Python come with each build.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/spa3r/bin:$PATH

FROM base AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY constraints.txt .
# PyTorch first: it is by far the largest part, and changes seldom.
RUN python3 -m venv /opt/spa3r \
    && grep '^torch==' constraints.txt > torch.txt \
    && pip install --requirement torch.txt --index-url "${TORCH_INDEX}"
COPY . .
RUN pip install --constraint constraints.txt ".[serve,video]"

FROM base
RUN useradd --create-home --uid 10001 spa3r
COPY --from=build /opt/spa3r /opt/spa3r
# Another model: mount its folder, and name it after `docker run IMAGE`.
COPY modeling_spa3r/nano/spa3-vlm-nano /models/spa3-vlm-nano
USER 10001
WORKDIR /home/spa3r
EXPOSE 8000
HEALTHCHECK --start-period=5m \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health')"]
ENTRYPOINT ["spa3r", "serve", "--host", "0.0.0.0"]
CMD ["--model", "/models/spa3-vlm-nano"]
