# A model served, or a recipe trained, by a user without rights. Build and run:
#
#   docker build -t polyhead .                                        for CPUs
#   docker build -t polyhead:gpu --build-arg DEVICE=cu130 .           for NVIDIA GPUs; run it with --gpus all
#   docker run -p 8080:8080 -v "$PWD/runs/mine/model:/model:ro" polyhead
#   docker run -v "$PWD:/work" polyhead train recipe.yaml
#
# DEVICE is a folder of download.pytorch.org/whl; CUDA comes with torch, so one base image does for both.
# `make test-docker-steps` runs each step without docker.
FROM python:3.11-slim AS build
ARG DEVICE=cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/${DEVICE}
COPY constraints.txt /build/
RUN python -m venv /opt/polyhead
RUN /opt/polyhead/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" "$(grep '^torch==' /build/constraints.txt)"
COPY pyproject.toml README.md LICENSE /build/
COPY modeling /build/modeling
COPY train /build/train
RUN /opt/polyhead/bin/pip install --no-cache-dir -c /build/constraints.txt "/build[serve,eval]"

FROM python:3.11-slim
COPY --from=build /opt/polyhead /opt/polyhead
RUN mkdir -m 1777 /work
ENV PATH=/opt/polyhead/bin:${PATH} HF_HOME=/tmp/huggingface MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /work
USER 1000:1000
EXPOSE 8080
ENTRYPOINT ["polyhead"]
CMD ["serve", "/model", "--host", "0.0.0.0"]
