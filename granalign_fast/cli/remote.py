"""Models on servers in commands: their options, and the models of a folder, on servers, or both."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from granalign_fast.errors import GranAlignError

if TYPE_CHECKING:
    from granalign_fast.pipeline import ModelFolder

RemoteOptions = dict[str, Any]
"""The values of the options of servers: arguments of `RemoteModels`."""

LlmUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A server with OpenAI's chat API, such as http://localhost:8000/v1, whose model "
        "rewrites queries. Key: GRANALIGN_LLM_API_KEY in the environment.",
    ),
]
VlmUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The same for the model that looks at frames. Key: GRANALIGN_VLM_API_KEY.",
    ),
]
EmbedUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="A server that embeds captions and queries: OpenAI's API, or TEI's if the URL ends "
        "in /embed. Key: GRANALIGN_EMBED_API_KEY.",
    ),
]
LlmModel = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The model at --llm-url. Default: the only one that the server has."
    ),
]
VlmModel = Annotated[
    str | None, typer.Option(metavar="NAME", help="The model at --vlm-url. Default: the only one.")
]
EmbedModel = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The model at --embed-url. Default: the only one."),
]
RemoteRequests = Annotated[
    int, typer.Option(min=1, help="Requests to each server at a time, at most.")
]
RemoteTimeout = Annotated[
    float,
    typer.Option(
        metavar="SECONDS", help="Time of a request to a server, with all its repetitions."
    ),
]


_OPTIONS: dict[str, tuple[Any, Any]] = {
    "llm_url": (LlmUrl, None),
    "vlm_url": (VlmUrl, None),
    "embed_url": (EmbedUrl, None),
    "llm_model": (LlmModel, None),
    "vlm_model": (VlmModel, None),
    "embed_model": (EmbedModel, None),
    "remote_requests": (RemoteRequests, 8),
    "remote_timeout": (RemoteTimeout, 120.0),
}
"""The annotation and the default of each option."""


def with_remote_models(command: Callable[..., Any]) -> Callable[..., Any]:
    """Return the command with the options of servers in the place of its argument `remote`.

    They are added here, not in the signature of each command, because all of them have the same.
    """

    @functools.wraps(command)
    def run(*args: Any, **options: Any) -> Any:
        chosen = {name: options.pop(name, default) for name, (_, default) in _OPTIONS.items()}
        return command(*args, remote=chosen, **options)

    signature = inspect.signature(command, eval_str=True)
    keyword = functools.partial(inspect.Parameter, kind=inspect.Parameter.KEYWORD_ONLY)
    kept = [one for one in signature.parameters.values() if one.name != "remote"]
    added = [
        keyword(name, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    # Typer reads the options from these two attributes.
    run.__signature__ = signature.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*kept, *added]}
    return run


def served_options(remote: RemoteOptions | None) -> RemoteOptions | None:
    """Return the arguments of `RemoteModels`; None if the options name no server."""
    options = {name.removeprefix("remote_"): value for name, value in (remote or {}).items()}
    if any(options.get(f"{role}_{part}") for role in _ROLES for part in ("url", "model")):
        return options
    return None


def open_chosen(
    models: Path | None,
    remote: RemoteOptions | None,
    *,
    device: str,
    prefix_gib: float,
    encoder: str | None = None,
) -> ModelFolder | None:
    """Return the models that options choose; None if they choose none.

    Args:
        models: the value of ``--models``.
        remote: the options of servers.
        device: of the folder's models.
        prefix_gib: as for `open_models`.
        encoder: the value of an option that replaces the sentence encoder.

    Raises:
        GranAlignError: a folder or a server cannot be used, or two options exclude each other.
    """
    from granalign_fast.pipeline import open_models

    servers, options = None, served_options(remote)
    if options is not None:
        from granalign_fast.language.remote_models import RemoteModels

        servers = RemoteModels(**options)
        if options["embed_url"] and encoder is not None:
            raise GranAlignError(
                f"--embed-url: got another sentence encoder as well, {encoder}, expected one; "
                f"leave --encoder and --precision out"
            )
    if models is None and servers is None:
        return None
    return open_models(models, device=device, prefix_gib=prefix_gib, remote=servers)


_ROLES = ("llm", "vlm", "embed")
