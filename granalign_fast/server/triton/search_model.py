"""The search of a library in Triton's Python back end: queries in, moments out.

Triton joins the queries of several requests into a batch. Those with equal options are searched
together. Texts are embedded by models of the same server.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from granalign_fast.errors import GranAlignError, one_line, short_repr
from granalign_fast.library import LibraryResult
from granalign_fast.parsing.json_values import parse_json
from granalign_fast.pipeline import models_folder
from granalign_fast.server.batcher import Options
from granalign_fast.server.engine import Engine
from granalign_fast.server.queries import options_of, queries_of
from granalign_fast.server.records import search_answer
from granalign_fast.server.schemas import SearchRequest
from granalign_fast.server.settings import Settings
from granalign_fast.types import Rewrites

from .models import TritonModels

OPTIONS = ("top", "refine", "budget", "preset", "filters", "saliency", "rewrites")
"""Keys of the input ``options``: of POST /v1/search, and rewrites of the client's own."""
_REFRESH_SECONDS = 5.0
"""Seconds after which the next batch looks for new indexes."""
_NO_OPTIONS = b"{}"

_log = logging.getLogger(__name__)


class Query(NamedTuple):
    """A query of a request, with what it asks for."""

    query: str | Rewrites
    options: Options
    saliency: bool


