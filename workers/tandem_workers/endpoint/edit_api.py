"""The routes of edits and variations. Knows neither Ray nor torch."""

# No postponed annotations here, as in `endpoint.api`
import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse

from tandem_workers.endpoint.answers import respond
from tandem_workers.endpoint.gateway import Gateway
from tandem_workers.requests.api_schema import ImagesResponse
from tandem_workers.requests.edit_check import EditCheck
from tandem_workers.requests.edit_schema import EDIT_STREAM, EDITS, VARIATIONS
from tandem_workers.requests.form import read_form
from tandem_workers.requests.openapi import EDIT_EVENTS, declared, form_of, stream_of
from tandem_workers.requests.request_check import Asked

AS_JSON: dict[str, Any] = {"response_model": ImagesResponse, "response_model_exclude_none": True}  # of a route


def add_edit_routes(app: FastAPI, gateway: Gateway, guards: Sequence[Any]) -> None:
    """`guards`: what routes depend on if keys are required."""

    async def make(check: EditCheck, http: Request, streams: bool = False, deployment: str | None = None) -> Any:
        with gateway.admission.admit(0):  # a full server reads no pictures
            form = await read_form(http, check.model.model_fields, check.files)
            await http.close()  # its files are in `form`
            async with gateway.reading:  # decoding takes memory and time
                request, body, notes = await asyncio.to_thread(check.check, form, streams, deployment)
        del form
        base = gateway.link_base(http) if body.response_format == "url" else None
        return await respond(gateway, Asked(request, base, tuple(notes)), body.stream)

    edits, variations = gateway.edits, gateway.variations
    documented: dict[str, Any] = {"tags": ["images"], "dependencies": list(guards)}

    @app.post(EDITS, **documented, **AS_JSON, responses=declared(401, 429), openapi_extra=form_of(edits))
    async def edit_image(http: Request) -> Any:
        """Draw parts of a picture anew, as images of a class. With `stream: true` the answer is as of `stream_edit`."""
        return await make(edits, http)

    @app.post(
        EDIT_STREAM,
        **documented,
        response_class=StreamingResponse,
        responses={200: stream_of(EDIT_EVENTS), **declared(401, 429)},
        openapi_extra=form_of(edits, streams=True),
    )
    async def stream_edit(http: Request) -> Any:
        """Draw parts of a picture anew, as server-sent events: previews, then each image."""
        return await make(edits, http, streams=True)

    @app.post(VARIATIONS, **documented, **AS_JSON, responses=declared(401, 429), openapi_extra=form_of(variations))
    async def vary_image(http: Request) -> Any:
        """Make images like a picture: its coarse scales are kept, its fine ones drawn anew."""
        return await make(variations, http)

    def answer_azure(name: str, check: EditCheck) -> None:
        @app.post(f"/openai/v1/images/{name}", include_in_schema=False, **AS_JSON)
        async def as_azure(http: Request) -> Any:
            return await make(check, http)

        @app.post(f"/openai/deployments/{{model:path}}/images/{name}", include_in_schema=False, **AS_JSON)
        async def by_deployment(model: str, http: Request) -> Any:
            return await make(check, http, deployment=model)

    answer_azure("edits", edits)
    answer_azure("variations", variations)
