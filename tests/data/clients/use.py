"""Uses the package that openapi-python-client has generated. Arguments: the server's address and a key.

Prints what was parsed, as JSON.
"""

import json
import sys

from tandem_client import AuthenticatedClient, Client
from tandem_client.api.images import create_image, stream_image
from tandem_client.api.models import list_models
from tandem_client.models import (
    CompletedEvent,
    ErrorBody,
    ErrorEvent,
    ImageGenerationRequest,
    ImagesResponse,
    ImageStreamRequest,
    ModelList,
    PartialImageEvent,
)

EVENTS = {
    "image_generation.partial_image": PartialImageEvent,
    "image_generation.completed": CompletedEvent,
    "error": ErrorEvent,
}

url, key = sys.argv[1:]
client, stranger = AuthenticatedClient(base_url=url, token=key), Client(base_url=url)

made = create_image.sync(client=client, body=ImageGenerationRequest(prompt="dog", seed=5, n=2))
assert isinstance(made, ImagesResponse), made
text = stream_image.sync(client=client, body=ImageStreamRequest(prompt="dog", seed=5, preview_scales=[1, 3]))
assert isinstance(text, str), text
events = []
for block in text.strip().split("\n\n"):
    data = json.loads(block.split("\ndata: ")[1])
    event = EVENTS[data["type"]].from_dict(data)
    is_preview = isinstance(event, PartialImageEvent)
    events.append([event.type_, event.scale if is_preview else event.tandem.class_name])
wrong = create_image.sync_detailed(client=client, body=ImageGenerationRequest(prompt="dog", cfg=-1))
refused = list_models.sync_detailed(client=stranger)
assert isinstance(wrong.parsed, ErrorBody) and isinstance(refused.parsed, ErrorBody)
models = list_models.sync(client=client)
assert isinstance(models, ModelList), models

print(
    json.dumps(
        {
            "images": [image.b64_json for image in made.data],
            "class": made.tandem.class_name,
            "events": events,
            "wrong": [wrong.status_code, wrong.parsed.error.param],
            "refused": [refused.status_code, refused.parsed.error.code],
            "models": [model.id for model in models.data],
        }
    )
)
