# ttopt on NVIDIA GPUs (CUDA 12.8 comes with torch's wheels; the host needs a driver and the NVIDIA container toolkit).
#
#   docker build -t ttopt .
#   docker run --gpus all -v "$PWD/runs:/data/runs" -v ttopt-hub:/hub ttopt fit --config wan22_5b
#   docker run --rm ttopt-tests        (docker build --target tests -t ttopt-tests .)
#
# Without a GPU, `docker run -v "$PWD/runs:/data/runs" ttopt fit` optimizes the embedded models on the CPU.
FROM python:3.12-slim AS base
RUN apt-get update && apt-get install -y --no-install-recommends git build-essential && rm -rf /var/lib/apt/lists/*
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/hub
WORKDIR /opt/ttopt
COPY . .

FROM base AS tests
RUN pip install -e '.[test]'
CMD ["python", "-m", "pytest", "-n", "2"]

FROM base
RUN pip install -e '.[gpu,app]' && useradd --create-home user && mkdir -p /data/runs /hub && chown -R user /data /hub
USER user
WORKDIR /data
EXPOSE 7860
ENTRYPOINT ["python", "-m", "ttopt"]
CMD ["fit"]
