"""The HTTP API and the page. Knows neither Ray nor torch."""

# No postponed annotations here: FastAPI has to see the request model that `create_api` builds.
import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import Depends, FastAPI, Query, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import Scope

from tandem.class_names import ClassNames
from tandem.images import Codec
from tandem.version import __version__
from tandem_workers.endpoint.answers import respond
from tandem_workers.endpoint.edit_api import add_edit_routes
from tandem_workers.endpoint.gateway import Gateway
from tandem_workers.endpoint.middleware import (
    AllowHosts,
    AnswerFaults,
    CountRequests,
    LimitBody,
    NameRequest,
    NoSniff,
    OneSpelling,
    RequireKey,
    cors_options,
)
from tandem_workers.requests.api_errors import ApiError, install_handlers, wrong_value
from tandem_workers.requests.api_schema import (
    IMAGE_STREAM,
    IMAGES,
    MAX_PROMPT,
    ClassList,
    ClassName,
    Defaults,
    Health,
    ImageBody,
    ImagesResponse,
    Model,
    ModelList,
    body_of,
    sampling_fields,
)
from tandem_workers.requests.lenient import lenient_body_of
from tandem_workers.requests.openapi import EVENTS, complete, declared, operation_id, stream_of
from tandem_workers.requests.request_check import Asked
from tandem_workers.requests.stream_schema import stream_body_of

PAGE = Path(__file__).with_name("page")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
MAX_CLASSES = 1000
AS_JSON: dict[str, Any] = {"response_model": ImagesResponse, "response_model_exclude_none": True}  # of a route


class PageFiles(StaticFiles):
    """The page's files, with headers that keep other sites out."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(405, headers={"Allow": "GET, HEAD"})
        return await super().get_response(path, scope)

    def file_response(self, *args: Any, **kwargs: Any) -> Any:
        response = super().file_response(*args, **kwargs)
        response.headers.update(PAGE_HEADERS)
        return response


async def make_images(gateway: Gateway, body: ImageBody, http: Request, deployment: str | None = None) -> Any:
    """Answer a request for images. `deployment` is the model as Azure OpenAI's paths name it."""
    base = gateway.link_base(http) if body.response_format == "url" else None
    # in a thread, because finding the nearest of a thousand names takes time
    request, notes = await asyncio.to_thread(gateway.requests.check, body, deployment)
    return await respond(gateway, Asked(request, base, tuple(notes)), body.stream)