class TritonPythonModel:
    """A library that Triton's clients search.

    Triton calls `initialize` once, and `execute` with the requests of a batch. Each request has
    rows of queries, UTF-8 texts ``query`` (rows, 1), and perhaps JSON objects ``options``
    (rows, 1).
    """

    def initialize(self, args: dict[str, str]) -> None:
        """Open the library and the models that the configuration names.

        Args:
            args: of Triton: the configuration, and the folder of the model.
        """
        config = json.loads(args["model_config"])
        given = {key: value["string_value"] for key, value in config["parameters"].items()}
        device = given.get("device", "cpu")
        folder = models_folder(given["models"]) if "models" in given else None
        models = TritonModels(Path(args["model_repository"]).parent, folder, device=device)
        settings = Settings(
            library=Path(given["library"]),
            device=device,
            preset=given.get("preset"),
            captions_only=given.get("captions_only") == "true",
        )
        self._engine = Engine(settings, models)
        # The encoders may not be there yet, as the server loads its models in any order.
        self._engine.open(warm_up=False)
        self._refreshed = time.monotonic()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Search the queries of all requests, those with equal options together."""
        import triton_python_backend_utils as pb_utils

        self._refresh()
        queries: list[Query] = []
        spans: list[range | GranAlignError] = []
        for request in requests:
            try:
                read = self._read(request)
            except GranAlignError as error:
                spans.append(error)
                continue
            spans.append(range(len(queries), len(queries) + len(read)))
            queries += read
        results = self._search(queries)
        responses = []
        for request, span in zip(requests, spans, strict=True):
            try:
                if isinstance(span, GranAlignError):
                    raise span
                rows = [self._found(results[number]) for number in span]
                arrays = self._arrays([queries[number] for number in span], rows)
            except GranAlignError as error:
                refusal = pb_utils.TritonError(str(error), pb_utils.TritonError.INVALID_ARG)
                responses.append(pb_utils.InferenceResponse(error=refusal))
                continue
            wanted = set(request.requested_output_names())
            tensors = [pb_utils.Tensor(*each) for each in arrays.items() if each[0] in wanted]
            responses.append(pb_utils.InferenceResponse(tensors))
        return responses

    def _refresh(self) -> None:
        """Take up indexes that came, went or changed."""
        if time.monotonic() > self._refreshed + _REFRESH_SECONDS:
            self._engine.refresh()
            self._engine.take_catalogue()
            self._refreshed = time.monotonic()

    def _read(self, request: Any) -> list[Query]:
        """Return the queries of a request.

        Raises:
            GranAlignError: one cannot be read, or an option is not known or out of range.
        """
        import triton_python_backend_utils as pb_utils

        texts = pb_utils.get_input_tensor_by_name(request, "query").as_numpy().ravel()
        options = pb_utils.get_input_tensor_by_name(request, "options")
        given = [_NO_OPTIONS] * len(texts) if options is None else options.as_numpy().ravel()
        return [self._query(*each) for each in zip(texts, given, strict=True)]

    def _query(self, text: bytes, options: bytes) -> Query:
        """Return one query."""
        try:
            query = text.decode()
            record = parse_json(options or _NO_OPTIONS, unique_keys=True)
        except ValueError as error:
            raise GranAlignError(
                f"query, options: got {one_line(error)}, expected a text in UTF-8 and JSON"
            ) from None
        if not isinstance(record, dict) or not set(record) <= set(OPTIONS):
            raise GranAlignError(
                f"options: got {short_repr(record)}, expected an object with keys of "
                f"{', '.join(OPTIONS)}"
            )
        rewrites = record.pop("rewrites", None)
        if rewrites is not None and not isinstance(rewrites, dict):
            raise GranAlignError(f"rewrites: got {short_repr(rewrites)}, expected an object")
        asked = query if rewrites is None else {**rewrites, "query": query}
        try:
            body = SearchRequest.model_validate({**record, "query": asked})
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(map(str, first["loc"]))
            raise GranAlignError(
                f"{at}: {first['msg']}, got {short_repr(first['input'])}"
            ) from None
        (read,) = queries_of(body, self._engine)
        return Query(read, options_of(body, self._engine), body.saliency)

    def _search(self, queries: Sequence[Query]) -> list[LibraryResult | GranAlignError]:
        """Search the queries, those with equal options together."""
        groups: dict[Options, list[int]] = {}
        for number, query in enumerate(queries):
            groups.setdefault(query.options, []).append(number)
        found: dict[int, LibraryResult | GranAlignError] = {}
        for options, numbers in groups.items():
            texts = [queries[number].query for number in numbers]
            found |= zip(numbers, self._search_group(options, texts), strict=True)
        return [found[number] for number in range(len(queries))]

    def _search_group(
        self, options: Options, texts: Sequence[str | Rewrites]
    ) -> list[LibraryResult | GranAlignError]:
        library = self._engine.library(options.preset)
        filters = options.filters
        top, refine = options.top, options.refine
        try:
            if options.budget is None:
                return library.search_many(
                    texts, top=top, refine=refine, filters=filters, return_errors=True
                )
            # A budget is of one query, which others must not use up.
            budget = options.budget
            return [
                library.search(text, top=top, refine=refine, budget=budget, filters=filters)
                for text in texts
            ]
        except GranAlignError as error:
            return [error for _ in texts]
        except Exception:
            _log.exception("a search failed")
            failure = GranAlignError("the search failed; the log of the server says why")
            return [failure for _ in texts]

    def _found(self, result: LibraryResult | GranAlignError) -> LibraryResult:
        if isinstance(result, GranAlignError):
            raise result
        return result

    def _arrays(
        self, queries: Sequence[Query], results: Sequence[LibraryResult]
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of a request.

        Returns:
            ``answer`` (rows, 1): the JSON of POST /v1/search of one query. ``count`` (rows, 1):
            moments of each query. ``videos`` (rows, most): their ids. ``moments`` (rows, most, 3):
            start and end in seconds, and score. Behind a row's count there is "" and 0.
        """
        most = max(len(result.moments) for result in results)
        moments = np.zeros((len(results), most, 3))
        videos = np.full((len(results), most), b"", object)
        answers = []
        for row, (query, result) in enumerate(zip(queries, results, strict=True)):
            for place, moment in enumerate(result.moments):
                moments[row, place] = moment.start, moment.end, moment.score
                videos[row, place] = moment.vid.encode()
            answer = search_answer(
                self._engine, query.options.preset, [result], saliency=query.saliency
            )
            answers.append([json.dumps(answer).encode()])
        return {
            "answer": np.array(answers, object),
            "count": np.array([[len(result.moments)] for result in results], np.int32),
            "videos": videos,
            "moments": moments,
        }
