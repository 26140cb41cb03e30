"""Load a running Triton server: ``python -m granalign_fast.bench.commands.triton ADDRESS QUERIES``.

The server has the model that ``granalign export triton`` wrote for a library. Each number of
clients takes its turn: so many send one search after another over gRPC, for some seconds. The table
is that of `service`, so that both can be compared; run them in turn on one machine. It needs
``pip install 'tritonclient[grpc]'``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from granalign_fast.models.triton_names import SEARCH_MODEL

from .service import HEAD, Ask, put_load, read_queries


@contextmanager
def connected(address: str) -> Iterator[Ask]:
    """Yield a connection to a server; its requests are queries with their options."""
    import tritonclient.grpc as module

    def ask(request: tuple[str, Mapping[str, Any]]) -> int:
        query, options = request
        inputs = []
        for name, text in (("query", query), ("options", json.dumps(options))):
            given = module.InferInput(name, [1, 1], "BYTES")
            given.set_data_from_numpy(np.array([[text.encode()]], object))
            inputs.append(given)
        wanted = [module.InferRequestedOutput("answer")]
        try:
            client.infer(SEARCH_MODEL, inputs, outputs=wanted)
        except module.InferenceServerException as error:
            # A full queue, or a wait that was too long.
            return 429 if "UNAVAILABLE" in str(error.status()) else 500
        return 200

    with module.InferenceServerClient(address) as client:
        yield ask


def batches(address: str) -> tuple[float, float]:
    """Return the number of queries that were searched so far, and of batches."""
    import tritonclient.grpc as module

    with module.InferenceServerClient(address) as client:
        (model,) = client.get_inference_statistics(SEARCH_MODEL).model_stats
        return float(model.inference_count), float(model.execution_count)


def request_of(query: object, refine: int) -> tuple[str, Mapping[str, Any]]:
    """Return the request of a query that `read_queries` read."""
    if not isinstance(query, dict):
        return str(query), {"refine": refine}
    rewrites = {name: texts for name, texts in query.items() if name != "query"}
    return query["query"], {"refine": refine, "rewrites": rewrites}


def main() -> None:
    """Parse the command line, put the load on, and print."""
    parser = argparse.ArgumentParser(description="Load a running Triton server.")
    parser.add_argument("address", help="host:port of gRPC.")
    parser.add_argument("queries", type=Path, help="JSON Lines with the key query.")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--refine", type=int, default=20)
    arguments = parser.parse_args()
    queries = read_queries(arguments.queries)
    requests = [request_of(query, arguments.refine) for query in queries]
    connect = partial(connected, arguments.address)
    counted = partial(batches, arguments.address)
    print(HEAD)
    for clients in arguments.clients:
        load = put_load(connect, requests, clients, arguments.seconds, counted)
        print(load.line(), flush=True)


if __name__ == "__main__":
    main()