def create_api(gateway: Gateway, proxied: bool = False) -> FastAPI:
    """The ASGI application. `proxied`: a proxy in front of it names requests (X-Request-ID)."""
    settings, about = gateway.settings, gateway.about
    lenient = lenient_body_of if settings.lenient else None
    image_body: Any = (lenient or body_of)(about, settings.max_n)
    stream_body: Any = stream_body_of(lenient(about, settings.max_n, streams=True) if lenient else image_body)
    app = FastAPI(
        title="Tandem",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=operation_id,
    )
    add_middleware(app, gateway, proxied)
    guards = [Depends(HTTPBearer(auto_error=False, description="an API key"))] if settings.key_digests else []

    @app.post(
        IMAGES,
        tags=["images"],
        dependencies=guards,
        **AS_JSON,
        responses=declared(401, 429),
    )
    async def create_image(body: image_body, http: Request) -> Any:
        """Make images of a class. With `stream: true` the answer is that of `stream_image`."""
        return await make_images(gateway, body, http)

    @app.post("/openai/v1/images/generations", include_in_schema=False, **AS_JSON)
    async def create_image_as_azure(body: image_body, http: Request) -> Any:
        return await make_images(gateway, body, http)

    @app.post("/openai/deployments/{model:path}/images/generations", include_in_schema=False, **AS_JSON)
    async def create_image_by_deployment(model: str, body: image_body, http: Request) -> Any:
        return await make_images(gateway, body, http, model)

    @app.get("/files/{name}", include_in_schema=False)
    async def show_file(name: str) -> Response:
        link = gateway.linked.signer.read(name)
        data = await gateway.linked.file(link)
        headers = {"Cache-Control": f"private, max-age={max(0, link.expires - int(time.time()))}"}
        return Response(data, media_type=f"image/{link.request.codec}", headers=headers)

    @app.post(
        IMAGE_STREAM,
        tags=["images"],
        dependencies=guards,
        response_class=StreamingResponse,
        responses={200: stream_of(EVENTS), **declared(401, 429)},
    )
    async def stream_image(body: stream_body, http: Request) -> Any:
        """Make images of a class, as server-sent events: previews, then each image."""
        return await make_images(gateway, body.model_copy(update={"stream": True}), http)

    add_edit_routes(app, gateway, guards)

    def problems(request: Request, values: Mapping[str, Any]) -> list[ApiError]:
        streams = request.scope["endpoint"] is stream_image
        return gateway.requests.problems_of({**values, "stream": True} if streams else values)

    install_handlers(app, problems)

    model = Model(
        id=about.model_id,
        created=about.created,
        image_size=about.image_size,
        num_scales=about.num_scales,
        patch_nums=list(about.patch_nums),
        num_classes=len(about.class_names),
        defaults=Defaults(draft_steps=about.draft_steps, **sampling_fields(about.sampling)),
        max_n=settings.max_n,
        batch=settings.batch,
        output_formats=list(get_args(Codec)),
        stores_urls=settings.publish is not None,
        sha256=about.sha256,
        fine_tuned=dict(about.fine_tuned),
    )

    @app.get("/openai/v1/models", include_in_schema=False)
    @app.get("/v1/models", tags=["models"], dependencies=guards, responses=declared(401))
    async def list_models() -> ModelList:
        """The one pair of models behind this server."""
        return ModelList(data=[model])

    @app.get("/openai/v1/models/{model_id:path}", include_in_schema=False)
    @app.get("/v1/models/{model_id:path}", tags=["models"], dependencies=guards, responses=declared(401, 404))
    async def get_model(model_id: str) -> Model:
        """One model by its id."""
        if model_id != model.id:
            raise wrong_value("model", repr(model.id), model_id, "model_not_found", status=404)
        return model

    @app.get(
        "/v1/classes", tags=["classes"], dependencies=guards, responses=declared(401), response_model_exclude_none=True
    )
    async def list_classes(
        query: Annotated[str, Query(max_length=MAX_PROMPT, description="part of a name, an id, or a number")] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_CLASSES)] = 100,
    ) -> ClassList:
        """Classes by name, synonym or WordNet id, best matches first; without a query all of them."""
        names = about.class_names
        found = names.matching(query)
        return ClassList(data=[describe_class(label, names) for label in found[:limit]], total=len(found))

    # of two routes the lower one answers, so that Allow has both methods; the upper one is in the document
    @app.get("/healthz", tags=["health"], responses=declared())
    @app.api_route("/healthz", methods=["GET", "HEAD"], include_in_schema=False)
    async def check_health() -> Health:
        """Whether the server is running."""
        return Health()

    @app.get("/readyz", tags=["health"], responses=declared())
    @app.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)
    async def check_ready() -> Health:
        """Whether the server can make images now."""
        await gateway.check_ready()
        return Health()

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=PAGE_HEADERS)

    app.mount("/page", PageFiles(directory=PAGE))
    complete(app)
    return app


def add_middleware(app: FastAPI, gateway: Gateway, proxied: bool) -> None:
    """What a request passes, from the innermost: a key is looked at before a body is awaited."""
    settings = gateway.settings
    app.add_middleware(LimitBody, limit=settings.body)
    app.add_middleware(RequireKey, digests=settings.key_digests)
    app.add_middleware(OneSpelling)
    app.add_middleware(AllowHosts, allowed=settings.allowed_hosts)
    app.add_middleware(AnswerFaults)
    if settings.origins:
        app.add_middleware(CORSMiddleware, **cors_options(settings.origins))
    app.add_middleware(NoSniff)
    app.add_middleware(CountRequests, count=gateway.watcher.answered)
    if not proxied:
        app.add_middleware(NameRequest)


def describe_class(label: int, names: ClassNames) -> ClassName:
    synonyms = [text for text in names.synonyms(label) if text != names[label]]
    return ClassName(id=label, name=names[label], synonyms=synonyms, wnid=names.wnids[label] if names.wnids else None)
