"""The routes for orchestrators and monitors: alive, ready, metrics."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from .metrics import CONTENT_TYPE
from .schemas import PROBLEM
from .service import Current

router = APIRouter(tags=["health"])


@router.head("/health/live", include_in_schema=False)
@router.get("/health/live", summary="Is the process alive?")
async def live() -> dict[str, str]:
    """Answer 200 as long as the process answers at all."""
    return {"status": "alive"}


@router.head("/health/ready", include_in_schema=False)
@router.get("/health/ready", summary="Can it search?", responses={503: PROBLEM})
async def ready(service: Current) -> dict[str, str]:
    """Answer 200 once the models are loaded and warm, 503 before and while the service ends."""
    service.check_ready()
    return {"status": "ready"}


@router.get("/metrics", summary="Metrics for Prometheus", response_class=Response)
def metrics(service: Current) -> Response:
    """Return counters, gauges and histograms in the text format of Prometheus."""
    return Response(service.metrics.text(), media_type=CONTENT_TYPE)
