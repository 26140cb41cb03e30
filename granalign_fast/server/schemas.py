"""The JSON of requests and answers as pydantic models, which check requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

VERSION = "1"
"""The version of the JSON. It changes when a key goes or changes its meaning."""

Text = Annotated[str, Field(min_length=1, max_length=4000)]
Texts = Annotated[list[Text], Field(max_length=64)]
Name = Annotated[str, Field(min_length=1, max_length=4096)]
Names = Annotated[list[Name], Field(max_length=1000)]


class Strict(BaseModel):
    """A request, in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class GivenRewrites(Strict):
    """A query with rewrites of the client's own; it is not rewritten."""

    query: Text
    simplified: Texts = []
    detailed: Texts = []
    entities: Texts = []
    actions: Texts = []


def _query_kind(value: Any) -> str:
    """Return which of the two kinds of query a value is meant to be."""
    return "object" if isinstance(value, dict | GivenRewrites) else "text"


# With a discriminator an error names what is wrong with the kind that was sent, and not why the
# value is not of the other kind.
Query = Annotated[
    Annotated[Text, Tag("text")] | Annotated[GivenRewrites, Tag("object")],
    Discriminator(_query_kind),
]


class GivenFilters(Strict):
    """Which videos are searched; without any, all are."""

    videos: Names = Field([], description="Ids, file names, or patterns such as 'GX*'.")
    tags: Names = Field([], description="A video must have all of them.")
    after: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Made on this date or later: 2026-06-01, or a time in ISO 8601."
    )
    before: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Made before this date."
    )
    min_length: float = Field(0.0, ge=0, description="Seconds that a video must have.")


class SearchRequest(Strict):
    """A search of the library by one query or several."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "a red car on the road", "top": 5},
                {"queries": ["a dog runs", "two people talk"], "filters": {"tags": ["holiday"]}},
                {"query": "a red car on the road", "stream": True, "saliency": True},
            ]
        },
    )

    query: Query | None = Field(None, description="One query.")
    queries: list[Query] | None = Field(
        None, description="Several queries, in the place of `query`."
    )
    top: int = Field(10, ge=1, description="Most moments of each answer.")
    refine: int = Field(20, ge=0, description="How many videos the method searches.")
    budget: float | None = Field(
        None, ge=0, description="Seconds after which no further video is searched by the method."
    )
    preset: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="A preset of GET /v1; null for the service's own."
    )
    filters: GivenFilters = Field(default_factory=lambda: GivenFilters.model_validate({}))
    stream: bool = Field(
        False, description="Answer by events: the first stage at once, then better answers."
    )
    saliency: bool = Field(
        False, description="Give the score of every clip of each video that was refined."
    )
    timeout: float | None = Field(
        None, gt=0, description="Seconds after which the answer is of no use any more."
    )


class Record(BaseModel):
    """An object of an answer; further keys may be added in later versions."""


class Units(Record):
    """The units of an answer."""

    time: Literal["second"] = "second"
    score: Literal["cosine and share of words"] = "cosine and share of words"


class Model(Record):
    """A model that answered."""

    name: str
    sha256: str = Field(description="Of its source.")


class Rewritten(Record):
    """The query and its rewrites."""

    query: str
    simplified: list[str]
    detailed: list[str]
    entities: list[str]
    actions: list[str]
    fallbacks: int = Field(description="Rewrites that are the query itself.")


class FoundMoment(Record):
    """A moment of a video."""

    vid: str = Field(description="Id of the video.")
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    score: float = Field(description="Higher is better, also between videos.")
    refined: bool = Field(description="Whether the method has searched the video.")
    exists: float | None = Field(
        description="How likely the video shows the query, 0 to 1; null if no model has judged it."
    )
    caption: str = Field(description="Caption of its best clip.")


class FoundVideo(Record):
    """A video, by the first stage."""

    vid: str
    file: str | None = Field(description="Name of its file; null for captions alone.")
    score: float
    start: float = Field(description="Of its best stretch, in seconds.")
    end: float = Field(description="Of its best stretch, in seconds.")
    seconds: float = Field(description="Length of the video.")
    refined: bool
    exists: float | None
    probably_absent: bool | None = Field(
        description="Whether it probably does not show the query; null if no model has judged it."
    )
    clip_seconds: float
    saliency: list[float] | None = Field(
        description="The score of every clip, 0 to 1; null unless asked for, or not refined."
    )


class Result(Record):
    """The answer to one query."""

    query: str
    rewrites: Rewritten
    searched: int = Field(description="Videos that the first stage compared.")
    left_out: dict[str, int] = Field(description="How many videos were not, by the reason.")
    complete: bool = Field(description="Whether the second stage reached all that it was to.")
    probably_absent: bool = Field(description="Whether probably none of the videos shows it.")
    warnings: list[str]
    moments: list[FoundMoment]
    videos: list[FoundVideo]
    seconds: dict[str, float] = Field(
        description="Duration of each stage: embed, first_stage, refine; of the whole batch."
    )


class SearchAnswer(Record):
    """The answers to the queries of a request, in their order."""

    version: str = Field(VERSION, description="Of this JSON.")
    software: str = Field(description="Name and version of the service.")
    units: Units
    preset: str
    models: dict[str, Model]
    results: list[Result]


class Video(Record):
    """A video of the library."""

    vid: str
    file: str | None = Field(description="Name of its file; null for captions alone.")
    seconds: float
    clips: int
    clip_seconds: float
    frames_per_clip: int
    date: str | None = Field(description="When it was made, in ISO 8601.")
    tags: list[str]
    models: dict[str, str] = Field(description="Models that made its index, by kind.")


class VideoList(Record):
    """The videos of the library, sorted by id."""

    version: str = VERSION
    total: int = Field(description="How many there are, whatever `offset` and `limit` are.")
    videos: list[Video]
    damaged: dict[str, str] = Field(description="Indexes that cannot be searched, and why.")


class ProblemRecord(Record):
    """Problem details (RFC 9457)."""

    type: str = Field(examples=["urn:granalign:problem:too-many"])
    title: str
    status: int
    detail: str
    request_id: str


PROBLEM: dict[str, Any] = {
    "description": "A problem (RFC 9457).",
    "content": {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemRecord"}}
    },
}


class PathRequest(Strict):
    """A video file below a folder that the service was started with."""

    path: Name = Field(description="From the folder on, or absolute inside it.")
    tags: Names = []


class JobRecord(Record):
    """A video that is taken in."""

    id: str
    state: Literal["receiving", "queued", "indexing", "done", "failed", "cancelled"]
    name: str = Field(description="Of the video file.")
    vid: str | None = Field(description="Id of the video, once the state is done.")
    done: int = Field(description="Clips that are indexed; bytes, while it is received.")
    total: int | None = Field(description="Clips that are to be, or bytes; null if unknown.")
    unit: Literal["byte", "clip"] = Field(description="Of `done` and `total`.")
    error: str | None = Field(description="Why it failed.")
    tags: list[str]
    created: str = Field(description="ISO 8601.")
    changed: str = Field(description="When the state changed last, in ISO 8601.")


class JobList(Record):
    """Jobs, the newest first."""

    version: str = VERSION
    jobs: list[JobRecord]
