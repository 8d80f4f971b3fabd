# docker build -t favonius .
# docker run --rm -v "$PWD:/runs" favonius demo

FROM rust:1.95-bookworm AS build
WORKDIR /favonius
COPY . .
RUN cargo install --path . --locked --root /usr/local

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/favonius /usr/local/bin/favonius
COPY recipes /usr/local/share/favonius/recipes
WORKDIR /runs
ENTRYPOINT ["favonius"]
CMD ["--help"]
